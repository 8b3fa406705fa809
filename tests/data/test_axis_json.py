import base64
import json
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcinr_batch.data.axes import Axis, make_axis
from vcinr_batch.data.axis_json import axis_from_json, axis_to_json
from vcinr_batch.errors import CorruptBitstreamError

SECONDS = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}


def through_json(axis: Axis) -> tuple[Axis, int]:
    text = json.dumps(axis_to_json(axis), separators=(",", ":"), allow_nan=False)
    return axis_from_json(json.loads(text)), len(text)


@pytest.mark.parametrize(
    ("axis", "at_most_characters"),
    [
        (Axis("time", 3600 * np.arange(100_000), SECONDS), 180),
        (Axis("latitude", np.linspace(90, -90, 721)), 90),
        (Axis("longitude", np.arange(1440) * 0.25), 90),
        (Axis("longitude", np.round(np.arange(3600) * 0.1, 1)), 105),
        (Axis("latitude", np.round(-89.95 + np.arange(1800) * 0.1, 2)), 110),
        (Axis("level", np.array([850.0])), 85),
        (Axis("level", np.array([1000, 850, 500])), 120),
        (Axis("member", np.array(["r1i1p1", "ä,="])), 60),
        # 30 and 31 days: one of few gaps per month
        (Axis("time", np.cumsum(np.tile([30, 31], 180)) * 86400, SECONDS), 220),
        (make_axis("lat", np.linspace(-90, 90, 73), {"units": "degrees_north", "n": [1, 2.5, None, {"a": True}]}), 260),
        (make_axis("lon", np.arange(-180, 180, 7.5), {}), 160),
    ],
)
def test_labels_come_back_exactly_and_are_short(axis: Axis, at_most_characters: int) -> None:
    read, characters = through_json(axis)
    assert characters <= at_most_characters
    assert read.name == axis.name
    assert read.attributes == axis.attributes
    for got, expected in ((read.values, axis.values), (read.source_values, axis.source_values)):
        assert (got is None) == (expected is None)
        if expected is not None and got is not None:
            assert got.dtype == expected.dtype
            assert np.array_equal(got, expected)


@given(
    st.one_of(
        st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1).map(lambda x: np.array(x, np.float64)),
        st.lists(st.integers(-(2**62), 2**62), min_size=1).map(lambda x: np.array(x, np.int64)),
        st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1).map(
            lambda x: np.array(x, str)
        ),
    )
)
def test_any_labels_come_back_exactly(values: Any) -> None:
    read, _ = through_json(Axis("x", values))
    assert read.values.dtype.kind == values.dtype.kind
    assert np.array_equal(read.values, values)


def packed(values: Any, count: int) -> dict[str, Any]:
    data = base64.b64encode(zlib.compress(np.asarray(values, "<f8").tobytes())).decode()
    return {"dtype": "float64", "count": count, "data": data}


REGULAR = {"dtype": "float64", "start": 0.0, "step": 1.0, "count": 3}
WHOLE = {"dtype": "int64", "start": 0, "step": 1, "count": 3}
BOMB = base64.b64encode(zlib.compress(bytes(10_000_000))).decode()


@pytest.mark.parametrize(
    "labels",
    [
        None,
        3,
        [],
        ["a", 1],
        {},
        {**REGULAR, "dtype": "object"},
        {**REGULAR, "count": 0},
        {**REGULAR, "count": True},
        {**REGULAR, "count": 10**9},
        {**REGULAR, "count": 2.0},
        {**REGULAR, "start": "0"},
        {**REGULAR, "start": float("nan")},
        {**REGULAR, "step": float("inf")},
        {**REGULAR, "step": 1e299},
        {**REGULAR, "decimals": 400},
        {**REGULAR, "more": 1},
        {"dtype": "int64", "start": 0.5, "step": 1, "count": 3},
        {"dtype": "int64", "start": 2**63, "step": 1, "count": 3},
        {"dtype": "int64", "start": 0, "step": 2**62, "count": 3},
        {"dtype": "float64", "count": 2, "data": "!!"},
        {"dtype": "float64", "count": 2, "data": "AAAA"},
        {"dtype": "float64", "count": 2, "data": 5},
        {"dtype": "float32", "count": 2, "data": ""},
        {"dtype": "float64", "count": 2, "data": BOMB},
        packed([1.0, 2.0], 3),
        packed([1.0, 2.0], 1),
        packed([1.0, np.nan], 2),
    ],
)
def test_other_labels_are_corrupt(labels: Any) -> None:
    with pytest.raises(CorruptBitstreamError):
        axis_from_json({"name": "x", "labels": labels})


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {"name": "x"},
        {"name": 5, "labels": REGULAR},
        {"name": "", "labels": REGULAR},
        {"name": "x", "labels": REGULAR, "colour": "red"},
        {"name": "x", "labels": REGULAR, "attributes": []},
        {"name": "x", "labels": REGULAR, "attributes": {"a": float("nan")}},
        {"name": "x", "labels": REGULAR, "attributes": {"a": [[[[[[[[[[1]]]]]]]]]]}},
        {"name": "x", "labels": REGULAR, "attributes": {"units": "days since 1970-01-01"}},
        {
            "name": "x",
            "labels": WHOLE,
            "attributes": {"units": "x since y"},
        },
        {
            "name": "x",
            "labels": {"dtype": "int64", "start": 10**17, "step": 1, "count": 1},
            "attributes": {"units": "days since 1970-01-01"},
        },
        {"name": "lat", "labels": REGULAR, "source_labels": {**REGULAR, "start": 1.0}},
        {"name": "lat", "labels": REGULAR, "source_labels": {**REGULAR, "count": 2}},
    ],
)
def test_other_axes_are_corrupt(content: Any) -> None:
    with pytest.raises(CorruptBitstreamError):
        axis_from_json(content)


def test_the_cap_holds_before_memory_is_taken() -> None:
    with pytest.raises(CorruptBitstreamError, match="from 1 to 10"):
        axis_from_json({"name": "x", "labels": {**REGULAR, "count": 11}}, label_cap=10)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "labels", "dtype", "start", "step", "count", "data"]), inner, max_size=5
        )
    ),
    max_leaves=12,
)


@settings(max_examples=50)
@given(JSON)
def test_any_json_is_an_axis_or_corrupt(content: Any) -> None:
    try:
        axis = axis_from_json(content, label_cap=1000)
    except CorruptBitstreamError:
        return
    assert len(axis) <= 1000
