import json
from typing import Any

import numpy as np
import pytest
import xarray

from vcinr_batch.data.axes import Axis, make_axis
from vcinr_batch.data.layout import (
    Layout,
    axis_variable,
    block_extent,
    layout_from_json,
    layout_to_json,
    sample_key,
    to_source_order,
)
from vcinr_batch.errors import ConfigError, CorruptBitstreamError

SECONDS = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}
WHOLE = {"dtype": "int64", "start": 0, "step": 1}
TIME = Axis("time", 3600 * np.arange(10), SECONDS)
LATITUDE = make_axis("latitude", np.array([50.0, 50.5, 51.0, 51.5, 52.0]), {"units": "degrees_north"})
LONGITUDE = make_axis("longitude", np.array([359.0, 0.0, 1.0]), {"units": "degrees_east"})


@pytest.fixture
def layout() -> Layout:
    return Layout("t2m", (TIME, LATITUDE, LONGITUDE), (1, 2, 3))


def test_a_layout_counts_its_blocks(layout: Layout) -> None:
    assert layout.shape == (10, 5, 3)
    assert layout.block_counts == (10, 3, 1)
    assert layout.sample_count == 30
    assert layout.points_per_sample == 6
    assert layout.blocked_dims == ("time", "latitude")
    assert layout.axis("latitude") is LATITUDE


def test_the_last_block_ends_with_the_axis(layout: Layout) -> None:
    assert block_extent(layout, (9, 2, 0)) == (slice(9, 10), slice(4, 5), slice(0, 3))


@pytest.mark.parametrize(
    ("block_shape", "block", "key"),
    [
        ((1, 5, 3), (6, 0, 0), "t2m[time=1970-01-01T06:00:00]"),
        ((4, 5, 3), (2, 0, 0), "t2m[time=1970-01-01T08:00:00+4]"),
        ((1, 2, 3), (0, 1, 0), "t2m[time=1970-01-01T00:00:00,latitude=51+2]"),
        ((1, 2, 1), (0, 2, 0), "t2m[time=1970-01-01T00:00:00,latitude=50+2,longitude=-1]"),
        ((10, 5, 3), (0, 0, 0), "t2m"),
    ],
)
def test_a_key_names_the_first_label_of_each_block(
    block_shape: tuple[int, ...], block: tuple[int, ...], key: str
) -> None:
    assert str(sample_key(Layout("t2m", (TIME, LATITUDE, LONGITUDE), block_shape), block)) == key


@pytest.mark.parametrize(
    ("axes", "block_shape"),
    [((TIME,), (1, 1)), ((TIME,), (0,)), ((TIME,), (11,)), ((TIME, TIME), (1, 1))],
)
def test_an_impossible_layout_is_refused(axes: tuple[Axis, ...], block_shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        Layout("t2m", axes, block_shape)


def test_an_unknown_dimension_is_named(layout: Layout) -> None:
    with pytest.raises(ConfigError, match="no dimension 'level'; it has time, latitude, longitude"):
        layout.axis("level")


def test_arrays_go_back_to_the_order_of_the_source(layout: Layout) -> None:
    """The canonical array holds its own labels, so the labels tell where each value went."""
    canonical = LATITUDE.values[None, :, None] * 1000 + LONGITUDE.values[None, None, :] + np.zeros((10, 1, 1))
    assert LATITUDE.source_values is not None
    assert LONGITUDE.source_values is not None
    signed = (LONGITUDE.source_values + 180) % 360 - 180
    expected = LATITUDE.source_values[:, None] * 1000 + signed
    assert np.array_equal(to_source_order(layout, canonical)[3], expected)


def test_an_axis_becomes_the_coordinate_that_the_source_had() -> None:
    attributes = {
        **SECONDS,
        "long_name": "time",
        "source_units": "hours since 1900-01-01",
        "source_calendar": "gregorian",
    }
    variable = axis_variable(Axis("time", np.array([0, 3600]), attributes))
    assert variable.dims == ("time",)
    assert np.array_equal(variable.values, np.array(["1970-01-01T00", "1970-01-01T01"], "datetime64[ns]"))
    assert variable.attrs == {"long_name": "time"}
    assert variable.encoding == {"units": "hours since 1900-01-01", "calendar": "gregorian"}


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        (LATITUDE, np.array([50.0, 50.5, 51.0, 51.5, 52.0])),
        (LONGITUDE, np.array([359.0, 0.0, 1.0])),
        (Axis("lat", np.array([49.9]), {"source_dtype": "float32"}), np.array([49.9], np.float32)),
        (Axis("level", np.array([850]), {"source_dtype": "int32"}), np.array([850], np.int32)),
        (Axis("level", np.array([850]), {"source_dtype": "object"}), np.array([850])),
        (Axis("member", np.array(["a"])), np.array(["a"])),
    ],
)
def test_coordinates_keep_order_convention_and_dtype(axis: Axis, values: Any) -> None:
    variable = axis_variable(axis)
    assert variable.dtype == values.dtype
    assert np.array_equal(variable.values, values)
    assert "source_dtype" not in variable.attrs


def test_other_calendars_become_cftime() -> None:
    cftime = pytest.importorskip("cftime")
    axis = Axis("time", np.array([59 * 86400]), {"units": "seconds since 1970-01-01", "calendar": "360_day"})
    assert axis_variable(axis).values.tolist() == [cftime.datetime(1970, 2, 30, calendar="360_day")]
    assert isinstance(axis_variable(axis), xarray.Variable)


def test_a_layout_survives_json(layout: Layout) -> None:
    text = json.dumps(layout_to_json(layout), separators=(",", ":"))
    read = layout_from_json(json.loads(text))
    assert (read.variable, read.block_shape, read.channels) == ("t2m", (1, 2, 3), 1)
    assert read.dims == layout.dims
    assert all(np.array_equal(a.values, b.values) for a, b in zip(read.axes, layout.axes, strict=True))
    array = np.arange(150).reshape(layout.shape)
    assert np.array_equal(to_source_order(read, array), to_source_order(layout, array))
    assert sample_key(read, (3, 1, 0)) == sample_key(layout, (3, 1, 0))


def test_channels_survive_json() -> None:
    layout = Layout("rgb", (TIME,), (1,), channels=3)
    assert layout_from_json(layout_to_json(layout)).channels == 3


@pytest.mark.parametrize(
    "change",
    [
        {"variable": 1},
        {"axes": None},
        {"axes": [5]},
        {"block": 1},
        {"block": [1, 2]},
        {"block": [1, 2, "3"]},
        {"block": [0, 1, 1]},
        {"block": [1, 2, 4]},
        {"channels": 0},
        {"channels": 1.0},
        {"extra": 1},
        {"axes": [{"name": f"x{i}", "labels": ["a"]} for i in range(33)]},
        {
            "axes": [
                {"name": f"x{i}", "labels": {"dtype": "int64", "start": 0, "step": 1, "count": 10**8}} for i in range(2)
            ]
        },
    ],
)
def test_json_that_is_no_layout_is_corrupt(layout: Layout, change: dict[str, Any]) -> None:
    with pytest.raises(CorruptBitstreamError):
        layout_from_json({**layout_to_json(layout), **change})
