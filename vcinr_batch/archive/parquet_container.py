"""Rows as Parquet parts: one part per shard, in each row group the small columns first and the payloads behind them.

A reader fetches everything but the payloads (`read_index`, or with fewer requests `row_finding.find_rows`), then just
the byte ranges of the payloads it wants (`read_rows`).
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.archive.checksum_spans import CHECKSUM_BYTES, span_checksum
from vcinr_batch.archive.manifest import MANIFEST_NAME, ArchivePart
from vcinr_batch.archive.parquet_part import (
    PartIndex,
    decode_index,
    decode_rejected,
    encode_part,
    encode_rejected,
    index_crc32,
    index_ranges,
)
from vcinr_batch.archive.row_reading import make_rows, payload_ranges
from vcinr_batch.archive.rows import ArchiveRow
from vcinr_batch.data.layout import Layout, sample_key
from vcinr_batch.data.samples import RejectedSample
from vcinr_batch.errors import (
    ArchiveExistsError,
    BitstreamError,
    ConfigError,
    CorruptBitstreamError,
    TruncatedBitstreamError,
    UnsupportedFormatError,
)
from vcinr_batch.storage import (
    StorageOptions,
    exists,
    join_url,
    public_url,
    read_bytes,
    read_ranges,
    sha256_hex,
    write_bytes,
)

__all__ = [
    "PartIndex",
    "content_path",
    "pack_part",
    "parse_index",
    "part_ranges",
    "read_index",
    "read_rejected",
    "read_rows",
    "write_part",
]

_HASH_DIGITS = 12


def write_part(
    rows: Sequence[ArchiveRow],
    layout: Layout,
    url: str,
    name: str,
    *,
    start: tuple[int, ...],
    stop: tuple[int, ...],
    rejected: Sequence[RejectedSample] = (),
    path: str | None = None,
    storage_options: StorageOptions = None,
) -> ArchivePart:
    """Write one shard's rows, and the table of those that were rejected, into the archive at `url`.

    The bytes are a pure function of the rows, whatever their order. Files are named by their content, so that nothing
    another archive at `url` refers to is ever replaced by something else. The part is written after the table, so that
    a part that is there is complete.

    Args:
        rows: every sample of the shard that was not rejected.
        layout: the archive's.
        url: of the archive.
        name: of the shard; becomes `parts/<name>-<hash>.parquet` and `rejected/<name>-<hash>.parquet`, with the first
            12 hexadecimal digits of the file's SHA-256.
        start: the shard is the blocks [start, stop) along every axis.
        stop: see `start`.
        rejected: the rest of the shard.
        path: of the part, where that is the key of a Zarr chunk, which says nothing of the content: other bytes there
            are replaced as long as no manifest is, and then never.

    Raises:
        ConfigError: rows and rejected samples are not the shard's samples, each once, or a row's error is not finite.
        ArchiveExistsError: there are other bytes under `path`, and a manifest that may name them.
        SourceError: the place cannot be written.
    """
    ordered = sorted(rows, key=lambda row: row.block)
    refused = sorted(rejected, key=lambda sample: sample.block)
    _check_complete(ordered, refused, layout, name, start, stop)
    data, payloads, crc32 = _packed(ordered, layout, name, start, stop)
    table = _write_rejected(refused, layout, url, name, storage_options) if refused else {}
    sha256 = sha256_hex(data)
    own_path = content_path("parts", name, sha256) if path is None else path
    part = ArchivePart(own_path, len(rows), len(data), sha256, crc32, payloads, start, stop, **table)
    if path is None or not _is_there(url, path, data, storage_options):
        write_bytes(join_url(url, part.path), data, storage_options=storage_options)
    return part


def pack_part(
    rows: Sequence[ArchiveRow], layout: Layout, path: str, *, start: tuple[int, ...], stop: tuple[int, ...]
) -> tuple[ArchivePart, bytes]:
    """A part of which no sample was rejected, and the bytes that `write_part` would write; writes nothing.

    Args:
        rows: every sample of the shard.
        layout: the archive's.
        path: of the part, relative to the archive.
        start: the shard is the blocks [start, stop) along every axis.
        stop: see `start`.

    Raises:
        ConfigError: as `write_part`.
    """
    ordered = sorted(rows, key=lambda row: row.block)
    _check_complete(ordered, (), layout, path, start, stop)
    data, payloads, crc32 = _packed(ordered, layout, path, start, stop)
    return ArchivePart(path, len(rows), len(data), sha256_hex(data), crc32, payloads, start, stop), data


def read_index(url: str, part: ArchivePart, layout: Layout, *, storage_options: StorageOptions = None) -> PartIndex:
    """Everything of a part but the payloads, in one go of ranged reads.

    Args:
        url: of the archive.
        part: from its manifest.
        layout: from its manifest.

    Raises:
        SourceError: the part is missing or unreachable.
        TruncatedBitstreamError, CorruptBitstreamError: the part is damaged or not the one that the manifest names.
        UnsupportedFormatError: a later version wrote it.
    """
    pieces = read_ranges(join_url(url, part.path), part_ranges(part), storage_options=storage_options)
    return parse_index(pieces, part, layout)


def part_ranges(part: ArchivePart) -> list[tuple[int, int]]:
    """All of a part but its payloads.

    Raises:
        CorruptBitstreamError: as `index_ranges`; names the part.
    """
    with _naming(part.path):
        return index_ranges(part.bytes, part.payloads)


def parse_index(pieces: Sequence[bytes], part: ArchivePart, layout: Layout) -> PartIndex:
    """What `read_index` gives, from bytes that were fetched in another way.

    Args:
        pieces: what stands at `index_ranges` of the part.
        part: from the archive's manifest.
        layout: from the archive's manifest.

    Raises:
        TruncatedBitstreamError, CorruptBitstreamError, UnsupportedFormatError: as `read_index`.
    """
    with _naming(part.path):
        ranges = index_ranges(part.bytes, part.payloads)
        for piece, (start, stop) in zip(pieces, ranges, strict=True):
            if len(piece) != stop - start:
                raise TruncatedBitstreamError(f"got {len(piece)} of the bytes {start} to {stop}")
        if index_crc32(pieces) != part.index_crc32:
            raise CorruptBitstreamError(
                f"checksum of its index is {index_crc32(pieces):08x}, expected {part.index_crc32:08x}"
            )
        index = decode_index(pieces, part.bytes, part.payloads, layout, (part.start, part.stop))
        if len(index) != part.rows:
            raise CorruptBitstreamError(f"{len(index)} rows, expected {part.rows}")
    return index


def read_rows(
    url: str,
    part: ArchivePart,
    index: PartIndex,
    positions: Sequence[int] | NDArray[np.integer[Any]],
    layout: Layout,
    bundle_sha256: str,
    *,
    storage_options: StorageOptions = None,
) -> list[ArchiveRow]:
    """The rows at the given positions of a part's index, in that order; fetches their byte ranges and little more.

    Raises:
        SourceError: the part is missing or unreachable.
        TruncatedBitstreamError, CorruptBitstreamError: as `make_rows`.
    """
    chosen = np.asarray(positions, np.int64)
    ranges = payload_ranges(index, chosen)
    pieces = read_ranges(join_url(url, part.path), ranges, storage_options=storage_options)
    return make_rows(part, index, chosen, pieces, layout, bundle_sha256)


def read_rejected(
    url: str, part: ArchivePart, layout: Layout, *, storage_options: StorageOptions = None
) -> list[RejectedSample]:
    """The samples of a part's shard that are not among its rows, and why.

    Raises:
        SourceError: the table is missing or unreachable.
        TruncatedBitstreamError, CorruptBitstreamError: the table is damaged or not the one that the manifest names.
        UnsupportedFormatError: a later version wrote it.
    """
    if part.rejected_path is None:
        return []
    target = join_url(url, part.rejected_path)
    data = read_bytes(target, 0, part.rejected_bytes + 1, storage_options=storage_options)
    with _naming(part.rejected_path):
        if len(data) < part.rejected_bytes:
            raise TruncatedBitstreamError(f"got {len(data)} of {part.rejected_bytes} bytes")
        if sha256_hex(data) != part.rejected_sha256:
            raise CorruptBitstreamError("its SHA-256 is not the one in the manifest")
        return decode_rejected(data, part.rejected, layout, (part.start, part.stop))


def content_path(folder: str, name: str, sha256: str) -> str:
    """Where a file lies in a Parquet archive: its shard's name and the beginning of its digest."""
    return f"{folder}/{name}-{sha256[:_HASH_DIGITS]}.parquet"


def _is_there(url: str, path: str, data: bytes, storage_options: StorageOptions) -> bool:
    """Whether a chunk has these bytes already; raises where it has others that an archive may name."""
    target = join_url(url, path)
    if not exists(target, storage_options=storage_options):
        return False
    if read_bytes(target, 0, len(data) + 1, storage_options=storage_options) == data:
        return True
    if exists(join_url(url, MANIFEST_NAME), storage_options=storage_options):
        raise ArchiveExistsError(f"{path}: the archive at {public_url(url)} was completed with other bytes meanwhile")
    return False


def _write_rejected(
    samples: Sequence[RejectedSample], layout: Layout, url: str, name: str, storage_options: StorageOptions
) -> dict[str, Any]:
    """Write the table and return what an `ArchivePart` says about it."""
    data = encode_rejected(samples, layout)
    path = content_path("rejected", name, sha256_hex(data))
    write_bytes(join_url(url, path), data, storage_options=storage_options)
    sizes = {"rejected": len(samples), "rejected_bytes": len(data)}
    return {**sizes, "rejected_path": path, "rejected_sha256": sha256_hex(data)}


def _packed(
    rows: Sequence[ArchiveRow], layout: Layout, name: str, start: tuple[int, ...], stop: tuple[int, ...]
) -> tuple[bytes, tuple[tuple[int, int], ...], int]:
    """A part's bytes, made sure to read back, the ranges of its payloads, and the checksum of its index."""
    samples = math.prod(b - a for a, b in zip(start, stop, strict=True))
    data, payloads = encode_part(rows, layout, with_blocks=len(rows) < samples)
    pieces = [data[a:b] for a, b in index_ranges(len(data), payloads)]
    _check_readable(data, decode_index(pieces, len(data), payloads, layout, (start, stop)), rows, name)
    return data, tuple(payloads), index_crc32(pieces)


def _check_complete(
    rows: Sequence[ArchiveRow],
    rejected: Sequence[RejectedSample],
    layout: Layout,
    name: str,
    start: tuple[int, ...],
    stop: tuple[int, ...],
) -> None:
    expected = list(itertools.product(*(range(a, b) for a, b in zip(start, stop, strict=True))))
    found = sorted([row.block for row in rows] + [sample.block for sample in rejected])
    if found != expected:
        wrong = sorted(set(found) ^ set(expected)) or [b for b, after in itertools.pairwise(found) if b == after]
        raise ConfigError(
            f"{name}: {len(rows)} rows and {len(rejected)} rejected samples for {len(expected)} blocks; "
            f"block {wrong[0]} is missing, foreign or there twice"
        )
    for key, block in [*((row.key, row.block) for row in rows), *((s.key, s.block) for s in rejected)]:
        if key != sample_key(layout, block):
            raise ConfigError(f"{name}: block {block} is {sample_key(layout, block)}, not {key}")


def _check_readable(data: bytes, index: PartIndex, rows: Sequence[ArchiveRow], name: str) -> None:
    """What was just encoded must read back: a bug here would cost the source."""
    ends = index.payload_start + index.payload_bytes
    payloads = [data[a:b] for a, b in zip(index.payload_start.tolist(), ends.tolist(), strict=True)]
    columns = (
        map(tuple, index.blocks.tolist()),
        index.quality.tolist(),
        index.coding.tolist(),
        index.masks,
        payloads,
    )
    found = list(zip(*columns, strict=True))
    wanted = [(row.block, row.quality, row.coding, row.mask, row.payload) for row in rows]
    if found != wanted or not _has_checksums(data, index, rows):
        raise CorruptBitstreamError(
            f"{name}: the part just encoded does not read back; this is a bug, please report it"
        )


def _has_checksums(data: bytes, index: PartIndex, rows: Sequence[ArchiveRow]) -> bool:
    spans = sorted(set(zip(index.span_first.tolist(), index.span_stop.tolist(), strict=True)))
    for first, stop in spans:
        end = int(index.payload_start[stop - 1] + index.payload_bytes[stop - 1])
        if data[end : end + CHECKSUM_BYTES] != span_checksum([row.checksum for row in rows[first:stop]]):
            return False
    return True


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Put the part's path in front of what is wrong with it."""
    try:
        yield
    except (BitstreamError, UnsupportedFormatError) as error:
        raise type(error)(f"{path}: {error}") from error
