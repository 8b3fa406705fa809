import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from numpy.typing import NDArray

from vcinr_batch.config import SourceConfig
from vcinr_batch.data.axes import label_text
from vcinr_batch.data.sources import FieldSource, open_fields, read_extent
from vcinr_batch.errors import ConfigError, SampleNotFoundError, SourceError

pytest.importorskip("netCDF4")

MakeFields = Callable[..., xarray.Dataset]
EAST = {"units": "degrees_east"}


def everything(source: FieldSource) -> NDArray[np.float32]:
    return read_extent(source, tuple(slice(0, n) for n in source.shape))


def opened(url: Any, **config: Any) -> FieldSource:
    return open_fields(url if isinstance(url, list) else str(url), SourceConfig(**config))


def test_values_and_labels_come_as_they_are(tmp_path: Path, make_fields: MakeFields) -> None:
    fields = make_fields()
    fields.to_netcdf(tmp_path / "a.nc")
    source = opened(tmp_path / "a.nc")
    assert (source.variable, source.unit, source.source_bits) == ("t2m", "K", 32)
    assert [axis.name for axis in source.axes] == ["time", "latitude", "longitude"]
    assert source.axes[1].values.tolist() == [58, 57.75, 57.5]
    assert label_text(source.axes[0], 5) == "2019-03-01T05:00:00"
    values = everything(source)
    assert values.dtype == np.float32
    assert np.array_equal(values, fields.t2m.values)


@pytest.mark.parametrize(
    "extent",
    [
        (slice(0, 1), slice(0, 3), slice(0, 4)),
        (slice(2, 5), slice(1, 3), slice(3, 4)),
        (slice(5, 6), slice(2, 3), slice(0, 1)),
    ],
)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("roll", [0, 3])
def test_a_piece_is_the_same_whatever_the_order_of_the_file(
    tmp_path: Path, make_fields: MakeFields, extent: tuple[slice, ...], flip: bool, roll: int
) -> None:
    fields = make_fields(longitude=(0.0, 90.0, 180.0, 270.0))
    stored = fields.isel(latitude=slice(None, None, -1 if flip else 1)).roll(longitude=roll, roll_coords=True)
    stored["longitude"] = ("longitude", (stored.longitude.values + 180) % 360 - 180, EAST)
    stored.to_netcdf(tmp_path / "a.nc")
    source = opened(tmp_path / "a.nc")
    assert source.axes[1].values.tolist() == [58, 57.75, 57.5]
    assert source.axes[2].values.tolist() == [0, 90, 180, 270]
    assert np.array_equal(read_extent(source, extent), fields.t2m.values[extent])


def test_packed_integers_are_unpacked_before_their_gaps_become_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    packed = np.array([[0, 1], [-32767, 1000]], np.int16)
    attributes = {"scale_factor": 0.5, "add_offset": 250.0, "_FillValue": np.int16(-32767), "units": "K"}
    xarray.Dataset({"t": (("y", "x"), packed, attributes)}).to_netcdf(path)
    source = opened(path)
    assert np.array_equal(everything(source), np.array([[250, 250.5], [np.nan, 750]], np.float32), equal_nan=True)
    assert source.source_bits == 16
    assert source.encoding == {"dtype": "int16", "scale_factor": 0.5, "add_offset": 250.0, "_FillValue": -32767}


@pytest.mark.parametrize("dtype", ["float64", "int32", "uint8", "bool"])
def test_other_numbers_become_float32(tmp_path: Path, dtype: str) -> None:
    values = np.array([0, 1, 1], dtype)
    xarray.Dataset({"t": ("x", values)}).to_zarr(tmp_path / "a.zarr", consolidated=False)
    source = opened(tmp_path / "a.zarr")
    assert np.array_equal(everything(source), values.astype(np.float32))
    assert source.source_bits == 8 * values.itemsize


@pytest.mark.parametrize(
    ("select", "index"),
    [
        ({"time": "2019-03-01T02..2019-03-01T04"}, np.s_[2:5]),
        ({"time": "2019-03-01T02", "latitude": "57.5"}, np.s_[2:3, 2:3]),
        ({"latitude": "57.5..57.75", "longitude": "-0.5..0"}, np.s_[:, 1:3, 1:3]),
        ({"longitude": "359.5..0.5"}, np.s_[:, :, 1:]),
    ],
)
def test_only_the_selection_is_there(
    tmp_path: Path, make_fields: MakeFields, select: dict[str, str], index: Any
) -> None:
    fields = make_fields()
    fields.to_netcdf(tmp_path / "a.nc")
    assert np.array_equal(everything(opened(tmp_path / "a.nc", select=select)), fields.t2m.values[index])


def test_a_region_across_greenwich_is_the_same_from_any_convention(tmp_path: Path, make_fields: MakeFields) -> None:
    globe = make_fields(longitude=np.arange(0, 360, 45.0))
    signed = globe.assign_coords(longitude=("longitude", (globe.longitude.values + 180) % 360 - 180, EAST))
    signed = signed.sortby("longitude")
    globe.to_netcdf(tmp_path / "globe.nc")
    signed.to_netcdf(tmp_path / "signed.nc")
    signed.sel(longitude=slice(-45, 90)).to_netcdf(tmp_path / "region.nc")
    sources = [
        opened(tmp_path / f"{name}.nc", select={"longitude": "-45..90"}) for name in ("globe", "signed", "region")
    ]
    for source in sources:
        assert source.axes[2].values.tolist() == [-45, 0, 45, 90]
        assert np.array_equal(everything(source), signed.t2m.sel(longitude=slice(-45, 90)).values)


@pytest.mark.parametrize(
    ("select", "error", "problem"),
    [
        ({"time": "2020"}, SampleNotFoundError, "time=2020 selects nothing"),
        ({"height": "2"}, ConfigError, "no dimension 'height'; it has time, latitude, longitude, level"),
        ({"level": "500"}, SampleNotFoundError, "level=500 selects nothing"),
    ],
)
def test_an_impossible_selection_is_named(
    tmp_path: Path, make_fields: MakeFields, select: dict[str, str], error: type[Exception], problem: str
) -> None:
    make_fields().assign_coords(level=850.0).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(error, match=problem):
        opened(tmp_path / "a.nc", select=select)


def test_a_scalar_level_may_be_selected(tmp_path: Path, make_fields: MakeFields) -> None:
    make_fields().assign_coords(level=850.0).to_netcdf(tmp_path / "a.nc")
    assert opened(tmp_path / "a.nc", select={"level": "850"}).shape == (6, 3, 4)


def test_files_are_joined_in_the_order_of_their_times(tmp_path: Path, make_fields: MakeFields) -> None:
    """The second file holds every other hour of the first one's gaps, in another unit."""
    fields = make_fields(hours=9)
    fields.isel(time=[7, 8]).to_netcdf(tmp_path / "a.nc")
    days = {"time": {"units": "days since 1900-01-01", "dtype": "float64"}}
    fields.isel(time=[0, 2, 4, 6]).to_netcdf(tmp_path / "b.nc", encoding=days)
    fields.isel(time=[5, 1, 3]).to_netcdf(tmp_path / "c.nc")
    source = opened(tmp_path / "*.nc")
    assert np.array_equal(everything(source), fields.t2m.values)
    assert source.axes[0].source_values is None
    assert len(source.files) == len(source.urls) == 3
    part = opened(tmp_path / "*.nc", select={"time": "2019-03-01T01..2019-03-01T07"})
    assert np.array_equal(read_extent(part, (slice(1, 6), slice(0, 2), slice(1, 4))), fields.t2m.values[2:7, :2, 1:])


def test_one_field_per_file_is_joined(tmp_path: Path, make_fields: MakeFields) -> None:
    fields = make_fields(hours=3)
    for hour in range(3):
        fields.isel(time=hour).to_netcdf(tmp_path / f"{hour}.nc")
    assert np.array_equal(everything(opened(tmp_path / "*.nc")), fields.t2m.values)


def test_members_are_stacked_in_front(tmp_path: Path, make_fields: MakeFields) -> None:
    runs = {f"r{run}": make_fields(seed=run) for run in (1, 2)}
    for run, fields in runs.items():
        fields.isel(time=slice(0, 2)).to_netcdf(tmp_path / f"t_{run}_a.nc")
        fields.isel(time=slice(2, 6)).to_netcdf(tmp_path / f"t_{run}_b.nc")
    source = opened(tmp_path / "*.nc", member_pattern=r"_(r\d)_")
    assert [axis.name for axis in source.axes] == ["member", "time", "latitude", "longitude"]
    assert source.axes[0].values.tolist() == ["r1", "r2"]
    assert np.array_equal(everything(source), np.stack([fields.t2m.values for fields in runs.values()]))
    second = opened(
        tmp_path / "*.nc", member_pattern=r"_(r\d)_", select={"member": "r2", "time": "2019-03-01T01..2019-03-01T02"}
    )
    assert np.array_equal(everything(second), runs["r2"].t2m.values[None, 1:3])


def test_members_need_no_time(tmp_path: Path) -> None:
    for run in (1, 2):
        xarray.Dataset({"h": ("x", np.full(3, run, np.float32))}).to_netcdf(tmp_path / f"r{run}.nc")
    assert everything(opened(tmp_path / "*.nc", member_pattern=r"r(\d)")).tolist() == [[1, 1, 1], [2, 2, 2]]
    with pytest.raises(SourceError, match=r"r1.nc and .*r2.nc have no time dimension to join them along"):
        opened(tmp_path / "*.nc")


def changed(fields: xarray.Dataset, change: str) -> xarray.Dataset:
    return {
        "nothing": fields,
        "later": fields.assign_coords(time=fields.time + np.timedelta64(10, "h")),
        "latitude": fields.assign_coords(latitude=fields.latitude + 1, time=fields.time + np.timedelta64(10, "h")),
        "flipped": fields.isel(latitude=slice(None, None, -1)),
        "smaller": fields.isel(longitude=slice(0, 2)),
        "flat": fields.isel(latitude=0),
        "variable": fields.rename(t2m="sst"),
        "calendar": fields.convert_calendar("noleap"),
    }[change]


@pytest.mark.parametrize(
    ("change", "pattern", "problem"),
    [
        ("nothing", None, r"a1.nc and .*a2.nc both hold time=2019-03-01T00:00:00; .*set source.member_pattern"),
        ("latitude", None, "latitude in .*a2.nc differs from that in .*a1.nc"),
        ("flipped", None, "latitude in .*a2.nc differs"),
        ("smaller", None, "longitude in .*a2.nc differs"),
        ("flat", None, r"a2.nc holds t2m\(time, longitude\), but .*a1.nc holds t2m\(time, latitude, longitude\)"),
        ("variable", None, r"a2.nc holds sst\(.*but .*a1.nc holds t2m"),
        ("calendar", None, "a2.nc has another calendar than .*a1.nc"),
        ("later", r"a(\d)", "time of the member with .*a2.nc differs from that with .*a1.nc"),
    ],
)
def test_files_that_do_not_fit_are_named(
    tmp_path: Path, make_fields: MakeFields, change: str, pattern: str | None, problem: str
) -> None:
    make_fields().to_netcdf(tmp_path / "a1.nc")
    changed(make_fields(), change).to_netcdf(tmp_path / "a2.nc")
    with pytest.raises(SourceError, match=problem):
        opened(tmp_path / "*.nc", member_pattern=pattern)


def test_a_label_that_comes_twice_is_named(tmp_path: Path, make_fields: MakeFields) -> None:
    make_fields().isel(time=[0, 1, 1]).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(SourceError, match=r"a.nc holds time=2019-03-01T01:00:00 twice"):
        opened(tmp_path / "a.nc")


def test_a_label_that_comes_twice_on_another_axis_is_named(tmp_path: Path, make_fields: MakeFields) -> None:
    make_fields(latitude=(50.0, 50.0, 49.0)).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(SourceError, match=r"dimension 'latitude' in .*a.nc holds a label twice"):
        opened(tmp_path / "a.nc")


def test_an_empty_piece_is_empty(tmp_path: Path, make_fields: MakeFields) -> None:
    make_fields().to_netcdf(tmp_path / "a.nc")
    assert read_extent(opened(tmp_path / "a.nc"), np.s_[2:2, 0:3, 0:4]).shape == (0, 3, 4)


def test_other_calendars_keep_their_dates(tmp_path: Path, make_fields: MakeFields) -> None:
    fields = make_fields()
    fields["time"] = xarray.date_range("2000-02-28", periods=6, freq="D", calendar="360_day", use_cftime=True)
    fields.to_netcdf(tmp_path / "a.nc")
    source = opened(tmp_path / "a.nc", select={"time": "2000-02-29.."})
    assert [label_text(source.axes[0], i) for i in (0, 1, 2)] == [
        "2000-02-29T00:00:00",
        "2000-02-30T00:00:00",
        "2000-03-01T00:00:00",
    ]
    assert np.array_equal(everything(source), fields.t2m.values[1:])


def test_a_source_travels_by_pickle(tmp_path: Path, make_fields: MakeFields) -> None:
    fields = make_fields()
    fields.to_netcdf(tmp_path / "a.nc")
    source = opened(tmp_path / "a.nc")
    everything(source)
    sent = pickle.dumps(source)
    assert len(sent) < 6000
    assert np.array_equal(everything(pickle.loads(sent)), fields.t2m.values)


def test_grib_netcdf_and_zarr_of_the_same_data_are_the_same_source(
    tmp_path: Path, make_fields: MakeFields, write_grib: Callable[..., None]
) -> None:
    fields = make_fields()
    shape = (fields.time.values, fields.latitude.values, fields.longitude.values)
    write_grib(tmp_path / "a.grib", fields.t2m.values[None, :, None], *shape)
    grib = opened(tmp_path / "a.grib")
    attributes = {name: dict(axis.attributes) for name, axis in zip(fields.t2m.dims, grib.axes, strict=True)}
    for dim, found in attributes.items():
        fields[dim].attrs = {k: v for k, v in found.items() if dim != "time" or k not in ("units", "calendar")}
        fields[dim].attrs.pop("source_units", None)
    fields["t2m"] = (fields.t2m.dims, everything(grib), grib.attributes)
    seconds = {"time": {"units": "seconds since 1970-01-01T00:00:00"}}
    fields.to_netcdf(tmp_path / "a.nc", encoding=seconds)
    fields.to_zarr(tmp_path / "a.zarr", encoding=seconds, consolidated=False)
    for other in (opened(tmp_path / "a.nc"), opened(tmp_path / "a.zarr")):
        assert (other.variable, other.unit, dict(other.attributes)) == (grib.variable, grib.unit, grib.attributes)
        assert np.array_equal(everything(other), everything(grib))
        for a, b in zip(other.axes, grib.axes, strict=True):
            assert (a.name, a.values.dtype, dict(a.attributes)) == (b.name, b.values.dtype, dict(b.attributes))
            assert np.array_equal(a.values, b.values)


def test_an_ensemble_on_levels_is_read_from_grib(tmp_path: Path, write_grib: Callable[..., None]) -> None:
    values = np.random.default_rng(0).normal(250, 20, (2, 3, 2, 3, 4)).astype(np.float32)
    times = np.datetime64("2019-03-01", "ns") + np.arange(3) * np.timedelta64(12, "h")
    write_grib(tmp_path / "a.grib", values, times, [60, 59, 58], [0, 1, 2, 3], [850, 500], [0, 1], "t")
    source = opened(tmp_path / "a.grib", select={"number": "1", "isobaricInhPa": "500", "time": "2019-03-01"})
    assert [axis.name for axis in source.axes] == ["number", "time", "isobaricInhPa", "latitude", "longitude"]
    assert everything(source) == pytest.approx(values[1:, :2, 1:], abs=5e-3)


def test_a_chunk_that_cannot_be_unpacked_is_an_error(tmp_path: Path, make_fields: MakeFields) -> None:
    path = tmp_path / "a.nc"
    make_fields(hours=48).to_netcdf(path, encoding={"t2m": {"zlib": True, "chunksizes": (48, 3, 4)}})
    data = path.read_bytes()
    start = data.index(b"\x78\x5e")  # where zlib's only stream begins
    path.write_bytes(data[: start + 20] + bytes(100) + data[start + 120 :])
    source = opened(path)
    with pytest.raises(SourceError, match=r"cannot read .*a.nc"):
        everything(source)
