import json
from typing import Any

import numpy as np
import pytest

from vcinr_batch.data.attributes_json import attributes_from_json, attributes_to_json
from vcinr_batch.errors import CorruptBitstreamError

DTYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


def through_json(value: Any) -> Any:
    text = json.dumps(attributes_to_json({"a": value}), allow_nan=False)
    return attributes_from_json(json.loads(text), "attributes")["a"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_keep_their_type_and_every_bit(dtype: str) -> None:
    limits = np.finfo(dtype) if dtype[0] == "f" else np.iinfo(dtype)
    extra = [0.1, np.nan, np.inf, -np.inf] if dtype[0] == "f" else []
    values = np.array([0, limits.min, limits.max, *extra], dtype)
    found = np.asarray(through_json(values))
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)
    for value in values:
        single = through_json(value)
        assert np.asarray(single).dtype == value.dtype
        np.testing.assert_array_equal(single, value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("K", "K"),
        (b"K", "K"),
        (7, 7),
        (True, True),
        (None, None),
        (np.float64(0.5), 0.5),
        (np.int64(5), 5),
        (np.array([1, 2]), [1, 2]),
        (np.array(1.5), 1.5),
        ([1.5, 2.5], [1.5, 2.5]),
        (["a", "b"], ["a", "b"]),
        (np.array(["a", "b"]), ["a", "b"]),
        ([1, "nan", float("nan")], [1, "nan", "nan"]),
        ([], []),
        ({"a": {"b": [np.int8(1)]}}, {"a": {"b": [1]}}),
    ],
)
def test_plain_values_are_plain_json(value: Any, expected: Any) -> None:
    assert attributes_to_json({"a": value}) == {"a": expected}
    assert through_json(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), {"dtype": "<f4", "data": 0.5}),
        (np.array([1, 2], ">i2"), {"dtype": "<i2", "data": [1, 2]}),
        ([1.5, float("inf")], {"dtype": "<f8", "data": [1.5, "inf"]}),
        (float("nan"), {"dtype": "<f8", "data": "nan"}),
        (np.array([], np.float64), {"dtype": "<f8", "data": []}),
        ({"dtype": "<f4", "data": 1}, {"dtype": "object", "data": {"dtype": "<f4", "data": 1}}),
    ],
)
def test_other_numbers_carry_their_type(value: Any, expected: Any) -> None:
    assert attributes_to_json({"a": value}) == {"a": expected}
    np.testing.assert_array_equal(through_json(value), value)


@pytest.mark.parametrize(
    "value",
    [
        {"dtype": "<f4", "data": [[1.0]]},
        {"dtype": "<f4", "data": "1.0"},
        {"dtype": "<f4", "data": 1e39},
        {"dtype": "<f4", "data": True},
        {"dtype": "|i1", "data": [128]},
        {"dtype": "|i1", "data": [1.0]},
        {"dtype": "<i2", "data": "nan"},
        {"dtype": "|O", "data": [1]},
        {"dtype": ["<f4"], "data": [1]},
        {"dtype": "object", "data": [1]},
        {"dtype": "<U9", "data": ["x"]},
        float("nan"),
        [[[[[[[[[1]]]]]]]]],
    ],
)
def test_what_is_no_attribute_is_refused(value: Any) -> None:
    with pytest.raises(CorruptBitstreamError, match="attributes"):
        attributes_from_json({"a": value}, "attributes")
