"""A Zarr archive through Zarr and xarray: what they show is what the archive holds, whatever is selected."""

import itertools
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray
import zarr
from zarr.abc.store import Store
from zarr.core.buffer.cpu import Buffer
from zarr.storage import LocalStore, MemoryStore, WrapperStore, ZipStore

from pipelines.convert import convert
from tests.archive.made_up_values import decode
from vcinr_batch import bundle_cache, compression
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.manifest import commit_manifest, manifest_from_json, manifest_to_json
from vcinr_batch.archive.parquet_container import write_part
from vcinr_batch.archive.zarr_codec import PartCodec
from vcinr_batch.archive.zarr_container import as_zarr, zarr_files
from vcinr_batch.data.axes import Axis, make_axis
from vcinr_batch.data.layout import Layout, sample_key
from vcinr_batch.data.samples import RejectedSample
from vcinr_batch.errors import (
    BundleMismatchError,
    ConfigError,
    CorruptBitstreamError,
    SourceError,
    TruncatedBitstreamError,
    UnsupportedFormatError,
)
from vcinr_batch.storage import write_bytes

SHA256 = "5" * 64
BUNDLE = b"stands for a bundle"


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The codec finds a decoder that needs no bundle."""

    def open_bundle_of(_sha256: str, fetch: Callable[[], bytes], _name: str, _is_remote: bool) -> None:
        assert fetch() == BUNDLE

    monkeypatch.setattr(bundle_cache, "open_bundle_of", open_bundle_of)
    monkeypatch.setattr(compression, "decompress_rows", lambda rows, _opened, layout, _bound: decode(rows, layout))


@pytest.fixture
def zarr_at(tmp_path: Path, row_of: Any, manifest_of: Any) -> Callable[..., Path]:
    """Writes an archive of made-up rows, its shards of the given numbers of blocks, and turns it into Zarr."""

    def write(layout: Layout, shard: tuple[int, ...], rejected: tuple[tuple[int, ...], ...] = ()) -> Path:
        parts, url = [], str(tmp_path / "parquet")
        starts = itertools.product(*(range(0, n, s) for n, s in zip(layout.block_counts, shard, strict=True)))
        for i, start in enumerate(starts):
            stop = tuple(min(a + s, n) for a, s, n in zip(start, shard, layout.block_counts, strict=True))
            blocks = list(itertools.product(*(range(a, b) for a, b in zip(start, stop, strict=True))))
            refused = [RejectedSample(sample_key(layout, b), b, "why") for b in blocks if b in rejected]
            rows = [row_of(layout, block) for block in blocks if block not in rejected]
            name = f"t2m-{i:08d}"
            parts.append(write_part(rows, layout, url, name, start=start, stop=stop, rejected=refused))
        manifest = manifest_of(layout, tuple(parts))
        write_bytes(f"{url}/{manifest.bundle_path}", BUNDLE)
        commit_manifest(manifest, url)
        convert(url, str(tmp_path / "zarr"), "zarr")
        return tmp_path / "zarr"

    return write


def expected(archive: Path) -> xarray.Dataset:
    return Archive.open(str(archive)).to_xarray(decode=decode)


def memory_store(folder: Path) -> MemoryStore:
    files = {str(p.relative_to(folder)): Buffer.from_bytes(p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
    return MemoryStore(files)


def with_north(layout: Layout) -> Layout:
    """The same with latitudes from north to south in the source, too."""
    time, _, longitude = layout.axes
    values = 60 - 0.5 * np.arange(len(layout.axes[1]))
    latitude = make_axis("latitude", values, {"units": "degrees_north"})
    return Layout("t2m", (time, latitude, longitude), layout.block_shape)


SELECTIONS: list[Any] = [
    np.s_[3],
    np.s_[3, 1, 2],
    np.s_[1:7],
    np.s_[::3, 1:3, 1],
    np.s_[..., -1],
    np.s_[2:3, 0:1, 0:1],
    np.s_[5:5],
]


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("shard", [(1, 1, 1), (3, 3, 3), (8, 1, 2), (2, 2, 1)])
@pytest.mark.parametrize("is_northern", [True, False])
def test_every_kind_of_selection_gives_what_the_archive_holds(
    shard: tuple[int, ...], is_northern: bool, zarr_at: Any, layouts: Any
) -> None:
    layout = layouts(8, 5, 6, latitude=2, longitude=2)
    path = zarr_at(with_north(layout) if is_northern else layout, shard, rejected=((2, 0, 0), (5, 2, 1)))
    dataset = xarray.open_zarr(path, chunks=None)
    full = expected(path).t2m.sel(latitude=dataset.latitude).values
    array = zarr.open_group(path, mode="r")["t2m"]
    assert np.isnan(full).sum() == 2 * 2 + 1 * 2
    for selection in SELECTIONS:
        np.testing.assert_array_equal(array[selection], full[selection])
    some = ([6, 1, 2], [4, 0], [5, 0, 3])
    np.testing.assert_array_equal(array.oindex[some], full[np.ix_(*some)])
    np.testing.assert_array_equal(array.oindex[[6, 1], :, 1:5], full[[6, 1], :, 1:5])
    points = ([6, 1, 2, 2], [4, 0, 0, 0], [5, 0, 1, 1])
    np.testing.assert_array_equal(array.vindex[points], full[points])
    mask = full > 100
    np.testing.assert_array_equal(array.vindex[mask], full[mask])
    np.testing.assert_array_equal(array.blocks[0], full[: array.chunks[0]])


@pytest.mark.filterwarnings("ignore:Object at:UserWarning", "ignore:The specified chunks:UserWarning")
@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.parametrize("chunks", [None, {}, {"time": 2, "latitude": 3}])
def test_open_zarr_gives_the_dataset_of_the_archive(
    consolidated: bool, chunks: Any, zarr_at: Any, layouts: Any
) -> None:
    path = zarr_at(layouts(8, 5, 6, latitude=2), (3, 3, 1), rejected=((2, 1, 0),))
    dataset = xarray.open_zarr(path, chunks=chunks, consolidated=consolidated)
    with dask.config.set(scheduler="threads", num_workers=8):
        xarray.testing.assert_identical(dataset.load(), expected(path))
    assert dataset.latitude.values[0] == 50


@pytest.mark.usefixtures("made_up")
def test_an_axis_that_chunks_share_is_shown_in_the_archive_s_order(zarr_at: Any, layouts: Any) -> None:
    path = zarr_at(layouts(4, 5, 6, latitude=2), (4, 2, 1))
    dataset = xarray.open_zarr(path, chunks=None).load()
    assert dataset.latitude.values.tolist() == [52, 51.5, 51, 50.5, 50]
    xarray.testing.assert_identical(dataset.sortby("latitude"), expected(path))


@pytest.mark.usefixtures("made_up")
def test_longitudes_that_the_source_begins_elsewhere_stay_with_their_values(zarr_at: Any) -> None:
    axes = (
        Axis("time", 3600 * np.arange(3), {"units": "seconds since 1970-01-01", "calendar": "360_day"}),
        Axis("member", np.array(["b", "a"])),
        make_axis("longitude", np.arange(-180.0, 180, 60), {"units": "degrees_east"}),
    )
    path = zarr_at(Layout("t2m", axes, (1, 1, 6)), (2, 1, 1))
    dataset = xarray.open_zarr(path, chunks=None).load()
    xarray.testing.assert_identical(dataset, expected(path))
    assert dataset.longitude.values[0] == -180
    assert dataset.time.values[0].calendar == "360_day"


@pytest.mark.usefixtures("made_up")
def test_times_that_the_source_s_unit_cannot_express_are_kept(zarr_at: Any) -> None:
    attributes = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}
    attributes |= {"source_units": "days since 1900-01-01", "source_calendar": "standard"}
    layout = Layout("t2m", (Axis("time", 7 + 601 * np.arange(5), attributes), Axis("x", np.arange(3))), (1, 3))
    path = zarr_at(layout, (2, 1))
    xarray.testing.assert_identical(xarray.open_zarr(path, chunks=None).load(), expected(path))


@pytest.mark.usefixtures("made_up")
def test_any_store_and_any_place_in_it_will_do(zarr_at: Any, layouts: Any, tmp_path: Path, s3: Any) -> None:
    path = zarr_at(layouts(4), (2, 1, 1))
    want = expected(path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            zipped.write(file, str(file.relative_to(path)))
    for store in (memory_store(path), ZipStore(tmp_path / "a.zip", mode="r")):
        xarray.testing.assert_identical(xarray.open_zarr(store, chunks=None).load(), want)
    nested = zarr.open_group(LocalStore(tmp_path), path=path.name, mode="r")
    np.testing.assert_array_equal(nested["t2m"][:], want.t2m.values)
    convert(str(path.with_name("parquet")), f"{s3.url}/a", "zarr", storage_options=s3.storage_options)
    remote = xarray.open_zarr(f"{s3.url}/a", storage_options=s3.storage_options)
    xarray.testing.assert_identical(remote.load(), want)


class CountedStore(WrapperStore[Store]):
    """Keeps a list of what was asked for."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.requests: list[tuple[str, int]] = []

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        found = await super().get(key, prototype, byte_range)
        self.requests.append((key, 0 if found is None else len(found)))
        return found


@pytest.mark.usefixtures("made_up")
def test_one_sample_costs_one_request_beside_the_manifest_and_the_bundle(zarr_at: Any, layouts: Any) -> None:
    path = zarr_at(layouts(200), (100, 1, 1))
    store = CountedStore(LocalStore(path, read_only=True))
    dataset = xarray.open_zarr(store, chunks=None)
    opening = {key for key, _ in store.requests if key.lstrip("/")[:2] != ".z"}  # Zarr looks for version 2, too
    assert opening == {"latitude/c/0", "longitude/c/0", "time/c/0", "zarr.json"}
    store.requests.clear()
    dataset.t2m[3].load()
    bundle = Archive.open(str(path)).manifest.bundle_path
    assert [key for key, _ in store.requests] == ["manifest.json.gz", bundle, "t2m/c/0/0/0"]
    store.requests.clear()
    dataset.t2m[[7, 9]].load()
    assert store.requests == []  # the part is small and was fetched whole
    dataset.t2m[150].load()
    assert [key for key, _ in store.requests] == ["t2m/c/1/0/0"]


@pytest.mark.usefixtures("made_up")
def test_of_a_large_part_only_the_wanted_payloads_are_fetched(
    zarr_at: Any, layouts: Any, row_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zarr_at(layouts(200), (100, 1, 1))
    monkeypatch.setattr("vcinr_batch.archive.zarr_reading.WHOLE_PART_BYTES", 0)
    store = CountedStore(LocalStore(path, read_only=True))
    dataset = xarray.open_zarr(store, chunks=None)
    dataset.t2m[3].load()
    store.requests.clear()
    dataset.t2m[4:6].load()
    payloads = [len(row_of(Archive.open(str(path)).layout, (i, 0, 0)).payload) for i in range(100)]
    span = next(total for total in itertools.accumulate(payloads) if total >= 512)
    assert store.requests == [("t2m/c/0/0/0", span + 4)]


@pytest.fixture
def zarr_path(archive_path: Path, tmp_path: Path) -> Path:
    """The archive of a real bundle as Zarr, for a test to damage."""
    convert(str(archive_path), str(tmp_path / "real"), "zarr")
    return tmp_path / "real"


@pytest.fixture
def no_bundles() -> Iterator[None]:
    bundle_cache.forget_bundles()
    yield
    bundle_cache.forget_bundles()


def test_a_real_bundle_decodes_to_the_last_bit_as_the_parquet_archive(zarr_path: Path, archive_path: Path) -> None:
    dataset = xarray.open_zarr(zarr_path, chunks=None)
    want = Archive.open(str(archive_path)).to_xarray()
    xarray.testing.assert_identical(dataset.load(), want)
    for hours in (slice(10, 20), slice(7, 12), slice(3, 4), slice(None, None, 9)):
        some = xarray.open_zarr(zarr_path, chunks=None).isel(time=hours)
        xarray.testing.assert_identical(some.load(), want.isel(time=hours))


def test_a_damaged_row_is_named_and_the_other_chunks_still_read(zarr_path: Path) -> None:
    archive = Archive.open(str(zarr_path))
    chunk = zarr_path / "t2m" / "c" / "1" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[int(archive.index(archive.manifest.parts[1]).payload_start[2])] ^= 1
    chunk.write_bytes(data)
    dataset = xarray.open_zarr(zarr_path, chunks=None)
    names = r"t2m\[time=2019-03-01T10:00:00\] to t2m\[time=2019-03-01T19:00:00\], 10 samples"
    with pytest.raises(CorruptBitstreamError, match=rf"^t2m/c/1/0/0: {names}: checksum is"):
        dataset.load()
    assert not dataset.t2m[[8, 9, 20, 21]].isnull().any()


@pytest.mark.parametrize(
    ("damage", "error", "expected_text"),
    [
        (lambda data: data[: len(data) // 2], TruncatedBitstreamError, "^t2m/c/1/0/0: got"),
        (lambda _data: b"", TruncatedBitstreamError, "^t2m/c/1/0/0: got 0"),
        (lambda data: bytes(len(data)), CorruptBitstreamError, "^t2m/c/1/0/0: checksum of its index"),
    ],
)
def test_a_damaged_chunk_is_named_and_the_others_still_read(
    damage: Any, error: type[Exception], expected_text: str, zarr_path: Path
) -> None:
    chunk = zarr_path / "t2m" / "c" / "1" / "0" / "0"
    chunk.write_bytes(damage(chunk.read_bytes()))
    array = zarr.open_group(zarr_path, mode="r")["t2m"]
    with pytest.raises(error, match=expected_text):
        array[12]
    assert np.isfinite(array[[0, 9, 20]]).all()


def test_a_chunk_that_is_gone_is_an_error_and_not_missing_values(zarr_path: Path) -> None:
    (zarr_path / "t2m" / "c" / "1" / "0" / "0").unlink()
    with pytest.raises(SourceError, match=r"t2m/c/1/0/0: no such file"):
        zarr.open_group(zarr_path, mode="r")["t2m"][12]


@pytest.mark.usefixtures("no_bundles")
def test_a_missing_or_foreign_bundle_is_named_with_its_place(zarr_path: Path) -> None:
    bundle = next((zarr_path / "models").iterdir())
    data = bundle.read_bytes()
    bundle.unlink()
    with pytest.raises(SourceError, match=rf"copy the bundle with SHA-256 {bundle.stem} to .*/models/{bundle.stem}"):
        zarr.open_group(zarr_path, mode="r")["t2m"][0]
    bundle.write_bytes(b"another")
    with pytest.raises(BundleMismatchError, match=bundle.stem):
        zarr.open_group(zarr_path, mode="r")["t2m"][0]
    bundle.write_bytes(data)
    assert np.isfinite(zarr.open_group(zarr_path, mode="r")["t2m"][0]).all()


def test_metadata_of_another_archive_are_refused(zarr_path: Path) -> None:
    digest = next((zarr_path / "models").iterdir()).stem
    for name in ("zarr.json", "t2m/zarr.json"):
        text = (zarr_path / name).read_text()
        (zarr_path / name).write_text(text.replace(f'"bundle": "{digest}"', f'"bundle": "{SHA256}"'))
    with pytest.raises(BundleMismatchError, match=f"{SHA256}.*{digest}"):
        zarr.open_group(zarr_path, mode="r")["t2m"][0]


def test_without_its_manifest_it_is_no_archive(zarr_path: Path) -> None:
    (zarr_path / "manifest.json.gz").unlink()
    with pytest.raises(SourceError, match=r"manifest\.json\.gz: no such file"):
        zarr.open_group(zarr_path, mode="r")["t2m"][0]


@pytest.mark.parametrize("values", [np.nan, 1.0])
def test_nothing_is_written_or_removed_through_zarr(values: float, zarr_path: Path) -> None:
    before = {path: path.read_bytes() for path in zarr_path.rglob("*") if path.is_file()}
    array = zarr.open_group(zarr_path, mode="r+")["t2m"]
    for selection in (np.s_[:], np.s_[3], np.s_[0:10]):
        with pytest.raises(ConfigError, match=r"vcinr compress.*vcinr convert"):
            array[selection] = values
    assert {path: path.read_bytes() for path in zarr_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"version": 3}, UnsupportedFormatError),
        ({"version": True}, UnsupportedFormatError),
        ({"bundle_path": "../elsewhere"}, CorruptBitstreamError),
        ({"bundle": 7}, CorruptBitstreamError),
        ({"source_order": "latitude"}, CorruptBitstreamError),
        ({"more": 1}, CorruptBitstreamError),
    ],
)
def test_a_configuration_that_is_not_ours_is_refused(changed: dict[str, Any], error: type[Exception]) -> None:
    good = PartCodec(SHA256, f"models/{SHA256}.safetensors", {"quality": 2}, ("latitude",))
    assert PartCodec.from_dict(good.to_dict()) == good
    with pytest.raises(error):
        PartCodec.from_dict({"name": "vcinr.part", "configuration": good.to_dict()["configuration"] | changed})


def test_chunks_of_another_shape_than_the_manifest_s_are_refused(zarr_path: Path) -> None:
    path = zarr_path / "t2m" / "zarr.json"
    path.write_text(path.read_text().replace("10,", "20,"))
    with pytest.raises(CorruptBitstreamError, match=r"\(20, 8, 12\) labels, those of the archive \(10, 8, 12\)"):
        zarr.open_array(LocalStore(zarr_path), path="t2m", mode="r")[0]


def test_a_manifest_has_its_parts_where_zarr_looks_for_them(zarr_path: Path) -> None:
    content = manifest_to_json(Archive.open(str(zarr_path)).manifest)
    content["parts"][1]["path"], content["parts"][2]["path"] = "t2m/c/2/0/0", "t2m/c/1/0/0"
    with pytest.raises(CorruptBitstreamError, match=r"t2m/c/2/0/0: the part .* its chunk is t2m/c/1/0/0"):
        manifest_from_json(content)


def test_what_cannot_be_a_zarr_array_is_refused(tmp_path: Path, layouts: Any, rows_of: Any, manifest_of: Any) -> None:
    layout = layouts()
    rows = rows_of(layout)
    parts = [
        write_part(rows[a:b], layout, str(tmp_path), f"t2m-{i:08d}", start=(a, 0, 0), stop=(b, 1, 1))
        for i, (a, b) in enumerate([(0, 2), (2, 3), (3, 6)])
    ]
    with pytest.raises(ConfigError, match=r"shard \(2, 0, 0\) to \(3, 1, 1\) is not one of a regular grid"):
        as_zarr(manifest_of(layout, tuple(parts)))
    for name in ("models", "a/b", "__x", ".x", "time", "a%d"):
        other = Layout(name, layout.axes, layout.block_shape)
        whole = write_part(rows_of(other), other, str(tmp_path), "x-0", start=(0, 0, 0), stop=(6, 1, 1))
        with pytest.raises(ConfigError, match=rf"{name!r}"):
            as_zarr(manifest_of(other, (whole,)))


def test_the_size_counts_every_byte(zarr_path: Path) -> None:
    files = {path: path.stat().st_size for path in zarr_path.rglob("*") if path.is_file()}
    bundle = sum(size for path, size in files.items() if path.parent.name == "models")
    (zarr_path / "notes.txt").write_text("no part of the archive")
    assert Archive.open(str(zarr_path)).size_bytes() == (sum(files.values()) - bundle, bundle)


def test_the_metadata_are_a_pure_function_of_the_manifest(zarr_path: Path) -> None:
    manifest = Archive.open(str(zarr_path)).manifest
    files = zarr_files(manifest)
    assert list(files)[-1] == "zarr.json"
    assert {path: (zarr_path / path).read_bytes() for path in files} == files == zarr_files(manifest)


def test_other_codecs_around_it_are_refused(zarr_path: Path) -> None:
    path = zarr_path / "t2m" / "zarr.json"
    content = json.loads(path.read_text())
    content["codecs"].insert(0, {"name": "transpose", "configuration": {"order": [2, 1, 0]}})
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"vcinr\.part has to be the only one of its array"):
        zarr.open_array(LocalStore(zarr_path), path="t2m", mode="r")[0]
