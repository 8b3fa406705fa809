"""Bytes on any fsspec URL: read (whole or a range), replace atomically, create if absent, list, remove.

Every function takes `storage_options` for the file system (credentials, endpoint). Whatever the store raises comes out
as one `SourceError` that names the URL without its credentials.
"""

import bisect
import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from vcinr_batch.errors import ArchiveExistsError, ConfigError, SourceError, VcinrError

StorageOptions = Mapping[str, Any] | None
_CAUSE_CHARACTERS = 200
_GAP_BYTES = 16 << 10


def read_bytes(
    url: str, start: int | None = None, stop: int | None = None, *, storage_options: StorageOptions = None
) -> bytes:
    """The bytes of a file, or of its range [start, stop); like a slice, a range past the end comes back shorter.

    Raises:
        SourceError: the file is missing, forbidden or unreachable.
    """
    with _store_errors(url, "read"):
        fs, path = _locate(url, storage_options)
        if start is None and stop is None:
            return bytes(fs.cat_file(path))
        first, end = start or 0, stop
        if end is not None and end <= first:
            return b""
        data = bytes(fs.cat_file(path, start=first, end=end))
        # An HTTP server may ignore the range and send everything.
        return data if end is None or len(data) <= end - first else data[first:end]


def read_ranges(url: str, ranges: Sequence[tuple[int, int]], *, storage_options: StorageOptions = None) -> list[bytes]:
    """The bytes of many ranges [start, stop) of a file, in the order asked for.

    Ranges that are nearly neighbours are fetched at once, and remote stores serve several requests at a time.

    Raises:
        SourceError: the file is missing, forbidden or unreachable.
    """
    spans = _coalesce([span for span in ranges if span[1] > span[0]])
    with _store_errors(url, "read"):
        fs, path = _locate(url, storage_options)
        starts, stops = [start for start, _ in spans], [stop for _, stop in spans]
        fetched = fs.cat_ranges([path] * len(spans), starts, stops, on_error="raise") if spans else []
        for blob in fetched:
            if isinstance(blob, Exception):  # asynchronous file systems return them whatever on_error says
                raise blob
    # An HTTP server may ignore the range and send everything.
    blobs = [blob if len(blob) <= b - a else blob[a:b] for blob, (a, b) in zip(fetched, spans, strict=True)]
    found = []
    for start, stop in ranges:
        i = bisect.bisect_right(starts, start) - 1 if stop > start else -1
        found.append(bytes(blobs[i][start - starts[i] : stop - starts[i]]) if i >= 0 else b"")
    return found


def write_bytes(url: str, data: bytes, *, storage_options: StorageOptions = None) -> None:
    """Write a file in one step: readers see the old content or all of the new, never a part of it.

    Raises:
        SourceError: the place is forbidden, full or unreachable.
    """
    with _store_errors(url, "write"):
        fs, path = _locate(url, storage_options)
        if isinstance(fs, LocalFileSystem):
            with _local_temporary(path, data) as temporary:
                os.replace(temporary, path)
        else:
            fs.pipe_file(path, data)


def create_bytes(url: str, data: bytes, *, storage_options: StorageOptions = None) -> None:
    """Write a file that must not be there yet. Some object stores let several racers win: one writer per file, please.

    Raises:
        ArchiveExistsError: the file is there.
        SourceError: the place is forbidden, full or unreachable.
    """
    with _store_errors(url, "write"):
        fs, path = _locate(url, storage_options)
        try:
            if isinstance(fs, LocalFileSystem):
                with _local_temporary(path, data) as temporary:
                    os.link(temporary, path)
            else:
                # Not every fsspec file system honours mode="create".
                if fs.exists(path):
                    raise FileExistsError(path)
                fs.pipe_file(path, data, mode="create")
        except FileExistsError as error:
            raise ArchiveExistsError(f"{public_url(url)} exists already") from error


def exists(url: str, *, storage_options: StorageOptions = None) -> bool:
    """Whether a file or directory is there.

    Raises:
        SourceError: the store is forbidden or unreachable.
    """
    with _store_errors(url, "look up"):
        fs, path = _locate(url, storage_options)
        fs.invalidate_cache()
        return bool(fs.exists(path))


def is_file_url(url: str, *, storage_options: StorageOptions = None) -> bool:
    """Whether a file is there, rather than a directory or nothing.

    Raises:
        SourceError: the store is forbidden or unreachable.
    """
    with _store_errors(url, "look up"):
        fs, path = _locate(url, storage_options)
        fs.invalidate_cache()
        return bool(fs.isfile(path))


def remove(url: str, *, storage_options: StorageOptions = None) -> None:
    """Remove a file; one that is gone already is fine.

    Raises:
        SourceError: forbidden, a directory, or unreachable.
    """
    with _store_errors(url, "remove"), contextlib.suppress(FileNotFoundError):
        fs, path = _locate(url, storage_options)
        fs.rm_file(path)


def list_urls(url: str, *, storage_options: StorageOptions = None) -> list[str]:
    """URLs that a glob pattern matches, or the files directly inside a directory, or the file itself; sorted.

    Returns:
        URLs in the form of `url` (plain paths for a plain path); empty where there is nothing.

    Raises:
        SourceError: the store is forbidden or unreachable.
    """
    with _store_errors(url, "list"):
        fs, path = _locate(url, storage_options)
        fs.invalidate_cache()
        if any(character in path for character in "*?["):
            found = fs.glob(path)
        elif fs.isdir(path):
            found = [entry["name"] for entry in fs.ls(path, detail=True) if entry["type"] == "file"]
        else:
            found = [path] if fs.exists(path) else []
        return sorted(_as_url(fs, name, like=url) for name in found)


def size_bytes(url: str, *, storage_options: StorageOptions = None) -> int:
    """Size of a file.

    Raises:
        SourceError: missing, forbidden, unreachable, or the store does not tell.
    """
    with _store_errors(url, "look up"):
        fs, path = _locate(url, storage_options)
        fs.invalidate_cache()
        size = fs.size(path)
        if size is None:
            raise OSError("the store does not tell its size")
        return int(size)


def check_url(url: str, what: str) -> None:
    """Raise where a URL is missing: joined with a file's name it would be a place at the root of the file system.

    Args:
        url: from the user.
        what: what the URL is for, e.g. `output`.

    Raises:
        ConfigError: an empty or blank text.
    """
    if not url.strip():
        raise ConfigError(f"{what}: expected a path or URL, got {url!r}")


def join_url(base: str, *parts: str) -> str:
    """`join_url("s3://bucket/a/", "parts", "x")` is `s3://bucket/a/parts/x`.

    Raises:
        ConfigError: an empty base.
    """
    check_url(base, "base of a URL")
    return "/".join([base.rstrip("/") if base.strip("/") else base[:-1], *parts])


def sha256_hex(data: bytes) -> str:
    """SHA-256 as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def public_url(url: str) -> str:
    """The URL as it may be shown: without user, password and signed query."""
    without_user = re.sub(r"(://)[^/@]*@", r"\1", url)
    return re.sub(r"(https?://[^?]*)\?.*", r"\1", without_user)


def _coalesce(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Disjoint ascending ranges that cover all the given ones, with gaps of more than 16 KiB between them."""
    spans: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if spans and start - spans[-1][1] <= _GAP_BYTES:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        else:
            spans.append((start, stop))
    return spans


def _locate(url: str, storage_options: StorageOptions) -> tuple[Any, str]:
    check_url(url, "URL")
    return fsspec.core.url_to_fs(url, **dict(storage_options or {}))  # type: ignore[no-any-return]


@contextlib.contextmanager
def _local_temporary(path: str, data: bytes) -> Iterator[str]:
    """A finished, flushed file beside `path`; gone afterwards whatever happens."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _as_url(fs: Any, name: str, like: str) -> str:
    if "://" not in like and "::" not in like:
        return name
    if "::" not in like:
        return str(fs.unstrip_protocol(name))
    first, rest = like.split("::", 1)
    if "://" in first:  # zip://*.nc::s3://bucket/x.zip: the pattern is inside the first link
        return f"{first.split('://')[0]}://{name}::{rest}"
    return f"{first}::{rest.split('://')[0]}://{name}"


@contextlib.contextmanager
def _store_errors(url: str, action: str) -> Iterator[None]:
    # Stores raise botocore's, aiohttp's and their own exceptions, not only OSError: this is the one place that
    # sees them, so it catches all and keeps the cause.
    try:
        yield
    except VcinrError:
        raise
    except Exception as error:
        raise SourceError(f"cannot {action} {public_url(url)}: {_cause(error, url)}") from error


def _cause(error: Exception, url: str) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, IsADirectoryError):
        return "it is a directory"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    for credentials in re.findall(r"://([^/@]*)@", url):
        text = text.replace(credentials, "...")
    return public_url(" ".join(text.split()))[:_CAUSE_CHARACTERS] or type(error).__name__
