from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcinr_batch.data.axes import Axis, axis_index, label_text, make_axis, source_order, take_labels
from vcinr_batch.errors import ConfigError, SampleNotFoundError

SECONDS = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}
MICROSECONDS = {"units": "microseconds since 1970-01-01", "calendar": "proleptic_gregorian"}
DAYS_360 = {"units": "days since 2000-01-01", "calendar": "360_day"}
EAST = {"units": "degrees_east"}


def hours(count: int, start: str = "2019-03-21") -> Axis:
    first = int(np.datetime64(start, "s").astype(np.int64))
    return Axis("time", first + 3600 * np.arange(count), SECONDS)


def test_latitude_comes_out_north_first() -> None:
    axis = make_axis("lat", np.array([-10.0, 0.0, 10.0]), {})
    assert axis.values.tolist() == [10, 0, -10]
    assert source_order(axis).tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("source", "canonical"),
    [
        ([0, 90, 180, 270], [0, 90, 180, 270]),
        ([-180, -90, 0, 90], [0, 90, 180, 270]),
        ([-135, -45, 45, 135], [45, 135, 225, 315]),
        ([5, 95, 185, 275], [5, 95, 185, 275]),
        ([350, 355, 0, 5], [-10, -5, 0, 5]),
        ([-10, -5, 0, 5], [-10, -5, 0, 5]),
        ([0, 5, 350, 355], [-10, -5, 0, 5]),
        ([170, 175, 180, 185], [170, 175, 180, 185]),
        ([170, 175, -180, -175], [170, 175, 180, 185]),
        ([200, 205, 210], [-160, -155, -150]),
        ([359.9, 0, 0.1], [-0.1, 0, 0.1]),
        ([180], [-180]),
        ([0, 180, 360], [0, 180, 360]),
    ],
)
def test_longitude_comes_out_contiguous(source: list[float], canonical: list[float]) -> None:
    axis = make_axis("lon", np.array(source, dtype=float), {})
    assert axis.values.tolist() == canonical
    turns = (axis.values - np.array(source)[source_order(axis)]) / 360
    assert turns == pytest.approx(np.rint(turns), abs=1e-9)


@given(
    st.integers(2, 60),
    st.sampled_from([0.1, 0.25, 1.0, 2.5]),
    st.integers(-720, 720),
    st.integers(0, 59),
    st.booleans(),
)
def test_both_conventions_give_the_same_regional_axis(
    count: int, step: float, start: int, roll: int, flip: bool
) -> None:
    degrees = start * step + step * np.arange(count)
    positive, signed = degrees % 360, (degrees + 180) % 360 - 180
    signed = np.roll(signed, roll)[:: -1 if flip else 1]
    a, b = make_axis("lon", positive, EAST), make_axis("lon", signed, EAST)
    assert a.values == pytest.approx(b.values, abs=1e-8)
    assert -180 <= round(a.values[0], 6) < 180
    assert np.diff(a.values) == pytest.approx(np.full(count - 1, step))


@pytest.mark.parametrize(
    ("name", "attributes", "values", "kind"),
    [
        ("latitude", {}, [1.0], "latitude"),
        ("LAT", {}, [1.0], "latitude"),
        ("Lon", {}, [1.0], "longitude"),
        ("y", {"units": "degrees_north"}, [1.0], "latitude"),
        ("x", {"standard_name": "longitude"}, [1.0], "longitude"),
        ("nlat", {}, [1.0], None),
        ("lon", {"standard_name": "grid_longitude", "units": "degrees"}, [1000.0], None),
        ("lat", {}, [0.0, 500.0], None),
        ("lat", {}, ["a"], None),
        ("level", {"units": "hPa"}, [850.0], None),
    ],
)
def test_latitude_and_longitude_are_recognised(
    name: str, attributes: dict[str, str], values: list[Any], kind: str | None
) -> None:
    axis = Axis(name, np.array(values), attributes)
    assert (axis.is_latitude, axis.is_longitude) == (kind == "latitude", kind == "longitude")


@pytest.mark.parametrize(
    ("axis", "text"),
    [
        (hours(1), "2019-03-21T00:00:00"),
        (
            Axis("time", np.array([36.0]), {"units": "days since 2000-01-01", "calendar": "360_day"}),
            "2000-02-07T00:00:00",
        ),
        (
            Axis("time", np.array([1_500_000]), {**SECONDS, "units": "microseconds since 1970-01-01"}),
            "1970-01-01T00:00:01.500000",
        ),
        (Axis("level", np.array([850])), "850"),
        (Axis("level", np.array([850.0])), "850"),
        (Axis("latitude", np.array([57.75])), "57.75"),
        (Axis("latitude", np.array([-0.0])), "0"),
        (Axis("x", np.array([0.1])), "0.1"),
        (Axis("x", np.array([1.5e300])), "1.5e300"),
        (Axis("x", np.array([1e-7])), "1e-07"),
        (Axis("member", np.array(["r1i1p1"])), "r1i1p1"),
        (Axis("member", np.array(["a,b=[c]+%"])), "a%2Cb%3D%5Bc%5D%2B%25"),
    ],
)
def test_labels_read_as_text_and_select_themselves(axis: Axis, text: str) -> None:
    assert label_text(axis, 0) == text
    assert axis_index(axis, text).tolist() == [0]


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ("2019-03-22T06", [30]),
        ("2019-03-22", list(range(24, 48))),
        ("2019-03", list(range(48))),
        ("2019-03-21T22..2019-03-22T01", [22, 23, 24, 25]),
        ("2019-03-21T22 .. 2019-03-22", list(range(22, 48))),
        ("..2019-03-21T01", [0, 1]),
        ("2019-03-22T22..", [46, 47]),
        ("..", list(range(48))),
    ],
)
def test_time_is_selected_by_partial_times_and_ranges(text: str, positions: list[int]) -> None:
    assert axis_index(hours(48), text).tolist() == positions


LEVEL = Axis("level", np.array([1000.0, 850.0, 500.0, 0.1]))
GLOBE = make_axis("longitude", np.arange(0, 360, 30.0), EAST)
MEMBER = Axis("member", np.array(["r1", "r2", "r10", "a..b"]))


@pytest.mark.parametrize(
    ("axis", "text", "positions"),
    [
        (LEVEL, "850", [1]),
        (LEVEL, "850.0000001", [1]),
        (LEVEL, "0.1", [3]),
        (LEVEL, "500..1000", [0, 1, 2]),
        (LEVEL, "1000..500", [0, 1, 2]),
        (LEVEL, "..500", [2, 3]),
        (LEVEL, "850..", [0, 1]),
        (GLOBE, "330", [11]),
        (GLOBE, "-30", [11]),
        (GLOBE, "-30..30", [0, 1, 11]),
        (GLOBE, "330..30", [0, 1, 11]),
        (GLOBE, "30..-30", [0, 1, 11]),
        (GLOBE, "30..330", list(range(1, 12))),
        (GLOBE, "-180..180", list(range(12))),
        (GLOBE, "300..", [10, 11]),
        (MEMBER, "r10", [2]),
        (MEMBER, "r1..r10", [0, 1, 2]),
        (MEMBER, "r10..", [2, 3]),
        (MEMBER, "a..b", [3]),
    ],
)
def test_numbers_and_words_are_selected(axis: Axis, text: str, positions: list[int]) -> None:
    assert axis_index(axis, text).tolist() == positions


@pytest.mark.parametrize(
    ("axis", "text", "extent"),
    [
        (hours(24), "2020", "2019-03-21T00:00:00..2019-03-21T23:00:00"),
        (hours(24), "2019-03-21T05..2019-03-21T03", "2019-03-21T00:00:00..2019-03-21T23:00:00"),
        (LEVEL, "851", "1000..0.1"),
        (GLOBE, "15", "0..330"),
        (MEMBER, "r3", "r1..a..b"),
        (MEMBER, "r3..r4", "r1..a..b"),
    ],
)
def test_selecting_nothing_names_the_extent(axis: Axis, text: str, extent: str) -> None:
    with pytest.raises(SampleNotFoundError) as caught:
        axis_index(axis, text)
    assert f"{axis.name}={text} selects nothing" in str(caught.value)
    assert extent in str(caught.value)


@pytest.mark.parametrize(("axis", "text"), [(LEVEL, "high"), (LEVEL, "nan"), (GLOBE, "0..east"), (hours(2), "noon")])
def test_what_is_no_label_is_a_config_error(axis: Axis, text: str) -> None:
    with pytest.raises(ConfigError):
        axis_index(axis, text)


def test_a_part_of_the_globe_across_greenwich_is_the_regional_axis() -> None:
    part, places = take_labels(GLOBE, axis_index(GLOBE, "-30..60"))
    assert part.values.tolist() == [-30, 0, 30, 60]
    assert part.source_values is None
    assert places.tolist() == [11, 0, 1, 2]


def test_a_part_keeps_the_order_of_its_source() -> None:
    axis = make_axis("lat", np.array([-20.0, -10.0, 0.0, 10.0]), {})
    part, places = take_labels(axis, axis_index(axis, "-10..10"))
    assert part.values.tolist() == [10, 0, -10]
    assert places.tolist() == [0, 1, 2]
    assert part.source_values is not None
    assert part.source_values.tolist() == [-10, 0, 10]


@pytest.mark.parametrize("values", [np.zeros(0), np.zeros((2, 2))])
def test_an_axis_needs_labels_in_a_row(values: Any) -> None:
    with pytest.raises(ConfigError):
        Axis("x", values)
