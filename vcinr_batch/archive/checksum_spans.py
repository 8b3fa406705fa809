"""Checksums of consecutive rows together: four bytes for each payload of twenty would be a fifth of an archive.

A span is so many rows of a row group that their payloads have 512 bytes together, or all that are left. Its checksum
stands behind its last payload. Reading any of its rows means fetching all of it, at most 512 bytes more.
"""

import itertools
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.archive.rows import ArchiveRow
from vcinr_batch.errors import CorruptBitstreamError

SPAN_BYTES = 512
"""A span ends with the row whose payload brings it to this size."""
CHECKSUM_BYTES = 4


@dataclass(frozen=True, eq=False)
class StoredLengths:
    """What follows from the stored lengths of a row group's payloads; N rows."""

    payload_bytes: NDArray[np.int64]
    """[N], without the checksums."""
    span_first: NDArray[np.int64]
    """[N], for every row the first row of its span, counted in the row group."""
    span_stop: NDArray[np.int64]
    """[N], and the one behind its last row."""


def add_checksums(rows: Sequence[ArchiveRow]) -> list[bytes]:
    """The payloads of a row group as they are stored: the last one of each span with the span's checksum behind it."""
    stored = [row.payload for row in rows]
    first = size = 0
    for i, row in enumerate(rows):
        size += len(row.payload)
        if size >= SPAN_BYTES or i == len(rows) - 1:
            stored[i] += span_checksum([row.checksum for row in rows[first : i + 1]])
            first, size = i + 1, 0
    return stored


def split_lengths(stored: NDArray[np.int64]) -> StoredLengths:
    """Mirror of `add_checksums` for lengths [N], of which any that are not negative may come.

    Raises:
        CorruptBitstreamError: there is no room for a checksum.
    """
    stops = list(_span_stops(stored.tolist()))
    lengths = stored.copy()
    lengths[np.array(stops, np.int64) - 1] -= CHECKSUM_BYTES
    if lengths.min(initial=0) < 0:
        raise CorruptBitstreamError(f"payload of {stored.min()} bytes, expected a checksum of {CHECKSUM_BYTES} in it")
    edges = np.array([0, *stops], np.int64)
    return StoredLengths(lengths, *(np.repeat(edge, np.diff(edges)) for edge in (edges[:-1], edges[1:])))


def span_checksum(row_checksums: Sequence[int]) -> bytes:
    """CRC-32 of the rows' `row_checksum`, in their order; little-endian, as these are for it."""
    return struct.pack("<I", zlib.crc32(struct.pack(f"<{len(row_checksums)}I", *row_checksums)))


def _span_stops(stored: Sequence[int]) -> Iterator[int]:
    # The lengths that are added up here are those of payloads alone but for the last of a span, which ends it anyway.
    sums, before = itertools.accumulate(stored), 0
    for i, size in enumerate(sums):
        if size - before >= SPAN_BYTES or i == len(stored) - 1:
            yield i + 1
            before = size
