"""The footer of a part, which follows from the rest: from the pages' headers, whose columns FORMAT.md lists.

A reader that has the bytes in front of the payloads makes the footer itself instead of fetching it from behind them,
which spares a request. It is Parquet's `FileMetaData` in Thrift's compact protocol, with the required fields, one
row group for each range of payloads and one page per column.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from vcinr_batch.errors import CorruptBitstreamError

MAGIC = b"PAR1"

_CREATED_BY = "vcinr-batch"
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12  # types of Thrift's compact protocol
_DATA_PAGE, _REQUIRED = 0, 0
_INT32, _FLOAT, _BYTE_ARRAY = 1, 4, 6
_UINT_8, _UINT_32 = 11, 13  # what an INT32 is converted to
_UNCOMPRESSED, _ZSTD = 0, 6
_DELTA_BINARY_PACKED, _DELTA_LENGTH_BYTE_ARRAY, _DELTA_BYTE_ARRAY, _BYTE_STREAM_SPLIT, _PLAIN = 5, 6, 7, 9, 0
_MAX_DEPTH = 4

_Columns = Sequence[tuple[str, int, int | None, int, int]]  # name, type, converted type, encoding, codec


@dataclass(frozen=True)
class _Page:
    start: int
    stored_bytes: int
    """With its header, as `plain_bytes`, which are those before compression."""
    plain_bytes: int
    rows: int
    encoding: int


def make_footer(heads: Sequence[bytes], payloads: Sequence[tuple[int, int]], block_names: Sequence[str]) -> bytes:
    """All that stands behind the last payload of a part: metadata, their length, magic.

    Args:
        heads: for each row group what stands between the payloads before it (or the start of the file) and its own.
        payloads: byte range of the payloads of every row group; at least one.
        block_names: of the columns of block indices, where there are any.

    Raises:
        CorruptBitstreamError: the heads are not the pages that they should be.
    """
    fronts = [heads[0][len(MAGIC) :], *heads[1:]]
    starts = [len(MAGIC), *(stop for _, stop in payloads[:-1])]
    groups = [_read_pages(front, start, stop) for front, start, (_, stop) in zip(fronts, starts, payloads, strict=True)]
    encodings = {page.encoding for page in groups[0]}
    is_first_version = _PLAIN in encodings
    has_masks = _DELTA_BYTE_ARRAY in encodings
    blocks = block_names if len(groups[0]) > 4 + is_first_version + has_masks else ()
    columns = _columns(blocks, has_masks, is_first_version)
    expected = [encoding for _, _, _, encoding, _ in columns]
    if any([page.encoding for page in pages] != expected for pages in groups):
        raise CorruptBitstreamError(f"row groups of {[len(pages) for pages in groups][:4]} pages")
    metadata = _file_metadata(columns, groups, is_first_version)
    return metadata + struct.pack("<I", len(metadata)) + MAGIC


def _columns(block_names: Sequence[str], with_masks: bool, with_checksums: bool) -> _Columns:
    return [
        *((name, _INT32, None, _DELTA_BINARY_PACKED, _UNCOMPRESSED) for name in block_names),
        ("quality", _INT32, _UINT_8, _DELTA_BINARY_PACKED, _UNCOMPRESSED),
        ("rmse", _FLOAT, None, _BYTE_STREAM_SPLIT, _ZSTD),
        ("max_error", _FLOAT, None, _BYTE_STREAM_SPLIT, _ZSTD),
        *([("checksum", _INT32, _UINT_32, _PLAIN, _UNCOMPRESSED)] if with_checksums else []),
        *([("mask", _BYTE_ARRAY, None, _DELTA_BYTE_ARRAY, _UNCOMPRESSED)] if with_masks else []),
        ("payload", _BYTE_ARRAY, None, _DELTA_LENGTH_BYTE_ARRAY, _UNCOMPRESSED),
    ]


def _read_pages(head: bytes, start: int, stop: int) -> list[_Page]:
    """The pages of a row group in [start, stop) of the file; `head` is what is there but for the payloads."""
    pages, offset = list[_Page](), start
    while offset < stop:
        header, after = _read_struct(head, offset - start, 0)
        data = header.get(5)
        counts = [data.get(1), data.get(2)] if isinstance(data, dict) else [None, None]
        values = [header.get(1), header.get(2), header.get(3), *counts]
        kind, plain, stored, rows, encoding = (value if isinstance(value, int) else -1 for value in values)
        if kind != _DATA_PAGE or min(plain, stored, rows) < 0:
            raise CorruptBitstreamError(f"no page of a part at byte {offset}")
        header_bytes = after - (offset - start)
        pages.append(_Page(offset, header_bytes + stored, header_bytes + plain, rows, encoding))
        offset += header_bytes + stored
    if offset != stop or len({page.rows for page in pages}) != 1:
        raise CorruptBitstreamError(f"the pages of a row group end at byte {offset}, expected {stop}")
    return pages


def _file_metadata(columns: _Columns, groups: Sequence[Sequence[_Page]], is_first_version: bool) -> bytes:
    root, creator = ("schema", [(6, _BINARY, _text(_CREATED_BY))]) if is_first_version else ("m", [])
    schema = [_struct((4, _BINARY, _text(root)), (5, _I32, _number(len(columns))))]
    for name, kind, converted, _, _ in columns:
        conversion = [] if converted is None else [(6, _I32, _number(converted))]
        schema.append(
            _struct((1, _I32, _number(kind)), (3, _I32, _number(_REQUIRED)), (4, _BINARY, _text(name)), *conversion)
        )
    return _struct(
        (1, _I32, _number(2)),  # version
        (2, _LIST, _list(_STRUCT, schema)),
        (3, _I64, _number(sum(pages[0].rows for pages in groups))),
        (4, _LIST, _list(_STRUCT, [_row_group(columns, pages) for pages in groups])),
        *creator,
    )


def _row_group(columns: _Columns, pages: Sequence[_Page]) -> bytes:
    chunks = []
    for (name, kind, _, encoding, codec), page in zip(columns, pages, strict=True):
        metadata = _struct(
            (1, _I32, _number(kind)),
            (2, _LIST, _list(_I32, [_number(encoding)])),
            (3, _LIST, _list(_BINARY, [_text(name)])),
            (4, _I32, _number(codec)),
            (5, _I64, _number(page.rows)),
            (6, _I64, _number(page.plain_bytes)),
            (7, _I64, _number(page.stored_bytes)),
            (9, _I64, _number(page.start)),
        )
        # The first field is an offset that Parquet gave up: writers set it to 0.
        chunks.append(_struct((2, _I64, _number(0)), (3, _STRUCT, metadata)))
    plain = sum(page.plain_bytes for page in pages)
    return _struct((1, _LIST, _list(_STRUCT, chunks)), (2, _I64, _number(plain)), (3, _I64, _number(pages[0].rows)))


def _struct(*fields: tuple[int, int, bytes]) -> bytes:
    """Fields (id, type, content) by ascending id, at most 15 apart."""
    before, encoded = 0, b""
    for number, kind, content in fields:
        encoded += bytes([(number - before) << 4 | kind]) + content
        before = number
    return encoded + b"\0"


def _list(kind: int, items: Sequence[bytes]) -> bytes:
    short = bytes([len(items) << 4 | kind]) if len(items) < 15 else bytes([0xF0 | kind]) + _varint(len(items))
    return short + b"".join(items)


def _text(text: str) -> bytes:
    data = text.encode()
    return _varint(len(data)) + data


def _number(value: int) -> bytes:
    """Not negative; zigzag."""
    return _varint(value << 1)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _read_struct(data: bytes, at: int, depth: int) -> tuple[dict[int, object], int]:
    """Mirror of `_struct` for numbers and structs, all that such a header has; and where it ends."""
    fields, number = dict[int, object](), 0
    while kind_byte := _byte(data, at):
        number, kind, at = number + (kind_byte >> 4), kind_byte & 15, at + 1
        if kind_byte < 16 or kind not in (_I32, _STRUCT) or depth == _MAX_DEPTH:
            raise CorruptBitstreamError(f"page header with a field of type {kind}")
        value: object
        if kind == _STRUCT:
            value, at = _read_struct(data, at, depth + 1)
        else:
            value, at = _read_number(data, at)
        fields[number] = value
    return fields, at + 1


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for k in range(5):
        byte = _byte(data, at + k)
        value |= (byte & 0x7F) << 7 * k
        if byte < 0x80:
            return value >> 1 ^ -(value & 1), at + k + 1
    raise CorruptBitstreamError("page header with a number of more than 32 bits")


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise CorruptBitstreamError("page header cut off")
    return data[at]
