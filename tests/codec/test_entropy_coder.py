from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vcinr_batch.codec.entropy_coder import decode_symbols, encode_symbols
from vcinr_batch.codec.entropy_model import FrozenTables, choose_levels, ideal_bits
from vcinr_batch.errors import ConfigError, CorruptBitstreamError

MakeTables = Callable[[NDArray[np.float64], list[float]], FrozenTables]


# The format as FORMAT.md states it, in plain integers and without the library that the package codes with.


def reference_plan(tables: FrozenTables, level: int) -> list[tuple[int, list[int], int, int]]:
    """(dimension, frequencies, first, shift) in coding order."""
    plan = []
    for k in range(tables.code_dim):
        size = int(tables.size[level, k])
        start = sum(int(n) for n in tables.size.ravel()[: level * tables.code_dim + k])
        width = next(w for w in (8, 16, 32, 64, 128) if w >= size)
        frequencies = [256 * int(c) for c in tables.counts[start : start + size]] + [1] * (width - size)
        frequencies[size - 1] -= width - size
        plan.append((k, frequencies, int(tables.first[level, k]), int(tables.shift[level, k])))
    return sorted(plan, key=lambda row: -len(row[1]))


ESCAPE_LENGTHS = [2**23 - 11] + [2 ** (23 - n) for n in range(1, 24)] + [1] * 12


def bit_parts(widths: list[int]) -> list[tuple[int, int, int]]:
    """(index, shift, bits): all bits above the lowest sixteen first, then the others."""
    high = [(i, 16, w - 16) for i, w in enumerate(widths) if w > 16]
    return high + [(i, 0, min(w, 16)) for i, w in enumerate(widths) if w > 0]


def reference_messages(
    symbols: list[int], tables: FrozenTables, quality: int, level: int
) -> list[tuple[int, list[int]]]:
    """(entry, frequencies) of everything that is coded for a sample."""
    messages = [(level - quality + 2, [256 * int(c) for c in tables.offset_counts[quality]])]
    numbers, low, shifts = [], [], []
    for k, frequencies, first, shift in reference_plan(tables, level):
        escape = int(tables.size[level, k]) - 1
        offset = (symbols[k] >> shift) - first
        messages.append((offset if 0 <= offset < escape else escape, frequencies))
        if offset >= escape:
            numbers.append(2 * (offset - escape))
        elif offset < 0:
            numbers.append(2 * (-offset - 1) + 1)
        low.append(symbols[k] & ((1 << shift) - 1))
        shifts.append(shift)
    lengths = [(u + 1).bit_length() - 1 for u in numbers]
    messages += [(n, ESCAPE_LENGTHS) for n in lengths]
    for i, shift, bits in bit_parts(lengths):
        messages.append((((numbers[i] + 1) >> shift) % 2**bits, [2 ** (24 - bits)] * 2**bits))
    for i, shift, bits in bit_parts(shifts):
        messages.append(((low[i] >> shift) % 2**bits, [2 ** (24 - bits)] * 2**bits))
    return messages


def reference_encode(messages: list[tuple[int, list[int]]]) -> bytes:
    lower, width, words = 0, 2**64 - 1, 2
    for entry, frequencies in messages:
        scale = width >> 24
        lower, width = lower + scale * sum(frequencies[:entry]), scale * frequencies[entry]
        if width < 2**32:
            lower, width, words = lower << 32, width << 32, words + 1
    for count in range(4 * words + 1):
        unit = 256 ** (4 * words - count)
        candidate = -(-lower // unit)
        if candidate * unit < lower + width:
            return candidate.to_bytes(count, "big")
    raise AssertionError("unreachable: at full length the candidate is `lower`")


@pytest.fixture(scope="module")
def tables(make_tables: MakeTables) -> FrozenTables:
    """Every kind of table: low bits, several widths, almost certain zeros; in no order."""
    return make_tables(np.array([0.02, 3.0, 4000.0, 0.4, 70.0, 0.001, 1.2e8]), [4.0, 2.0, 1.0])


def draw(tables: FrozenTables, quality: int, count: int, seed: int) -> NDArray[np.int32]:
    scale = np.array([0.02, 3.0, 4000.0, 0.4, 70.0, 0.001, 1.2e8]) / tables.steps[quality]
    gain = np.random.default_rng(seed).choice([0.3, 1, 4], (count, 1))
    return np.clip(np.rint(np.random.default_rng(seed).laplace(0, gain * scale)), -(2**31), 2**31 - 1).astype(np.int32)


@pytest.mark.parametrize("quality", [0, 1, 2])
def test_payloads_are_those_of_the_specification(tables: FrozenTables, quality: int) -> None:
    symbols = draw(tables, quality, 150, seed=quality)
    levels = choose_levels(tables, quality, symbols).tolist()
    expected = [
        reference_encode(reference_messages(row, tables, quality, level))
        for row, level in zip(symbols.tolist(), levels, strict=True)
    ]
    assert encode_symbols(symbols, tables, quality) == expected


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 3), min_size=7, max_size=7), st.integers(0, 2))
def test_any_symbols_come_back(tables: FrozenTables, symbols: list[int], quality: int) -> None:
    row = np.array([symbols], np.int32)
    payloads = encode_symbols(row, tables, quality)
    assert decode_symbols(payloads, tables, quality).tolist() == [symbols]
    assert payloads[0][-1:] != b"\0"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 3), min_size=7, max_size=7))
def test_any_symbols_are_coded_as_specified(tables: FrozenTables, symbols: list[int]) -> None:
    row = np.array([symbols], np.int32)
    level = int(choose_levels(tables, 1, row)[0])
    assert encode_symbols(row, tables, 1) == [reference_encode(reference_messages(symbols, tables, 1, level))]


def test_rows_are_independent_of_their_neighbours(tables: FrozenTables) -> None:
    symbols = draw(tables, 1, 20, seed=5)
    assert encode_symbols(symbols, tables, 1) == [encode_symbols(row[None], tables, 1)[0] for row in symbols]


def test_golden_payloads() -> None:
    tables = FrozenTables(
        steps=np.array([1.0]),
        shift=np.array([[0, 3, 0]], np.uint8),
        first=np.array([[-1, 0, -4]], np.int32),
        size=np.array([[3, 2, 10]], np.uint16),
        counts=np.array([16384, 32768, 16384, 65535, 1, 1, 100, 5000, 9000, 37334, 9000, 5000, 99, 1, 1], np.uint16),
        offset_counts=np.array([[1, 1, 65532, 1, 1]], np.uint16),
    )
    symbols = np.array([[0, 0, 0], [-1, 7, 2], [40, -9, -2000000000], [2**31 - 1, -(2**31), 5]], np.int32)
    # Computed by reference_encode when format version 1 was made; they never change.
    golden = ["5c", "f057", "fffdfa000ec9040b5474d9590322", "fffdf9fff044fee696fd65a4c2f9e83a4740"]
    assert [payload.hex() for payload in encode_symbols(symbols, tables, 0)] == golden
    assert decode_symbols([bytes.fromhex(text) for text in golden], tables, 0).tolist() == symbols.tolist()


def test_overhead_is_below_half_a_byte_on_average(make_tables: MakeTables) -> None:
    rng = np.random.default_rng(3)
    scale = np.geomspace(30, 0.01, 64)
    tables = make_tables(scale, [1.0])
    symbols = np.rint(rng.laplace(0, scale, (2000, 64))).astype(np.int32)
    payload_bits = np.array([8 * len(payload) for payload in encode_symbols(symbols, tables, 0)])
    overhead = payload_bits - ideal_bits(tables, 0, symbols)
    # A number of n bits needs on average less than half a byte more to be a whole number of bytes.
    assert overhead.mean() < 4
    assert overhead.max() <= 9


def test_coding_reaches_the_entropy_of_the_source(make_tables: MakeTables) -> None:
    rng = np.random.default_rng(4)
    scale = np.geomspace(500, 0.05, 48)
    tables = make_tables(scale, [1.0])
    symbols = np.rint(rng.laplace(0, scale, (2000, 48))).astype(np.int32)
    support = np.arange(-20000, 20001)[:, None]
    upper, lower = (np.exp(-np.abs(support + shift) / scale) / 2 for shift in (0.5, -0.5))
    mass = np.where(support == 0, 1 - np.exp(-0.5 / scale), np.abs(upper - lower))
    entropy_bits = -(mass * np.log2(np.maximum(mass, 1e-300))).sum()
    payload_bits = 8 * np.mean([len(payload) for payload in encode_symbols(symbols, tables, 0)])
    assert payload_bits == pytest.approx(entropy_bits, rel=0.025)


def test_no_samples_give_no_payloads(tables: FrozenTables) -> None:
    assert encode_symbols(np.zeros((0, 7), np.int32), tables, 0) == []
    assert decode_symbols([], tables, 0).shape == (0, 7)


def test_an_empty_payload_is_the_number_zero(tables: FrozenTables) -> None:
    # Zero lies in the first interval throughout: the first offset, two levels down, and each table's first entry.
    expected = tables.first[0].astype(np.int64) << tables.shift[0]
    assert decode_symbols([b""], tables, 2).tolist() == [expected.tolist()]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\x80\x00", "ends in a zero byte"),
        (bytes([7]) * 1000, "more than a sample can have"),
        (b"\xff" * 8, "no symbols lead to these bytes"),
    ],
)
def test_impossible_payloads_are_refused(tables: FrozenTables, payload: bytes, message: str) -> None:
    valid = encode_symbols(np.zeros((1, 7), np.int32), tables, 1)
    with pytest.raises(CorruptBitstreamError, match=f"payload 1 of 2: .*{message}"):
        decode_symbols([*valid, payload], tables, 1)


def test_tables_that_are_not_there_are_refused(tables: FrozenTables) -> None:
    # At level 0 the first two of five offsets point below it, and the empty payload starts with the first.
    assert tables.offset_counts[0, 0] > 1
    messages = [(0, [256 * int(c) for c in tables.offset_counts[0]])]
    payload = reference_encode([*messages, (5, [2**20] * 16)])
    with pytest.raises(CorruptBitstreamError, match="tables that are not there"):
        decode_symbols([payload], tables, 0)


def test_entries_past_a_table_are_refused() -> None:
    tables = FrozenTables(
        steps=np.array([1.0]),
        shift=np.zeros((1, 1), np.uint8),
        first=np.zeros((1, 1), np.int32),
        size=np.full((1, 1), 2, np.uint16),
        counts=np.array([32768, 32768], np.uint16),
        offset_counts=np.array([[1, 1, 65532, 1, 1]], np.uint16),
    )
    frequencies = [2**23, 2**23 - 6, 1, 1, 1, 1, 1, 1]
    payload = reference_encode([(2, [256, 256, 65532 * 256, 256, 256]), (5, frequencies)])
    with pytest.raises(CorruptBitstreamError, match="past the end of its table"):
        decode_symbols([payload], tables, 0)
    beyond = [(2, [256, 256, 65532 * 256, 256, 256]), (1, frequencies), (34, ESCAPE_LENGTHS)]
    payload = reference_encode([*beyond, (2**18 - 1, [2**6] * 2**18), (0, [2**8] * 2**16)])
    with pytest.raises(CorruptBitstreamError, match="beyond 32 bits"):
        decode_symbols([payload], tables, 0)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 2))
def test_any_bytes_decode_or_are_corrupt(tables: FrozenTables, payload: bytes, quality: int) -> None:
    try:
        symbols = decode_symbols([payload], tables, quality)
    except CorruptBitstreamError:
        return
    assert symbols.shape == (1, 7)


@pytest.mark.parametrize("quality", [-1, 3])
def test_levels_that_do_not_exist_are_named(tables: FrozenTables, quality: int) -> None:
    with pytest.raises(ConfigError, match=f"quality {quality}: this bundle has levels 0 to 2"):
        encode_symbols(np.zeros((1, 7), np.int32), tables, quality)
    with pytest.raises(ConfigError, match="levels 0 to 2"):
        decode_symbols([b""], tables, quality)


@pytest.mark.parametrize("symbols", [np.zeros((1, 6), np.int32), np.zeros((1, 7), np.int64), np.zeros(7, np.int32)])
def test_symbols_of_another_shape_or_type_are_refused(tables: FrozenTables, symbols: NDArray[np.int32]) -> None:
    with pytest.raises(ConfigError, match="expected int32 symbols"):
        encode_symbols(symbols, tables, 0)
