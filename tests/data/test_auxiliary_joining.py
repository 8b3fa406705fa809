from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from vcinr_batch.config import SourceConfig
from vcinr_batch.data.auxiliary import MAX_BYTES, Auxiliary, auxiliary_variable
from vcinr_batch.data.auxiliary_joining import MAX_TOTAL_BYTES, share_auxiliaries
from vcinr_batch.data.source_parts import open_part
from vcinr_batch.data.sources import FieldSource, open_fields

pytest.importorskip("netCDF4")

MakeFields = Callable[..., xarray.Dataset]
STARTS = ("2019-03-01", "2019-03-02")


def opened(folder: Path, *datasets: xarray.Dataset, **config: Any) -> FieldSource:
    """Files by name in the order given."""
    for k, dataset in enumerate(datasets):
        dataset.to_netcdf(folder / f"{k}.nc")
    return open_fields(str(folder / "*.nc"), SourceConfig(variable="t2m", **config))


def found(source: FieldSource) -> dict[str, Auxiliary]:
    return {auxiliary.name: auxiliary for auxiliary in source.auxiliaries}


def test_a_source_without_any_has_none(tmp_path: Path, make_fields: MakeFields) -> None:
    source = opened(tmp_path, make_fields())
    assert (source.auxiliaries, source.left_out) == ((), ())


def test_what_lies_along_the_joined_axis_is_joined_in_the_order_of_its_labels(
    tmp_path: Path, make_fields: MakeFields
) -> None:
    late, early = make_fields(4, start="2019-03-02"), make_fields(3)
    late = late.assign_coords(
        valid_time=("time", late.time.values + np.timedelta64(30, "m")), expver=("time", list("abcd"))
    ).isel(time=[3, 1, 0, 2])
    early = early.assign_coords(
        valid_time=("time", early.time.values + np.timedelta64(1, "D")), expver=("time", ["x", "yy", "z"])
    )
    early.valid_time.encoding = {"units": "days since 2000-01-01", "dtype": "float64"}
    joined = found(opened(tmp_path, late, early))
    assert joined["expver"].values.tolist() == ["x", "yy", "z", *"abcd"]
    assert joined["valid_time"].dims == ("time",)
    expected = np.concatenate([early.valid_time.values, late.valid_time.values[[2, 1, 3, 0]]])
    np.testing.assert_array_equal(auxiliary_variable(joined["valid_time"]).values, expected)


def test_a_selection_takes_its_part(tmp_path: Path, make_fields: MakeFields) -> None:
    fields = make_fields().assign_coords(
        area=(("longitude", "latitude"), np.arange(12.0).reshape(4, 3)), step=("time", np.arange(6, dtype=np.int16))
    )
    source = opened(tmp_path, fields, select={"time": "2019-03-01T02..2019-03-01T03", "longitude": "-0.5..0"})
    part = found(source)
    assert part["area"].values.tolist() == [[3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]
    assert (part["step"].values.tolist(), part["step"].values.dtype) == ([2, 3], np.int16)


def test_labels_stand_in_canonical_order_as_on_the_axes(tmp_path: Path, make_fields: MakeFields) -> None:
    fields = make_fields(latitude=(57.5, 57.75, 58.0)).assign_coords(zone=("latitude", np.array([1, 2, 3])))
    source = opened(tmp_path, fields)
    assert source.axes[1].values.tolist() == [58.0, 57.75, 57.5]
    assert found(source)["zone"].values.tolist() == [3, 2, 1]


@pytest.mark.parametrize(
    ("one", "other", "is_kept"),
    [
        (("latitude", [1.0, 2.0, 3.0]), ("latitude", [1.0, 2.0, 3.0 + 1e-9]), True),
        (("latitude", [1.0, np.nan, 3.0]), ("latitude", [1.0, np.nan, 3.0]), True),
        (("latitude", [1.0, 2.0, 3.0]), ("latitude", [1.0, 2.0, 4.0]), False),
        (("latitude", [1, 2, 3]), ("latitude", [1.0, 2.0, 3.0]), False),
        (("time", [1, 2, 3, 4, 5, 6]), ("time", list("abcdef")), False),
        (("time", [1, 2, 3, 4, 5, 6]), ((), 1), False),
        (((), "a"), ((), 1), False),
        (((), 1), None, False),
        (None, ((), 1), False),
    ],
)
def test_what_the_files_do_not_agree_on_is_left_out_and_named(
    tmp_path: Path, make_fields: MakeFields, one: Any, other: Any, is_kept: bool
) -> None:
    files = [make_fields(), make_fields(start="2019-03-02")]
    files = [
        file if value is None else file.assign_coords(extra=value)
        for file, value in zip(files, (one, other), strict=True)
    ]
    source = opened(tmp_path, *files)
    assert (list(found(source)), source.left_out) == ((["extra"], ()) if is_kept else ([], ("extra",)))


def test_scalars_that_differ_from_file_to_file_are_joined_along_time(tmp_path: Path, make_fields: MakeFields) -> None:
    files = [make_fields(1, start=start).isel(time=0) for start in ("2019-03-03", "2019-03-01")]
    files = [
        file.assign_coords(valid_time=file.time + np.timedelta64(6, "h"), height=2.0, expver=version)
        for file, version in zip(files, ("0005", "1"), strict=True)
    ]
    joined = found(opened(tmp_path, *files))
    assert joined["height"].dims == ()
    assert (joined["expver"].dims, joined["expver"].values.tolist()) == (("time",), ["1", "0005"])
    times = auxiliary_variable(joined["valid_time"])
    assert times.values.astype("M8[h]").astype(str).tolist() == ["2019-03-01T06", "2019-03-03T06"]


def test_members_must_agree(tmp_path: Path, make_fields: MakeFields) -> None:
    files = [
        make_fields(seed=k).assign_coords(height=2.0, realization=k, step=("time", np.arange(6)), member="m")
        for k in range(2)
    ]
    source = opened(tmp_path, *files, member_pattern=r"(\d)\.nc")
    assert sorted(found(source)) == ["height", "step"]
    assert source.left_out == ("member", "realization")


def test_names_that_an_archive_needs_itself_are_left_out(tmp_path: Path, make_fields: MakeFields) -> None:
    fields = make_fields().assign_coords(channel=1, member=2, altitude=("latitude", np.arange(3.0)))
    source = opened(tmp_path, fields)
    assert (sorted(found(source)), source.left_out) == (["altitude", "member"], ("channel",))
    itself = open_fields(str(tmp_path / "0.nc"), SourceConfig(variable="altitude"))
    assert (itself.shape, sorted(found(itself)), itself.left_out) == ((3,), ["member"], ("channel",))


@pytest.mark.parametrize("text", ["crs", "crs: latitude longitude"])
def test_a_grid_mapping_is_kept_with_the_attribute_that_names_it(
    tmp_path: Path, make_fields: MakeFields, text: str
) -> None:
    fields = make_fields().assign(crs=((), np.int32(0), {"grid_mapping_name": "latitude_longitude"}))
    fields.t2m.attrs["grid_mapping"] = text
    source = opened(tmp_path, fields)
    assert source.attributes["grid_mapping"] == text
    assert found(source)["crs"].attributes == {"grid_mapping_name": "latitude_longitude"}


def test_an_attribute_that_would_dangle_is_dropped(tmp_path: Path, make_fields: MakeFields) -> None:
    fields = [make_fields(start=start).assign(area=("latitude", np.arange(3.0) + k)) for k, start in enumerate(STARTS)]
    for k, file in enumerate(fields):
        file.t2m.attrs |= {"cell_measures": "area: area", "grid_mapping": "nowhere"}
        file.to_netcdf(tmp_path / f"{k}.nc")
    source = open_fields(str(tmp_path / "*.nc"), SourceConfig(variable="t2m"))
    assert source.left_out == ("area",)
    assert source.attributes.keys() == {"units", "long_name"}


def test_what_is_too_large_or_no_number_time_or_text_is_left_out(tmp_path: Path, make_fields: MakeFields) -> None:
    fields = make_fields(hours=2, latitude=np.linspace(60, 40, 400), longitude=np.linspace(0, 40, 400))
    times = fields.time.values.copy()
    times[1] = np.datetime64("NaT")
    fields = fields.assign_coords(
        large=(("latitude", "longitude"), np.zeros((400, 400))),
        fits=(("latitude", "longitude"), np.zeros((400, 400), np.float32)),
        deep=(("time", "latitude", "longitude"), np.zeros((2, 400, 400), np.int8)),
        sometimes=("time", times),
        missing=np.nan,
    )
    source = opened(tmp_path, fields)
    assert sorted(found(source)) == ["fits", "missing"]
    assert source.left_out == ("deep", "large", "sometimes")


def test_of_many_the_smallest_are_kept(tmp_path: Path, make_fields: MakeFields) -> None:
    fields = make_fields(hours=1, latitude=np.linspace(60, 40, 360), longitude=np.linspace(0, 40, 360))
    count = MAX_TOTAL_BYTES // (360 * 360 * 8) + 2
    many = {f"v{k:02d}": (("latitude", "longitude"), np.full((360, 360), float(k))) for k in range(count)}
    source = opened(tmp_path, fields.assign_coords(**many, height=2.0))
    assert sorted(found(source)) == ["height", *sorted(many)[:-2]]
    assert source.left_out == tuple(sorted(many)[-2:])


def test_files_that_agree_share_their_memory_and_the_others_stop_at_the_limit(
    tmp_path: Path, make_fields: MakeFields
) -> None:
    grid = np.zeros((300, 300))
    size = make_fields(hours=1, latitude=np.linspace(60, 40, 300), longitude=np.linspace(0, 40, 300))
    for k in range(4):
        file = size.assign_coords(same=(("latitude", "longitude"), grid), other=(("latitude", "longitude"), grid + k))
        file.to_netcdf(tmp_path / f"{k}.nc")
    parts = share_auxiliaries(open_part(str(tmp_path / f"{k}.nc"), "t2m", {}) for k in range(4))
    held = [part.auxiliaries.variables for part in parts]
    assert all(variables["same"] is held[0]["same"] for variables in held)
    assert 2 * grid.nbytes > MAX_BYTES
    assert ["other" in variables for variables in held] == [True, True, False, False]


def with_bounds(fields: xarray.Dataset, hours: int = 1) -> xarray.Dataset:
    """Each time is the end of so many hours."""
    end = fields.time.values
    fields = fields.assign(
        time_bnds=((*fields.time.dims, "bnds"), np.stack([end - np.timedelta64(hours, "h"), end], -1))
    )
    fields.time.attrs["bounds"] = "time_bnds"
    return fields


def test_bounds_are_joined_selected_and_named_by_their_axis(tmp_path: Path, make_fields: MakeFields) -> None:
    late, early = with_bounds(make_fields(4, start="2019-03-02").isel(time=[3, 1, 0, 2])), with_bounds(make_fields(3))
    source = opened(tmp_path, late, early, select={"time": "2019-03-01T01..2019-03-02T01"})
    (bounds,) = source.auxiliaries
    assert (bounds.name, bounds.dims, bounds.own_dim) == ("time_bnds", ("time", "bnds"), "bnds")
    ends = ["2019-03-01T01", "2019-03-01T02", "2019-03-02T00", "2019-03-02T01"]
    expected = np.array(ends, "M8[h]")[:, None] + np.array([-1, 0])
    np.testing.assert_array_equal(auxiliary_variable(bounds).values, expected)
    assert (source.axes[0].attributes["bounds"], source.left_out) == ("time_bnds", ())


def test_bounds_of_one_field_per_file_lie_along_the_time_they_make(tmp_path: Path, make_fields: MakeFields) -> None:
    files = [with_bounds(make_fields(1, start=start).isel(time=0)) for start in ("2019-03-03", "2019-03-01")]
    assert files[0].time_bnds.dims == ("bnds",)
    (joined,) = opened(tmp_path, *files).auxiliaries
    assert joined.dims == ("time", "bnds")
    assert auxiliary_variable(joined).values[:, 1].astype("M8[h]").astype(str).tolist() == [
        "2019-03-01T00",
        "2019-03-03T00",
    ]
    (single,) = open_fields(str(tmp_path / "0.nc"), SourceConfig(variable="t2m")).auxiliaries
    assert (single.dims, single.values.shape) == (("time", "bnds"), (1, 2))


def test_bounds_of_a_scalar_that_differs_are_joined_along_time_like_the_scalar(
    tmp_path: Path, make_fields: MakeFields
) -> None:
    files = [
        make_fields(2, start=start)
        .assign_coords(depth=((), 1.0 + k, {"bounds": "depth_bnds"}))
        .assign(depth_bnds=("ends", np.array([0.0, 2.0]) + k))
        for k, start in enumerate(STARTS)
    ]
    joined = found(opened(tmp_path, *files))
    assert joined["depth"].values.tolist() == [1, 1, 2, 2]
    assert joined["depth_bnds"].dims == ("time", "ends")
    assert joined["depth_bnds"].values.tolist() == [[0, 2], [0, 2], [1, 3], [1, 3]]
    assert joined["depth"].attributes["bounds"] == "depth_bnds"


@pytest.mark.parametrize(
    "change",
    [
        lambda late: late.drop_vars("lat_bnds"),
        lambda late: late.assign(lat_bnds=late.lat_bnds + 1),
        lambda late: late.assign(lat_bnds=(("latitude", "bnds"), np.zeros((3, 3)))),
        lambda late: late.rename(bnds="ends"),
        lambda late: late.rename(lat_bnds="bounds_of_latitude"),
    ],
    ids=["missing", "other values", "another length", "another dimension", "another name"],
)
def test_bounds_that_the_files_do_not_agree_on_are_left_out_with_the_attribute(
    tmp_path: Path, make_fields: MakeFields, change: Callable[[xarray.Dataset], xarray.Dataset]
) -> None:
    files = [
        make_fields(start=start).assign(lat_bnds=(("latitude", "bnds"), np.arange(6.0).reshape(3, 2)))
        for start in STARTS
    ]
    for file in files:
        file.latitude.attrs["bounds"] = "lat_bnds"
    files[1] = change(files[1])
    if "bounds_of_latitude" in files[1]:
        files[1].latitude.attrs["bounds"] = "bounds_of_latitude"
    source = opened(tmp_path, *files)
    assert source.auxiliaries == ()
    assert "lat_bnds" in source.left_out
    assert "bounds" not in source.axes[1].attributes


@pytest.mark.parametrize("dim", ["member", "channel"])
def test_bounds_along_a_dimension_whose_name_is_taken_are_left_out(
    tmp_path: Path, make_fields: MakeFields, dim: str
) -> None:
    netcdf4 = pytest.importorskip("netCDF4")
    for k in range(2):
        path = tmp_path / f"{k}.nc"
        make_fields(seed=k).assign_coords(height=2.0).to_netcdf(path)
        with netcdf4.Dataset(path, "a") as file:
            file.createDimension(dim, 2)
            file.createVariable("time_bnds", "f8", ("time", dim))[:] = 0.0
            file["time"].bounds = "time_bnds"
    source = open_fields(str(tmp_path / "*.nc"), SourceConfig(variable="t2m", member_pattern=r"(\d)\.nc"))
    assert (list(found(source)), source.left_out) == (["height"], ("time_bnds",))
    assert "bounds" not in source.axes[1].attributes


def test_grib_has_its_valid_times_and_scalars(
    tmp_path: Path, make_fields: MakeFields, write_grib: Callable[..., None]
) -> None:
    for k, start in enumerate(("2019-03-02", "2019-03-01")):
        fields = make_fields(2, start=start)
        labels = (fields.time.values, fields.latitude.values, fields.longitude.values)
        write_grib(tmp_path / f"{k}.grib", fields.t2m.values[None, :, None], *labels)
    source = open_fields(str(tmp_path / "*.grib"), SourceConfig(variable="t2m"))
    assert sorted(found(source)) == ["number", "step", "surface", "valid_time"]
    assert source.left_out == ()
    valid_time, time = found(source)["valid_time"], source.axes[0]
    assert (valid_time.dims, valid_time.attributes["units"]) == (("time",), time.attributes["units"])
    assert valid_time.values.tolist() == time.values.tolist()
    assert found(source)["step"].attributes["units"] == "hours"
