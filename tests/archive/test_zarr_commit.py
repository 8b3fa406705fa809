"""A store that `to_zarr` compressed becomes an archive like any other, whole or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray

import vcinr_batch
from pipelines.compress import CompressJob, compress
from pipelines.convert import convert
from tests.conftest import make_fields
from vcinr_batch.archive import zarr_commit
from vcinr_batch.archive.archive import Archive
from vcinr_batch.compression import QualityRequest
from vcinr_batch.errors import ArchiveExistsError, ConfigError, CorruptBitstreamError, SourceError
from vcinr_batch.verification import verify_archive

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata")


def test_the_store_becomes_an_archive_of_the_same_values(
    write_zarr: Callable[..., Path], hours: xarray.Dataset, archive_path: Path, tmp_path: Path
) -> None:
    store = write_zarr(hours)
    before = xarray.open_zarr(store).load()
    archive = vcinr_batch.commit(str(store))
    assert archive.to_xarray().identical(Archive.open(str(archive_path)).to_xarray())
    assert xarray.open_zarr(store).load().identical(before)
    assert not list((store / "t2m").glob("vcinr/*"))
    assert verify_archive(str(store)).problems == ()
    convert(str(store), str(tmp_path / "parquet"), "parquet")
    assert Archive.open(str(tmp_path / "parquet")).to_xarray().identical(archive.to_xarray())
    assert sorted(part.sha256 for part in archive.manifest.parts) == sorted(
        part.sha256 for part in Archive.open(str(archive_path)).manifest.parts
    )


def test_a_second_commit_changes_nothing(write_zarr: Callable[..., Path], hours: xarray.Dataset) -> None:
    store = write_zarr(hours)
    vcinr_batch.commit(str(store))
    files = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    vcinr_batch.commit(str(store))
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == files


def test_an_archive_is_not_written_any_more(write_zarr: Callable[..., Path], hours: xarray.Dataset) -> None:
    store = write_zarr(hours)
    vcinr_batch.commit(str(store))
    with pytest.raises(ConfigError, match="not written through Zarr"):
        hours.isel(time=slice(0, 10)).drop_vars(["latitude", "longitude", "time"]).to_zarr(
            store, region={"time": slice(0, 10)}
        )


@pytest.mark.parametrize("killed_before", ["commit_manifest", "_rewrite_metadata", "remove"])
def test_a_commit_that_was_killed_is_completed_and_reads_meanwhile(
    killed_before: str, write_zarr: Callable[..., Path], hours: xarray.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_zarr(hours)
    before = xarray.open_zarr(store).load()
    with monkeypatch.context() as patch:
        patch.setattr(zarr_commit, killed_before, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            vcinr_batch.commit(str(store))
    assert xarray.open_zarr(store).load().identical(before)
    assert vcinr_batch.commit(str(store)).to_xarray().equals(before)
    assert xarray.open_zarr(store).load().identical(before)
    assert not list((store / "t2m").glob("vcinr/*"))


def test_a_chunk_that_is_missing_is_named_and_nothing_written(
    write_zarr: Callable[..., Path], hours: xarray.Dataset
) -> None:
    store = write_zarr(hours)
    (store / "t2m/vcinr/2.0.0.json").unlink()
    with pytest.raises(SourceError, match="chunk t2m/c/2/0/0 was not written"):
        vcinr_batch.commit(str(store))
    assert not (store / "manifest.json.gz").exists()


def test_a_damaged_chunk_is_named(write_zarr: Callable[..., Path], hours: xarray.Dataset) -> None:
    store = write_zarr(hours)
    chunk = store / "t2m/c/2/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptBitstreamError, match="t2m/c/2/0/0: not the bytes"):
        vcinr_batch.commit(str(store))


def test_other_coordinates_are_refused(write_zarr: Callable[..., Path], hours: xarray.Dataset) -> None:
    store = write_zarr(hours)
    later = make_fields(start="2020-01-01")[["time"]]
    later.drop_encoding().to_zarr(store, mode="a", consolidated=True)
    with pytest.raises(ConfigError, match="labels of 'time' are not those"):
        vcinr_batch.commit(str(store))


def test_the_manifest_of_another_archive_stays(
    write_zarr: Callable[..., Path], hours: xarray.Dataset, archive_path: Path
) -> None:
    store = write_zarr(hours)
    shutil.copy(archive_path / "manifest.json.gz", store)
    with pytest.raises(ArchiveExistsError, match="another archive"):
        vcinr_batch.commit(str(store))
    assert (store / "manifest.json.gz").read_bytes() == (archive_path / "manifest.json.gz").read_bytes()


def test_a_store_of_two_variables_stays_what_it_is(write_zarr: Callable[..., Path], hours: xarray.Dataset) -> None:
    store = write_zarr(hours.assign(d2m=hours.t2m))
    with pytest.raises(ConfigError, match="one data variable, this store d2m, t2m"):
        vcinr_batch.commit(str(store))


def test_a_store_that_was_not_compressed(hours: xarray.Dataset, tmp_path: Path) -> None:
    hours.to_zarr(tmp_path / "plain.zarr", zarr_format=3)
    with pytest.raises(ConfigError, match="t2m was not compressed"):
        vcinr_batch.commit(str(tmp_path / "plain.zarr"))


def test_coordinates_beside_the_axes_and_packing_are_kept(
    bundle_path: Path, hours: xarray.Dataset, tmp_path: Path
) -> None:
    packed = hours.assign_coords(height=2.0, area=("latitude", np.arange(8.0)), crs=0)
    packed.t2m.encoding = {"dtype": "int16", "scale_factor": 0.002, "add_offset": 280.0, "_FillValue": -32768}
    packed.t2m.encoding["grid_mapping"] = "crs"
    packed.to_netcdf(tmp_path / "packed.nc")
    source = xarray.open_dataset(tmp_path / "packed.nc", decode_coords="all")
    encoding = vcinr_batch.encoding(source, bundle=str(bundle_path), quality=2, chunks={"time": 10})
    source.to_zarr(tmp_path / "out.zarr", encoding=encoding, zarr_format=3)
    archive = vcinr_batch.commit(str(tmp_path / "out.zarr"))
    job = CompressJob(
        (str(tmp_path / "packed.nc"),),
        str(bundle_path),
        str(tmp_path / "a"),
        QualityRequest(level=2),
        shard_samples=10,
    )
    compress(job)
    expected = Archive.open(str(tmp_path / "a"))
    assert archive.to_xarray().identical(expected.to_xarray())
    assert archive.manifest.source_bits == expected.manifest.source_bits == 16
    assert archive.manifest.encoding == expected.manifest.encoding
    assert [part.sha256 for part in archive.manifest.parts] == [part.sha256 for part in expected.manifest.parts]
