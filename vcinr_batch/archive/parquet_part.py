"""The bytes of one part and of one table of rejected samples; FORMAT.md has their columns. No storage here."""

import contextlib
import functools
import io
import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcinr_batch.archive.parquet_footer import make_footer
from vcinr_batch.archive.rows import ArchiveRow
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

ByteRanges = Sequence[tuple[int, int]]
"""Ranges [start, stop) of a file, ascending and disjoint."""
Shard = tuple[tuple[int, ...], tuple[int, ...]]
"""First and last + 1 block along every axis."""


_Group = tuple[pa.Table, NDArray[np.int64], NDArray[np.int64]]  # small columns, payload starts, payload lengths


@dataclass(frozen=True, eq=False)
class PartIndex:
    """All columns of a part but the payloads, and where those are; N rows in row-major order of their blocks."""

    blocks: NDArray[np.int64]
    """[N, number of axes]."""
    quality: NDArray[np.uint8]
    """[N]."""
    rmse: NDArray[np.float32]
    """[N], rounded up by less than 0.8 %."""
    max_error: NDArray[np.float32]
    """[N], as `rmse`."""
    checksum: NDArray[np.uint32]
    """[N]."""
    masks: tuple[bytes | None, ...]
    """N packed masks, None where the mask is the expected one."""
    payload_start: NDArray[np.int64]
    """[N], byte offset in the part."""
    payload_bytes: NDArray[np.int64]
    """[N]."""

    def __len__(self) -> int:
        return len(self.blocks)


def encode_part(rows: Sequence[ArchiveRow], layout: Layout) -> tuple[bytes, list[tuple[int, int]]]:
    """A Parquet file of rows, which must be in row-major order of their blocks; may be empty.

    Returns:
        The file, and the byte range of all payloads of each row group.

    Raises:
        ConfigError: an error that is not a finite float32 >= 0, or a quality or checksum out of range.
    """
    schema = _part_schema(layout, with_masks=any(row.mask is not None for row in rows))
    groups = list(_row_groups(rows))
    data = _write([_part_table(group, layout, schema) for group in groups], schema)
    # The payloads are the tail of their column, which is the last one of its row group.
    metadata = pq.read_metadata(pa.BufferReader(data))
    chunks = [metadata.row_group(i).column(len(schema) - 1) for i in range(len(groups))]
    ends = [chunk.data_page_offset + chunk.total_compressed_size for chunk in chunks]
    sizes = [sum(len(row.payload) for row in group) for group in groups]
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
        _check_schema(file.schema_arrow, _part_schema(layout, with_masks="mask" in file.schema_arrow.names))
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


def _part_schema(layout: Layout, with_masks: bool) -> pa.Schema:
    fields = [(name, pa.int32()) for name in _block_names(layout)]
    fields += [("quality", pa.uint8()), ("rmse", pa.float32()), ("max_error", pa.float32()), ("checksum", pa.uint32())]
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
    columns: dict[str, object] = {
        **_block_columns([row.block for row in rows], layout),
        "quality": _within([row.quality for row in rows], 0xFF, "quality"),
        "rmse": _rounded([row.rmse for row in rows], "rmse"),
        "max_error": _rounded([row.max_error for row in rows], "max_error"),
        "checksum": _within([row.checksum for row in rows], 0xFFFFFFFF, "checksum"),
        "mask": [row.mask or b"" for row in rows],
        "payload": [row.payload for row in rows],
    }
    return pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema)


def _rounded(errors: list[float], name: str) -> NDArray[np.float32]:
    values = np.array(errors, np.float64)
    rounded = round_up(values)
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
    return table.drop_columns(["payload"]), start + np.cumsum(lengths) - lengths, lengths


def _check_schema(found: pa.Schema, expected: pa.Schema) -> None:
    if not found.equals(expected):
        columns = ", ".join(f"{field.name} {field.type}" for field in found)
        raise UnsupportedFormatError(f"columns are {columns[:300]}; this version reads {', '.join(expected.names)}")


def _assemble(groups: Sequence[_Group], layout: Layout, shard: Shard) -> PartIndex:
    empty = _part_schema(layout, with_masks=False).remove(len(layout.blocked_dims) + 4).empty_table()
    table = pa.concat_tables([group for group, _, _ in groups] or [empty])
    masks = table["mask"].to_pylist() if "mask" in table.column_names else [b""] * table.num_rows
    longest = max(map(len, masks), default=0)
    if longest > _mask_bound_bytes(layout):
        raise CorruptBitstreamError(f"mask of {longest} bytes for {layout.points_per_sample} points")
    index = PartIndex(
        blocks=_blocks(table, layout, shard),
        quality=table["quality"].to_numpy(),
        rmse=table["rmse"].to_numpy(),
        max_error=table["max_error"].to_numpy(),
        checksum=table["checksum"].to_numpy(),
        masks=tuple(mask or None for mask in masks),
        payload_start=np.concatenate([np.zeros(0, np.int64), *(starts for _, starts, _ in groups)]),
        payload_bytes=np.concatenate([np.zeros(0, np.int64), *(lengths for _, _, lengths in groups)]),
    )
    if not np.all((index.rmse >= 0) & (index.max_error >= 0) & np.isfinite(index.rmse) & np.isfinite(index.max_error)):
        raise CorruptBitstreamError("an error is not a finite number from 0")
    return index


def _blocks(table: pa.Table, layout: Layout, shard: Shard) -> NDArray[np.int64]:
    """[rows, axes]; must be within the shard and in row-major order, each once."""
    blocks = np.zeros((table.num_rows, len(layout.axes)), np.int64)
    for name, dim in zip(_block_names(layout), layout.blocked_dims, strict=True):
        blocks[:, layout.dims.index(dim)] = table[name].to_numpy()
    if not np.all((blocks >= shard[0]) & (blocks < shard[1])):
        raise CorruptBitstreamError(f"a block is outside of its shard, {shard[0]} to {shard[1]}")
    if any(before >= after for before, after in itertools.pairwise(blocks.tolist())):
        raise CorruptBitstreamError("blocks are not in row-major order")
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
