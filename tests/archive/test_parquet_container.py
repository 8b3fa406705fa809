import contextlib
import dataclasses
import io
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vcinr_batch.archive import parquet_container, parquet_part
from vcinr_batch.archive.checksum_spans import add_checksums
from vcinr_batch.archive.parquet_container import read_index, read_rejected, read_rows, write_part
from vcinr_batch.archive.rows import check_row, pack_mask
from vcinr_batch.data.samples import RejectedSample
from vcinr_batch.errors import (
    BitstreamError,
    ConfigError,
    CorruptBitstreamError,
    SourceError,
    TruncatedBitstreamError,
    UnsupportedFormatError,
    VcinrError,
)
from vcinr_batch.storage import read_bytes, read_ranges, sha256_hex

BUNDLE_SHA256 = sha256_hex(b"stands for a bundle")


def write_all(rows, layout, url, **changed):
    """Write all blocks of a layout as one part."""
    arguments = {"start": (0, 0, 0), "stop": layout.block_counts, **changed}
    return write_part(rows, layout, url, "t2m-00000000", **arguments)


def read_all(url, part, layout):
    """All rows of a part, checked as a reader checks them."""
    rows = read_rows(url, part, index := read_index(url, part, layout), np.arange(len(index)), layout, BUNDLE_SHA256)
    for row in rows:
        check_row(row, BUNDLE_SHA256)
    return rows


def decode_index(data, payloads, layout):
    """The index of a part's bytes, with no checksum in between."""
    pieces = [data[a:b] for a, b in parquet_part.index_ranges(len(data), payloads)]
    return parquet_part.decode_index(pieces, len(data), payloads, layout, ((0, 0, 0), layout.block_counts))


@pytest.mark.parametrize("url", ["{tmp_path}/archive", "memory://{tmp_path}/archive"])
def test_rows_come_back_as_written(url, tmp_path, layouts, rows_of):
    url, layout = url.format(tmp_path=tmp_path), layouts(hours=12)
    rows = rows_of(layout)
    part = write_all(rows, layout, url)
    assert read_all(url, part, layout) == rows
    data = read_bytes(f"{url}/{part.path}")
    assert (part.path, part.rows, part.bytes) == (f"parts/t2m-00000000-{sha256_hex(data)[:12]}.parquet", 12, len(data))
    assert (part.sha256, part.rejected, part.rejected_path) == (sha256_hex(data), 0, None)


@pytest.mark.parametrize(
    "block", [{"latitude": 1}, {"time": 4, "longitude": 2}, {"time": 10, "latitude": 2, "longitude": 3}]
)
def test_blocks_along_several_dimensions_come_back(block, tmp_path, layouts, rows_of):
    layout = layouts(hours=10, **block)
    rows = rows_of(layout)
    part = write_all(rows, layout, str(tmp_path))
    assert read_all(str(tmp_path), part, layout) == rows
    assert pq.read_schema(tmp_path / part.path).names == ["quality", "rmse", "max_error", "payload"]


@pytest.mark.parametrize("block", [{}, {"latitude": 1}, {"time": 4, "longitude": 2}])
def test_rows_name_their_blocks_where_some_of_the_shard_were_rejected(block, tmp_path, layouts, rows_of):
    layout = layouts(hours=10, **block)
    rows = rows_of(layout)
    part = write_all(rows[:1] + rows[2:], layout, str(tmp_path), rejected=make_rejected(rows[1:2]))
    assert read_all(str(tmp_path), part, layout) == rows[:1] + rows[2:]
    names = pq.read_schema(tmp_path / part.path).names
    assert names == [*(f"{dim}_block" for dim in layout.blocked_dims), "quality", "rmse", "max_error", "payload"]


def test_a_shard_inside_of_the_layout_knows_its_blocks(tmp_path, layouts, rows_of):
    layout = layouts(hours=10, latitude=1)
    rows = [row for row in rows_of(layout) if 3 <= row.block[0] < 8 and row.block[1] == 1]
    part = write_all(rows, layout, str(tmp_path), start=(3, 1, 0), stop=(8, 2, 1))
    assert read_all(str(tmp_path), part, layout) == rows


def test_rows_without_blocks_that_are_not_all_of_their_shard_are_refused(layouts, rows_of):
    layout = layouts()
    data, payloads = parquet_part.encode_part(rows_of(layout)[1:], layout, with_blocks=False)
    with pytest.raises(CorruptBitstreamError, match="5 rows without columns of blocks in a shard of 6 samples"):
        decode_index(data, payloads, layout)


def test_masks_and_mixed_qualities_and_codings_come_back(tmp_path, layouts, row_of):
    layout = layouts()
    masks = [None, pack_mask(np.arange(6) < 3), pack_mask(np.arange(6) < 3), None, pack_mask(np.arange(6) > 3), None]
    rows = [row_of(layout, (i, 0, 0), mask=mask, quality=i * 12, coding=i % 3) for i, mask in enumerate(masks)]
    part = write_all(rows, layout, str(tmp_path))
    assert read_all(str(tmp_path), part, layout) == rows


def test_any_parquet_reader_finds_the_documented_columns(tmp_path, layouts, rows_of):
    layout = layouts()
    rows = rows_of(layout)
    part = write_all(rows, layout, str(tmp_path))
    table = pq.read_table(io.BytesIO((tmp_path / part.path).read_bytes()), use_threads=False)
    checksum = zlib.crc32(b"".join(row.checksum.to_bytes(4, "little") for row in rows)).to_bytes(4, "little")
    assert table.to_pydict() == {
        "quality": [9] * 6,
        "rmse": [0.25, 0.265625, 0.28125, 0.296875, 0.3125, 0.328125],
        "max_error": [8.0, 8.125, 8.25, 8.375, 8.5, 8.625],
        "payload": [*(row.payload for row in rows[:5]), rows[5].payload + checksum],
    }


@pytest.mark.parametrize(("rmse", "stored"), [(0.1, 0.10009765625), (1.0, 1.0), (1.001, 1.0078125), (0.0, 0.0)])
def test_errors_are_rounded_up_to_what_the_format_holds(rmse, stored, tmp_path, layouts, rows_of):
    layout = layouts()
    part = write_all(rows_of(layout, rmse=rmse, max_error=rmse), layout, str(tmp_path))
    index = read_index(str(tmp_path), part, layout)
    assert index.rmse.tolist() == index.max_error.tolist() == [stored] * 6
    assert index.rmse.dtype == np.float32


def test_bytes_are_a_pure_function_of_the_rows(tmp_path, layouts, rows_of):
    layout = layouts()
    rows = rows_of(layout)
    first = write_all(rows, layout, str(tmp_path / "a"))
    second = write_all(rows[::-1], layout, str(tmp_path / "b"))
    assert first == second
    assert (tmp_path / "a" / first.path).read_bytes() == (tmp_path / "b" / first.path).read_bytes()


def test_other_rows_of_the_same_shard_replace_nothing(tmp_path, layouts, rows_of):
    layout = layouts()
    first = write_all(rows_of(layout), layout, str(tmp_path))
    second = write_all(rows_of(layout, quality=3), layout, str(tmp_path))
    assert first.path != second.path
    assert read_all(str(tmp_path), first, layout) == rows_of(layout)


def test_120_rows_cost_at_most_850_bytes_beyond_their_payloads(tmp_path, layouts, row_of):
    layout, random = layouts(hours=120), np.random.default_rng(0)
    errors = 0.24 * np.exp(0.1 * random.normal(size=(120, 1))) * [[1, 4.6]]
    rows = [
        row_of(layout, (i, 0, 0), payload=random.bytes(20 + i % 13), rmse=rmse, max_error=largest)
        for i, (rmse, largest) in enumerate(errors.tolist())
    ]
    part = write_all(rows, layout, str(tmp_path))
    # Measured: 780 with pyarrow 25; 330 of them are errors, 224 the footer, 28 checksums.
    assert part.bytes - sum(len(row.payload) for row in rows) < 850


def test_rows_are_picked_in_any_order(tmp_path, layouts, rows_of):
    layout = layouts(hours=20)
    rows = rows_of(layout)
    part = write_all(rows, layout, str(tmp_path))
    index = read_index(str(tmp_path), part, layout)
    assert read_rows(str(tmp_path), part, index, [17, 3, 3, 0], layout, BUNDLE_SHA256) == [
        rows[i] for i in (17, 3, 3, 0)
    ]
    assert read_rows(str(tmp_path), part, index, [], layout, BUNDLE_SHA256) == []


def test_parts_of_many_row_groups_come_back(tmp_path, layouts, rows_of, monkeypatch):
    monkeypatch.setattr(parquet_part, "GROUP_ROWS", 7)
    layout = layouts(hours=40)
    rows = rows_of(layout)
    part = write_all(rows, layout, str(tmp_path))
    assert pq.read_metadata(tmp_path / part.path).num_row_groups == 6
    assert read_all(str(tmp_path), part, layout) == rows


def test_large_payloads_are_split_into_row_groups(tmp_path, layouts, row_of, monkeypatch):
    monkeypatch.setattr(parquet_part, "_GROUP_BYTES", 1000)
    layout = layouts(hours=6)
    rows = [row_of(layout, (i, 0, 0), payload=bytes([i]) * size) for i, size in enumerate([10, 980, 20, 5000, 1, 0])]
    part = write_all(rows, layout, str(tmp_path))
    metadata = pq.read_metadata(tmp_path / part.path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [2, 1, 1, 2]
    assert read_all(str(tmp_path), part, layout) == rows


def test_the_index_is_read_without_the_payloads_and_a_row_without_its_neighbours(
    tmp_path, layouts, row_of, monkeypatch
):
    layout = layouts(hours=50)
    random = np.random.default_rng(0)
    rows = [row_of(layout, (i, 0, 0), payload=random.bytes(40_000)) for i in range(50)]
    part = write_all(rows, layout, str(tmp_path))
    fetched = []

    def recording(url, ranges, *, storage_options=None):
        fetched.append(sum(stop - start for start, stop in ranges))
        return read_ranges(url, ranges, storage_options=storage_options)

    monkeypatch.setattr(parquet_container, "read_ranges", recording)
    index = read_index(str(tmp_path), part, layout)
    assert read_rows(str(tmp_path), part, index, [31], layout, BUNDLE_SHA256) == [rows[31]]
    assert fetched == [part.bytes - 50 * 40_004, 40_004]


def make_rejected(rows, reason="3 infinite values"):
    return [RejectedSample(row.key, row.block, reason) for row in rows]


def test_rejected_samples_come_back_with_their_reasons(tmp_path, layouts, rows_of):
    layout = layouts()
    rows = rows_of(layout)
    rejected = [*make_rejected(rows[4:5]), *make_rejected(rows[1:2], "no value at all, “nirgends”")]
    part = write_all([*rows[2:4], rows[0], rows[5]], layout, str(tmp_path), rejected=rejected)
    path = f"rejected/t2m-00000000-{part.rejected_sha256[:12]}.parquet"
    assert (part.rows, part.rejected, part.rejected_path) == (4, 2, path)
    assert sha256_hex((tmp_path / path).read_bytes()) == part.rejected_sha256
    assert part.rejected_bytes == (tmp_path / part.rejected_path).stat().st_size
    assert read_rejected(str(tmp_path), part, layout) == rejected[::-1]
    assert [row.block[0] for row in read_all(str(tmp_path), part, layout)] == [0, 2, 3, 5]


def test_without_rejected_samples_there_is_no_table(tmp_path, layouts, rows_of):
    layout = layouts()
    part = write_all(rows_of(layout), layout, str(tmp_path))
    assert read_rejected(str(tmp_path), part, layout) == []
    assert not (tmp_path / "rejected").exists()


def test_a_shard_may_be_rejected_as_a_whole(tmp_path, layouts, rows_of):
    layout = layouts()
    rejected = make_rejected(rows_of(layout))
    part = write_all([], layout, str(tmp_path), rejected=rejected)
    assert len(read_index(str(tmp_path), part, layout)) == part.rows == 0
    assert read_rejected(str(tmp_path), part, layout) == rejected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: (rows[1:], []), r"block \(0, 0, 0\) is missing, foreign or there twice"),
        (lambda rows: ([*rows, rows[2]], []), r"block \(2, 0, 0\) is missing, foreign or there twice"),
        (lambda rows: (rows, make_rejected(rows[3:4])), r"block \(3, 0, 0\) is missing, foreign or there twice"),
        (lambda rows: ([*rows[1:], dataclasses.replace(rows[0], block=(9, 0, 0))], []), r"block \(0, 0, 0\)"),
        (lambda rows: ([*rows[1:], dataclasses.replace(rows[0], key=rows[1].key)], []), r"not t2m\[time=2019-03-22T01"),
        (lambda rows: ([*rows[1:], dataclasses.replace(rows[0], rmse=float("nan"))], []), "rmse must be a finite"),
        (lambda rows: ([*rows[1:], dataclasses.replace(rows[0], max_error=-1.0)], []), "max_error must be a finite"),
        (lambda rows: ([*rows[1:], dataclasses.replace(rows[0], max_error=1e39)], []), "max_error must be a finite"),
        (lambda rows: ([*rows[1:], dataclasses.replace(rows[0], quality=64)], []), "quality must be 0 to 63"),
        (lambda rows: ([*rows[1:], dataclasses.replace(rows[0], coding=3)], []), "coding must be 0 to 2"),
        (lambda rows: ([*rows[1:], dataclasses.replace(rows[0], checksum=-1)], []), "checksum must be 0 to 4294967295"),
    ],
)
def test_what_is_not_the_shard_is_not_written(change, expected, tmp_path, layouts, rows_of):
    layout = layouts()
    rows, rejected = change(rows_of(layout))
    with pytest.raises(ConfigError, match=expected):
        write_all(rows, layout, str(tmp_path), rejected=rejected)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_does_not_read_back_is_not_written(tmp_path, layouts, rows_of, monkeypatch):
    layout = layouts()
    rows = rows_of(layout)
    monkeypatch.setattr(
        parquet_container,
        "encode_part",
        lambda rows, layout, **_: parquet_part.encode_part(rows[:-1] + rows[:1], layout),
    )
    with pytest.raises(VcinrError):
        write_all(rows, layout, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flip", [0x01, 0xFF])
def test_every_flipped_byte_of_a_part_is_found(flip, tmp_path, layouts, row_of):
    layout = layouts()
    mask = pack_mask(np.arange(6) < 3)
    rows = [row_of(layout, (i, 0, 0), quality=i, mask=mask if i == 2 else None) for i in range(6)]
    part = write_all(rows, layout, str(tmp_path))
    data = (tmp_path / part.path).read_bytes()
    unnoticed = []
    for i in range(len(data)):
        (tmp_path / part.path).write_bytes(data[:i] + bytes([data[i] ^ flip]) + data[i + 1 :])
        try:
            read_all(str(tmp_path), part, layout)
        except (BitstreamError, UnsupportedFormatError):
            continue
        unnoticed.append(i)
    assert unnoticed == []


def test_every_truncation_of_a_part_is_found(tmp_path, layouts, rows_of):
    layout = layouts()
    part = write_all(rows_of(layout), layout, str(tmp_path))
    data = (tmp_path / part.path).read_bytes()
    for size in range(len(data)):
        (tmp_path / part.path).write_bytes(data[:size])
        with pytest.raises(TruncatedBitstreamError, match=rf"^{part.path}: got"):
            read_all(str(tmp_path), part, layout)


@pytest.mark.parametrize(
    "changed",
    [
        {"bytes": 5},
        {"bytes": 600},
        {"bytes": 10**9},
        {"payloads": ()},
        {"payloads": ((0, 10**12),)},
        {"payloads": ((300, 200),)},
        {"payloads": ((200, 300), (250, 400))},
        {"index_crc32": 0},
        {"rows": 5, "stop": (5, 1, 1)},
    ],
)
def test_a_part_that_is_not_the_one_in_the_manifest_is_found(changed, tmp_path, layouts, rows_of):
    layout = layouts()
    part = write_all(rows_of(layout), layout, str(tmp_path))
    with pytest.raises(BitstreamError, match=rf"^{part.path}: "):
        read_all(str(tmp_path), dataclasses.replace(part, **changed), layout)


def test_the_part_of_another_shard_is_found(tmp_path, layouts, rows_of):
    layout = layouts()
    rows = rows_of(layout)[:5]
    part = write_all(rows, layout, str(tmp_path), stop=(5, 1, 1))
    claimed = dataclasses.replace(part, start=(1, 0, 0), stop=(6, 1, 1))
    with pytest.raises(
        CorruptBitstreamError, match=r"01:00:00\] to t2m\[time=2019-03-22T05:00:00\], 5 samples: checksum"
    ):
        read_all(str(tmp_path), claimed, layout)


def test_payload_ranges_that_are_shifted_are_found(tmp_path, layouts, rows_of):
    layout = layouts()
    part = write_all(rows_of(layout), layout, str(tmp_path))
    [(start, stop)] = part.payloads
    with pytest.raises(CorruptBitstreamError, match="checksum of its index"):
        read_index(str(tmp_path), dataclasses.replace(part, payloads=((start - 1, stop - 1),)), layout)


def test_a_payload_that_ends_too_early_is_named(tmp_path, layouts, rows_of):
    layout = layouts()
    part = write_all(rows_of(layout, payload=bytes(300)), layout, str(tmp_path))
    index = read_index(str(tmp_path), part, layout)
    (tmp_path / part.path).write_bytes((tmp_path / part.path).read_bytes()[: int(index.payload_start[4]) + 2])
    assert len(read_rows(str(tmp_path), part, index, [0, 1], layout, BUNDLE_SHA256)) == 2
    with pytest.raises(TruncatedBitstreamError, match=r"t2m\[time=2019-03-22T04:00:00\]: got 2 of the bytes"):
        read_rows(str(tmp_path), part, index, [0, 4], layout, BUNDLE_SHA256)


def test_a_missing_part_is_a_source_error_that_names_it(tmp_path, layouts, rows_of):
    layout = layouts()
    part = write_all(rows_of(layout), layout, str(tmp_path))
    (tmp_path / part.path).unlink()
    with pytest.raises(SourceError, match=rf"{part.path}: no such file"):
        read_index(str(tmp_path), part, layout)


def test_every_flipped_byte_and_truncation_of_a_rejected_table_is_found(tmp_path, layouts, rows_of):
    layout = layouts()
    part = write_all([], layout, str(tmp_path), rejected=make_rejected(rows_of(layout)))
    table = tmp_path / part.rejected_path
    data = table.read_bytes()
    changed = [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in range(len(data))]
    for content in [*changed, *(data[:size] for size in range(len(data))), data + b"x"]:
        table.write_bytes(content)
        with pytest.raises(BitstreamError, match=rf"^{part.rejected_path}: "):
            read_rejected(str(tmp_path), part, layout)


def encode(layout, rows, **replaced):
    """A part's bytes with some columns replaced by other pyarrow arrays; None drops a column."""
    schema = parquet_part._part_schema(layout, with_masks=False)
    table = parquet_part._part_table(rows, layout, schema)
    for name, column in replaced.items():
        place = table.column_names.index(name) if name in table.column_names else 0
        if name in table.column_names:
            table = table.remove_column(place)
        if column is not None:
            table = table.add_column(place, pa.field(name, column.type, nullable=False), column)
    data = parquet_part._write([table], table.schema)
    end = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return data, [(end - sum(map(len, add_checksums(rows))), end)]


@pytest.mark.parametrize(
    ("replaced", "error", "expected"),
    [
        ({"time_block": pa.array([0, 1, 2, 3, 4, 6], pa.int32())}, CorruptBitstreamError, "outside of its shard"),
        ({"time_block": pa.array([0, 1, 2, 3, 4, -1], pa.int32())}, CorruptBitstreamError, "outside of its shard"),
        ({"time_block": pa.array([0, 1, 2, 2, 4, 5], pa.int32())}, CorruptBitstreamError, "row-major order"),
        ({"rmse": pa.array([-1.0] * 6, pa.float32())}, CorruptBitstreamError, "not a finite number from 0"),
        ({"max_error": pa.array([np.nan] * 6, pa.float32())}, CorruptBitstreamError, "not a finite number from 0"),
        ({"rmse": None}, UnsupportedFormatError, "columns are time_block int32, quality uint8, max_error float"),
        ({"max_error": None}, UnsupportedFormatError, "this version reads time_block, quality"),
        ({"extra": pa.array([1] * 6, pa.int64())}, UnsupportedFormatError, "columns are extra int64"),
        ({"quality": pa.array([1] * 6, pa.int32())}, UnsupportedFormatError, "quality int32"),
        ({"quality": pa.array([0, 64, 128, 192, 0, 0], pa.uint8())}, UnsupportedFormatError, "coding 3; this version"),
    ],
)
def test_a_part_that_contradicts_its_layout_or_format_is_refused(replaced, error, expected, layouts, rows_of):
    layout = layouts()
    data, payloads = encode(layout, rows_of(layout), **replaced)
    with pytest.raises(error, match=expected):
        decode_index(data, payloads, layout)


@pytest.mark.parametrize("shift", [(-1, 0), (0, -1), (1, 0)])
def test_payload_ranges_that_contradict_the_part_are_refused(shift, layouts, rows_of):
    layout = layouts()
    data, [(start, stop)] = parquet_part.encode_part(rows_of(layout), layout)
    with pytest.raises(CorruptBitstreamError):
        decode_index(data, [(start + shift[0], stop + shift[1])], layout)


def test_row_groups_that_contradict_the_manifest_are_refused(layouts, rows_of, monkeypatch):
    layout = layouts()
    monkeypatch.setattr(parquet_part, "GROUP_ROWS", 3)
    data, payloads = parquet_part.encode_part(rows_of(layout), layout)
    with pytest.raises(CorruptBitstreamError, match="2 row groups, expected 1"):
        decode_index(data, payloads[:1], layout)
    monkeypatch.setattr(parquet_part, "GROUP_ROWS", 2)
    with pytest.raises(CorruptBitstreamError, match="row group of 3 rows, expected 1 to 2"):
        decode_index(data, payloads, layout)


def test_a_mask_longer_than_any_mask_is_refused(layouts, row_of):
    layout = layouts()
    rows = [row_of(layout, (i, 0, 0), mask=bytes(200) if i == 3 else None) for i in range(6)]
    data, payloads = parquet_part.encode_part(rows, layout)
    with pytest.raises(CorruptBitstreamError, match="mask of 200 bytes for 6 points"):
        decode_index(data, payloads, layout)


@pytest.fixture(scope="module")
def small_part():
    """Where `test_a_mutilated_part...` keeps its layout and part, once per module."""
    return {}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutilated_part_raises_one_of_our_errors_even_where_no_checksum_looks(small_part, layouts, rows_of, data):
    if not small_part:
        small_part["layout"] = layouts()
        small_part["part"] = parquet_part.encode_part(rows_of(small_part["layout"]), small_part["layout"])
    content, payloads = small_part["part"]
    mutated = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        index = decode_index(bytes(mutated), payloads, small_part["layout"])
        assert np.all(index.payload_start + index.payload_bytes <= len(content))
        assert np.all(index.payload_bytes >= 0)
    except (BitstreamError, UnsupportedFormatError):
        return


def test_a_footer_on_which_pyarrow_aborts_the_process_is_an_error_like_any_other(layouts, rows_of):
    """`RowGroupMetaData.column` aborts where a chunk's metadata is hidden; no exception could be caught then."""
    layout = layouts()
    content, payloads = parquet_part.encode_part(rows_of(layout), layout)
    footer_start = payloads[-1][1]
    for i in range(footer_start, len(content)):
        for flip in (2, 4, 8):
            damaged = content[:i] + bytes([content[i] ^ flip]) + content[i + 1 :]
            with contextlib.suppress(BitstreamError, UnsupportedFormatError):
                decode_index(damaged, payloads, layout)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 11, 12, 100])
def test_what_is_no_parquet_file_is_refused(size, layouts):
    with pytest.raises(BitstreamError):
        decode_index((b"PAR1" * 25)[:size], [], layouts())
