"""Between the points of a grid: where a coordinate lies, which labels it depends on, and by how much."""

from typing import Any

import numpy as np
import pytest

from vcinr_batch.data.axes import Axis, make_axis
from vcinr_batch.data.interpolation import goes_round, interpolate, label_stencil, locate, make_stencil
from vcinr_batch.errors import ConfigError


def axis_of(labels: Any, name: str = "x") -> Axis:
    return make_axis(name, np.asarray(labels, np.float64), {})


def at(axis: Axis, coordinates: Any) -> list[float]:
    return locate(axis, np.asarray(coordinates, np.float64), axis.name).tolist()


GLOBE = axis_of(np.arange(0, 360, 30.0), "longitude")
IRREGULAR = axis_of([0, 1, 3, 4, 8, 9.5, 10])


@pytest.mark.parametrize(
    ("axis", "coordinates", "positions"),
    [
        (axis_of([10, 20, 40]), [10, 15, 20, 30, 40], [0, 0.5, 1, 1.5, 2]),
        (axis_of([50, 60, 55], "latitude"), [60, 57.5, 50], [0, 0.5, 2]),  # canonical: north first
        (axis_of([0, 350, 10], "longitude"), [-10, 350, 355, -5, 365, 10], [0, 0, 0.5, 0.5, 1.5, 2]),
        (GLOBE, [0, 360, -360, 330, -30, 345, -15, 359.99999999], [0, 0, 0, 11, 11, 11.5, 11.5, 0]),
        (axis_of([7.0]), [7.0], [0]),
    ],
    ids=["irregular", "latitude", "across Greenwich", "around the globe", "one label"],
)
def test_coordinates_lie_at_fractional_positions(axis: Axis, coordinates: list[float], positions: list[float]) -> None:
    assert at(axis, coordinates) == positions


def test_labels_rounded_to_float32_are_still_labels() -> None:
    axis = axis_of(np.round(np.arange(3600) * 0.1, 1), "longitude")
    rounded = axis.values.astype(np.float32)
    assert at(axis, rounded) == list(range(3600))
    assert at(axis, np.where(rounded > 180, rounded - np.float32(360), rounded)) == list(range(3600))


@pytest.mark.parametrize(
    ("axis", "coordinates", "message"),
    [
        (axis_of([10, 20, 40]), [15, 40.5], r"x 40\.5 \(index 1\) is outside of the archive's grid, x 10 to 40"),
        (axis_of([10, 20, 40]), [9.9], r"x 9\.9 is outside"),
        (axis_of([60, 50], "latitude"), [61], "latitude 61 is outside of the archive's grid, latitude 60 to 50"),
        (axis_of(np.arange(-10, 3), "longitude"), [2.5], "longitude -10 to 2"),
        (axis_of(np.arange(-10, 3), "longitude"), [349.5], "longitude -10 to 2"),
        (axis_of([10, 20]), [12, np.nan], "finite numbers, got nan at index 1"),
        (axis_of([10, 20]), [-np.inf], "finite numbers, got -inf at index 0"),
        (axis_of([10, 30, 20]), [15], "in no order"),
        (axis_of([7.0]), [7.1], "outside"),
    ],
)
def test_what_lies_nowhere_is_named(axis: Axis, coordinates: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        at(axis, coordinates)


def test_only_an_axis_without_a_gap_goes_round() -> None:
    assert goes_round(GLOBE)
    assert not goes_round(axis_of(np.arange(0, 330, 30.0), "longitude"))
    assert not goes_round(axis_of(np.arange(0, 390, 30.0), "longitude"))  # 0 and 360: both ends are there already
    assert not goes_round(axis_of(np.arange(0, 360, 30.0), "x"))


@pytest.mark.parametrize("axis", [GLOBE, IRREGULAR, axis_of([60, 50, 45], "latitude"), axis_of([1, 2])])
def test_at_labels_the_value_is_the_table_s_own(axis: Axis) -> None:
    table = np.random.default_rng(0).standard_normal(len(axis)).astype(np.float32)
    stencil = make_stencil(axis, locate(axis, axis.values, "x"))
    for kind in ("cubic", "linear"):
        assert interpolate(table, [stencil], kind).astype(np.float32).tolist() == table.tolist()
        only = np.where(np.arange(len(axis)) == 1, table, np.nan)  # a label depends on nothing beside it
        assert interpolate(only, [stencil], kind)[1] == table[1]


@pytest.mark.parametrize("axis", [IRREGULAR, axis_of([60, 50, 45, 20], "latitude"), axis_of([1, 2])])
def test_a_straight_line_is_interpolated_exactly(axis: Axis) -> None:
    coordinates = np.linspace(axis.values.min(), axis.values.max(), 101)
    stencil = make_stencil(axis, locate(axis, coordinates, "x"))
    for kind in ("cubic", "linear"):
        np.testing.assert_allclose(interpolate(3 * axis.values - 1, [stencil], kind), 3 * coordinates - 1, atol=1e-12)


def test_a_parabola_is_interpolated_exactly_inside_of_an_irregular_axis() -> None:
    # A central difference that minds the spacing is exact for parabolas, and so is a cubic with exact slopes.
    coordinates = np.linspace(1, 9.5, 50)
    stencil = make_stencil(IRREGULAR, locate(IRREGULAR, coordinates, "x"))
    np.testing.assert_allclose(interpolate(IRREGULAR.values**2, [stencil], "cubic"), coordinates**2, atol=1e-10)


def test_around_the_globe_nothing_shows_where_the_labels_begin() -> None:
    wave = np.cos(np.deg2rad(GLOBE.values))
    across = make_stencil(GLOBE, locate(GLOBE, np.array([-40.0, -15, -1, 1, 15, 40]), "x"))
    elsewhere = make_stencil(GLOBE, locate(GLOBE, np.array([80.0, 105, 119, 121, 135, 160]), "x"))
    np.testing.assert_allclose(
        interpolate(wave, [across], "cubic"), interpolate(np.roll(wave, 4), [elsewhere], "cubic"), atol=1e-12
    )


def test_dimensions_are_interpolated_together_point_by_point() -> None:
    y, x = axis_of([0, 1, 2, 3]), axis_of([0, 10, 20])
    table = np.add.outer(np.arange(4.0), 100 * np.arange(3.0))[..., None]
    stencils = [make_stencil(y, np.array([0.5, 3])), make_stencil(x, np.array([1.0, 0.25]))]
    assert interpolate(table, stencils, "cubic").tolist() == [[100.5], [28.0]]


def test_a_gap_reaches_as_far_as_the_interpolation_does() -> None:
    axis = axis_of(np.arange(7))
    table = np.where(np.arange(7) == 3, np.nan, 1.0)
    stencil = make_stencil(axis, np.arange(0.5, 6))
    assert np.isnan(interpolate(table, [stencil], "cubic")).tolist() == [False, True, True, True, True, False]
    assert np.isnan(interpolate(table, [stencil], "linear")).tolist() == [False, False, True, True, False, False]


def test_used_places_are_those_with_a_share() -> None:
    axis = axis_of(np.arange(9))
    assert make_stencil(axis, np.array([4.0])).used_places.tolist() == [4]
    assert make_stencil(axis, np.array([4.5, 0.0])).used_places.tolist() == [0, 3, 4, 5, 6]
    assert label_stencil(np.array([5, 2, 5])).used_places.tolist() == [2, 5]
