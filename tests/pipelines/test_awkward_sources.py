"""Files as they are found in the wild go through an archive and come back as NetCDF, as Zarr and in memory: the same
coordinates, attributes, calendars, masks, order of dimensions and labels as in the source opened by xarray.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from pipelines.compress import CompressJob, compress
from pipelines.convert import convert
from pipelines.decompress import decompress
from pipelines.dry_run_text import left_out_pairs
from pipelines.train import train
from tests.conftest import TINY_CONFIG, make_fields
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.manifest import manifest_data, manifest_to_json
from vcinr_batch.compression import QualityRequest
from vcinr_batch.config import load_config

HOURS, HEIGHT, WIDTH = 24, 8, 12
CRS = {"grid_mapping_name": "rotated_latitude_longitude", "grid_north_pole_latitude": 39.25}


def fields(**changed: Any) -> xarray.Dataset:
    return make_fields(HOURS).assign_coords(changed)


def with_missing(dataset: xarray.Dataset) -> xarray.Dataset:
    """Sea points that are never there, and one value more that is missing once."""
    values = dataset.t2m.values.copy()
    values[:, 2:4, 5:9] = np.nan
    values[7, 0, 0] = np.nan
    return dataset.assign(t2m=(dataset.t2m.dims, values, dataset.t2m.attrs))


def packed() -> xarray.Dataset:
    """int16 with a fill value; the level is a scalar, the time of the forecast one of another unit."""
    dataset = with_missing(fields(height=((), 2.0, {"units": "m", "positive": "up"}), number=((), np.int32(3))))
    dataset = dataset.assign_coords(reference=((), np.datetime64("2019-02-28T18", "ns"), {"long_name": "start"}))
    dataset.t2m.encoding = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 270.0, "_FillValue": -32767}
    dataset.reference.encoding = {"units": "days since 1990-01-01", "dtype": "float64"}
    return dataset


def nan_filled() -> xarray.Dataset:
    dataset = with_missing(fields())
    dataset.t2m.encoding = {"dtype": "float32", "_FillValue": np.float32(np.nan)}
    return dataset


def flipped() -> xarray.Dataset:
    """South to north and from -180 on, so that both axes are turned inside the archive; the area lies along them."""
    dataset = fields().isel(latitude=slice(None, None, -1))
    dataset = dataset.assign_coords(longitude=("longitude", -180.0 + 30 * np.arange(WIDTH), dataset.longitude.attrs))
    area = np.random.default_rng(1).random((WIDTH, HEIGHT))
    area[3, 4] = np.nan
    latitude, longitude = dataset.latitude.values, dataset.longitude.values
    dataset.latitude.attrs["bounds"], dataset.longitude.attrs["bounds"] = "lat_bnds", "lon_bnds"
    dataset = dataset.assign(
        lat_bnds=(("latitude", "bnds"), np.stack([latitude - 0.3, latitude + 0.2], -1)),
        lon_bnds=(("bnds", "longitude"), np.stack([longitude - 1, longitude + 2]).astype(np.float32), {"note": "ends"}),
    )
    dataset = dataset.assign_coords(area=(("longitude", "latitude"), area.astype(np.float32), {"units": "m2"}))
    return dataset.assign_coords(zone=("latitude", np.arange(HEIGHT, dtype=np.int8), {"flag_values": [0, 7]}))


def of_360_days() -> xarray.Dataset:
    """Twelve hours on the 30th of February, with bounds, and a second time along the first."""
    dataset = fields()
    hours = {"units": "hours since 2019-02-30", "calendar": "360_day"}
    time = xarray.Variable("time", np.arange(HOURS), {**hours, "bounds": "time_bnds"})
    bounds = xarray.Variable(("time", "bnds"), np.stack([np.arange(HOURS), np.arange(HOURS) + 1], -1))
    valid = xarray.Variable("time", np.arange(HOURS) + 6.0, hours)
    dataset = dataset.assign_coords(time=time, valid_time=valid)
    return xarray.decode_cf(dataset.assign(time_bnds=bounds))


def ensemble() -> xarray.Dataset:
    levels = [fields().t2m - 7.0 * k for k in range(2)]
    level = xarray.Variable("level", np.array([850.0, 500.0]), {"units": "hPa", "positive": "down"})
    data = xarray.concat(levels, level).transpose("time", "level", "latitude", "longitude")
    number = xarray.Variable("number", np.array([1, 4], np.int32), {"standard_name": "realization"})
    data = xarray.concat([data, data + 1.0], number).transpose("number", "time", "level", ...)
    data.attrs = dict(make_fields(1).t2m.attrs)
    pressure = ("level", np.array([85000, 50000], np.int32), {"units": "Pa"})
    model = ("number", np.array(["control", "perturbed"]))
    return data.to_dataset(name="t2m").assign_coords(pressure=pressure, model=model)


def curvilinear() -> xarray.Dataset:
    """Latitudes and longitudes of a rotated grid, and its mapping."""
    dataset = fields().rename(latitude="y", longitude="x")
    y, x = np.arange(float(HEIGHT)), np.arange(float(WIDTH))
    latitude, longitude = 50 + 0.1 * y[:, None] + 0.013 * x, (350 + 0.2 * x - 0.007 * y[:, None]).astype(np.float32)
    dataset = dataset.assign_coords(
        y=("y", y, {"units": "km", "axis": "Y"}),
        x=("x", x, {"units": "km", "axis": "X"}),
        lat=(("y", "x"), latitude, {"units": "degrees_north"}),
        lon=(("y", "x"), longitude, {"units": "degrees_east", "valid_range": [0.0, 360.0], "bounds": "lon_corners"}),
        height=((), 2.0, {"units": "m", "bounds": "height_bnds"}),
    )
    corners = np.random.default_rng(2).random((HEIGHT, WIDTH, 4))
    dataset = dataset.assign(lon_corners=(("y", "x", "corner"), corners), height_bnds=("ends", np.array([1.5, 2.5])))
    dataset.t2m.attrs["grid_mapping"] = "crs"
    return dataset.assign(crs=((), np.int32(0), CRS))


def dangling() -> xarray.Dataset:
    """Attributes that name variables which are not there."""
    dataset = fields(expver=("time", np.array(["0001"] * 20 + ["0005"] * 4)))
    dataset.time.attrs["bounds"] = "time_bnds"
    dataset.latitude.attrs["bounds"] = "latitude_bnds"
    return dataset


def whole_float_times() -> xarray.Dataset:
    dataset = fields(valid_time=("time", make_fields(HOURS).time.values + np.timedelta64(90, "m")))
    dataset.time.encoding = {"units": "hours since 1900-01-01", "dtype": "float64"}
    return dataset


SOURCES: Mapping[str, Callable[[], xarray.Dataset]] = {
    make.__name__: make
    for make in (packed, nan_filled, flipped, of_360_days, ensemble, curvilinear, dangling, whole_float_times)
}
# A position on the archive's axes and the same as xarray selects it.
SELECTIONS: Mapping[str, tuple[dict[str, str], dict[str, Any]]] = {
    "packed": ({"time": "2019-03-01T06"}, {"time": ["2019-03-01T06"]}),
    "nan_filled": ({"time": "2019-03-01T05..2019-03-01T08"}, {"time": slice("2019-03-01T05", "2019-03-01T08")}),
    "flipped": (
        {"latitude": "57..58.5", "longitude": "-60..30"},
        {"latitude": slice(57, 58.5), "longitude": slice(-60, 30)},
    ),
    "of_360_days": ({"time": "2019-02-30T20..2019-03-01T03"}, {"time": slice("2019-02-30T20", "2019-03-01T03")}),
    "ensemble": ({"level": "500", "number": "4"}, {"level": [500], "number": [4]}),
    "curvilinear": ({"y": "2..4", "x": "3..3"}, {"y": slice(2, 4), "x": [3]}),
    "dangling": ({"time": "2019-03-01T18..2019-03-01T21"}, {"time": slice("2019-03-01T18", "2019-03-01T21")}),
    "whole_float_times": ({"time": "2019-03-01T06"}, {"time": ["2019-03-01T06"]}),
}


@pytest.fixture(scope="module", params=SOURCES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def source_file(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(kind) / "source.nc"
    SOURCES[kind]().to_netcdf(path)
    return path


@pytest.fixture(scope="module")
def archive(source_file: Path) -> str:
    return make_archive(source_file.parent, str(source_file))


def make_archive(folder: Path, *sources: str) -> str:
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    bundle = train(load_config(str(folder / "tiny.yaml")), list(sources), str(folder / "bundle")).bundle_url
    compress(CompressJob(sources, bundle, str(folder / "archive"), QualityRequest(level=3)))
    return str(folder / "archive")


def opened(archive: str, folder: Path, select: dict[str, str] | None, form: str) -> xarray.Dataset:
    """What comes back, opened as anybody would open it; read whole."""
    if form == "memory":
        return Archive.open(archive).to_xarray(select)
    if form == "engine":
        return xarray.open_dataset(archive, engine="vcinr").load()
    if form == "container":
        convert(archive, str(folder / "container"), "zarr")
        return xarray.open_zarr(folder / "container").load()
    decompress(archive, str(folder / f"out.{form}"), select, workers=0)
    if form == "nc":
        return xarray.open_dataset(folder / "out.nc").load()
    return xarray.open_zarr(folder / "out.zarr").load()


def assert_alike(found: xarray.Dataset, expected: xarray.Dataset, form: str) -> None:
    assert found.t2m.dims == expected.t2m.dims
    assert found.t2m.attrs == expected.t2m.attrs
    assert set(found.t2m.coords) == set(expected.t2m.coords)
    assert set(found.data_vars) == set(expected.data_vars)
    for name in set(expected.variables) - {"t2m"}:
        one, other = found[name].variable, expected[name].variable.copy()
        if other.attrs.get("bounds") not in expected.variables:
            other.attrs.pop("bounds", None)  # which names nothing
        if form in ("zarr", "container"):  # which writes numbers among attributes without their type
            assert one.attrs.keys() == other.attrs.keys()
            np.testing.assert_equal({k: np.array(v).tolist() for k, v in one.attrs.items()}, plain(other.attrs))
        (xarray.testing.assert_equal if form in ("zarr", "container") else xarray.testing.assert_identical)(one, other)
        if other.dtype.kind in "biufM":
            assert one.dtype == other.dtype, name
    np.testing.assert_array_equal(np.isnan(found.t2m), np.isnan(expected.t2m))
    assert np.nanmax(np.abs(found.t2m.values - expected.t2m.values)) < 3.0


def test_float_times_are_written_as_such(tmp_path: Path) -> None:
    """Whole numbers, which xarray writes as integers unless it is told."""
    source = whole_float_times()
    source.to_netcdf(tmp_path / "source.nc")
    archive = make_archive(tmp_path, str(tmp_path / "source.nc"))
    for form in ("nc", "zarr"):
        opened(archive, tmp_path, None, form)
    with (
        xarray.open_dataset(tmp_path / "out.nc", decode_times=False) as netcdf,
        xarray.open_zarr(tmp_path / "out.zarr", consolidated=False, decode_times=False) as zarr,
    ):
        for found in (netcdf.time, zarr.time):
            assert (found.dtype, found.units) == (np.float64, "hours since 1900-01-01")
            assert found.values[1] == 24 * 43523 + 1  # days since 1900-01-01


def test_a_file_of_axes_alone_names_no_coordinates(archive_path: Path, tmp_path: Path) -> None:
    decompress(str(archive_path), str(tmp_path / "out.nc"), {"time": "2019-03-01T06"}, workers=0)
    with xarray.open_dataset(tmp_path / "out.nc", decode_coords=False) as found:
        assert "coordinates" not in {**found.attrs, **found.t2m.attrs}
    assert "auxiliary" not in manifest_to_json(Archive.open(str(archive_path)).manifest)


def test_the_coordinates_are_named_by_the_variable_and_not_by_the_file(tmp_path: Path) -> None:
    curvilinear().to_netcdf(tmp_path / "source.nc")
    archive = make_archive(tmp_path, str(tmp_path / "source.nc"))
    decompress(archive, str(tmp_path / "out.nc"), workers=0)
    with xarray.open_dataset(tmp_path / "out.nc", decode_coords=False) as found:
        assert found.t2m.attrs["coordinates"] == "height lat lon"
        assert found.t2m.attrs["grid_mapping"] == "crs"
        assert "coordinates" not in found.attrs


@pytest.mark.parametrize("form", ["memory", "nc", "zarr"])
def test_a_grid_mapping_may_be_a_single_character(tmp_path: Path, form: str) -> None:
    """`char crs;`, as CF has it in its examples: nothing is ever written into it."""
    netcdf4 = pytest.importorskip("netCDF4")
    curvilinear().drop_vars("crs").to_netcdf(tmp_path / "source.nc")
    with netcdf4.Dataset(tmp_path / "source.nc", "a") as file:
        file.createVariable("crs", "S1", ()).setncatts(CRS)
    archive = make_archive(tmp_path, str(tmp_path / "source.nc"))
    with xarray.open_dataset(tmp_path / "source.nc") as expected:
        assert expected.crs.dtype.kind == "S"
        assert_alike(opened(archive, tmp_path, None, form), expected, form)


def test_the_bytes_of_a_manifest_do_not_depend_on_who_reads_the_source(tmp_path: Path) -> None:
    """A second driver and `--overwrite` compare them."""
    curvilinear().to_netcdf(tmp_path / "source.nc")
    archive = make_archive(tmp_path, str(tmp_path / "source.nc"))
    first = (tmp_path / "archive" / "manifest.json.gz").read_bytes()
    bundle = str(next((tmp_path / "archive" / "models").iterdir()))
    job = CompressJob((str(tmp_path / "source.nc"),), bundle, archive, QualityRequest(level=3), overwrite=True)
    compress(job)
    assert (tmp_path / "archive" / "manifest.json.gz").read_bytes() == first
    assert manifest_data(Archive.open(archive).manifest) == first


def test_what_is_left_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`history` has as many dimensions as the fields."""
    source = fields(history=(("time", "latitude", "longitude"), np.zeros((HOURS, HEIGHT, WIDTH))))
    source.to_netcdf(tmp_path / "source.nc")
    make_archive(tmp_path, str(tmp_path / "source.nc"))
    assert "t2m: auxiliary variables left out: history" in caplog.messages
    assert Archive.open(str(tmp_path / "archive")).manifest.auxiliaries == ()
    bundle = str(next((tmp_path / "archive" / "models").iterdir()))
    job = CompressJob((str(tmp_path / "source.nc"),), bundle, str(tmp_path / "other"), QualityRequest(level=3))
    assert compress(job).left_out == ("history",)
    assert left_out_pairs(("history",))[0][0] == "left out"
    assert left_out_pairs(()) == []


def plain(attributes: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: np.array(value).tolist() for key, value in attributes.items()}


@pytest.mark.parametrize("form", ["memory", "engine", "container", "nc", "zarr"])
def test_an_awkward_file_comes_back(archive: str, source_file: Path, tmp_path: Path, form: str) -> None:
    with xarray.open_dataset(source_file) as expected:
        assert_alike(opened(archive, tmp_path, None, form), expected, form)


def test_all_that_goes_with_the_fields_are_coordinates_on_request(archive: str, source_file: Path) -> None:
    with (
        xarray.open_dataset(source_file, decode_coords="all") as expected,
        xarray.open_dataset(archive, engine="vcinr", decode_coords="all") as found,
    ):
        assert list(found.data_vars) == list(expected.data_vars) == ["t2m"]
        xarray.testing.assert_identical(found.drop_vars("t2m"), expected.drop_vars("t2m"))
        assert found.t2m.attrs == expected.t2m.attrs
        for name in ("bounds", "grid_mapping"):
            for one, other in ((found[key], expected[key]) for key in expected.variables):
                assert one.encoding.get(name) == other.encoding.get(name)


@pytest.mark.parametrize("form", ["memory", "nc", "zarr"])
def test_a_selection_of_it_takes_its_part_of_all_coordinates(
    archive: str, source_file: Path, tmp_path: Path, kind: str, form: str
) -> None:
    select, labels = SELECTIONS[kind]
    with xarray.open_dataset(source_file) as expected:
        assert_alike(opened(archive, tmp_path, select, form), expected.sel(labels), form)
