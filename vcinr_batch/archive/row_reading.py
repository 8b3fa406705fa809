"""From the bytes of payloads to rows: which bytes of a part a reader needs, and what they say."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.archive.checksum_spans import CHECKSUM_BYTES, span_checksum
from vcinr_batch.archive.manifest import ArchivePart
from vcinr_batch.archive.parquet_part import PartIndex
from vcinr_batch.archive.rows import ArchiveRow, row_checksum
from vcinr_batch.data.layout import Layout, sample_key, sample_keys
from vcinr_batch.data.samples import SampleKey
from vcinr_batch.errors import CorruptBitstreamError, TruncatedBitstreamError

Positions = NDArray[np.int64]


def payload_ranges(index: PartIndex, positions: Positions) -> list[tuple[int, int]]:
    """What to fetch of a part for its rows at some positions: for each one its span, in old parts just its payload."""
    first, last, behind = _needed(index, positions)
    starts, stops = index.payload_start[first], index.payload_start[last] + index.payload_bytes[last] + behind
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def make_rows(
    part: ArchivePart,
    index: PartIndex,
    positions: Positions,
    pieces: Sequence[bytes],
    layout: Layout,
    bundle_sha256: str,
) -> list[ArchiveRow]:
    """Rows at positions of a part's index, in that order.

    Args:
        part: from the archive's manifest.
        index: of the part.
        positions: of the rows.
        pieces: what stands at their `payload_ranges`.
        layout: from the manifest.
        bundle_sha256: from the manifest. Rows that have a checksum together are checked here; where each has its own,
            `check_row` looks at it.

    Raises:
        TruncatedBitstreamError: a payload is not whole.
        CorruptBitstreamError: rows are not what was written; names the first and the last that are lost.
    """
    _check_whole(part, index, positions, pieces, layout)
    if index.checksum is not None:
        keys = sample_keys(layout, index.blocks[positions])
        return _rows(index, positions, keys, pieces, index.checksum[positions].tolist())
    spans = dict(zip(index.span_first[positions].tolist(), pieces, strict=True))
    members: list[Positions] = [np.arange(first, index.span_stop[first]) for first in spans]
    some = np.concatenate([np.zeros(0, np.int64), *members])
    cut = (_cut(index, place, piece) for place, piece in zip(members, spans.values(), strict=True))
    payloads = list(itertools.chain.from_iterable(cut))
    keys = sample_keys(layout, index.blocks[some])
    checksums = _row_checksums(index, some, keys, payloads, bundle_sha256)
    _check_spans(part, [len(place) for place in members], list(spans.values()), keys, checksums)
    found = dict(zip(some.tolist(), _rows(index, some, keys, payloads, checksums), strict=True))
    return [found[position] for position in positions.tolist()]


def _needed(index: PartIndex, positions: Positions) -> tuple[Positions, Positions, int]:
    """For each position the first and the last row whose payloads are needed, and the bytes behind these."""
    if index.checksum is not None:
        return positions, positions, 0
    return index.span_first[positions], index.span_stop[positions] - 1, CHECKSUM_BYTES


def _check_whole(
    part: ArchivePart, index: PartIndex, positions: Positions, pieces: Sequence[bytes], layout: Layout
) -> None:
    wanted = payload_ranges(index, positions)
    for position, piece, (start, stop) in zip(positions.tolist(), pieces, wanted, strict=True):
        if len(piece) != stop - start:
            key = sample_key(layout, tuple(index.blocks[position].tolist()))
            raise TruncatedBitstreamError(f"{part.path}: {key}: got {len(piece)} of the bytes {start} to {stop}")


def _cut(index: PartIndex, members: Positions, piece: bytes) -> list[bytes]:
    """The payloads of a span."""
    ends = np.cumsum(index.payload_bytes[members]).tolist()
    return [piece[start:stop] for start, stop in itertools.pairwise([0, *ends])]


def _row_checksums(
    index: PartIndex, positions: Positions, keys: Sequence[SampleKey], payloads: Sequence[bytes], bundle_sha256: str
) -> list[int]:
    quality, coding = index.quality[positions].tolist(), index.coding[positions].tolist()
    masks = [index.masks[i] for i in positions.tolist()]
    return list(map(row_checksum, keys, quality, payloads, masks, itertools.repeat(bundle_sha256), coding))


def _check_spans(
    part: ArchivePart, sizes: Sequence[int], pieces: Sequence[bytes], keys: Sequence[SampleKey], checksums: list[int]
) -> None:
    """Raise unless each span's checksum is the one behind its payloads."""
    for size, stop, piece in zip(sizes, itertools.accumulate(sizes), pieces, strict=True):
        now, stored = span_checksum(checksums[stop - size : stop]), piece[-CHECKSUM_BYTES:]
        if now != stored:
            several = f" to {keys[stop - 1]}, {size} samples" if size > 1 else ""
            found, expected = (int.from_bytes(checksum, "little") for checksum in (now, stored))
            raise CorruptBitstreamError(
                f"{part.path}: {keys[stop - size]}{several}: checksum is {found:08x}, expected {expected:08x}"
            )


def _rows(
    index: PartIndex,
    positions: Positions,
    keys: Sequence[SampleKey],
    payloads: Sequence[bytes],
    checksums: Sequence[int],
) -> list[ArchiveRow]:
    blocks = map(tuple, index.blocks[positions].tolist())
    quality, rmse, max_error, coding = (
        column[positions].tolist() for column in (index.quality, index.rmse, index.max_error, index.coding)
    )
    masks = [index.masks[i] for i in positions.tolist()]
    return list(map(ArchiveRow, keys, blocks, payloads, quality, rmse, max_error, checksums, masks, coding))
