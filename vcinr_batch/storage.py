"""Bytes on any fsspec URL: read (whole or a range), replace atomically, create if absent, list, remove.

Every function takes `storage_options` for the file system (credentials, endpoint). A store that fails for a while is
asked again (`store_retries`). Whatever it raises in the end comes out as one `SourceError` that names the URL without
its credentials: a `StoreUnavailableError` where the store, and not the file, is what is wrong.
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

from vcinr_batch.errors import ArchiveExistsError, ConfigError
from vcinr_batch.store_retries import ShortReadError, ask_store, is_taken, is_transient, public_url

__all__ = [
    "StorageOptions",
    "check_url",
    "create_bytes",
    "cut_ranges",
    "exists",
    "is_file_url",
    "join_url",
    "list_urls",
    "locate",
    "merge_ranges",
    "public_url",
    "read_bytes",
    "read_ranges",
    "remove",
    "sha256_hex",
    "size_bytes",
    "write_bytes",
]

StorageOptions = Mapping[str, Any] | None
_GAP_BYTES = 16 << 10


def read_bytes(
    url: str, start: int | None = None, stop: int | None = None, *, storage_options: StorageOptions = None
) -> bytes:
    """The bytes of a file, or of its range [start, stop); like a slice, a range past the end comes back shorter.

    Raises:
        StoreUnavailableError: the store does not answer, or refuses the credentials.
        SourceError: the file is missing or unreadable.
    """

    def read() -> bytes:
        fs, path = locate(url, storage_options)
        if start is None and stop is None:
            return bytes(fs.cat_file(path))
        if stop is not None and stop <= (start or 0):
            return b""
        data = bytes(fs.cat_file(path, start=start or 0, end=stop))
        return data if stop is None else _whole_range(fs, path, data, start or 0, stop)

    return ask_store(read, url, "read", storage_options)


def read_ranges(url: str, ranges: Sequence[tuple[int, int]], *, storage_options: StorageOptions = None) -> list[bytes]:
    """The bytes of many ranges [start, stop) of a file, in the order asked for.

    Ranges that are nearly neighbours are fetched at once, and remote stores serve several requests at a time. Where
    some of the requests fail for now, only those are made again.

    Raises:
        StoreUnavailableError: the store does not answer, or refuses the credentials.
        SourceError: the file is missing or unreadable.
    """
    spans = merge_ranges(ranges)
    blobs: dict[tuple[int, int], bytes] = {}

    def read() -> None:
        fs, path = locate(url, storage_options)
        left = [span for span in spans if span not in blobs]
        starts, stops = [start for start, _ in left], [stop for _, stop in left]
        fetched = fs.cat_ranges([path] * len(left), starts, stops, on_error="return") if left else []
        failures = []
        for blob, (start, stop) in zip(fetched, left, strict=True):
            if isinstance(blob, Exception):
                failures.append(blob)
            else:
                blobs[start, stop] = _whole_range(fs, path, bytes(blob), start, stop)
        if failures:
            raise failures[0]

    ask_store(read, url, "read", storage_options)
    return cut_ranges(ranges, spans, [blobs[span] for span in spans])


def write_bytes(url: str, data: bytes, *, storage_options: StorageOptions = None) -> None:
    """Write a file in one step: readers see the old content or all of the new, never a part of it.

    Raises:
        StoreUnavailableError: the store does not answer, or refuses the credentials.
        SourceError: the place is not writable or full.
    """

    def write() -> None:
        fs, path = locate(url, storage_options)
        if isinstance(fs, LocalFileSystem):
            with _local_temporary(path, data) as temporary:
                os.replace(temporary, path)
        else:
            fs.pipe_file(path, data)

    ask_store(write, url, "write", storage_options)


def create_bytes(url: str, data: bytes, *, storage_options: StorageOptions = None) -> None:
    """Write a file that must not be there yet; of several racers one wins where the store has a conditional write.

    S3 and what follows it (`If-None-Match`) and local file systems have one. A racer that wrote the very same bytes has
    won, too: after a lost answer nobody could tell it from this one.

    Raises:
        ArchiveExistsError: the file was there, or somebody else's came first.
        StoreUnavailableError: the store does not answer, or refuses the credentials.
        SourceError: the place is not writable or full.
    """
    # Not every fsspec file system honours mode="create".
    if exists(url, storage_options=storage_options) or (
        not ask_store(lambda: _create(url, data, storage_options), url, "write", storage_options)
        and read_bytes(url, storage_options=storage_options) != data
    ):
        raise ArchiveExistsError(f"{public_url(url)} exists already")


def exists(url: str, *, storage_options: StorageOptions = None) -> bool:
    """Whether a file or directory is there.

    Raises:
        StoreUnavailableError: the store does not answer, or refuses the credentials.
        SourceError: the store cannot be asked.
    """
    return _kind(url, storage_options) is not None


def is_file_url(url: str, *, storage_options: StorageOptions = None) -> bool:
    """Whether a file is there, rather than a directory or nothing.

    Raises:
        StoreUnavailableError: the store does not answer, or refuses the credentials.
        SourceError: the store cannot be asked.
    """
    return _kind(url, storage_options) == "file"


def remove(url: str, *, storage_options: StorageOptions = None) -> None:
    """Remove a file; one that is gone already is fine.

    Raises:
        StoreUnavailableError: the store does not answer, or refuses the credentials.
        SourceError: forbidden, or a directory.
    """

    def delete() -> None:
        fs, path = locate(url, storage_options)
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)

    ask_store(delete, url, "remove", storage_options)


def list_urls(url: str, *, storage_options: StorageOptions = None) -> list[str]:
    """URLs that a glob pattern matches, or the files directly inside a directory, or the file itself; sorted.

    Returns:
        URLs in the form of `url` (plain paths for a plain path); empty where there is nothing.

    Raises:
        StoreUnavailableError: the store does not answer, or refuses the credentials.
        SourceError: the store cannot be asked.
    """

    def find() -> list[str]:
        fs, path = locate(url, storage_options)
        fs.invalidate_cache()
        if any(character in path for character in "*?["):
            found = fs.glob(path)
        elif (kind := _kind_of(fs, path)) == "directory":
            found = [entry["name"] for entry in fs.ls(path, detail=True) if entry["type"] == "file"]
        else:
            found = [path] if kind else []
        return sorted(_as_url(fs, name, like=url) for name in found)

    return ask_store(find, url, "list", storage_options)


def size_bytes(url: str, *, storage_options: StorageOptions = None) -> int:
    """Size of a file.

    Raises:
        StoreUnavailableError: the store does not answer, or refuses the credentials.
        SourceError: missing, or the store does not tell.
    """

    def look() -> int:
        fs, path = locate(url, storage_options)
        fs.invalidate_cache()
        size = fs.size(path)
        if size is None:
            raise OSError("the store does not tell its size")
        return int(size)

    return ask_store(look, url, "look up", storage_options)


def locate(url: str, storage_options: StorageOptions = None) -> tuple[Any, str]:
    """File system and path of a URL. Calls of the file system itself belong into `ask_store`.

    Raises:
        ConfigError: an empty URL.
    """
    check_url(url, "URL")
    fs, path = fsspec.core.url_to_fs(url, **dict(storage_options or {}))
    if "s3" in (fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,)):
        # s3fs repeats what botocore has repeated five times already, five times, and in ranged reads the square of it:
        # with timeouts that adds up to many minutes. One loop is enough, `ask_store`.
        fs.retries = 1
    return fs, path


def check_url(url: str, what: str) -> None:
    """Raise where a URL is missing: joined with a file's name it would be a place at the root of the file system.

    Args:
        url: from the user.
        what: what the URL is for, e.g. `output`.

    Raises:
        ConfigError: an empty or blank text, or a scheme with nothing behind it.
    """
    if not url.strip() or re.fullmatch(r"\s*[A-Za-z][A-Za-z0-9+.-]*://+\s*", url):
        raise ConfigError(f"{what}: expected a path or URL, got {url!r}")


def join_url(base: str, *parts: str) -> str:
    """`join_url("s3://bucket/a/", "parts", "x")` is `s3://bucket/a/parts/x`.

    Raises:
        ConfigError: an empty base.
    """
    check_url(base, "base of a URL")
    return "/".join([base.rstrip("/") if base.strip("/") else base[:-1], *parts])


def merge_ranges(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Disjoint ascending ranges that cover all the given ones but empty ones, with gaps of more than 16 KiB between
    them."""
    spans: list[tuple[int, int]] = []
    for start, stop in sorted(span for span in ranges if span[1] > span[0]):
        if spans and start - spans[-1][1] <= _GAP_BYTES:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        else:
            spans.append((start, stop))
    return spans


def cut_ranges(
    ranges: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], blobs: Sequence[bytes]
) -> list[bytes]:
    """The bytes of ranges, in their order, out of those of `merge_ranges`."""
    starts = [start for start, _ in spans]
    found = []
    for start, stop in ranges:
        i = bisect.bisect_right(starts, start) - 1 if stop > start else -1
        found.append(blobs[i][start - starts[i] : stop - starts[i]] if i >= 0 else b"")
    return found


def sha256_hex(data: bytes) -> str:
    """SHA-256 as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def _whole_range(fs: Any, path: str, data: bytes, start: int, stop: int) -> bytes:
    """The data of a range, none missing but past the end of the file.

    Raises:
        ShortReadError: there is more in the file than what came.
    """
    # An HTTP server may ignore the range and send everything.
    if len(data) > stop - start:
        return data[start:stop]
    if len(data) < stop - start:
        size = fs.size(path)
        if size is not None and start + len(data) < min(stop, size):
            raise ShortReadError(f"{len(data)} bytes came of the range {start}..{min(stop, size)}")
    return data


def _create(url: str, data: bytes, storage_options: StorageOptions) -> bool:
    """Whether the file was created; false where it is there."""
    fs, path = locate(url, storage_options)
    try:
        if isinstance(fs, LocalFileSystem):
            with _local_temporary(path, data) as temporary:
                os.link(temporary, path)
        else:
            fs.pipe_file(path, data, mode="create")
    except Exception as error:
        if is_taken(error):
            return False
        raise
    return True


def _kind(url: str, storage_options: StorageOptions) -> str | None:
    def look() -> str | None:
        fs, path = locate(url, storage_options)
        fs.invalidate_cache()
        return _kind_of(fs, path)

    return ask_store(look, url, "look up", storage_options)


def _kind_of(fs: Any, path: str) -> str | None:
    """`file` or `directory`, None where there is nothing; fs.exists takes a failing store for an empty one."""
    try:
        return str(fs.info(path)["type"])
    except (FileNotFoundError, NotADirectoryError) as error:
        if is_transient(error):
            raise
        return None


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
