"""The footer that a reader makes itself: the one in the file, or none at all."""

import dataclasses
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vcinr_batch.archive import parquet_part, row_finding
from vcinr_batch.archive.manifest import ArchivePart
from vcinr_batch.archive.parquet_container import read_index, read_rows, write_part
from vcinr_batch.archive.parquet_footer import make_footer
from vcinr_batch.archive.parquet_part import encode_part, index_crc32, index_ranges
from vcinr_batch.archive.row_finding import find_rows
from vcinr_batch.archive.row_reading import payload_ranges
from vcinr_batch.archive.rows import ArchiveRow, check_row, pack_mask
from vcinr_batch.data.layout import Layout
from vcinr_batch.errors import BitstreamError, CorruptBitstreamError
from vcinr_batch.storage import read_ranges, sha256_hex

Fetched = list[list[tuple[int, int]]]
BUNDLE_SHA256 = sha256_hex(b"stands for a bundle")


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Fetched:
    """What is asked of the store, call by call."""
    calls = Fetched()

    def recording(url: str, ranges: Any, *, storage_options: Any = None) -> list[bytes]:
        calls.append(list(ranges))
        return read_ranges(url, ranges, storage_options=storage_options)

    monkeypatch.setattr(row_finding, "read_ranges", recording)
    return calls


@pytest.fixture
def large_rows(layouts: Any, row_of: Any) -> tuple[Layout, list[ArchiveRow]]:
    """100 rows with 200 bytes each, so that the footer is far from the other columns; every third has a mask."""
    layout, random = layouts(100), np.random.default_rng(0)
    masks = [pack_mask(np.arange(6) < i % 6) if i % 3 == 0 else None for i in range(100)]
    return layout, [row_of(layout, (i, 0, 0), payload=random.bytes(200), mask=mask) for i, mask in enumerate(masks)]


def write(rows: list[ArchiveRow], layout: Layout, url: Path) -> ArchivePart:
    return write_part(rows, layout, str(url), "t2m-00000000", start=(0, 0, 0), stop=layout.block_counts)


def stored_payloads(rows: list[ArchiveRow], group_rows: int) -> bytes:
    """With a checksum behind the row that brings a span to 512 bytes, and behind the last one of a row group."""
    stored, span = b"", list[ArchiveRow]()
    for i, row in enumerate(rows):
        span, stored = [*span, row], stored + row.payload
        if sum(len(r.payload) for r in span) >= 512 or (i + 1) % group_rows == 0 or i + 1 == len(rows):
            stored += zlib.crc32(b"".join(r.checksum.to_bytes(4, "little") for r in span)).to_bytes(4, "little")
            span = []
    return stored


def columns(index: parquet_part.PartIndex) -> list[Any]:
    return [np.asarray(getattr(index, field.name)).tolist() for field in dataclasses.fields(index)]


def test_rows_are_found_by_one_request_for_what_stands_before_the_payloads(
    tmp_path: Path, large_rows: tuple[Layout, list[ArchiveRow]], fetched: Fetched
) -> None:
    layout, rows = large_rows
    part = write(rows, layout, tmp_path)
    index = find_rows(str(tmp_path), part, layout)
    assert fetched == [[(0, part.payloads[0][0])]]
    assert columns(index) == columns(read_index(str(tmp_path), part, layout))
    assert read_rows(str(tmp_path), part, index, np.arange(100), layout, BUNDLE_SHA256) == rows


def test_a_footer_that_lies_close_comes_along(
    tmp_path: Path, layouts: Any, rows_of: Callable[..., list[ArchiveRow]], fetched: Fetched
) -> None:
    layout = layouts()
    part = write(rows_of(layout), layout, tmp_path)
    assert len(find_rows(str(tmp_path), part, layout)) == 6
    assert fetched == [index_ranges(part.bytes, part.payloads)]


@pytest.mark.parametrize("block", [{}, {"latitude": 1}, {"time": 100}, {"time": 7, "latitude": 1, "longitude": 2}])
@pytest.mark.parametrize("group_rows", [4096, 7])
@pytest.mark.parametrize("mask", [None, pack_mask(np.arange(6) < 3)])
def test_parquet_readers_and_ours_find_the_same_rows_whatever_the_columns(
    block: dict[str, int],
    group_rows: int,
    mask: bytes | None,
    tmp_path: Path,
    layouts: Any,
    rows_of: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parquet_part, "GROUP_ROWS", group_rows)
    monkeypatch.setattr("vcinr_batch.storage._GAP_BYTES", 0)
    layout = layouts(100, **block)
    rows = rows_of(layout, mask=mask, rmse=1.5, max_error=8.0)
    part = write(rows, layout, tmp_path)
    index = find_rows(str(tmp_path), part, layout)
    assert read_rows(str(tmp_path), part, index, np.arange(len(rows)), layout, BUNDLE_SHA256) == rows
    table = pq.read_table(io.BytesIO((tmp_path / part.path).read_bytes()))
    assert b"".join(table["payload"].to_pylist()) == stored_payloads(rows, group_rows)


def test_the_footer_of_an_earlier_version_is_fetched_after_all(
    tmp_path: Path, large_rows: tuple[Layout, list[ArchiveRow]], fetched: Fetched
) -> None:
    layout, rows = large_rows
    schema = parquet_part._part_schema(layout, with_masks=True, with_checksums=True)
    older = parquet_part._write([parquet_part._part_table(rows, layout, schema)], schema)  # with pyarrow's own footer
    end = len(older) - 8 - int.from_bytes(older[-8:-4], "little")
    payloads = [(end - 100 * 200, end)]
    (tmp_path / "older.parquet").write_bytes(older)
    crc32 = index_crc32([older[a:b] for a, b in index_ranges(len(older), payloads)])
    shard = {"start": (0, 0, 0), "stop": layout.block_counts}
    part = ArchivePart("older.parquet", 100, len(older), sha256_hex(older), crc32, tuple(payloads), **shard)
    assert read_rows(str(tmp_path), part, find_rows(str(tmp_path), part, layout), [42], layout, BUNDLE_SHA256) == [
        rows[42]
    ]
    assert fetched[:2] == [[(0, payloads[0][0])], [(payloads[0][1], len(older))]]


def test_the_footer_of_version_1_is_made_as_well_and_its_rows_have_their_own_checksums(
    tmp_path: Path, large_rows: tuple[Layout, list[ArchiveRow]], fetched: Fetched
) -> None:
    layout, rows = large_rows
    schema = parquet_part._part_schema(layout, with_masks=True, with_checksums=True)
    older = parquet_part._write([parquet_part._part_table(rows, layout, schema)], schema)
    end = len(older) - 8 - int.from_bytes(older[-8:-4], "little")
    payloads = [(end - 100 * 200, end)]
    footer = parquet_part.footer_of([older[: end - 100 * 200]], payloads, layout)
    assert b"vcinr-batch" in footer
    older = older[:end] + footer
    (tmp_path / "older.parquet").write_bytes(older)
    crc32 = index_crc32([older[a:b] for a, b in index_ranges(len(older), payloads)])
    shard = {"start": (0, 0, 0), "stop": layout.block_counts}
    part = ArchivePart("older.parquet", 100, len(older), sha256_hex(older), crc32, tuple(payloads), **shard)
    index = find_rows(str(tmp_path), part, layout)
    assert fetched == [[(0, payloads[0][0])]]
    assert read_rows(str(tmp_path), part, index, [42, 7], layout, BUNDLE_SHA256) == [rows[42], rows[7]]
    assert payload_ranges(index, np.array([3])) == [(payloads[0][0] + 600, payloads[0][0] + 800)]
    older = older[: payloads[0][0] + 600] + bytes(200) + older[payloads[0][0] + 800 :]
    (tmp_path / "older.parquet").write_bytes(older)
    damaged, whole = read_rows(str(tmp_path), part, index, [3, 4], layout, BUNDLE_SHA256)
    check_row(whole, BUNDLE_SHA256)
    with pytest.raises(CorruptBitstreamError, match=r"T03:00:00\]: its checksum"):
        check_row(damaged, BUNDLE_SHA256)


def test_every_changed_byte_before_the_payloads_is_found(
    tmp_path: Path, layouts: Any, row_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vcinr_batch.storage._GAP_BYTES", 0)
    layout = layouts()
    part = write([row_of(layout, (i, 0, 0)) for i in range(6)], layout, tmp_path)
    path, data = tmp_path / part.path, (tmp_path / part.path).read_bytes()
    for i in range(part.payloads[0][0]):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        with pytest.raises(CorruptBitstreamError, match=rf"^{part.path}: checksum of its index"):
            find_rows(str(tmp_path), part, layout)


def test_a_damaged_footer_hurts_who_checks_the_part_but_not_who_reads_it(
    tmp_path: Path, large_rows: tuple[Layout, list[ArchiveRow]]
) -> None:
    layout, rows = large_rows
    part = write(rows, layout, tmp_path)
    path, data = tmp_path / part.path, (tmp_path / part.path).read_bytes()
    path.write_bytes(data[:-20] + bytes(20))
    assert read_rows(str(tmp_path), part, find_rows(str(tmp_path), part, layout), [3], layout, BUNDLE_SHA256) == [
        rows[3]
    ]
    with pytest.raises(CorruptBitstreamError, match="checksum of its index"):
        read_index(str(tmp_path), part, layout)


def test_a_part_cut_off_before_its_payloads_is_found(
    tmp_path: Path, large_rows: tuple[Layout, list[ArchiveRow]]
) -> None:
    layout, rows = large_rows
    part = write(rows, layout, tmp_path)
    path = tmp_path / part.path
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BitstreamError, match=rf"^{part.path}: got 100 of the bytes 0 to"):
        find_rows(str(tmp_path), part, layout)


def test_a_part_without_rows_is_its_footer(layouts: Any) -> None:
    data, payloads = encode_part([], layouts())
    assert payloads == []
    assert pq.read_table(io.BytesIO(data)).num_rows == 0


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_made_up_page_headers_give_a_footer_or_an_error_of_ours(
    layouts: Any, rows_of: Any, data: st.DataObject
) -> None:
    layout = layouts()
    content, [(start, stop)] = encode_part(rows_of(layout), layout)
    head = bytearray(content[:start])
    for _ in range(data.draw(st.integers(1, 5))):
        head[data.draw(st.integers(4, start - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, start))
    for changed in (bytes(head), bytes(head[:cut])):
        try:
            assert make_footer([changed], [(start, stop)], ["time_block"])[-4:] == b"PAR1"
        except CorruptBitstreamError:
            continue
