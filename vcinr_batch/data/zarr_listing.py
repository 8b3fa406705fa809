"""A fingerprint of a Zarr store that changes with its chunks: one listing, no chunk is read."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import zarr
from zarr.abc.store import Store

MAX_LISTED = 200_000
"""Chunks. Of larger stores only the metadata are looked at: a listing would take minutes and gigabytes."""
_CHANGES = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated", "created")
_METADATA = ("zarr.json", ".zmetadata", ".zgroup", ".zattrs")


def zarr_fingerprint(store: Store, fs: Any, path: str) -> str:
    """Digest of the names, sizes and ETags (or times of change) of a store's metadata and chunks.

    Anything else below the store's root, such as an archive that is being written there, is not looked at.

    Args:
        store: opened.
        fs: its fsspec file system.
        path: of its root there.

    Raises:
        whatever the file system raises.
    """
    arrays = list(zarr.open_group(store, mode="r").arrays())
    fs.invalidate_cache()
    root = path.rstrip("/")
    files = [info for name in _METADATA if (info := _info(fs, f"{root}/{name}")) is not None]
    if sum(_chunk_count(array) for _, array in arrays) <= MAX_LISTED:
        for name, _ in arrays:
            files += fs.find(f"{root}/{name}", detail=True).values()
    digest = hashlib.sha256()
    for line in sorted(_lines(files)):
        digest.update(line.encode())
    return digest.hexdigest()


def _chunk_count(array: Any) -> int:
    """Objects that hold the chunks: of a sharded array the shards."""
    return math.prod(math.ceil(n / c) for n, c in zip(array.shape, array.shards or array.chunks, strict=True))


def _info(fs: Any, path: str) -> Mapping[str, Any] | None:
    try:
        info: Mapping[str, Any] = fs.info(path)
    except FileNotFoundError:
        return None
    return info


def _lines(files: list[Mapping[str, Any]]) -> Iterator[str]:
    for info in files:
        change = next((info[name] for name in _CHANGES if info.get(name)), "")
        yield f"{info['name']} {info.get('size')} {change}\n"
