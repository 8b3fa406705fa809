"""A bundle is opened once per process, fetched once per machine, and never taken for another one."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.servers.object_store import ObjectStore
from vcinr_batch import bundle_cache
from vcinr_batch.archive.archive import Archive
from vcinr_batch.bundle_cache import cached_path, forget_bundles, is_remote_url, open_bundle_of
from vcinr_batch.errors import BundleMismatchError, CorruptBitstreamError, SourceError, StoreUnavailableError
from vcinr_batch.storage import sha256_hex, write_bytes

pytest.importorskip("s3fs")

NAME = "s3://bucket/models/x.safetensors"


class Store:
    """Gives the bundle's bytes and counts."""

    def __init__(self, data: bytes) -> None:
        self.data, self.count = data, 0

    def __call__(self) -> bytes:
        self.count += 1
        return self.data


@pytest.fixture
def store(bundle_path: Path) -> Store:
    return Store(bundle_path.read_bytes())


@pytest.fixture
def digest(bundle_path: Path) -> str:
    return bundle_path.stem


def cached(digest: str) -> Path:
    path = cached_path(digest)
    assert path is not None
    return path


def test_a_bundle_is_opened_once_per_process(store: Store, digest: str) -> None:
    opened = open_bundle_of(digest, store, NAME, is_remote=False)
    assert opened.bundle.sha256 == digest
    assert open_bundle_of(digest, store, NAME, is_remote=True) is opened
    assert store.count == 1


def test_threads_that_ask_at_once_get_the_same_one(store: Store, digest: str) -> None:
    gate = threading.Barrier(8)

    def ask(_: int) -> object:
        gate.wait()
        return open_bundle_of(digest, store, NAME, is_remote=False)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(ask, range(8))))) == 1
    assert store.count == 1


def test_only_the_last_bundles_stay_open(store: Store, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_cache, "_KEPT", 1)
    monkeypatch.setattr(bundle_cache, "parse_bundle", lambda _data, sha256, _name: sha256)
    monkeypatch.setattr(bundle_cache, "open_bundle", lambda bundle: bundle)
    other = Store(b"another")
    for _ in range(2):
        open_bundle_of(digest, store, NAME, is_remote=False)
        open_bundle_of(digest, store, NAME, is_remote=False)
        open_bundle_of(sha256_hex(b"another"), other, NAME, is_remote=False)
    assert (store.count, other.count) == (2, 2)
    assert list(bundle_cache._opened) == [sha256_hex(b"another")]
    assert len(bundle_cache._opening) == 1


def test_a_remote_bundle_is_fetched_once_per_machine(store: Store, digest: str) -> None:
    open_bundle_of(digest, store, NAME, is_remote=True)
    assert cached(digest).read_bytes() == store.data
    assert [path.name for path in cached(digest).parent.iterdir()] == [f"{digest}.safetensors"]
    forget_bundles()
    open_bundle_of(digest, store, NAME, is_remote=True)
    assert store.count == 1


def test_a_local_bundle_is_not_copied(store: Store, digest: str) -> None:
    open_bundle_of(digest, store, NAME, is_remote=False)
    assert not cached(digest).exists()


@pytest.mark.parametrize("damage", [b"", b"something else", None], ids=["empty", "other bytes", "cut short"])
def test_a_damaged_copy_is_replaced(damage: bytes | None, store: Store, digest: str) -> None:
    cached(digest).parent.mkdir(parents=True)
    cached(digest).write_bytes(store.data[:-1] if damage is None else damage)
    assert open_bundle_of(digest, store, NAME, is_remote=True).bundle.sha256 == digest
    assert store.count == 1
    assert cached(digest).read_bytes() == store.data


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    store: Store, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VCINR_CACHE_DIR", str(tmp_path / "file"))
    assert open_bundle_of(digest, store, NAME, is_remote=True).bundle.sha256 == digest


def test_a_write_that_fails_leaves_nothing_behind(store: Store, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert open_bundle_of(digest, store, NAME, is_remote=True).bundle.sha256 == digest
    assert list(cached(digest).parent.iterdir()) == []


def test_another_file_in_the_bundles_place_is_refused_and_not_kept(digest: str) -> None:
    expected = (
        f"{NAME}: its SHA-256 is {sha256_hex(b'other')}, expected {digest}; copy the bundle with SHA-256 {digest}"
    )
    with pytest.raises(BundleMismatchError) as caught:
        open_bundle_of(digest, Store(b"other"), NAME, is_remote=True)
    assert str(caught.value) == f"{expected} to {NAME} or, for this machine alone, to {cached(digest)}"
    assert not cached(digest).exists()


def test_a_file_of_the_right_digest_that_is_no_bundle_is_refused() -> None:
    digest = sha256_hex(b"no bundle")
    for _ in range(2):
        with pytest.raises(CorruptBitstreamError, match=f"{NAME}: not a vcinr bundle"):
            open_bundle_of(digest, Store(b"no bundle"), NAME, is_remote=False)


def test_a_missing_bundle_is_named_and_so_is_its_place(
    archive_path: Path, copy_archive: Callable[[Path], Path]
) -> None:
    copy = copy_archive(archive_path)
    archive = Archive.open(str(copy))
    (copy / archive.manifest.bundle_path).unlink()
    place = f"{copy}/models/{archive.manifest.bundle_sha256}.safetensors"
    with pytest.raises(SourceError) as caught:
        archive.decoder()
    expected = f"no such file; copy the bundle with SHA-256 {archive.manifest.bundle_sha256} to {place}"
    assert str(caught.value) == f"cannot read {place}: {expected}"


def test_a_missing_bundle_is_found_where_the_message_says(
    archive_path: Path, s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VCINR_CACHE_DIR", str(tmp_path / "cache"))
    for path in archive_path.rglob("*.*"):
        if path.is_file() and "models" not in path.parts:
            target = f"{s3.url}/{path.relative_to(archive_path).as_posix()}"
            write_bytes(target, path.read_bytes(), storage_options=s3.storage_options)
    archive = Archive.open(s3.url, s3.storage_options)
    digest = archive.manifest.bundle_sha256
    with pytest.raises(SourceError, match=f"for this machine alone, to {cached(digest)}"):
        archive.decoder()
    write_bytes(str(cached(digest)), (archive_path / archive.manifest.bundle_path).read_bytes())
    assert archive.to_xarray({"time": "2019-03-01T06"})["t2m"].shape == (1, 8, 12)


def test_a_store_that_does_not_answer_is_not_a_missing_bundle(digest: str) -> None:
    def fail() -> bytes:
        raise StoreUnavailableError("cannot read: the store does not answer")

    with pytest.raises(StoreUnavailableError, match=r"^cannot read: the store does not answer$"):
        open_bundle_of(digest, fail, NAME, is_remote=True)


@pytest.mark.parametrize(
    ("url", "expected"),
    [("/a/b", False), ("file:///a/b", False), ("memory://a", False), ("s3://bucket/a", True)],
)
def test_only_what_comes_over_a_network_is_remote(url: str, expected: bool) -> None:
    assert is_remote_url(url) is expected


@pytest.mark.skipif(sys.platform != "linux", reason="the directories of Linux")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"VCINR_CACHE_DIR": "/c"}, "/c"),
        ({"VCINR_CACHE_DIR": "~/c"}, "/home/somebody/c"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/vcinr"),
        ({"XDG_CACHE_HOME": "not/absolute"}, "/home/somebody/.cache/vcinr"),
        ({"VCINR_CACHE_DIR": " "}, "/home/somebody/.cache/vcinr"),
        ({}, "/home/somebody/.cache/vcinr"),
    ],
)
def test_the_cache_lies_where_the_platform_keeps_caches(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VCINR_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/somebody"} | environment).items():
        monkeypatch.setenv(name, value)
    assert cached_path("0" * 64) == Path(expected) / "bundles" / f"{'0' * 64}.safetensors"
