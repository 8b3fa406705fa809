import json
from typing import Any

import numpy as np
import pytest

from vcinr_batch.data.axes import Axis
from vcinr_batch.data.normalizer import Normalizer, normalizer_from_arrays, normalizer_to_arrays
from vcinr_batch.errors import ConfigError, CorruptBitstreamError

AXES = (Axis("level", np.array([850, 500])), Axis("lat", np.array([52.0, 51.0, 50.0])), Axis("lon", np.arange(4.0)))


def normalizer(**changes: Any) -> Normalizer:
    random = np.random.default_rng(0)
    parts: dict[str, Any] = {
        "variable": "t",
        "unit": "K",
        "axes": AXES,
        "background": random.normal(270, 9, (6, 2, 3, 4)).astype(np.float32),
        "hours": 2,
        "seasons": 3,
        "offset": 270.1,
        "scale": random.uniform(1, 2, (2, 1, 1)).astype(np.float32),
        "value_range": random.uniform(20, 30, (2, 1, 1)).astype(np.float32),
        "mask": random.uniform(size=(2, 3, 4)) < 0.7,
    }
    return Normalizer(**{**parts, **changes})


@pytest.mark.parametrize("changes", [{}, {"mask": None}, {"background": None}])
def test_a_normaliser_survives_its_stored_form(changes: dict[str, Any]) -> None:
    original = normalizer(**changes)
    content, arrays = normalizer_to_arrays(original)
    read = normalizer_from_arrays(json.loads(json.dumps(content)), arrays)
    for name, value in vars(original).items():
        if name == "axes":
            assert all(np.array_equal(a.values, b.values) for a, b in zip(read.axes, original.axes, strict=True))
        else:
            assert np.array_equal(getattr(read, name), value), name


def test_the_mask_takes_one_bit_per_cell() -> None:
    assert normalizer_to_arrays(normalizer())[1]["mask"].nbytes == 3


@pytest.mark.parametrize(
    ("content", "arrays"),
    [
        ({"variable": 3}, {}),
        ({"unit": None}, {}),
        ({"offset": float("inf")}, {}),
        ({"offset": "0"}, {}),
        ({"hours": 0}, {}),
        ({"hours": 3}, {}),
        ({"hours": 10**9, "seasons": 10**9}, {}),
        ({"axes": 1}, {}),
        ({"axes": [{"name": "x", "labels": ["a"]}] * 40}, {}),
        ({"axes": []}, {}),
        ({"more": 1}, {}),
        ({}, {"scale": None}),
        ({}, {"value_range": None}),
        ({}, {"scale": np.zeros((2, 1, 1), np.float32)}),
        ({}, {"scale": np.ones((2, 2, 1), np.float32)}),
        ({}, {"scale": np.ones((2, 1), np.float32)}),
        ({}, {"scale": np.ones((2, 1, 1))}),
        ({}, {"value_range": np.full((2, 1, 1), np.nan, np.float32)}),
        ({}, {"background": np.ones((6, 2, 3, 3), np.float32)}),
        ({}, {"mask": np.ones(2, np.uint8)}),
        ({}, {"mask": np.ones(3, np.int64)}),
    ],
)
def test_parts_that_are_no_normaliser_are_corrupt(content: dict[str, Any], arrays: dict[str, Any]) -> None:
    good_content, good_arrays = normalizer_to_arrays(normalizer())
    changed = {name: array for name, array in {**good_arrays, **arrays}.items() if array is not None}
    with pytest.raises(CorruptBitstreamError):
        normalizer_from_arrays({**good_content, **content}, changed)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"scale": -np.ones((2, 1, 1), np.float32)}, "scale and range must be positive"),
        ({"hours": 5}, r"background must have shape \(15, 2, 3, 4\), got \(6, 2, 3, 4\)"),
        ({"mask": np.ones((2, 3), bool)}, "mask must have shape"),
        (
            {"scale": np.ones((2, 2, 1)), "value_range": np.ones((2, 2, 1))},
            r"scale of shape \(2, 2, 1\) is not for \(2, 3, 4\)",
        ),
    ],
)
def test_an_impossible_normaliser_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        normalizer(**changes)
