"""The bytes of one part and of one table of rejected samples; FORMAT.md has their columns. No storage here."""

import contextlib
import functools
import io
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcinr_batch.archive.checksum_spans import StoredLengths, add_checksums, split_lengths
from vcinr_batch.archive.parquet_footer import make_footer
from vcinr_batch.archive.rows import CODINGS, MAX_QUALITY, ArchiveRow
from vcinr_batch.data.layout import Layout, sample_key
from vcinr_batch.data.samples import RejectedSample
from vcinr_batch.errors import ConfigError, CorruptBitstreamError, UnsupportedFormatError, VcinrError
from vcinr_batch.metrics import round_up

GROUP_ROWS = 4096
"""Most rows of a row group."""

_GROUP_BYTES = 64 << 20
_MAX_INDEX_BYTES = 1 << 30
_PAGE_BYTES = 1 << 30  # above any row group, so that each column has one page per row group
_ENCODINGS = {
    "quality": "DELTA_BINARY_PACKED",
    "rmse": "BYTE_STREAM_SPLIT",
    "max_error": "BYTE_STREAM_SPLIT",
    "mask": "DELTA_BYTE_ARRAY",
    "payload": "DELTA_LENGTH_BYTE_ARRAY",
}
_COMPRESSIONS = {"rmse": "zstd", "max_error": "zstd", "key": "zstd", "reason": "zstd"}
_ZSTD_LEVEL = 19

ByteRanges = Sequence[tuple[int, int]]
"""Ranges [start, stop) of a file, ascending and disjoint."""
Shard = tuple[tuple[int, ...], tuple[int, ...]]
"""First and last + 1 block along every axis."""


_Group = tuple[pa.Table, int, NDArray[np.int64]]  # small columns, start of the payloads, their stored lengths


@dataclass(frozen=True, eq=False)
class PartIndex:
    """All columns of a part but the payloads, and where those are; N rows in row-major order of their blocks."""

    blocks: NDArray[np.int64]
    """[N, number of axes]."""
    quality: NDArray[np.uint8]
    """[N]."""
    coding: NDArray[np.uint8]
    """[N], each one of `CODINGS`."""
    rmse: NDArray[np.float32]
    """[N], rounded up by less than 0.8 %."""
    max_error: NDArray[np.float32]
    """[N], as `rmse`."""
    checksum: NDArray[np.uint32] | None
    """[N] of a part of format version 1; None where rows share the checksums of their spans."""
    span_first: NDArray[np.int64]
    """[N], first row of each row's span (`checksum_spans`); of version 1 the row itself."""
    span_stop: NDArray[np.int64]
    """[N], behind the last row of the span."""
    masks: tuple[bytes | None, ...]
    """N packed masks, None where the mask is the expected one."""
    payload_start: NDArray[np.int64]
    """[N], byte offset in the part."""
    payload_bytes: NDArray[np.int64]
    """[N], without checksums."""

    def __len__(self) -> int:
        return len(self.blocks)


def encode_part(
    rows: Sequence[ArchiveRow], layout: Layout, with_blocks: bool = True
) -> tuple[bytes, list[tuple[int, int]]]:
    """A Parquet file of rows, which must be in row-major order of their blocks; may be empty.

    Args:
        rows: of one shard.
        layout: the archive's.
        with_blocks: writes the columns of blocks, without which the rows must be all of their shard.

    Returns:
        The file, and the byte range of all payloads of each row group.

    Raises:
        ConfigError: an error that is not a finite float32 >= 0, or a quality, coding or checksum out of range.
    """
    schema = _part_schema(layout, any(row.mask is not None for row in rows), with_blocks=with_blocks)
    groups = list(_row_groups(rows))
    data = _write([_part_table(group, layout, schema) for group in groups], schema)
    # The payloads are the tail of their column, which is the last one of its row group.
    metadata = pq.read_metadata(pa.BufferReader(data))
    chunks = [metadata.row_group(i).column(len(schema) - 1) for i in range(len(groups))]
    ends = [chunk.data_page_offset + chunk.total_compressed_size for chunk in chunks]
    sizes = [sum(map(len, add_checksums(group))) for group in groups]
    payloads = [(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    if not payloads:
        return data, payloads
    heads = [data[start:stop] for start, stop in index_ranges(len(data), payloads)[:-1]]
    return data[: ends[-1]] + footer_of(heads, payloads, layout), payloads


def footer_of(heads: Sequence[bytes], payloads: ByteRanges, layout: Layout) -> bytes:
    """What stands behind the last payload of a part with rows, made from what stands in front of each row group's.

    Raises:
        CorruptBitstreamError: the heads are not what `encode_part` writes.
    """
    return make_footer(heads, payloads, _block_names(layout))


def index_ranges(file_bytes: int, payloads: ByteRanges) -> list[tuple[int, int]]:
    """All of a file but its payloads.

    Raises:
        CorruptBitstreamError: the payloads are not ascending ranges of the file, or leave more than 1 GiB.
    """
    edges = [0, *itertools.chain.from_iterable(payloads), file_bytes]
    ranges = list(zip(edges[::2], edges[1::2], strict=True))
    total = sum(stop - start for start, stop in ranges)
    if any(a > b for a, b in itertools.pairwise(edges)) or total > _MAX_INDEX_BYTES:
        raise CorruptBitstreamError(f"payloads at {list(payloads)[:4]} of {file_bytes} bytes")
    return ranges


def index_crc32(pieces: Sequence[bytes]) -> int:
    """CRC-32 of what stands at `index_ranges`."""
    return functools.reduce(lambda crc32, piece: zlib.crc32(piece, crc32), pieces, 0)


def decode_index(
    pieces: Sequence[bytes], file_bytes: int, payloads: ByteRanges, layout: Layout, shard: Shard
) -> PartIndex:
    """Mirror of `encode_part` for everything but the payloads.

    Their lengths stand in front of them, delta-packed. So pyarrow is given the file with zeros for payloads, and its
    column of zeros tells the lengths. Where they are is taken from the manifest, since `RowGroupMetaData.column`, which
    knows it too, aborts the process on some damaged footers (pyarrow 25 and 26).

    Args:
        pieces: what stands at `index_ranges`.
        file_bytes: size of the file.
        payloads: from `encode_part`.
        layout: the archive's.
        shard: whose rows they are.

    Raises:
        CorruptBitstreamError, UnsupportedFormatError.
    """
    with _arrow_errors():
        file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(_with_zeros(pieces, file_bytes, payloads))))
        names = file.schema_arrow.names
        has_blocks = any(name in names for name in _block_names(layout))
        expected = _part_schema(layout, "mask" in names, "checksum" in names, has_blocks)
        _check_schema(file.schema_arrow, expected)
        if file.num_row_groups != len(payloads):
            raise CorruptBitstreamError(f"{file.num_row_groups} row groups, expected {len(payloads)}")
        groups = [_read_group(file, number, start, stop) for number, (start, stop) in enumerate(payloads)]
        return _assemble(groups, layout, shard)


def encode_rejected(samples: Sequence[RejectedSample], layout: Layout) -> bytes:
    """A Parquet file of rejected samples: their blocks, keys and reasons."""
    schema = _rejected_schema(layout)
    columns = _block_columns([sample.block for sample in samples], layout)
    columns |= {"key": [str(sample.key) for sample in samples], "reason": [sample.reason for sample in samples]}
    return _write([pa.table(columns, schema)], schema)


def decode_rejected(data: bytes, count: int, layout: Layout, shard: Shard) -> list[RejectedSample]:
    """Mirror of `encode_rejected`.

    Raises:
        CorruptBitstreamError, UnsupportedFormatError: damaged, or not `count` samples of the shard.
    """
    with _arrow_errors():
        file = pq.ParquetFile(pa.BufferReader(data))
        _check_schema(file.schema_arrow, _rejected_schema(layout))
        if file.metadata.num_rows != count:
            raise CorruptBitstreamError(f"{file.metadata.num_rows} rejected samples, expected {count}")
        table = file.read(use_threads=False)
        blocks = [tuple(block) for block in _blocks(table, layout, shard).tolist()]
        keys, reasons = table["key"].to_pylist(), table["reason"].to_pylist()
    samples = [
        RejectedSample(sample_key(layout, block), block, reason) for block, reason in zip(blocks, reasons, strict=True)
    ]
    for sample, key in zip(samples, keys, strict=True):
        if str(sample.key) != key:
            raise CorruptBitstreamError(f"{sample.key}: its key reads {key[:80]!r}")
    return samples


def _part_schema(layout: Layout, with_masks: bool, with_checksums: bool = False, with_blocks: bool = True) -> pa.Schema:
    """The columns of a part; each row has a checksum of its own in version 1 only."""
    fields = [(name, pa.int32()) for name in _block_names(layout)] if with_blocks else []
    fields += [("quality", pa.uint8()), ("rmse", pa.float32()), ("max_error", pa.float32())]
    fields += [("checksum", pa.uint32())] if with_checksums else []
    fields += [("mask", pa.binary())] if with_masks else []
    fields += [("payload", pa.binary())]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


def _rejected_schema(layout: Layout) -> pa.Schema:
    fields = [(name, pa.int32()) for name in _block_names(layout)] + [("key", pa.string()), ("reason", pa.string())]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


def _block_names(layout: Layout) -> list[str]:
    return [f"{dim}_block" for dim in layout.blocked_dims]


def _block_columns(blocks: Sequence[tuple[int, ...]], layout: Layout) -> dict[str, list[int] | list[str]]:
    axes = [layout.dims.index(dim) for dim in layout.blocked_dims]
    return {name: [block[k] for block in blocks] for name, k in zip(_block_names(layout), axes, strict=True)}


def _row_groups(rows: Sequence[ArchiveRow]) -> Iterator[Sequence[ArchiveRow]]:
    start = size = 0
    for i, row in enumerate(rows):
        if i > start and (i - start == GROUP_ROWS or size + len(row.payload) > _GROUP_BYTES):
            yield rows[start:i]
            start, size = i, 0
        size += len(row.payload)
    if rows:
        yield rows[start:]


def _part_table(rows: Sequence[ArchiveRow], layout: Layout, schema: pa.Schema) -> pa.Table:
    checksums = _within([row.checksum for row in rows], 0xFFFFFFFF, "checksum")
    columns: dict[str, object] = {
        **_block_columns([row.block for row in rows], layout),
        "quality": _packed_quality(rows),
        "rmse": _rounded([row.rmse for row in rows], "rmse"),
        "max_error": _rounded([row.max_error for row in rows], "max_error"),
        "checksum": checksums,
        "mask": [row.mask or b"" for row in rows],
        "payload": [row.payload for row in rows] if "checksum" in schema.names else add_checksums(rows),
    }
    return pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema)


def _packed_quality(rows: Sequence[ArchiveRow]) -> list[int]:
    """The coding in the two high bits, the quality in the others."""
    codings = _within([row.coding for row in rows], max(CODINGS), "coding")
    levels = _within([row.quality for row in rows], MAX_QUALITY, "quality")
    return [coding << 6 | level for coding, level in zip(codings, levels, strict=True)]


def _rounded(errors: list[float], name: str) -> NDArray[np.float32]:
    values = np.array(errors, np.float64)
    single = values.astype(np.float32)
    rounded = np.where(single == values, single, round_up(values))
    if not np.all(values >= 0) or not np.all(np.isfinite(rounded)):
        raise ConfigError(f"{name} must be a finite float32 from 0, got {values.min()} to {values.max()}")
    return rounded


def _within(values: list[int], largest: int, name: str) -> list[int]:
    if min(values) < 0 or max(values) > largest:
        raise ConfigError(f"{name} must be 0 to {largest}, got {min(values)} to {max(values)}")
    return values


def _write(tables: Sequence[pa.Table], schema: pa.Schema) -> bytes:
    sink = io.BytesIO()
    encodings = {name: _ENCODINGS[name] for name in schema.names if name in _ENCODINGS}
    with pq.ParquetWriter(
        sink,
        schema,
        version="2.6",
        use_dictionary=False,
        compression={name: _COMPRESSIONS.get(name, "none") for name in schema.names},
        compression_level={name: _ZSTD_LEVEL for name in schema.names if name in _COMPRESSIONS},
        column_encoding={
            **{name: "DELTA_BINARY_PACKED" for name in schema.names if name.endswith("_block")},
            **encodings,
        },
        write_statistics=False,
        store_schema=False,
        data_page_size=_PAGE_BYTES,
        data_page_version="1.0",
    ) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
    return sink.getvalue()


def _with_zeros(pieces: Sequence[bytes], file_bytes: int, payloads: ByteRanges) -> NDArray[np.uint8]:
    """The file with zeros for payloads. Memory that is never written to costs nothing."""
    content = np.zeros(file_bytes, np.uint8)
    for piece, (start, stop) in zip(pieces, index_ranges(file_bytes, payloads), strict=True):
        content[start:stop] = np.frombuffer(piece, np.uint8)
    return content


def _read_group(file: pq.ParquetFile, number: int, start: int, stop: int) -> _Group:
    rows = file.metadata.row_group(number).num_rows
    if not 1 <= rows <= GROUP_ROWS:
        raise CorruptBitstreamError(f"row group of {rows} rows, expected 1 to {GROUP_ROWS}")
    table = file.read_row_group(number, use_threads=False)
    lengths: NDArray[np.int64] = np.asarray(pc.binary_length(table["payload"]).to_numpy()).astype(np.int64)
    if table.num_rows != rows or int(lengths.sum()) != stop - start:
        raise CorruptBitstreamError(f"payloads of {lengths.sum()} bytes, expected {stop - start}")
    return table.drop_columns(["payload"]), start, lengths


def _check_schema(found: pa.Schema, expected: pa.Schema) -> None:
    if not found.equals(expected):
        columns = ", ".join(f"{field.name} {field.type}" for field in found)
        raise UnsupportedFormatError(f"columns are {columns[:300]}; this version reads {', '.join(expected.names)}")


def _assemble(groups: Sequence[_Group], layout: Layout, shard: Shard) -> PartIndex:
    empty = _part_schema(layout, with_masks=False).empty_table().drop_columns(["payload"])
    table = pa.concat_tables([group for group, _, _ in groups] or [empty])
    masks = table["mask"].to_pylist() if "mask" in table.column_names else [b""] * table.num_rows
    longest = max(map(len, masks), default=0)
    if longest > _mask_bound_bytes(layout):
        raise CorruptBitstreamError(f"mask of {longest} bytes for {layout.points_per_sample} points")
    packed = table["quality"].to_numpy()
    has_checksums = "checksum" in table.column_names
    places = _payload_places(groups, has_checksums)
    index = PartIndex(
        blocks=_blocks(table, layout, shard),
        quality=packed & np.uint8(MAX_QUALITY),
        coding=packed >> np.uint8(6),
        rmse=table["rmse"].to_numpy(),
        max_error=table["max_error"].to_numpy(),
        checksum=table["checksum"].to_numpy() if has_checksums else None,
        span_first=places[2],
        span_stop=places[3],
        masks=tuple(mask or None for mask in masks),
        payload_start=places[0],
        payload_bytes=places[1],
    )
    if not np.all((index.rmse >= 0) & (index.max_error >= 0) & np.isfinite(index.rmse) & np.isfinite(index.max_error)):
        raise CorruptBitstreamError("an error is not a finite number from 0")
    if index.coding.max(initial=0) > max(CODINGS):
        raise UnsupportedFormatError(
            f"a row of coding {index.coding.max()}; this version reads {', '.join(map(str, CODINGS))}"
        )
    return index


def _payload_places(groups: Sequence[_Group], has_checksums: bool) -> tuple[NDArray[np.int64], ...]:
    """Start and length of the payloads [N] of all row groups, first row and the one behind the last of their spans."""
    columns: list[tuple[NDArray[np.int64], ...]] = [(np.zeros(0, np.int64),) * 4]
    rows = 0
    for _, start, stored in groups:
        starts, own = start + np.cumsum(stored) - stored, np.arange(len(stored))
        found = StoredLengths(stored, own, own + 1) if has_checksums else split_lengths(stored)
        columns.append((starts, found.payload_bytes, rows + found.span_first, rows + found.span_stop))
        rows += len(stored)
    return tuple(map(np.concatenate, zip(*columns, strict=True)))


def _blocks(table: pa.Table, layout: Layout, shard: Shard) -> NDArray[np.int64]:
    """[rows, axes]; must be within the shard and in row-major order, each once."""
    blocks = np.zeros((table.num_rows, len(layout.axes)), np.int64)
    if layout.blocked_dims and not set(_block_names(layout)) & set(table.column_names):
        return _all_blocks(shard, table.num_rows)
    for name, dim in zip(_block_names(layout), layout.blocked_dims, strict=True):
        blocks[:, layout.dims.index(dim)] = table[name].to_numpy()
    if not np.all((blocks >= shard[0]) & (blocks < shard[1])):
        raise CorruptBitstreamError(f"a block is outside of its shard, {shard[0]} to {shard[1]}")
    if any(before >= after for before, after in itertools.pairwise(blocks.tolist())):
        raise CorruptBitstreamError("blocks are not in row-major order")
    return blocks


def _all_blocks(shard: Shard, rows: int) -> NDArray[np.int64]:
    """The blocks of a shard without rejected samples, whose rows need not say which they are."""
    counts = [stop - start for start, stop in zip(*shard, strict=True)]
    if math.prod(counts) != rows:
        raise CorruptBitstreamError(f"{rows} rows without columns of blocks in a shard of {math.prod(counts)} samples")
    blocks: NDArray[np.int64] = np.indices(counts, np.int64).reshape(len(counts), rows).T + np.array(shard[0])
    return blocks


def _mask_bound_bytes(layout: Layout) -> int:
    """No packed mask is longer: zlib stores what it cannot compress, with a few bytes for every 16 kB."""
    packed = (layout.points_per_sample + 7) // 8
    return packed + packed // 256 + 64


@contextlib.contextmanager
def _arrow_errors() -> Iterator[None]:
    """What pyarrow raises on bytes that are not such a file."""
    try:
        yield
    except VcinrError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise CorruptBitstreamError(f"not a readable Parquet file: {' '.join(str(error).split())[:200]}") from error
