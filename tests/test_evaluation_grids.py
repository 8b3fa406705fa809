"""Values at any coordinates on other grids: around the globe, of plain numbers, cut into tiles."""

from pathlib import Path

import numpy as np
import pytest
import xarray

from tests.test_evaluation import make_archive, points
from vcinr_batch.archive.archive import Archive
from vcinr_batch.errors import ConfigError

GATE = "modulation: gate, linear_term: none"
HOURS = 12


def globe(longitude: np.ndarray) -> xarray.Dataset:
    """Waves that know no first meridian, with both poles."""
    latitude = np.linspace(90, -90, 13)
    time = np.datetime64("2019-03-01", "ns") + np.arange(HOURS) * np.timedelta64(1, "h")
    phase = np.arange(HOURS)[:, None, None] / 4
    y, x = np.deg2rad(latitude)[None, :, None], np.deg2rad(longitude)[None, None, :]
    values = 280 + 20 * np.cos(y) * np.cos(x + phase) + 5 * np.sin(y + phase)
    coords = {
        "time": time,
        "latitude": ("latitude", latitude, {"units": "degrees_north"}),
        "longitude": ("longitude", longitude, {"units": "degrees_east"}),
    }
    return xarray.Dataset({"t2m": (("time", "latitude", "longitude"), values.astype("f4"), {"units": "K"})}, coords)


@pytest.fixture(scope="module")
def global_archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return make_archive(tmp_path_factory.mktemp("globe"), globe(np.arange(-180, 180, 15.0)), GATE)


@pytest.fixture(scope="module")
def tiled_archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Tiles of 5 x 7 on a grid of 12 x 18 plain numbers: the last ones reach past the ends."""
    rng = np.random.default_rng(0)
    y, x = np.arange(12) * 2.0, 100.0 - np.arange(18)
    phase = np.arange(HOURS)[:, None, None] / 4
    values = 280 + np.sin(y[None, :, None] / 5 + phase) + np.cos(x[None, None, :] / 4 + phase)
    values = values + 0.01 * rng.standard_normal(values.shape)
    fields = xarray.Dataset(
        {"t2m": (("time", "y", "x"), values.astype(np.float32), {"units": "K"})},
        {"time": np.datetime64("2019-03-01", "ns") + np.arange(HOURS) * np.timedelta64(1, "h"), "y": y, "x": x},
    )
    folder = tmp_path_factory.mktemp("tiles")
    return make_archive(folder, fields, GATE, "sample: {block: {time: 1, y: 5, x: 7}}")


def test_around_the_globe_both_conventions_give_the_decoded_grid(global_archive: Archive) -> None:
    expected = global_archive.to_xarray()["t2m"]
    assert expected.longitude.values[0] == -180
    for turn in (0, 360, -720):
        found = global_archive.evaluate(latitude=expected.latitude.values, longitude=expected.longitude.values + turn)
        np.testing.assert_allclose(found.values, expected.values, atol=2e-4)


def test_between_the_last_and_the_first_meridian_there_are_values(global_archive: Archive) -> None:
    # The archive's own axis starts at 0: its last label is 345.
    assert global_archive.layout.axes[2].values[[0, -1]].tolist() == [0, 345]
    beside = global_archive.evaluate(latitude=[40.0], longitude=[344.99, 345, 345.01, 359.99, 0, 0.01]).values[:, 0]
    assert np.abs(np.diff(beside)[:, [0, 1, 3, 4]]).max() < 0.05  # 20 K x 0.01 degrees is 4e-3 K
    middle = global_archive.evaluate(latitude=[40.0], longitude=[352.5, -7.5]).values[:, 0]
    np.testing.assert_array_equal(middle[:, 0], middle[:, 1])


def test_at_the_poles_a_value_is_there_and_beyond_is_none(global_archive: Archive) -> None:
    assert np.isfinite(global_archive.evaluate(latitude=[89.9, 90, -90], longitude=[12.3]).values).all()
    with pytest.raises(ConfigError, match=r"latitude 90\.5 is outside of the archive's grid, latitude 90 to -90"):
        global_archive.evaluate(latitude=90.5)


def test_a_region_of_a_globe_without_its_poles_ends_at_its_last_row(tmp_path: Path) -> None:
    archive = make_archive(tmp_path, globe(np.arange(0, 360, 30.0)).isel(latitude=slice(1, -1)), GATE)
    assert np.isfinite(archive.evaluate(latitude=75, longitude=[345.0]).values).all()
    with pytest.raises(ConfigError, match="latitude 75 to -75"):
        archive.evaluate(latitude=75.1)


def test_tiles_make_one_grid(tiled_archive: Archive) -> None:
    expected = tiled_archive.to_xarray()["t2m"]
    found = tiled_archive.evaluate(y=expected.y.values, x=expected.x.values)
    xarray.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
    some = {"x": [83.5, 100.0, 93.4], "y": [22.0, 8.9, 0.3]}
    region = tiled_archive.evaluate({"time": "2019-03-01T03"}, **some)
    arrays = {name: xarray.DataArray(values, dims="station") for name, values in some.items()}
    found = tiled_archive.evaluate({"time": "2019-03-01T03"}, **arrays)
    np.testing.assert_allclose(np.diagonal(region.values[0]), found.values[0], atol=2e-4)
    assert found.dims == ("time", "station")


def test_keys_of_tiles_are_refused(tiled_archive: Archive) -> None:
    with pytest.raises(ConfigError, match="name tiles along y, x"):
        tiled_archive.evaluate([next(tiled_archive.keys())], y=3)


def test_points_around_the_globe_are_those_of_its_regions(global_archive: Archive) -> None:
    latitude, longitude = [-3.3, 88.0, 60.0], [179.9, 359.0, -0.5]
    region = global_archive.evaluate(latitude=latitude, longitude=longitude)
    found = global_archive.evaluate(**points(latitude, longitude))
    np.testing.assert_allclose(np.diagonal(region.values, axis1=1, axis2=2), found.values, atol=2e-4)


def test_a_network_of_plain_numbers_has_values_all_around_the_globe(tmp_path: Path) -> None:
    archive = make_archive(tmp_path, globe(np.arange(0, 360, 15.0)), GATE, "sample: {coordinates: cartesian}")
    expected = archive.to_xarray()["t2m"]
    found = archive.evaluate(latitude=expected.latitude.values, longitude=expected.longitude.values)
    np.testing.assert_allclose(found.values, expected.values, atol=2e-4)
    beside = archive.evaluate(latitude=40.0, longitude=[359.99, 0, 345.01, 345]).values
    assert np.abs(beside[:, [0, 2]] - beside[:, [1, 3]]).max() < 0.05


def test_blocks_of_several_hours_may_be_cut(tmp_path: Path) -> None:
    fields = globe(np.arange(0, 360, 30.0)).assign_coords(height=2.0, day=("time", np.arange(HOURS) // 5))
    archive = make_archive(tmp_path, fields, GATE, "sample: {block: {time: 4}}")
    labels = {name: fields[name].values for name in ("latitude", "longitude")}
    select = {"time": "2019-03-01T02..2019-03-01T05"}
    expected = archive.to_xarray(select)["t2m"]
    found = archive.evaluate(select, **labels)
    xarray.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
    assert found.day.values.tolist() == [0, 0, 0, 1]
    assert found.height.item() == 2.0
    key = list(archive.keys())[1]
    assert str(key) == "t2m[time=2019-03-01T04:00:00+4]"
    by_key = archive.evaluate([key], **labels)
    np.testing.assert_allclose(by_key.values, archive.to_xarray()["t2m"].values[4:8], atol=2e-4)
    assert by_key.time.values.tolist() == fields.time.values[4:8].tolist()
    assert by_key.day.values.tolist() == [0, 1, 1, 1]
