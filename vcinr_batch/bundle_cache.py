"""Open bundles by their digest: built once per process, fetched once per machine.

Looked up in this order: this process, the cache directory of this machine (for stores that are not local), the
archive's own store. The directory is VCINR_CACHE_DIR or the platform's own for caches; bundles never change, so that
whatever has the right digest is the right file, and anything in the directory may be deleted at any time.
"""

import contextlib
import os
import secrets
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from vcinr_batch.bundle import parse_bundle
from vcinr_batch.compression import OpenBundle, open_bundle
from vcinr_batch.errors import BundleMismatchError, SourceError, StoreUnavailableError
from vcinr_batch.storage import StorageOptions, locate, sha256_hex

CACHE_VARIABLE = "VCINR_CACHE_DIR"
_KEPT = 4

_guard = threading.Lock()
"""Held for moments, over the two below."""
_opened: OrderedDict[str, OpenBundle] = OrderedDict()
_opening: dict[str, threading.Lock] = {}


def open_bundle_of(sha256: str, fetch: Callable[[], bytes], name: str, is_remote: bool) -> OpenBundle:
    """The bundle of a digest, opened at most once in this process; any number of threads may ask.

    Args:
        sha256: 64 lower-case hexadecimal digits.
        fetch: reads the bundle's file from the store; called only where it is needed.
        name: of that file, for messages: no credentials.
        is_remote: whether the file is kept in the cache directory.

    Raises:
        SourceError: the bundle is missing or unreachable; names the digest and where its file belongs.
        BundleMismatchError: the store has another file in its place.
        CorruptBitstreamError, UnsupportedFormatError: the digest is right, but it is no bundle or one of a later
            version.
    """
    if (found := _kept(sha256)) is not None:
        return found
    with _guard:
        lock = _opening.setdefault(sha256, threading.Lock())
    with lock:  # of this bundle only: a slow store delays nobody who reads from another
        if (found := _kept(sha256)) is not None:
            return found
        opened = open_bundle(parse_bundle(_bundle_bytes(sha256, fetch, name, is_remote), sha256, name))
        with _guard:
            _opened[sha256] = opened
            while len(_opened) > _KEPT:
                _opening.pop(_opened.popitem(last=False)[0], None)
    return opened


def is_remote_url(url: str, storage_options: StorageOptions = None) -> bool:
    """Whether a copy on a local disk spares anything: neither a local file nor in this process's memory."""
    return not isinstance(locate(url, storage_options)[0], LocalFileSystem | MemoryFileSystem)


def forget_bundles() -> None:
    """Close this process's bundles; the next use opens them again."""
    with _guard:
        _opened.clear()
        _opening.clear()


def cached_path(sha256: str) -> Path | None:
    """Where the cache directory has the bundle of a digest, or would have it; None where there is no such directory."""
    folder = _cache_directory()
    return None if folder is None else folder / "bundles" / f"{sha256}.safetensors"


def _kept(sha256: str) -> OpenBundle | None:
    with _guard:
        if sha256 in _opened:
            _opened.move_to_end(sha256)
        return _opened.get(sha256)


def _bundle_bytes(sha256: str, fetch: Callable[[], bytes], name: str, is_remote: bool) -> bytes:
    """The bytes of the bundle's file, of the right digest."""
    path = cached_path(sha256) if is_remote else None
    if path is not None and (cached := _read_cached(path, sha256)) is not None:
        return cached
    data = _fetched(sha256, fetch, name, path)
    if path is not None:
        with contextlib.suppress(OSError):  # a full or read-only disk costs the next process a download, no more
            _write_cached(path, data)
    return data


def _read_cached(path: Path, sha256: str) -> bytes | None:
    """None where the file is missing or damaged; a damaged one is replaced once the bundle was fetched."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if sha256_hex(data) == sha256 else None


def _fetched(sha256: str, fetch: Callable[[], bytes], name: str, path: Path | None) -> bytes:
    here = "" if path is None else f" or, for this machine alone, to {path}"
    remedy = f"copy the bundle with SHA-256 {sha256} to {name}{here}"
    try:
        data = fetch()
    except StoreUnavailableError:  # nothing is known to be missing
        raise
    except (SourceError, BundleMismatchError) as error:
        raise type(error)(f"{error}; {remedy}") from error
    if (found := sha256_hex(data)) != sha256:
        raise BundleMismatchError(f"{name}: its SHA-256 is {found}, expected {sha256}; {remedy}")
    return data


def _write_cached(path: Path, data: bytes) -> None:
    """In one step, so that other processes never see a part of it; a failure leaves nothing behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _cache_directory() -> Path | None:
    """VCINR_CACHE_DIR, else the platform's directory for this user's caches; None for a user without a home."""
    if chosen := os.environ.get(CACHE_VARIABLE, "").strip():
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "vcinr" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "vcinr"
    cache_home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a path that is not absolute is to be ignored.
    return (Path(cache_home) if os.path.isabs(cache_home) else home / ".cache") / "vcinr"
