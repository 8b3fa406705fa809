from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from vcinr_batch.data.source_parts import open_part
from vcinr_batch.errors import ConfigError, SourceError

pytest.importorskip("netCDF4")

MakeFields = Callable[..., xarray.Dataset]


def test_a_part_tells_what_the_store_says(tmp_path: Path, make_fields: MakeFields) -> None:
    fields = make_fields()
    fields.t2m.attrs |= {"valid_range": np.array([0, 400], np.float32), "flag": np.int8(3), "bad": np.nan}
    fields.time.attrs["long_name"] = "time"
    packing = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -1, "chunksizes": (2, 3, 4)}
    time = {"units": "hours since 1900-01-01 00:00:00", "calendar": "gregorian", "dtype": "int32"}
    fields.to_netcdf(tmp_path / "a.nc", encoding={"t2m": packing, "time": time, "latitude": {"dtype": "float32"}})
    part = open_part(str(tmp_path / "a.nc"), None, {})
    assert part.variable == "t2m"
    assert part.dims == ("time", "latitude", "longitude")
    attributes = dict(part.attributes)
    valid_range, flag, bad = (attributes.pop(name) for name in ("valid_range", "flag", "bad"))
    assert attributes == {"units": "K", "long_name": "2 metre temperature"}
    assert (valid_range.dtype, valid_range.tolist()) == (np.float32, [0.0, 400.0])
    assert (type(flag), flag) == (np.int8, 3)
    assert np.isnan(bad)
    assert part.dataset_attributes == {"title": "made for a test"}
    assert part.encoding == {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -1}
    assert part.source_bits == 16
    assert part.chunk_shape == (2, 3, 4)
    assert part.axes[0].attributes == {
        "long_name": "time",
        "units": "seconds since 1970-01-01",
        "calendar": "proleptic_gregorian",
        "source_units": "hours since 1900-01-01",
        "source_calendar": "gregorian",
    }
    assert part.axes[1].attributes == {"units": "degrees_north", "source_dtype": "float32"}


def test_float32_labels_mean_their_shortest_decimal(tmp_path: Path) -> None:
    latitude = np.array([50.1, 50.0, 49.9], np.float32)
    xarray.Dataset({"t": ("lat", np.zeros(3))}, {"lat": latitude}).to_netcdf(tmp_path / "a.nc")
    axis = open_part(str(tmp_path / "a.nc"), None, {}).axes[0]
    assert axis.values.tolist() == [50.1, 50.0, 49.9]
    assert np.array_equal(axis.values.astype(np.float32), latitude)


def test_bounds_and_flat_variables_are_not_to_choose_from(tmp_path: Path, make_fields: MakeFields) -> None:
    fields = make_fields()
    fields["time_bnds"] = (("time", "bnds"), np.zeros((6, 2)))
    fields["edges"] = (("latitude", "bnds"), np.zeros((3, 2)))
    fields.latitude.attrs["bounds"] = "edges"
    fields["crs"] = ((), np.int32(0))
    fields["name"] = (("latitude",), np.array(["a", "b", "c"]))
    fields.to_netcdf(tmp_path / "a.nc")
    assert open_part(str(tmp_path / "a.nc"), None, {}).variable == "t2m"


@pytest.mark.parametrize(
    ("variable", "error", "problem"),
    [
        (None, ConfigError, "source.variable must name one of the variables in .*a.nc: sst, t2m"),
        ("tas", SourceError, "no variable 'tas' in .*a.nc; it holds sst, t2m"),
        ("time", SourceError, "no variable 'time'"),
        ("name", SourceError, "'name' in .*a.nc is not numeric"),
    ],
)
def test_a_variable_must_be_there_and_numeric(
    tmp_path: Path, make_fields: MakeFields, variable: str | None, error: type[Exception], problem: str
) -> None:
    fields = make_fields()
    fields["sst"] = fields.t2m + 1
    fields["name"] = (("latitude",), np.array(["a", "b", "c"]))
    fields.to_netcdf(tmp_path / "a.nc")
    with pytest.raises(error, match=problem):
        open_part(str(tmp_path / "a.nc"), variable, {})


def test_dimensions_may_have_no_labels_or_words(tmp_path: Path) -> None:
    dataset = xarray.Dataset({"v": (("band", "y", "x"), np.zeros((2, 3, 4)))}, {"band": ["red", "blue"]})
    dataset.to_netcdf(tmp_path / "a.nc")
    band, y, x = open_part(str(tmp_path / "a.nc"), None, {}).axes
    assert band.values.tolist() == ["red", "blue"]
    assert (y.values.tolist(), x.values.tolist()) == ([0, 1, 2], [0, 1, 2, 3])


def test_one_field_in_a_file_keeps_its_time(tmp_path: Path, make_fields: MakeFields) -> None:
    make_fields().isel(time=3).assign_coords(level=850.0).to_netcdf(tmp_path / "a.nc")
    part = open_part(str(tmp_path / "a.nc"), None, {})
    assert part.dims == ("time", "latitude", "longitude")
    assert len(part.axes[0]) == 1
    assert part.scalars["level"].values.tolist() == [850]


@pytest.mark.parametrize(
    ("coordinate", "problem"),
    [
        (("time", np.array(["2019-01-01", "NaT"], "datetime64[ns]")), "'time' has missing times"),
        (("time", np.array([0.5, np.nan])), "'time' has missing labels"),
    ],
)
def test_missing_labels_are_an_error(tmp_path: Path, coordinate: Any, problem: str) -> None:
    xarray.Dataset({"t": ("time", np.zeros(2))}, {"time": coordinate}).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(SourceError, match=problem):
        open_part(str(tmp_path / "a.nc"), None, {})


@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_a_variable_without_values_is_an_error(tmp_path: Path, shape: tuple[int, ...]) -> None:
    xarray.Dataset({"t": (("y", "x")[: len(shape)], np.zeros(shape))}).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(SourceError, match=r"t in .*a.nc holds no field: its shape is"):
        open_part(str(tmp_path / "a.nc"), "t", {})


def test_a_file_without_variables_is_an_error(tmp_path: Path) -> None:
    xarray.Dataset({"t": ((), 1.0)}).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(SourceError, match=r"a.nc holds no numeric variable with a dimension"):
        open_part(str(tmp_path / "a.nc"), None, {})


def test_durations_stay_numbers(tmp_path: Path) -> None:
    dataset = xarray.Dataset({"sunshine": ("step", np.arange(3.0), {"units": "hours"})}, {"step": np.arange(3)})
    dataset.to_netcdf(tmp_path / "a.nc")
    assert open_part(str(tmp_path / "a.nc"), None, {}).encoding["dtype"] == "float64"


def test_grib_is_found_by_either_name_and_keeps_no_clock(tmp_path: Path, write_grib: Callable[..., None]) -> None:
    values = np.random.default_rng(0).normal(280, 5, (1, 2, 1, 3, 4))
    times = np.array(["2019-03-01T00", "2019-03-01T12"], "datetime64[ns]")
    path = tmp_path / "a.grib"
    write_grib(path, values, times, [60, 59, 58], [0, 1, 2, 3])
    write_grib(path, values, times, [60, 59, 58], [0, 1, 2, 3], short_name="sp", append=True)
    for name in ("2t", "t2m"):
        part = open_part(str(path), name, {})
        assert part.variable == "t2m"
        assert part.source_bits == 16
        assert part.chunk_shape == (1, 3, 4)
        assert "history" not in part.dataset_attributes
    with pytest.raises(SourceError, match=r"no variable 'z' in .*a.grib; it holds sp, t2m"):
        open_part(str(path), "z", {})
    with pytest.raises(ConfigError, match="sp, t2m"):
        open_part(str(path), None, {})


def test_grib_variables_on_different_levels_are_told_apart(tmp_path: Path, write_grib: Callable[..., None]) -> None:
    times = np.array(["2019-03-01T00"], "datetime64[ns]")
    path = tmp_path / "a.grib"
    for name, levels in (("t", [850, 500]), ("z", [850, 500, 100]), ("2t", [None])):
        values = np.random.default_rng(0).normal(280, 5, (1, 1, len(levels), 3, 4))
        write_grib(path, values, times, [60, 59, 58], [0, 1, 2, 3], levels, short_name=name, append=True)
    assert open_part(str(path), "z", {}).axes[1].values.tolist() == [850, 500, 100]
    assert open_part(str(path), "2t", {}).dims == ("time", "latitude", "longitude")
    with pytest.raises(ConfigError, match=r"must name one of the variables in .*a.grib: t, t2m, z"):
        open_part(str(path), None, {})
    with pytest.raises(SourceError, match=r"no variable 'q' in .*a.grib; it holds t, t2m, z"):
        open_part(str(path), "q", {})
