"""Checksums that several rows share: whose they are, and that any damage to any of the rows is noticed."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vcinr_batch.archive.checksum_spans import add_checksums, split_lengths
from vcinr_batch.archive.manifest import ArchivePart
from vcinr_batch.archive.parquet_container import read_index, read_rows, write_part
from vcinr_batch.archive.row_finding import find_rows
from vcinr_batch.archive.row_reading import make_rows, payload_ranges
from vcinr_batch.archive.rows import ArchiveRow
from vcinr_batch.data.layout import Layout
from vcinr_batch.errors import CorruptBitstreamError, TruncatedBitstreamError
from vcinr_batch.storage import sha256_hex

BUNDLE_SHA256 = sha256_hex(b"stands for a bundle")
Rows = tuple[Layout, list[ArchiveRow]]


@pytest.fixture
def small_rows(layouts: Any, row_of: Any) -> Rows:
    """100 rows of 20 bytes each: spans of 26 rows, and one of 22."""
    layout, random = layouts(100), np.random.default_rng(0)
    return layout, [row_of(layout, (i, 0, 0), payload=random.bytes(20)) for i in range(100)]


def write(rows: Rows, url: Path) -> tuple[ArchivePart, bytes]:
    layout, content = rows
    part = write_part(content, layout, str(url), "t2m-00000000", start=(0, 0, 0), stop=layout.block_counts)
    return part, (url / part.path).read_bytes()


def spans_of(lengths: list[int]) -> list[tuple[int, int]]:
    """By FORMAT.md's words: a span ends with the row that brings its payloads to 512 bytes, and with the last row."""
    spans, first = [], 0
    for i in range(len(lengths)):
        if sum(lengths[first : i + 1]) >= 512 or i == len(lengths) - 1:
            spans.append((first, i + 1))
            first = i + 1
    return spans


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(lengths=st.lists(st.sampled_from([0, 1, 3, 20, 250, 508, 511, 512, 600]), min_size=1, max_size=50))
def test_a_reader_finds_the_spans_of_the_writer_from_stored_lengths_alone(
    lengths: list[int], layouts: Any, row_of: Any
) -> None:
    row = row_of(layouts(), (0, 0, 0))
    stored = add_checksums([dataclasses.replace(row, payload=bytes(length)) for length in lengths])
    found = split_lengths(np.array(list(map(len, stored)), np.int64))
    assert found.payload_bytes.tolist() == lengths
    spans = list(itertools.chain.from_iterable([span] * (span[1] - span[0]) for span in spans_of(lengths)))
    assert list(zip(found.span_first.tolist(), found.span_stop.tolist(), strict=True)) == spans


@pytest.mark.parametrize("stored", [[0], [3], [20, 2], [511, 1], [512, 20, 0]])
def test_lengths_without_room_for_a_checksum_are_refused(stored: list[int]) -> None:
    with pytest.raises(CorruptBitstreamError, match="expected a checksum of 4 in it"):
        split_lengths(np.array(stored, np.int64))


def test_one_row_costs_its_span_and_no_more(small_rows: Rows, tmp_path: Path) -> None:
    layout, rows = small_rows
    part, _ = write(small_rows, tmp_path)
    index, start = read_index(str(tmp_path), part, layout), part.payloads[0][0]
    first = (start, start + 26 * 20 + 4)
    assert payload_ranges(index, np.array([3, 25])) == [first, first]
    assert payload_ranges(index, np.array([26])) == [(first[1], first[1] + 26 * 20 + 4)]
    assert payload_ranges(index, np.array([99])) == [(part.payloads[0][1] - 22 * 20 - 4, part.payloads[0][1])]
    assert read_rows(str(tmp_path), part, index, [30, 99, 0, 30], layout, BUNDLE_SHA256) == [
        rows[i] for i in (30, 99, 0, 30)
    ]


def test_every_damaged_byte_of_a_span_is_noticed_by_whoever_reads_one_of_its_rows(
    small_rows: Rows, tmp_path: Path
) -> None:
    layout, _ = small_rows
    part, data = write(small_rows, tmp_path)
    index, (start, _) = find_rows(str(tmp_path), part, layout), part.payloads[0]
    names = r"t2m\[time=2019-03-22T00:00:00\] to t2m\[time=2019-03-23T01:00:00\], 26 samples: checksum is "
    for place, bit in itertools.product(range(26 * 20 + 4), (1, 128)):
        damaged = bytearray(data[start : start + 26 * 20 + 4])
        damaged[place] ^= bit
        with pytest.raises(CorruptBitstreamError, match=rf"^{part.path}: {names}"):
            make_rows(part, index, np.array([7]), [bytes(damaged)], layout, BUNDLE_SHA256)


def test_rows_of_other_spans_are_read_all_the_same(small_rows: Rows, tmp_path: Path) -> None:
    layout, rows = small_rows
    part, data = write(small_rows, tmp_path)
    index, (start, _) = read_index(str(tmp_path), part, layout), part.payloads[0]
    (tmp_path / part.path).write_bytes(data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :])
    assert read_rows(str(tmp_path), part, index, range(26, 100), layout, BUNDLE_SHA256) == rows[26:]
    with pytest.raises(CorruptBitstreamError, match="26 samples"):
        read_rows(str(tmp_path), part, index, [30, 25], layout, BUNDLE_SHA256)


@pytest.mark.parametrize("other", ["60" * 32, BUNDLE_SHA256[::-1]])
def test_rows_of_another_bundle_are_refused(other: str, small_rows: Rows, tmp_path: Path) -> None:
    layout, _ = small_rows
    part, _ = write(small_rows, tmp_path)
    with pytest.raises(CorruptBitstreamError, match="checksum is"):
        read_rows(str(tmp_path), part, read_index(str(tmp_path), part, layout), [0], layout, other)


def test_a_large_payload_has_a_checksum_for_itself(layouts: Any, row_of: Any, tmp_path: Path) -> None:
    layout = layouts()
    rows = [row_of(layout, (i, 0, 0), payload=bytes([i]) * 512) for i in range(6)]
    part, data = write((layout, rows), tmp_path)
    index, (start, stop) = read_index(str(tmp_path), part, layout), part.payloads[0]
    assert stop - start == 6 * 516
    (tmp_path / part.path).write_bytes(data[:start] + b"x" + data[start + 1 :])
    with pytest.raises(CorruptBitstreamError, match=r"T00:00:00\]: checksum is"):
        read_rows(str(tmp_path), part, index, [0], layout, BUNDLE_SHA256)
    assert read_rows(str(tmp_path), part, index, [1, 5], layout, BUNDLE_SHA256) == [rows[1], rows[5]]


def test_a_span_cut_off_names_the_sample_asked_for(small_rows: Rows, tmp_path: Path) -> None:
    layout, _ = small_rows
    part, data = write(small_rows, tmp_path)
    index, (start, _) = read_index(str(tmp_path), part, layout), part.payloads[0]
    with pytest.raises(TruncatedBitstreamError, match=r"T07:00:00\]: got 523 of the bytes"):
        make_rows(part, index, np.array([7]), [data[start : start + 523]], layout, BUNDLE_SHA256)
