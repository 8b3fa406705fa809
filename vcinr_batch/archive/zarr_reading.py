"""Reads the archive that a Zarr array belongs to through the array's own store, be it local, remote, a ZIP file or in
memory: the manifest, the index of a part and the payloads of some of its rows, by ranged reads.
"""

import asyncio
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from numpy.typing import NDArray
from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore, MemoryStore, StorePath, WrapperStore, ZipStore

from vcinr_batch.archive.chunk_grid import chunk_shape, regular_shard_shape, source_places
from vcinr_batch.archive.chunk_selection import Box, Points
from vcinr_batch.archive.manifest import MANIFEST_NAME, ArchivePart, parse_manifest
from vcinr_batch.archive.parquet_container import PartIndex, parse_index
from vcinr_batch.archive.parquet_part import ByteRanges, index_ranges
from vcinr_batch.archive.row_finding import front_ranges, with_footer
from vcinr_batch.archive.row_reading import make_rows, payload_ranges
from vcinr_batch.archive.single_flight import SingleFlight
from vcinr_batch.data.layout import Layout
from vcinr_batch.errors import SourceError, UnsupportedFormatError, VcinrError
from vcinr_batch.quality_request import QualityRequest, bound_from_json
from vcinr_batch.storage import cut_ranges, merge_ranges
from vcinr_batch.store_retries import store_error

if TYPE_CHECKING:
    from vcinr_batch.compression import OpenBundle

Result = TypeVar("Result")

WHOLE_PART_BYTES = 64 << 10
"""A part of at most this size is fetched whole: that costs no more time than a request for its index."""
_CACHED_PARTS = 64
_BATCH_VALUES = 16 << 20


@dataclass(frozen=True, eq=False)
class Contents:
    """What reading a chunk needs of a manifest, or of the configuration of an array that has none."""

    layout: Layout
    bundle_sha256: str
    parts: Mapping[str, ArchivePart] | None
    """By path; None where each chunk has a record of its own."""
    bound: QualityRequest | None
    """The error bound that was asked for, if any."""
    chunk_shape: tuple[int, ...]
    from_source: Mapping[str, NDArray[np.int64]]
    """For each axis that the source orders differently, and each of its labels there: the position on our axis."""


@dataclass(frozen=True, eq=False)
class OpenPart:
    """A part whose index was read."""

    part: ArchivePart
    index: PartIndex
    whole: bytes | None
    """All of the part, where it is small."""


class StoredArchive:
    """An archive in a Zarr store. Keeps its manifest, its open bundle and the indexes of the last parts read.

    It does not hold the store, which is passed to every call: `archive_of` keeps it for as long as the store lives.
    """

    def __init__(self) -> None:
        self._contents = SingleFlight[Contents](1)
        self._bundles = SingleFlight["OpenBundle"](1)
        self._parts = SingleFlight[OpenPart](_CACHED_PARTS)

    async def contents(self, root: StorePath) -> Contents:
        """What the manifest of the archive at `root` says.

        Raises:
            SourceError: there is none, or the store cannot be read.
            BitstreamError, UnsupportedFormatError: it is damaged, of a later version or not that of a Zarr archive.
        """

        async def read() -> Contents:
            data = await get_bytes(root / MANIFEST_NAME)
            return await asyncio.to_thread(_parse_contents, data, f"manifest of {root}")

        return await self._contents.get("", read)

    async def bundle(self, root: StorePath, path: str, sha256: str) -> "OpenBundle":
        """The open bundle of a digest: this process's, this machine's, or the one at `path` in the store.

        Raises:
            SourceError, BundleMismatchError, BitstreamError, UnsupportedFormatError: it is missing, another one,
                damaged or of a later version; names the digest.
        """

        async def read() -> "OpenBundle":
            from vcinr_batch.bundle_cache import open_bundle_of

            place, loop = root / path, asyncio.get_running_loop()

            def fetch() -> bytes:
                return asyncio.run_coroutine_threadsafe(get_bytes(place), loop).result()

            # In a thread of its own: those of the pool may all be waiting for a bundle, and a store needs one of them.
            return await _in_new_thread(lambda: open_bundle_of(sha256, fetch, str(place), _is_remote(root.store)))

        return await self._bundles.get(sha256, read)

    async def part(self, root: StorePath, part: ArchivePart, layout: Layout) -> OpenPart:
        """A part of an archive of that layout, with its index.

        Raises:
            SourceError: it is missing or unreachable.
            BitstreamError, UnsupportedFormatError: it is damaged, or of a later version.
        """

        async def read() -> OpenPart:
            wanted, whole = index_ranges(part.bytes, part.payloads), None
            if part.bytes <= WHOLE_PART_BYTES:
                whole = await get_bytes(root / part.path, (0, part.bytes))
                pieces = [whole[start:stop] for start, stop in wanted]
            else:
                pieces = await _front(root / part.path, part, wanted, layout)
            index = await asyncio.to_thread(parse_index, pieces, part, layout)
            return OpenPart(part, index, whole)

        # By its content too: the chunk of an array that is being written may be written again.
        return await self._parts.get(f"{part.path} {part.sha256}", read)

    async def decode(
        self,
        root: StorePath,
        part: ArchivePart,
        wanted: Box | Points,
        opened: "OpenBundle",
        bundle_sha256: str,
        layout: Layout,
        bound: QualityRequest | None,
    ) -> NDArray[np.float32]:
        """What is asked of one part: fetches the payloads of just the samples that it touches, decodes them in batches.

        Args:
            root: where the archive is.
            part: from its manifest.
            wanted: positions on the axes of the archive's layout.
            opened: its bundle.
            bundle_sha256: of that bundle.
            layout: the archive's.
            bound: the error bound that it was asked for.

        Returns:
            float32 of the shape of `wanted`; NaN where there is no value.

        Raises:
            SourceError, BitstreamError, UnsupportedFormatError: as `part`; names the sample whose bytes are damaged.
        """
        found = await self.part(root, part, layout)
        values = np.full(wanted.shape, np.nan, np.float32)
        positions = np.flatnonzero(wanted.choose(found.index.blocks, layout.block_shape))
        batch = max(1, _BATCH_VALUES // layout.points_per_sample)

        def decode_into(some: NDArray[np.int64], pieces: Sequence[bytes]) -> None:
            from vcinr_batch.compression import decompress_rows

            rows = make_rows(part, found.index, some, pieces, layout, bundle_sha256)
            for row, decoded in zip(rows, decompress_rows(rows, opened, layout, bound), strict=True):
                wanted.fill(values, row.block, decoded.reshape(layout.block_shape))

        for first in range(0, len(positions), batch):
            some = positions[first : first + batch]
            await asyncio.to_thread(decode_into, some, await _pieces(root, found, some))
        return values


def archive_of(store: Store, path: str) -> StoredArchive:
    """The archive at a path of a store; the same one for as long as the store lives. Reads nothing."""
    with _guard:
        kept = _archives.get(id(store))
        if kept is None:
            kept = _archives[id(store)] = (weakref.ref(store, _forgetting(id(store))), {})
        return kept[1].setdefault(path, StoredArchive())


# By id, since Zarr's stores have no hash; an entry goes with its store, so that no other can have the same id.
_archives: dict[int, tuple[weakref.ref[Store], dict[str, StoredArchive]]] = {}
_guard = threading.RLock()
"""Reentrant: a store may be collected, which removes its entry, while an entry is added."""


def _forgetting(key: int) -> Callable[[Any], None]:
    def forget(_: Any) -> None:
        with _guard:
            _archives.pop(key, None)

    return forget


def _parse_contents(data: bytes, name: str) -> Contents:
    manifest = parse_manifest(data, name)
    if manifest.container != "zarr":
        raise UnsupportedFormatError(f"{name}: container {manifest.container!r}, but Zarr reads it: expected 'zarr'")
    layout, parts = manifest.layout, manifest.parts
    orders = {axis.name: source_places(axis) for axis in layout.axes if axis.source_values is not None}
    shape = chunk_shape(layout, regular_shard_shape(layout, parts))
    return Contents(
        layout,
        manifest.bundle_sha256,
        {part.path: part for part in parts},
        bound_from_json(manifest.quality),
        shape,
        orders,
    )


async def _front(place: StorePath, part: ArchivePart, ranges: ByteRanges, layout: Layout) -> list[bytes]:
    """What stands at the `index_ranges` of a part; its footer is fetched only where it cannot be made."""
    front = front_ranges(ranges)
    pieces = await _get_ranges(place, front)
    if len(front) == len(ranges):
        return pieces
    made = await asyncio.to_thread(with_footer, pieces, part, layout)
    return made or [*pieces, *await _get_ranges(place, ranges[-1:])]


async def _pieces(root: StorePath, found: OpenPart, positions: NDArray[np.int64]) -> list[bytes]:
    ranges = payload_ranges(found.index, positions)
    if found.whole is not None:
        return [found.whole[start:stop] for start, stop in ranges]
    return await _get_ranges(root / found.part.path, ranges)


async def _get_ranges(place: StorePath, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    spans = merge_ranges(ranges)
    return cut_ranges(ranges, spans, await asyncio.gather(*(get_bytes(place, span) for span in spans)))


async def get_bytes(place: StorePath, span: tuple[int, int] | None = None) -> bytes:
    """The bytes of a key or of a range of it; a range past the end comes back shorter.

    Raises:
        SourceError: missing or unreadable.
    """
    byte_range = None if span is None else RangeByteRequest(*span)
    try:
        found = await place.get(default_buffer_prototype(), byte_range)
    except VcinrError:
        raise
    except Exception as error:  # a store's own: botocore's, aiohttp's and fsspec's among them
        raise store_error(error, str(place), "read", None) from error
    if found is None:
        raise SourceError(f"cannot read {place}: no such file")
    return found.to_bytes()


async def _in_new_thread(call: Callable[[], Result]) -> Result:
    future = Future[Result]()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="vcinr-bundle", daemon=True).start()
    return await asyncio.shield(asyncio.wrap_future(future))


def _is_remote(store: Store) -> bool:
    """Whether a copy of a file on a local disk spares anything."""
    while isinstance(store, WrapperStore):
        store = store._store
    if isinstance(store, LocalStore | MemoryStore | ZipStore):
        return False
    fs = getattr(store, "fs", None)
    return not isinstance(getattr(fs, "sync_fs", fs), LocalFileSystem | MemoryFileSystem)
