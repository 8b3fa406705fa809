import json
from typing import Any, Literal

import numpy as np
import pytest

from vcinr_batch.data.axes import Axis, make_axis
from vcinr_batch.data.coordinates import Grid, describe_grid, grid_from_json, grid_to_json, grids_equal, make_grid
from vcinr_batch.data.layout import Layout
from vcinr_batch.errors import ConfigError, CorruptBitstreamError

TIME = Axis("time", np.arange(10), {"units": "seconds since 1970-01-01", "calendar": "standard"})


def layout(
    block_shape: tuple[int, ...],
    latitude: Any = (30.0, 0.0),
    longitude: Any = (0.0, 90.0, 180.0),
    names: str = "lat lon",
) -> Layout:
    lat, lon = names.split()
    axes = (TIME, make_axis(lat, np.array(latitude), {}), make_axis(lon, np.array(longitude), {}))
    return Layout("t2m", axes, block_shape)


def test_the_sphere_by_hand() -> None:
    grid = make_grid(layout((1, 2, 3)), "auto")
    assert grid.system == "sphere"
    assert (grid.point_count, grid.coordinate_dim) == (6, 3)
    c, s = np.sqrt(3) / 2, 0.5
    expected = [[c, 0, s], [0, c, s], [-c, 0, s], [1, 0, 0], [0, 1, 0], [-1, 0, 0]]
    assert grid.coordinates().dtype == np.float32
    assert grid.coordinates() == pytest.approx(np.array(expected), abs=1e-7)


def test_time_within_a_block_is_one_more_coordinate() -> None:
    grid = make_grid(layout((3, 2, 3)), "sphere")
    points = grid.coordinates()
    assert points.shape == (18, 4) == (grid.point_count, grid.coordinate_dim)
    assert points[:, 3].tolist() == [-1] * 6 + [0] * 6 + [1] * 6
    assert np.array_equal(points[:6, :3], make_grid(layout((1, 2, 3)), "sphere").coordinates())


def test_cartesian_runs_from_minus_one_to_one() -> None:
    grid = make_grid(layout((1, 2, 3)), "cartesian")
    assert grid.coordinates().tolist() == [[-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]]
    assert grid.coordinate_dim == 2


def test_one_point_still_has_a_coordinate() -> None:
    grid = make_grid(layout((1, 1, 1)), "cartesian")
    assert grid.coordinates().tolist() == [[0]]
    assert grid.coordinate_dim == 1


@pytest.mark.parametrize("block_shape", [(1, 1, 3), (1, 2, 2)])
def test_tiles_are_cartesian_and_never_on_the_sphere(block_shape: tuple[int, ...]) -> None:
    assert make_grid(layout(block_shape), "auto").system == "cartesian"
    with pytest.raises(ConfigError, match=r"needs blocks that span a whole latitude and longitude; t2m has blocks of"):
        make_grid(layout(block_shape), "sphere")


def test_unlabelled_dimensions_are_cartesian() -> None:
    image = Layout("red", (Axis("y", np.arange(4)), Axis("x", np.arange(5))), (4, 5))
    assert make_grid(image, "auto").system == "cartesian"


BASE = layout((1, 2, 3))


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        (layout((1, 2, 3)), True),
        (layout((1, 2, 3), names="latitude longitude"), True),
        (layout((1, 2, 3), longitude=(360.0, 450.0, 540.0)), True),
        (layout((1, 2, 3), latitude=(30.00005, 0.0)), True),
        (layout((1, 2, 3), latitude=(30.001, 0.0)), False),
        (layout((1, 2, 3), longitude=(0.0, 90.0, 181.0)), False),
        (layout((1, 2, 4), longitude=(0.0, 90.0, 180.0, 270.0)), False),
        (layout((2, 2, 3)), False),
        (Layout("t2m", (Axis("member", np.array(["a"])), *BASE.axes), (1, 1, 2, 3)), True),
    ],
)
def test_grids_are_equal_where_their_points_are(other: Layout, equal: bool) -> None:
    assert grids_equal(make_grid(BASE, "auto"), make_grid(other, "auto")) is equal
    assert grids_equal(make_grid(other, "auto"), make_grid(BASE, "auto")) is equal


def test_systems_differ_even_on_the_same_block() -> None:
    sphere, cartesian = make_grid(BASE, "sphere"), make_grid(BASE, "cartesian")
    assert not grids_equal(sphere, cartesian)
    assert grids_equal(cartesian, cartesian)


@pytest.mark.parametrize(
    ("system", "text"),
    [
        ("sphere", "2 lat x 3 lon on the sphere, latitude 30 to 0, longitude 0 to 180"),
        ("cartesian", "2 lat x 3 lon, cartesian"),
    ],
)
def test_a_grid_is_described_in_one_line(system: Literal["sphere", "cartesian"], text: str) -> None:
    assert describe_grid(make_grid(BASE, system)) == text


@pytest.mark.parametrize("system", ["sphere", "cartesian"])
def test_a_grid_survives_json(system: Literal["sphere", "cartesian"]) -> None:
    grid = make_grid(layout((3, 2, 3)), system)
    read = grid_from_json(json.loads(json.dumps(grid_to_json(grid))))
    assert (read.dims, read.shape, read.system) == (grid.dims, grid.shape, grid.system)
    assert np.array_equal(read.coordinates(), grid.coordinates())


ENDLESS = {"dtype": "float64", "start": 0.0, "step": 1.0, "count": 10**8}


@pytest.mark.parametrize(
    "change",
    [
        {"dims": "time lat lon"},
        {"dims": [1, 2, 3]},
        {"dims": ["x"] * 40, "shape": [1] * 40},
        {"shape": [1, 2]},
        {"shape": [1, 0, 3]},
        {"shape": [10**6, 10**6, 3]},
        {"system": "polar"},
        {"geographic": [1, 1]},
        {"geographic": [1, 3]},
        {"geographic": None},
        {"latitude": None},
        {"latitude": {"name": "latitude", "labels": ENDLESS}},
        {"latitude": {"name": "latitude", "labels": ["a", "b"]}},
        {"latitude": {"name": "latitude", "labels": {**ENDLESS, "count": 1}}},
        {"latitude": {"name": "latitude", "labels": {**ENDLESS, "start": 1e6, "count": 2}}},
        {"colour": 1},
    ],
)
def test_json_that_is_no_grid_is_corrupt(change: dict[str, Any]) -> None:
    with pytest.raises(CorruptBitstreamError):
        grid_from_json({**grid_to_json(make_grid(BASE, "sphere")), **change})


@pytest.mark.parametrize(
    "parts",
    [
        {"dims": ("x",), "shape": (1, 2), "system": "cartesian"},
        {"dims": ("x",), "shape": (0,), "system": "cartesian"},
        {"dims": ("y", "x"), "shape": (1, 2), "system": "sphere"},
        {
            "dims": ("y", "x"),
            "shape": (1, 2),
            "system": "sphere",
            "latitude_deg": np.zeros(2),
            "longitude_deg": np.zeros(2),
            "geographic_dims": (0, 1),
        },
    ],
)
def test_an_impossible_grid_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Grid(**parts)


def test_between_the_points_labels_change_linearly_and_go_on_outside_of_plain_numbers() -> None:
    grid = Grid(("y", "x"), (3, 5), "cartesian")
    positions = [np.array([[-0.5], [1.25]]), np.array([[0, 0.5, 4.5]])]
    expected = [[-1.5, -1], [-1.5, -0.75], [-1.5, 1.25], [0.25, -1], [0.25, -0.75], [0.25, 1.25]]
    assert grid.coordinates_at(positions).tolist() == expected


def test_on_the_sphere_a_longitude_after_the_last_lies_between_it_and_the_first() -> None:
    grid = Grid(("latitude", "longitude"), (2, 4), "sphere", np.array([60.0, 0]), np.arange(4) * 90.0, (0, 1))
    found = grid.coordinates_at([np.array([1.0, 0.5]), np.array([3.5, 4.0])])
    expected = [[np.sqrt(0.5), -np.sqrt(0.5), 0], [np.cos(np.pi / 6), 0, 0.5]]
    np.testing.assert_allclose(found, expected, atol=1e-7)
