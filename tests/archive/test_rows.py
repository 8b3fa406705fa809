import dataclasses
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcinr_batch.archive.rows import ArchiveRow, check_row, pack_mask, row_checksum, unpack_mask
from vcinr_batch.data.samples import SampleKey
from vcinr_batch.errors import CorruptBitstreamError

BUNDLE = "5f" * 32
KEY = SampleKey("t2m", (("time", "2019-03-22T06:00:00"),))


def make_row(**changed):
    fields = {"key": KEY, "block": (6,), "payload": b"payload of a row", "quality": 9, "mask": b"some mask", **changed}
    checksum = row_checksum(fields["key"], fields["quality"], fields["payload"], fields["mask"], BUNDLE)
    return ArchiveRow(rmse=0.1, max_error=0.5, checksum=checksum, **fields)


def test_the_checksum_is_crc32_of_the_documented_bytes():
    # CRC-32 (IEEE 802.3) bit by bit: reflected polynomial 0xEDB88320, start and final xor 0xFFFFFFFF.
    name = b"t2m[time=2019-03-22T06:00:00]"
    data = len(name).to_bytes(4, "little") + b"\3\0\0\0" + b"\xff\xff\xff\xff" + b"\7" + name
    data += bytes.fromhex(BUNDLE) + b"abc"
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    assert row_checksum(KEY, 7, b"abc", None, BUNDLE) == crc ^ 0xFFFFFFFF


def test_the_checksum_covers_the_coding_in_the_two_high_bits_of_the_quality():
    packed = row_checksum(KEY, 2 << 6 | 7, b"abc", None, BUNDLE)
    assert row_checksum(KEY, 7, b"abc", None, BUNDLE, coding=2) == packed != row_checksum(KEY, 7, b"abc", None, BUNDLE)


def test_an_intact_row_passes():
    check_row(make_row(), BUNDLE)
    check_row(make_row(mask=None), BUNDLE)


@pytest.mark.parametrize(
    "changed",
    [
        {"key": SampleKey("t2m", (("time", "2019-03-22T07:00:00"),))},
        {"key": SampleKey("d2m", KEY.labels)},
        {"quality": 10},
        {"coding": 1},
        {"mask": None},
        {"mask": b""},
        {"mask": b"some masks"},
        {"payload": b"payload of a ro"},
        {"payload": b"payload of a row\0"},
        {"payload": b""},
        {"mask": b"some maskp", "payload": b"ayload of a row"},
        {"checksum": 0},
    ],
)
def test_a_changed_row_fails_and_is_named(changed):
    row = dataclasses.replace(make_row(), **changed)
    with pytest.raises(CorruptBitstreamError, match=rf"^{row.key.variable}\[time=2019-03-22T0\d:00:00\]: .*checksum"):
        check_row(row, BUNDLE)


def test_a_row_of_another_bundle_fails():
    with pytest.raises(CorruptBitstreamError, match="checksum"):
        check_row(make_row(), "60" * 32)


def test_every_change_of_a_payload_byte_is_found():
    row = make_row()
    for i in range(len(row.payload)):
        for flip in range(1, 256):
            payload = row.payload[:i] + bytes([row.payload[i] ^ flip]) + row.payload[i + 1 :]
            assert row_checksum(row.key, row.quality, payload, row.mask, BUNDLE) != row.checksum


@given(st.lists(st.booleans(), min_size=1, max_size=100))
def test_masks_come_back_as_packed(bits):
    mask = np.array(bits)
    unpacked = unpack_mask(pack_mask(mask), len(bits))
    assert unpacked.dtype == bool
    np.testing.assert_array_equal(unpacked, mask)


@pytest.mark.parametrize(
    ("data", "points", "expected"),
    [
        (b"", 8, "holds 0 bytes"),
        (b"not zlib", 8, "does not inflate"),
        (pack_mask(np.ones(16, bool)), 8, "expected exactly 1"),
        (pack_mask(np.ones(8, bool)), 16, "expected exactly 2"),
        (pack_mask(np.ones(8, bool)), 5, "past its 5 points"),
        (pack_mask(np.ones(8, bool)) + b"x", 8, "expected exactly 1"),
        (pack_mask(np.ones(64, bool))[:-3], 64, "expected exactly 8"),
        (zlib.compress(bytes(1 << 22)), 8, "expected exactly 1"),
    ],
)
def test_what_is_no_mask_of_that_size_is_refused(data, points, expected):
    with pytest.raises(CorruptBitstreamError, match=expected):
        unpack_mask(data, points)
