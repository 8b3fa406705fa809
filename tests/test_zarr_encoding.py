"""Compressing from xarray: what `to_zarr` writes with our encoding reads back, and becomes an archive."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray
import zarr
from zarr.storage import MemoryStore

import vcinr_batch
from tests.conftest import make_fields
from vcinr_batch.archive import zarr_writing
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.zarr_codec import PartCodec
from vcinr_batch.bundle_cache import forget_bundles
from vcinr_batch.compression import QualityRequest
from vcinr_batch.errors import (
    BitstreamError,
    BundleMismatchError,
    ConfigError,
    CorruptBitstreamError,
    SourceError,
    UnsupportedFormatError,
)

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata")


def forget_all() -> None:
    """As in another process."""
    forget_bundles()
    zarr_writing._bundles.clear()


class TestWriting:
    def test_what_is_written_reads_back_within_the_error_of_the_archive(
        self, write_zarr: Callable[..., Path], hours: xarray.Dataset, archive_path: Path
    ) -> None:
        store = write_zarr(hours)
        forget_all()
        found = xarray.open_zarr(store).load()
        archive = Archive.open(str(archive_path))
        worst = max(float(archive.index(part).max_error.max()) for part in archive.manifest.parts)
        assert 0 < float(abs(found.t2m - hours.t2m).max()) <= worst
        assert found.drop_vars("t2m").identical(hours.drop_vars("t2m"))
        assert found.t2m.attrs == hours.t2m.attrs

    def test_every_chunk_is_the_part_that_compress_writes(
        self, write_zarr: Callable[..., Path], hours: xarray.Dataset, archive_path: Path
    ) -> None:
        store = write_zarr(hours)
        for i, part in enumerate(Archive.open(str(archive_path)).manifest.parts):
            assert (store / f"t2m/c/{i}/0/0").read_bytes() == (archive_path / part.path).read_bytes()

    def test_the_default_chunks_are_the_shards_of_compress(
        self, write_zarr: Callable[..., Path], hours: xarray.Dataset
    ) -> None:
        found = xarray.open_zarr(write_zarr(hours, chunks=None), chunks=None)
        assert found.t2m.encoding["chunks"] == (40, 8, 12)

    def test_dask_writes_the_same_bytes_in_parallel(
        self, write_zarr: Callable[..., Path], hours: xarray.Dataset
    ) -> None:
        at_once = write_zarr(hours)
        with dask.config.set(scheduler="threads", num_workers=4):
            by_dask = write_zarr(hours.chunk(time=10), "dask.zarr", chunks=None)
        for i in range(4):
            assert (by_dask / f"t2m/c/{i}/0/0").read_bytes() == (at_once / f"t2m/c/{i}/0/0").read_bytes()

    def test_another_process_gets_the_bundle_with_the_codec(self, bundle_path: Path, hours: xarray.Dataset) -> None:
        codec = vcinr_batch.encoding(hours, bundle=str(bundle_path), quality=2)["t2m"]["serializer"]
        sent = pickle.loads(pickle.dumps(codec))
        assert sent.bundle_data == next(bundle_path.parent.glob("*.safetensors")).read_bytes()
        assert sent.to_dict() == codec.to_dict()
        assert b"safetensors" not in repr(codec).encode()[:50]
        assert len(repr(codec)) < 5000

    def test_chunks_of_dask_that_samples_do_not_fill_are_refused(
        self, write_zarr: Callable[..., Path], hours: xarray.Dataset
    ) -> None:
        with pytest.raises(ConfigError, match=r"chunks of 4 labels along 'latitude', a sample 8.*'latitude': -1"):
            write_zarr(hours.chunk(latitude=4), chunks=None)

    def test_a_chunk_never_lies_in_two_chunks_of_dask(
        self, write_zarr: Callable[..., Path], hours: xarray.Dataset
    ) -> None:
        store = write_zarr(hours.chunk(time=(24, 16)), chunks=None)
        assert xarray.open_zarr(store, chunks=None).t2m.encoding["chunks"] == (24, 8, 12)

    def test_any_store_will_do(self, bundle_path: Path, hours: xarray.Dataset) -> None:
        store = MemoryStore()
        encoding = vcinr_batch.encoding(hours, bundle=bundle_path.read_bytes(), quality=3, chunks={"time": 10})
        hours.to_zarr(store, group="a/b", encoding=encoding, zarr_format=3)
        found = xarray.open_zarr(store, group="a/b")
        assert float(abs(found.t2m - hours.t2m).max()) < 1

    def test_an_object_store_will_do_from_the_first_chunk_to_the_archive(
        self, bundle_path: Path, hours: xarray.Dataset, archive_path: Path, s3: Any
    ) -> None:
        url, options = f"{s3.url}/out.zarr", s3.storage_options
        encoding = vcinr_batch.encoding(hours, bundle=str(bundle_path), quality=2, chunks={"time": 10})
        hours.to_zarr(url, encoding=encoding, zarr_format=3, storage_options=options)
        before = xarray.open_zarr(url, storage_options=options).load()
        archive = vcinr_batch.commit(url, storage_options=options)
        assert archive.to_xarray().identical(Archive.open(str(archive_path)).to_xarray())
        assert xarray.open_zarr(url, storage_options=options).load().identical(before)

    def test_a_target_psnr_is_heeded(self, bundle_path: Path, hours: xarray.Dataset) -> None:
        worst = {}
        for psnr in (20.0, 40.0):
            store = MemoryStore()
            encoding = vcinr_batch.encoding(hours, bundle=str(bundle_path), quality=QualityRequest(target_psnr_db=psnr))
            hours.to_zarr(store, encoding=encoding, zarr_format=3)
            worst[psnr] = float(abs(xarray.open_zarr(store).t2m - hours.t2m).max())
        assert worst[40.0] < worst[20.0] / 2  # 20 dB are a factor of 10, but noise of 0.05 K does not get into the fit

    def test_latitudes_and_longitudes_keep_the_order_of_the_dataset(
        self, write_zarr: Callable[..., Path], hours: xarray.Dataset
    ) -> None:
        turned = hours.isel(latitude=slice(None, None, -1))
        turned = turned.assign_coords(longitude=("longitude", turned.longitude.values % 360, turned.longitude.attrs))
        turned = turned.sortby("longitude")  # 0 first, then those west of Greenwich
        found, plain = (
            xarray.open_zarr(write_zarr(turned)).load(),
            xarray.open_zarr(write_zarr(hours, "plain.zarr")).load(),
        )
        assert found.t2m.sel(longitude=355).sortby("latitude").values.tolist() == (
            plain.t2m.sel(longitude=-5).sortby("latitude").values.tolist()
        )
        assert float(abs(found.t2m - turned.t2m).max()) < 1

    def test_times_that_no_chunks_can_keep_in_order_are_refused(
        self, write_zarr: Callable[..., Path], hours: xarray.Dataset
    ) -> None:
        shuffled = hours.isel(time=np.random.default_rng(0).permutation(40))
        with pytest.raises(ConfigError, match="sort the dataset by 'time'"):
            write_zarr(shuffled)
        found = xarray.open_zarr(write_zarr(shuffled, "whole.zarr", chunks={"time": 40})).load()
        assert float(abs(found.t2m - shuffled.t2m).max()) < 1

    def test_float64_and_integers_are_written_as_float32(
        self, write_zarr: Callable[..., Path], hours: xarray.Dataset
    ) -> None:
        found = xarray.open_zarr(write_zarr(hours.astype(np.float64)))
        assert found.t2m.dtype == np.float32
        assert found.t2m.encoding["serializer"].written.source_bits == 64

    def test_two_variables_in_one_store_are_independent(self, bundle_path: Path, hours: xarray.Dataset) -> None:
        both, store = hours.assign(d2m=hours.t2m - 5), MemoryStore()
        both.to_zarr(store, encoding=vcinr_batch.encoding(both, bundle=str(bundle_path), quality=2), zarr_format=3)
        found = xarray.open_zarr(store)
        assert np.array_equal(found.d2m, both.d2m)
        assert 0 < float(abs(found.t2m - both.t2m).max()) < 1


class TestRegions:
    @pytest.fixture
    def template(self, write_zarr: Callable[..., Path], hours: xarray.Dataset) -> Path:
        """Metadata and coordinates alone."""
        store: Path = write_zarr(hours.chunk(time=10), compute=False)
        return store

    @staticmethod
    def part(hours: xarray.Dataset, places: slice) -> xarray.Dataset:
        return hours.isel(time=places).drop_vars(["latitude", "longitude", "time"])

    def test_whole_chunks_are_written_one_by_one(
        self, template: Path, hours: xarray.Dataset, write_zarr: Callable[..., Path]
    ) -> None:
        for first in (20, 0, 30, 10):
            places = slice(first, first + 10)
            self.part(hours, places).to_zarr(template, region={"time": places})
        forget_all()
        assert xarray.open_zarr(template).load().identical(xarray.open_zarr(write_zarr(hours, "at_once.zarr")).load())

    def test_a_chunk_that_was_not_written_is_an_error_and_not_missing_values(
        self, template: Path, hours: xarray.Dataset
    ) -> None:
        self.part(hours, slice(0, 10)).to_zarr(template, region={"time": slice(0, 10)})
        found = xarray.open_zarr(template)
        assert float(abs(found.t2m[:10] - hours.t2m[:10]).max()) < 1
        with pytest.raises(SourceError, match=r"t2m/c/3/0/0 was not written"):
            found.t2m[35].load()

    @pytest.mark.parametrize("places", [slice(0, 5), slice(5, 10), slice(5, 15), slice(3, 4)])
    def test_a_part_of_a_chunk_is_refused_and_changes_nothing(
        self, places: slice, write_zarr: Callable[..., Path], hours: xarray.Dataset
    ) -> None:
        store = write_zarr(hours)
        before = (store / "t2m/c/0/0/0").read_bytes()
        with pytest.raises(ConfigError, match=r"t2m: only a part of chunk \(0, 0, 0\).*\(10, 8, 12\) labels"):
            self.part(hours + 1, places).to_zarr(store, region={"time": places})
        assert (store / "t2m/c/0/0/0").read_bytes() == before

    def test_a_chunk_is_written_again_as_a_whole(self, write_zarr: Callable[..., Path], hours: xarray.Dataset) -> None:
        store = write_zarr(hours)
        seen = xarray.open_zarr(store)
        assert float(abs(seen.t2m - hours.t2m).max()) < 1
        changed = hours.isel(time=slice(None, None, -1)).assign_coords(time=hours.time)
        self.part(changed, slice(10, 20)).to_zarr(store, region={"time": slice(10, 20)})
        assert float(abs(seen.t2m[10:20] - changed.t2m[10:20]).max()) < 1
        assert float(abs(seen.t2m[20:] - hours.t2m[20:]).max()) < 1

    def test_the_last_chunk_may_be_shorter(self, write_zarr: Callable[..., Path], hours: xarray.Dataset) -> None:
        store = write_zarr(hours, chunks={"time": 15})
        self.part(hours, slice(30, 40)).to_zarr(store, region={"time": slice(30, 40)})
        assert float(abs(xarray.open_zarr(store).t2m - hours.t2m).max()) < 1

    def test_an_array_is_not_made_longer(self, write_zarr: Callable[..., Path], hours: xarray.Dataset) -> None:
        store = write_zarr(hours)
        before = (store / "t2m/zarr.json").read_bytes()
        with pytest.raises(ConfigError, match=r"array of \(80, 8, 12\).*not made longer"):
            make_fields(start="2019-04-01").to_zarr(store, append_dim="time")
        assert (store / "t2m/zarr.json").read_bytes() == before

    def test_without_the_bundle_the_error_says_where_it_belongs(self, template: Path, hours: xarray.Dataset) -> None:
        forget_all()
        with pytest.raises(
            SourceError, match=r"bundle with SHA-256 [0-9a-f]{64} is not at .*t2m/vcinr/.*copy it there"
        ):
            self.part(hours, slice(0, 10)).to_zarr(template, region={"time": slice(0, 10)})
        assert not (template / "t2m/c").exists()

    def test_one_number_fills_a_chunk(self, write_zarr: Callable[..., Path], hours: xarray.Dataset) -> None:
        store = write_zarr(hours)
        array = zarr.open_array(store, path="t2m", mode="r+")
        array[10:20] = 280.0
        assert np.abs(array[10:20] - 280).max() < 20
        assert np.array_equal(array[10], array[11])


class TestAwkwardValues:
    def test_missing_values_stay_missing(self, write_zarr: Callable[..., Path], hours: xarray.Dataset) -> None:
        holed = hours.where((hours.latitude < 59) | (hours.longitude < -3))
        found = xarray.open_zarr(write_zarr(holed)).load()
        assert np.array_equal(np.isnan(found.t2m), np.isnan(holed.t2m))
        assert float(abs(found.t2m - holed.t2m).max()) < 2

    @pytest.mark.parametrize(("value", "reason"), [(np.nan, "no value at all"), (np.inf, "96 infinite values")])
    def test_a_sample_that_cannot_be_compressed_is_named_and_its_chunk_not_written(
        self, value: float, reason: str, write_zarr: Callable[..., Path], hours: xarray.Dataset, tmp_path: Path
    ) -> None:
        hours.t2m[13] = value
        with pytest.raises(SourceError, match=rf"t2m\[time=2019-03-01T13:00:00\] cannot be compressed: {reason}"):
            write_zarr(hours)
        assert not (tmp_path / "out.zarr/t2m/c/1").exists()
        assert not (tmp_path / "out.zarr/t2m/vcinr/1.0.0.json").exists()

    def test_a_chunk_of_the_fill_value_is_not_left_out_in_silence(
        self, write_zarr: Callable[..., Path], hours: xarray.Dataset
    ) -> None:
        hours.t2m[10:20] = np.nan
        with pytest.raises(SourceError, match="no value at all"):
            write_zarr(hours)


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda ds: ds.rename(t2m="d2m"), ConfigError, "no variable 't2m' in the dataset; it has d2m"),
            (lambda ds: ds.isel(latitude=slice(0, 4)), BundleMismatchError, "latitude"),
            (lambda ds: ds.isel(latitude=0), BundleMismatchError, "needs dimension 'latitude'"),
            (lambda ds: ds.assign(t2m=ds.t2m.assign_attrs(units="degC")), BundleMismatchError, "unit 'K'.*'degC'"),
            (lambda ds: ds.assign(t2m=ds.t2m.astype(str)), ConfigError, "no field of numbers"),
            (lambda ds: ds.isel(time=slice(0, 0)), ConfigError, "no field of numbers"),
        ],
    )
    def test_a_dataset_that_the_bundle_is_not_for(
        self, change: Any, error: type[Exception], message: str, hours: xarray.Dataset, bundle_path: Path
    ) -> None:
        with pytest.raises(error, match=message):
            vcinr_batch.encoding(change(hours), bundle=str(bundle_path), quality=2)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"quality": 9}, "quality 9: this bundle has levels 0 to 3"),
            ({"quality": "2"}, "quality: expected the number of a level, got '2'"),
            ({"quality": True}, "quality: expected the number of a level, got True"),
            ({"variable": "nothing"}, "no variable 'nothing'"),
            ({"chunks": {"level": 3}}, "'level': 3; expected a number of labels"),
            ({"chunks": {"time": 0}}, "'time': 0; expected"),
            ({"chunks": {"latitude": 3}}, "chunks of 3 labels along 'latitude'; expected a multiple of 8"),
        ],
    )
    def test_requests_that_make_no_sense(
        self, options: dict[str, Any], message: str, hours: xarray.Dataset, bundle_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            vcinr_batch.encoding(hours, **{"bundle": str(bundle_path), "quality": 2, **options})

    def test_another_variable_than_the_bundle_s(self, hours: xarray.Dataset, bundle_path: Path) -> None:
        with pytest.raises(BundleMismatchError, match="for variable 't2m', the source has 'd2m'"):
            vcinr_batch.encoding(hours.rename(t2m="d2m"), variable="d2m", bundle=str(bundle_path), quality=2)

    def test_a_damaged_bundle(self, hours: xarray.Dataset, bundle_path: Path) -> None:
        with pytest.raises(CorruptBitstreamError):
            vcinr_batch.encoding(hours, bundle=bundle_path.read_bytes()[:-9], quality=2)

    def test_an_array_of_another_name(self, hours: xarray.Dataset, bundle_path: Path, tmp_path: Path) -> None:
        encoding = vcinr_batch.encoding(hours, bundle=str(bundle_path), quality=2)["t2m"]
        with pytest.raises(ConfigError, match="array 'd2m' with the encoding of 't2m'"):
            hours.rename(t2m="d2m").to_zarr(tmp_path / "out.zarr", encoding={"d2m": encoding}, zarr_format=3)

    def test_saving_what_was_read_again_needs_no_encoding(
        self, write_zarr: Callable[..., Path], hours: xarray.Dataset, tmp_path: Path
    ) -> None:
        found = xarray.open_zarr(write_zarr(hours)).load()
        with pytest.raises(ConfigError, match=r"drop_encoding"):
            found.isel(time=slice(0, 3)).to_zarr(tmp_path / "again.zarr")
        found.isel(time=slice(0, 3)).drop_encoding().to_zarr(tmp_path / "plain.zarr")
        assert np.array_equal(xarray.open_zarr(tmp_path / "plain.zarr").t2m, found.t2m[:3])


class TestDamage:
    def test_a_chunk_that_is_not_of_its_record(self, write_zarr: Callable[..., Path], hours: xarray.Dataset) -> None:
        store = write_zarr(hours)
        shutil.copy(store / "t2m/c/1/0/0", store / "t2m/c/2/0/0")
        found = xarray.open_zarr(store)
        assert np.isfinite(found.t2m[:20]).all()
        with pytest.raises(BitstreamError, match="t2m/c/2/0/0"):
            found.t2m[25].load()

    @pytest.mark.parametrize(
        "change",
        [
            lambda _: b"",
            lambda record: record[:-5],
            lambda _: b"[]",
            lambda record: record.replace(b"t2m/c/2", b"t2m/c/1"),
            lambda record: record.replace(b'"start":[20,', b'"start":[10,'),
        ],
    )
    def test_a_damaged_record(self, change: Any, write_zarr: Callable[..., Path], hours: xarray.Dataset) -> None:
        store = write_zarr(hours)
        record = store / "t2m/vcinr/2.0.0.json"
        changed = change(record.read_bytes())
        assert changed != record.read_bytes()
        record.write_bytes(changed)
        with pytest.raises(CorruptBitstreamError, match=r"2\.0\.0\.json"):
            xarray.open_zarr(store).t2m[25].load()

    @pytest.mark.parametrize(
        ("changed", "error"),
        [
            ({"version": 3}, UnsupportedFormatError),
            ({"version": 1}, CorruptBitstreamError),
            ({"layout": []}, CorruptBitstreamError),
            ({"source_bits": "many"}, CorruptBitstreamError),
            ({"source_encoding": 7}, CorruptBitstreamError),
            ({"bundle_path": "../t2m"}, CorruptBitstreamError),
        ],
    )
    def test_a_damaged_configuration(
        self, changed: dict[str, Any], error: type[Exception], bundle_path: Path, hours: xarray.Dataset
    ) -> None:
        codec = vcinr_batch.encoding(hours, bundle=str(bundle_path), quality=2)["t2m"]["serializer"].to_dict()
        good = json.loads(json.dumps(codec))
        assert PartCodec.from_dict(good).to_dict() == good
        with pytest.raises(error):
            PartCodec.from_dict({**good, "configuration": good["configuration"] | changed})
