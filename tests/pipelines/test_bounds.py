"""CF bounds come back as xarray opens them in the source: variables of the dataset, named by their coordinate."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

from pipelines.compress import CompressJob, compress
from pipelines.decompress import decompress
from vcinr_batch.archive.archive import Archive
from vcinr_batch.compression import QualityRequest

HOURS = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, fields: xarray.Dataset) -> Path:
    """Means of the three hours before, half an hour off: the bounds are no whole hours, the times are."""
    dataset = fields.isel(time=slice(0, HOURS)).copy(deep=True)
    time, latitude = dataset.time.values, dataset.latitude.values
    ends = time[:, None] + np.array([-150, 30], "m8[m]")
    dataset = dataset.assign(
        time_bnds=(("time", "bnds"), ends, {"long_name": "averaged over"}),
        lat_bnds=(("latitude", "bnds"), np.stack([latitude + 0.25, latitude - 0.25], -1).astype(np.float32)),
    )
    dataset.time.attrs["bounds"], dataset.latitude.attrs["bounds"] = "time_bnds", "lat_bnds"
    dataset.time.encoding = {"units": "minutes since 2019-01-01", "dtype": "int64"}
    path = tmp_path_factory.mktemp("bounds") / "source.nc"
    dataset.to_netcdf(path)
    return path


@pytest.fixture(scope="module")
def archive(source: Path, bundle_path: Path) -> str:
    compress(CompressJob((str(source),), str(bundle_path), str(source.parent / "archive"), QualityRequest(level=2)))
    return str(source.parent / "archive")


def assert_same(found: xarray.Dataset, expected: xarray.Dataset) -> None:
    """All but the values of the field, which are compressed."""
    assert set(found.data_vars) == set(expected.data_vars) == {"t2m", "time_bnds", "lat_bnds"}
    assert found.attrs == expected.attrs
    xarray.testing.assert_identical(found.drop_vars("t2m"), expected.drop_vars("t2m"))


@pytest.mark.parametrize("options", [{}, {"decode_times": False}, {"use_cftime": True}, {"drop_variables": "lat_bnds"}])
def test_the_engine_gives_what_xarray_gives_for_the_source(source: Path, archive: str, options: dict[str, Any]) -> None:
    with (
        xarray.open_dataset(source, **options) as expected,
        xarray.open_dataset(archive, engine="vcinr", **options) as a,
    ):
        assert set(a.data_vars) == set(expected.data_vars)
        xarray.testing.assert_identical(a.drop_vars("t2m"), expected.drop_vars("t2m"))


def test_a_selection_along_time_takes_the_bounds_of_these_times(source: Path, archive: str) -> None:
    with xarray.open_dataset(source) as expected, xarray.open_dataset(archive, engine="vcinr") as lazy:
        chosen = expected.sel(time=slice("2019-03-01T04", "2019-03-01T07"))
        assert chosen.time_bnds.shape == (4, 2)
        assert_same(lazy.sel(time=slice("2019-03-01T04", "2019-03-01T07")), chosen)
        assert_same(Archive.open(archive).to_xarray({"time": "2019-03-01T04..2019-03-01T07"}), chosen)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_restored_selection_has_them_encoded_as_the_source(
    source: Path, archive: str, tmp_path: Path, suffix: str
) -> None:
    output = str(tmp_path / f"out{suffix}")
    decompress(archive, output, {"time": "2019-03-01T04..2019-03-01T07"}, workers=0)
    chosen = {"time": slice(4, 8)}
    reader = xarray.open_dataset if suffix == ".nc" else xarray.open_zarr
    with xarray.open_dataset(source) as expected, reader(output) as found:
        assert_same(found.load(), expected.isel(chosen))
        assert "coordinates" not in {**found.attrs, **found.t2m.attrs, **found.t2m.encoding}
    with xarray.open_dataset(source, decode_times=False) as expected, reader(output, decode_times=False) as found:
        raw, repeated = found.time_bnds.load(), {"units": found.time.units, "calendar": found.time.calendar}
        xarray.testing.assert_equal(raw, expected.time_bnds.isel(chosen))
        # To Zarr, xarray writes the coordinate's units again.
        assert raw.attrs == expected.time_bnds.attrs | (repeated if suffix == ".zarr" else {})


def test_an_answer_at_other_coordinates_names_no_bounds(archive: str) -> None:
    """A DataArray has no place for them, and other latitudes have other cells."""
    answer = Archive.open(archive).evaluate({"time": "2019-03-01T04"}, latitude=[58.1], longitude=[0.3, 0.4])
    assert set(answer.coords) == {"time", "latitude", "longitude"}
    assert all("bounds" not in coordinate.attrs for coordinate in answer.coords.values())
    assert Archive.open(archive).to_xarray({"time": "2019-03-01T04"}).latitude.attrs["bounds"] == "lat_bnds"


def test_a_restored_store_has_consolidated_metadata_of_all_its_arrays(archive: str, tmp_path: Path) -> None:
    decompress(archive, str(tmp_path / "out.zarr"), workers=0)
    metadata = zarr.open_group(tmp_path / "out.zarr", mode="r").metadata.consolidated_metadata
    assert metadata is not None
    assert set(metadata.metadata) == {"t2m", "time", "latitude", "longitude", "time_bnds", "lat_bnds"}


def test_bounds_that_are_too_large_are_left_out_with_the_attribute_and_named(
    source: Path, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vcinr_batch.data.auxiliary_joining.MAX_BYTES", HOURS * 2 * 8 - 1)
    job = CompressJob((str(source),), str(bundle_path), str(tmp_path / "archive"), QualityRequest(level=2))
    assert compress(job).left_out == ("time_bnds",)
    with xarray.open_dataset(tmp_path / "archive", engine="vcinr") as found:
        assert set(found.data_vars) == {"t2m", "lat_bnds"}
        assert "bounds" not in found.time.attrs
