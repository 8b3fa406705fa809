"""Residual models from untrusted arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.codec.made_up_residual import make_arrays, make_model
from vcinr_batch.codec.residual_model import block_shape, residual_model_from_arrays, residual_model_to_arrays
from vcinr_batch.errors import ConfigError, CorruptBitstreamError

Arrays = dict[str, Any]


def test_a_model_comes_back_from_its_arrays() -> None:
    arrays = residual_model_to_arrays(make_model(np.random.default_rng(0), 12))
    again = residual_model_to_arrays(residual_model_from_arrays(arrays))
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)


def test_a_model_holds_integers_only() -> None:
    arrays = residual_model_to_arrays(make_model(np.random.default_rng(0), 12))
    assert all(np.issubdtype(array.dtype, np.integer) for array in arrays.values())


def put(name: str, place: Any, value: int) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name][place] = value

    return change


def replace(name: str, change: Callable[[Any], Any]) -> Callable[[Arrays], None]:
    def apply(arrays: Arrays) -> None:
        arrays[name] = change(arrays[name])

    return apply


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("cdf"),
        lambda arrays: arrays.update(more=np.zeros(1, np.int8)),
        put("sets", (0, 0), 2),
        put("set_scale", 0, 2),
        put("set_local", 1, 1),
        put("taps", 0, 0),
        put("taps", (0, 2), 1),
        put("taps", (0, 2), -5),
        put("spread", 0, 21),
        put("cdf", (0, 0), 1),
        put("cdf", (0, -1), 2**24 + 1),
        put("cdf", (0, 100), 2**23 - 1),
        put("scale_step", 0, 2**30),
        put("first_step", 0, -(2**31)),
        replace("weights", lambda array: array.astype(np.int32)),
        replace("local", lambda array: array[:, :-1]),
        replace("scale", lambda array: array[:0]),
        replace("context", lambda array: array[:, :-1]),
        replace("level_shift", lambda array: array[:-1]),
        replace("sets", lambda array: array[:, :0]),
        replace("taps", lambda array: array[:0]),
    ],
)
def test_arrays_that_make_no_model_are_corrupt(change: Callable[[Arrays], None]) -> None:
    arrays = make_arrays(np.random.default_rng(1), 12)
    change(arrays)
    with pytest.raises(CorruptBitstreamError, match="residual model"):
        residual_model_from_arrays(arrays)


def test_a_level_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="levels 0 to 2"):
        make_model(np.random.default_rng(2), 12).set_of(3, 0)


@pytest.mark.parametrize(
    ("shape", "block"),
    [((1, 33, 49), (1, 33, 49)), ((7,), (1, 1, 7)), ((24, 1, 5, 1, 6), (24, 5, 6)), ((1, 1), (1, 1, 1))],
)
def test_the_last_long_axes_are_rows_and_columns(shape: tuple[int, ...], block: tuple[int, int, int]) -> None:
    assert block_shape(shape) == block
