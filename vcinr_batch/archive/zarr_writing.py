"""Writes a chunk of a Zarr array as a part: fitted, coded and measured as `vcinr compress` would, into the same store.

First the bundle, where it is not there yet, then the chunk, then its record, without which it does not count.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import StorePath

from vcinr_batch.archive.chunk_grid import shows_source_order, source_places
from vcinr_batch.archive.chunk_selection import Box, parse_selection
from vcinr_batch.archive.manifest import MANIFEST_NAME
from vcinr_batch.archive.parquet_container import pack_part
from vcinr_batch.archive.rows import ArchiveRow
from vcinr_batch.archive.written_array import chunk_path, record_data, record_path, shard_of_chunk
from vcinr_batch.archive.zarr_reading import archive_of
from vcinr_batch.data.layout import BATCH_VALUES, Layout
from vcinr_batch.data.shards import Shard, cut_samples, shard_extent
from vcinr_batch.errors import ConfigError, SourceError, VcinrError
from vcinr_batch.quality_request import QualityRequest, request_from_json
from vcinr_batch.storage import sha256_hex
from vcinr_batch.store_retries import store_error

if TYPE_CHECKING:
    from vcinr_batch.compression import OpenBundle

_KEPT_BUNDLES = 4

_bundles: OrderedDict[str, bytes] = OrderedDict()
"""Files of the bundles that this process writes with, by digest."""
_compressing = threading.Lock()
"""One chunk at a time, since the number of threads is torch's for all of the process."""


@dataclass(frozen=True, eq=False)
class ChunkWrite:
    """What is to become a chunk."""

    layout: Layout
    index: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    selection: Any
    """What of the chunk is given, as Zarr puts it."""
    values: NDArray[Any]
    """In the shape of the selection, or a single one for all of it."""
    bundle_path: str
    """Relative to the group."""
    bundle_sha256: str
    quality: Mapping[str, Any]
    bundle_data: bytes | None = field(default=None, repr=False)
    """The bundle's file, where whoever writes has it with them."""


def remember_bundle(data: bytes) -> str:
    """Have a bundle's file at hand for the chunks that this process writes; its digest."""
    sha256 = sha256_hex(data)
    _bundles[sha256] = data
    _bundles.move_to_end(sha256)
    while len(_bundles) > _KEPT_BUNDLES:
        _bundles.popitem(last=False)
    return sha256


async def write_chunk(root: StorePath, chunk: ChunkWrite) -> None:
    """Compress a chunk and write it.

    Args:
        root: the group of the array.
        chunk: all of it, or the write is refused: a sample is fitted as a whole.

    Raises:
        ConfigError: a part of a chunk, a chunk outside of the array, or the group is an archive that was committed.
        SourceError: a sample cannot be compressed, which it names; the store cannot be written; or nobody here has the
            bundle.
        BundleMismatchError, CorruptBitstreamError: the bundle is for another grid, or damaged.
    """
    layout, variable = chunk.layout, chunk.layout.variable
    shard = shard_of_chunk(layout, chunk.index, chunk.chunk_shape)
    values = _canonical_values(chunk, shard)
    with _store_errors(root / MANIFEST_NAME, "look for"):
        committed = await (root / MANIFEST_NAME).exists()
    if committed:
        raise ConfigError(f"{root}: the archive is complete, and is not changed any more; write another store")
    opened = await _bundle_of(root, chunk)
    rows = await asyncio.to_thread(_compress, values, opened, layout, shard, request_from_json(chunk.quality))
    path = chunk_path(variable, chunk.index)
    part, data = await asyncio.to_thread(pack_part, rows, layout, path, start=shard.start, stop=shard.stop)
    await _put(root / path, data)
    await _put(root / record_path(variable, chunk.index), record_data(part))


def _canonical_values(chunk: ChunkWrite, shard: Shard) -> NDArray[np.float32]:
    """The values of the whole chunk, labels in canonical order."""
    layout, extent = chunk.layout, shard_extent(chunk.layout, shard)
    shape = tuple(part.stop - part.start for part in extent)
    given = parse_selection(chunk.selection, chunk.chunk_shape)
    if not isinstance(given, Box) or not all(
        np.array_equal(along, np.arange(n)) for along, n in zip(given.places, shape, strict=True)
    ):
        raise ConfigError(
            f"{layout.variable}: only a part of chunk {chunk.index} is written, which has {shape} labels: "
            f"its samples are fitted as a whole; write whole chunks, of {chunk.chunk_shape} labels each"
        )
    values = np.broadcast_to(chunk.values, shape) if chunk.values.ndim == 0 else chunk.values.reshape(shape)
    for k, (axis, part, length) in enumerate(zip(layout.axes, extent, chunk.chunk_shape, strict=True)):
        if not shows_source_order(axis, length):
            raise ConfigError(
                f"{layout.variable}: chunks of {length} labels along {axis.name!r}, which is not in order; sort it"
            )
        if axis.source_values is not None:
            values = np.take(values, np.argsort(source_places(axis)[part]), axis=k)
    return np.ascontiguousarray(values, np.float32)


def _compress(
    values: NDArray[np.float32], opened: "OpenBundle", layout: Layout, shard: Shard, request: QualityRequest
) -> list[ArchiveRow]:
    """One row for each sample of the shard, or none of them."""
    from vcinr_batch.compression import check_layout, compress_samples, one_thread

    check_layout(opened.bundle, layout)
    samples = list(cut_samples(values, layout, opened.bundle.grid, shard))
    rows, size = list[ArchiveRow](), max(1, BATCH_VALUES // layout.points_per_sample)
    with _compressing, one_thread():
        for first in range(0, len(samples), size):
            done, rejected = compress_samples(samples[first : first + size], opened, layout, request)
            if rejected:
                raise SourceError(
                    f"{rejected[0].key} cannot be compressed: {rejected[0].reason}; its chunk was not written "
                    "(`vcinr compress` makes an archive of the others, with a table of such samples)"
                )
            rows += done
    return rows


async def _bundle_of(root: StorePath, chunk: ChunkWrite) -> "OpenBundle":
    """The open bundle, whose file is in the store then."""
    place, data = root / chunk.bundle_path, chunk.bundle_data or _bundles.get(chunk.bundle_sha256)
    with _store_errors(place, "look for"):
        is_there = await place.exists()
    if data is None and not is_there:
        raise SourceError(
            f"the bundle with SHA-256 {chunk.bundle_sha256} is not at {place}: "
            "copy it there, or call vcinr_batch.encoding(...) with it in this process first; "
            "ds.drop_encoding() saves a dataset that was read from a compressed store without it"
        )
    if data is None:
        return await archive_of(root.store, root.path).bundle(root, chunk.bundle_path, chunk.bundle_sha256)
    if not is_there:
        await _put(place, data)
    # Not from the store, where another chunk of this process may still be writing it.
    return await asyncio.to_thread(_open_bundle, chunk.bundle_sha256, data, str(place))


def _open_bundle(sha256: str, data: bytes, name: str) -> "OpenBundle":
    from vcinr_batch.bundle_cache import open_bundle_of

    return open_bundle_of(sha256, lambda: data, name, is_remote=False)


async def _put(place: StorePath, data: bytes) -> None:
    with _store_errors(place, "write"):
        await place.set(default_buffer_prototype().buffer.from_bytes(data))


@contextmanager
def _store_errors(place: StorePath, action: str) -> Iterator[None]:
    try:
        yield
    except VcinrError:
        raise
    except Exception as error:  # a store's own: botocore's, aiohttp's and fsspec's among them
        raise store_error(error, str(place), action, None) from error
