"""What `xarray.open_dataset(engine="vcinr")` gives is what `Archive.to_xarray` gives, decoded only where looked at."""

import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from pipelines.convert import convert
from tests.archive.made_up_values import decode
from tests.servers.object_store import ObjectStore
from vcinr_batch.archive import xarray_backend
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.manifest import commit_manifest
from vcinr_batch.archive.parquet_container import write_part
from vcinr_batch.archive.xarray_backend import VcinrBackendEntrypoint
from vcinr_batch.data.axes import Axis
from vcinr_batch.data.layout import Layout
from vcinr_batch.errors import BitstreamError, BundleMismatchError, ConfigError, SourceError
from vcinr_batch.storage import join_url, remove, write_bytes

Opened = Callable[..., xr.Dataset]


class CountedDecoder:
    """`decode` that counts what it decodes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, rows: Any, layout: Layout) -> np.ndarray:
        self.sizes.append(len(rows))
        return decode(rows, layout)


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> CountedDecoder:
    """All archives decode with this one."""
    counted = CountedDecoder()
    monkeypatch.setattr(Archive, "decoder", lambda _: counted)
    return counted


@pytest.fixture
def tiled(tmp_path: Path, layouts: Any, archive_at: Any) -> Path:
    """13 hours of 5 x 7 points in blocks of 2 x 2 x 3, latitudes south to north in the source; one sample rejected."""
    layout = layouts(13, 5, 7, time=2, latitude=2, longitude=3)
    archive_at(str(tmp_path / "tiled"), layout, rejected_blocks=((1, 1, 0),))
    return tmp_path / "tiled"


def opened(path: Path | str, **options: Any) -> xr.Dataset:
    return xr.open_dataset(path, engine="vcinr", **options)


INDEXERS: dict[str, dict[str, Any]] = {
    "everything": {},
    "an integer": {"time": 3},
    "a negative integer": {"time": -1, "latitude": -2},
    "a slice": {"time": slice(2, 9), "longitude": slice(1, None)},
    "a slice with a step": {"time": slice(1, None, 3)},
    "a slice backwards": {"time": slice(None, None, -2), "latitude": slice(None, None, -1)},
    "nothing": {"time": slice(4, 4)},
    "nothing of a list": {"longitude": []},
    "a list": {"time": [5, 1, 1, 12], "latitude": [0, 4]},
    "a mask": {"time": np.arange(13) % 4 == 0},
    "one value": {"time": 4, "latitude": 2, "longitude": 6},
    "points": {"time": ("station", [0, 9, 3, 3]), "latitude": ("station", [4, 0, 1, 1])},
    "a table of points": {"time": (("a", "b"), [[0, 9], [3, -1]]), "longitude": (("a", "b"), [[4, 0], [1, 1]])},
    "points of a part of it": {"longitude": ("station", [0, 6]), "latitude": ("station", [4, 0]), "time": slice(3, 5)},
}


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("indexers", INDEXERS.values(), ids=INDEXERS.keys())
def test_an_indexer_gives_what_it_gives_in_memory(indexers: dict[str, Any], tiled: Path) -> None:
    indexers = {k: xr.Variable(*v) if isinstance(v, tuple) else v for k, v in indexers.items()}
    expected = Archive.open(str(tiled)).to_xarray().isel(indexers)
    found = opened(tiled).isel(indexers)
    xr.testing.assert_identical(found.load(), expected)
    assert found["t2m"].dtype == np.float32


@pytest.mark.usefixtures("decoder")
def test_indexing_twice_is_indexing_once(tiled: Path) -> None:
    expected = Archive.open(str(tiled)).to_xarray()["t2m"]
    found = opened(tiled)["t2m"][::-2][2:, ::-1][:, [3, 1]][..., 2]
    np.testing.assert_array_equal(found.values, expected.values[::-2][2:, ::-1][:, [3, 1]][..., 2])


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("index", [13, -14, [0, 13]])
def test_an_index_out_of_range_is_an_index_error(index: Any, tiled: Path) -> None:
    with pytest.raises(IndexError):
        opened(tiled)["t2m"].isel(time=index).load()


def test_only_the_samples_touched_are_decoded_and_all_at_once(tiled: Path, decoder: CountedDecoder) -> None:
    dataset = opened(tiled)
    assert decoder.sizes == []
    dataset["t2m"].isel(time=[0, 12], latitude=0, longitude=slice(3, 6)).load()
    assert decoder.sizes == [2]  # of both parts
    assert "t2m" in repr(dataset)
    dataset["t2m"].isel(time=6, latitude=slice(2, 4)).load()
    assert decoder.sizes == [2, 6]


def test_a_selection_of_nothing_reads_nothing(tiled: Path, decoder: CountedDecoder) -> None:
    dataset = opened(tiled)
    for part in tiled.glob("parts/*"):
        part.unlink()
    assert dataset["t2m"].isel(time=slice(0, 0)).values.shape == (0, 5, 7)
    assert dataset["t2m"].isel(time=[], latitude=2).values.shape == (0, 7)
    assert decoder.sizes == []


def test_the_archive_of_a_real_bundle_reads_like_the_archive_itself(archive_path: Path) -> None:
    expected = Archive.open(str(archive_path)).to_xarray()
    xr.testing.assert_identical(opened(archive_path).load(), expected)
    some = opened(archive_path).sel(time="2019-03-01T06").load()
    xr.testing.assert_identical(some, expected.sel(time="2019-03-01T06"))
    assert some["t2m"].attrs == {"units": "K", "long_name": "2 m temperature"}


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_both_containers_read_the_same(chunks: dict[str, int] | None, archive_path: Path, tmp_path: Path) -> None:
    if chunks is not None:
        pytest.importorskip("dask")
    convert(str(archive_path), str(tmp_path / "zarr"), "zarr")
    parquet = opened(archive_path, sample_info=True, chunks=chunks)
    zarr = xr.open_dataset(tmp_path / "zarr", engine="vcinr", sample_info=True, chunks=chunks)
    assert zarr["t2m"].chunks == parquet["t2m"].chunks
    np.testing.assert_array_equal(zarr["t2m"][7], parquet["t2m"][7])
    xr.testing.assert_identical(zarr.load(), parquet.load())
    xr.testing.assert_identical(pickle.loads(pickle.dumps(zarr)), parquet)


def test_xarray_finds_the_engine_by_itself(archive_path: Path) -> None:
    dataset = xr.open_dataset(archive_path)
    assert dataset.encoding["source"] == str(archive_path)
    assert dataset["t2m"].shape == (40, 8, 12)


def test_a_path_from_the_home_directory_opens(archive_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(archive_path.parent))
    assert VcinrBackendEntrypoint().guess_can_open("~/archive")
    assert opened("~/archive").encoding["source"] == str(archive_path)


def test_an_archive_without_dimensions_opens(
    tmp_path: Path, row_of: Any, manifest_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout("t2m", (), ())
    part = write_part([row_of(layout, ())], layout, str(tmp_path), "t2m-00000000", start=(), stop=())
    commit_manifest(manifest_of(layout, (part,)), str(tmp_path))
    monkeypatch.setattr(Archive, "decoder", lambda _: lambda rows, _: np.full((len(rows), 1, 1), 7, np.float32))
    dataset = opened(tmp_path, sample_info=True)
    assert dataset["t2m"].item() == 7.0
    assert (dataset["t2m_quality"].item(), dataset["t2m_rmse"].item()) == (9, 0.25)


# Threads, processes, dask


@pytest.mark.usefixtures("decoder")
def test_threads_may_read_at_once(tiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vcinr_batch.archive.archive._CACHED_INDEXES", 1)  # they push out each other's indexes
    expected = Archive.open(str(tiled)).to_xarray()["t2m"].values
    array = opened(tiled)["t2m"].variable
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: array[i % 13].values, range(200)))
    np.testing.assert_array_equal(np.stack(found), expected[np.arange(200) % 13])


def test_threads_decode_the_same_with_a_real_bundle(archive_path: Path) -> None:
    array = opened(archive_path)["t2m"].variable
    expected = [array[i].values for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: array[i % 40].values, range(160)))
    np.testing.assert_array_equal(np.stack(found), np.stack(expected * 4))


def test_a_dataset_is_pickled_without_what_it_has_read(archive_path: Path) -> None:
    dataset = opened(archive_path, sample_info=True)
    before = pickle.dumps(dataset)
    dataset["t2m"].variable[::7].values  # noqa: B018 (fills the caches)
    after = pickle.dumps(opened(archive_path, sample_info=True))
    assert len(before) == len(after)
    assert len(before) < 30_000
    xr.testing.assert_identical(pickle.loads(before).load(), dataset.load())


def test_another_process_reads_what_was_pickled(archive_path: Path, tmp_path: Path) -> None:
    dataset = opened(archive_path)
    (tmp_path / "dataset.pickle").write_bytes(pickle.dumps(dataset))
    program = (
        f"import pickle; print(float(pickle.load(open({str(tmp_path / 'dataset.pickle')!r}, 'rb'))['t2m'][3, 2, 1]))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(result.stdout) == float(dataset["t2m"][3, 2, 1])


def test_dask_reads_part_by_part(tiled: Path, decoder: CountedDecoder) -> None:
    dask = pytest.importorskip("dask")
    expected = Archive.open(str(tiled)).to_xarray()
    decoder.sizes.clear()
    dataset = opened(tiled, chunks={})
    assert dataset["t2m"].chunks == ((6, 7), (5,), (7,))
    with dask.config.set(scheduler="threads", num_workers=4):
        xr.testing.assert_identical(dataset.compute(), expected)
    assert sorted(decoder.sizes) == [26, 36]  # of 27 and 36 samples, one was rejected


def test_dask_reduces_what_it_reads(archive_path: Path) -> None:
    dask = pytest.importorskip("dask")
    whole = Archive.open(str(archive_path)).to_xarray()["t2m"]
    array = opened(archive_path, chunks={})["t2m"]
    assert array.chunks == ((10, 10, 10, 10), (8,), (12,))
    with dask.config.set(scheduler="threads"):
        xr.testing.assert_allclose(array.mean("time").compute(), whole.mean("time"), rtol=1e-5)


def test_chunks_of_ones_own_are_possible(archive_path: Path) -> None:
    pytest.importorskip("dask")
    assert opened(archive_path, chunks={"time": 20})["t2m"].chunks[0] == (20, 20)
    assert opened(archive_path, chunks="auto")["t2m"].chunks[0] == (40,)


# Options


@pytest.mark.usefixtures("decoder")
def test_times_stay_numbers_on_request(archive_path: Path) -> None:
    raw = opened(archive_path, decode_times=False)
    assert raw["time"].dtype.kind == "i"
    assert " since " in raw["time"].attrs["units"]
    xr.testing.assert_equal(xr.decode_cf(raw)["time"], opened(archive_path)["time"])
    xr.testing.assert_identical(opened(archive_path, decode_cf=False)["time"], raw["time"])
    assert opened(archive_path, decode_times={"time": False})["time"].dtype.kind == "i"


def test_times_become_what_the_coder_makes_of_them(archive_path: Path) -> None:
    cftime = pytest.importorskip("cftime")
    coder = xr.coders.CFDatetimeCoder(use_cftime=True)
    for options in ({"decode_times": coder}, {"decode_times": {"time": coder}}):
        first = opened(archive_path, **options)["time"].values[0]
        assert isinstance(first, cftime.datetime)
        assert first.isoformat() == "2019-03-01T00:00:00"


def test_a_calendar_of_360_days_keeps_its_dates(tmp_path: Path, row_of: Any, manifest_of: Any) -> None:
    cftime = pytest.importorskip("cftime")
    units = {"units": "days since 2000-02-01", "calendar": "360_day"}
    layout = Layout("t", (Axis("time", np.array([28, 29, 30]), units),), (1,))
    rows = [row_of(layout, (i,)) for i in range(3)]
    part = write_part(rows, layout, str(tmp_path), "t-00000000", start=(0,), stop=(3,))
    commit_manifest(manifest_of(layout, (part,)), str(tmp_path))
    dataset = opened(tmp_path)
    assert dataset["time"].values[1] == cftime.Datetime360Day(2000, 2, 30)
    assert dataset["time"].encoding["calendar"] == "360_day"
    raw = opened(tmp_path, decode_times=False)["time"]
    assert (raw.values.tolist(), raw.attrs) == ([28, 29, 30], units)


@pytest.mark.usefixtures("decoder")
def test_there_is_nothing_to_scale(tiled: Path) -> None:
    xr.testing.assert_identical(opened(tiled, mask_and_scale=False).load(), opened(tiled).load())
    assert "scale_factor" not in opened(tiled, mask_and_scale=False)["t2m"].attrs


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize(
    ("dropped", "left"),
    [
        ("t2m", {"time", "latitude", "longitude"}),
        (["latitude", "nothing"], {"t2m", "time", "longitude"}),
    ],
)
def test_variables_are_left_out(dropped: Any, left: set[str], tiled: Path) -> None:
    assert set(opened(tiled, drop_variables=dropped).variables) == left


def test_an_option_that_there_is_not_is_refused(archive_path: Path) -> None:
    with pytest.raises(TypeError, match="group"):
        opened(archive_path, group="a")


# What is known of the samples


@pytest.mark.usefixtures("decoder")
def test_errors_and_quality_come_on_request(tiled: Path) -> None:
    archive = Archive.open(str(tiled))
    dataset = opened(tiled, sample_info=True)
    assert set(dataset.coords) == {"time", "latitude", "longitude", "t2m_rmse", "t2m_max_error", "t2m_quality"}
    assert dataset["t2m_rmse"].attrs["units"] == dataset["t2m_max_error"].attrs["units"] == "K"
    assert "units" not in dataset["t2m_quality"].attrs
    places = dict(
        zip(("time", "latitude", "longitude"), np.meshgrid(*map(np.arange, (13, 5, 7)), indexing="ij"), strict=True)
    )
    rows = {row.block: row for row in archive.rows()}
    shown = (places["time"] // 2, (4 - places["latitude"]) // 2, places["longitude"] // 3)
    found = [rows.get(tuple(block)) for block in np.stack(shown, -1).reshape(-1, 3).tolist()]
    for name, dtype, missing in (
        ("rmse", "float32", np.nan),
        ("max_error", "float32", np.nan),
        ("quality", "int16", -1),
    ):
        expected = np.array([missing if row is None else getattr(row, name) for row in found], dtype)
        figure = dataset[f"t2m_{name}"]
        assert figure.dims == ("time", "latitude", "longitude")
        assert figure.dtype == dtype
        np.testing.assert_array_equal(figure.values, expected.reshape(13, 5, 7))
        np.testing.assert_array_equal(figure[3, ::-1, [6, 0]], expected.reshape(13, 5, 7)[3, ::-1, [6, 0]].T)
    assert (dataset["t2m_quality"].values == -1).sum() == 2 * 2 * 3


def test_errors_stand_along_what_tells_samples_apart(archive_path: Path) -> None:
    dataset = opened(archive_path, sample_info=True)
    assert dataset["t2m_rmse"].dims == ("time",)
    assert [row.rmse for row in Archive.open(str(archive_path)).rows()] == dataset["t2m_rmse"].values.tolist()
    assert float(dataset["t2m_rmse"].sel(time="2019-03-01T06").item()) > 0


def test_opening_reads_no_part(tiled: Path) -> None:
    for part in tiled.glob("parts/*"):
        part.unlink()
    dataset = opened(tiled, sample_info=True)
    assert "t2m_rmse" in repr(dataset)
    with pytest.raises(SourceError, match="no such file"):
        dataset["t2m_rmse"].load()


# Errors


def test_no_archive_is_our_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"no archive at {tmp_path}"):
        opened(tmp_path)
    with pytest.raises(ConfigError, match="opens a path or URL of an archive, got an object of type BytesIO"):
        opened(io.BytesIO(b""))
    with pytest.raises(ConfigError, match="expected a path or URL, got ''"):
        opened("")


def test_a_damaged_manifest_is_our_error(archive_path: Path, copy_archive: Callable[[Path], Path]) -> None:
    copy = copy_archive(archive_path)
    (copy / "manifest.json.gz").write_bytes(b"not gzip")
    with pytest.raises(BitstreamError, match=f"manifest of {copy}"):
        xr.open_dataset(copy)


def test_a_wrong_bundle_is_our_error(archive_path: Path, copy_archive: Callable[[Path], Path]) -> None:
    copy = copy_archive(archive_path)
    digest = Archive.open(str(copy)).manifest.bundle_sha256
    dataset = opened(copy)
    (copy / "models" / f"{digest}.safetensors").write_bytes(b"another")
    with pytest.raises(BundleMismatchError, match=f"the archive needs {digest}"):
        dataset["t2m"].load()
    (copy / "models" / f"{digest}.safetensors").unlink()
    with pytest.raises(SourceError, match=f"copy the bundle with SHA-256 {digest} to "):
        dataset["t2m"].load()


def test_a_damaged_sample_is_named_and_the_others_still_read(
    archive_path: Path, copy_archive: Callable[[Path], Path]
) -> None:
    copy = copy_archive(archive_path)
    archive = Archive.open(str(copy))
    part = archive.manifest.parts[1]
    data = bytearray((copy / part.path).read_bytes())
    data[int(archive.index(part).payload_start[3])] ^= 1
    (copy / part.path).write_bytes(data)
    dataset = opened(copy)
    names = r"t2m\[time=2019-03-01T10:00:00\] to t2m\[time=2019-03-01T19:00:00\], 10 samples"
    with pytest.raises(BitstreamError, match=names):
        dataset["t2m"].load()
    remaining = [i for i in range(40) if not 10 <= i < 20]  # they share a checksum
    expected = opened(archive_path)["t2m"].variable[remaining]
    np.testing.assert_array_equal(dataset["t2m"].variable[remaining].values, expected.values)


# Guessing


def test_archives_are_recognised(archive_path: Path) -> None:
    guess = VcinrBackendEntrypoint().guess_can_open
    assert guess(archive_path)
    assert guess(f"{archive_path}/")
    assert guess(f"file://{archive_path}")


def test_other_things_are_not(archive_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(archive_path)
    guess = VcinrBackendEntrypoint().guess_can_open
    others = (tmp_path, tmp_path / "missing", archive_path / "manifest.json.gz", "", 7, None, b"bytes", "a\0b")
    assert [guess(other) for other in others] == [False] * len(others)
    assert not guess(f"file://{tmp_path}")
    assert not guess("no-such-scheme://x")

    def never(_: str) -> bool:
        raise AssertionError("asked a store")

    monkeypatch.setattr(xarray_backend, "_is_there", never)
    assert not guess("https://example.org/page")
    assert not guess("s3://bucket/file.nc")


def test_guessing_asks_once_and_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, release = list[str](), threading.Event()

    def locate(url: str) -> Any:
        calls.append(url)
        release.wait(60)
        raise ConnectionError

    monkeypatch.setattr(xarray_backend, "locate", locate)
    monkeypatch.setattr(xarray_backend, "_GUESS_SECONDS", 0.05)
    assert not VcinrBackendEntrypoint().guess_can_open("s3://bucket/archive")
    release.set()
    assert not VcinrBackendEntrypoint().guess_can_open("s3://bucket/archive")
    assert calls == ["s3://bucket/archive/manifest.json.gz"] * 2


# Over HTTP


@pytest.fixture
def remote(archive_path: Path, s3: ObjectStore) -> ObjectStore:
    pytest.importorskip("s3fs")
    for path in archive_path.rglob("*.*"):
        if path.is_file():
            target = join_url(s3.url, "era5", path.relative_to(archive_path).as_posix())
            write_bytes(target, path.read_bytes(), storage_options=s3.storage_options)
    return s3


def test_a_colleagues_notebook_works_over_http(remote: ObjectStore, archive_path: Path) -> None:
    dask = pytest.importorskip("dask")
    url, options = f"{remote.url}/era5", remote.storage_options
    local = opened(archive_path)
    dataset = opened(url, storage_options=options)
    assert dataset.encoding["source"] == url
    six = dataset["t2m"].sel(time="2019-03-01T06")
    np.testing.assert_array_equal(six.values, local["t2m"].sel(time="2019-03-01T06").values)
    for part in Archive.open(url, options).manifest.parts[2:]:
        remove(join_url(url, part.path), storage_options=options)
    lazy = opened(url, storage_options=options, chunks={})["t2m"].sel(time=slice(None, "2019-03-01T19"))
    with dask.config.set(scheduler="threads"):
        mean = lazy.mean("time").compute()
    np.testing.assert_array_equal(mean, opened(archive_path, chunks={})["t2m"][:20].mean("time").compute())
    with pytest.raises(SourceError, match="no such file"):
        dataset["t2m"].sel(time="2019-03-02").load()


def test_an_archive_in_a_bucket_is_recognised(remote: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs")
    for name, value in remote.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # one without options may have been opened in another environment
    monkeypatch.setattr(xarray_backend, "_GUESS_SECONDS", 120.0)  # a busy machine is slow, and no failure
    guess = VcinrBackendEntrypoint().guess_can_open
    assert guess(f"{remote.url}/era5")
    assert not guess(f"{remote.url}/missing")
