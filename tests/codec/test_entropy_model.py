from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vcinr_batch.codec.entropy_model import (
    FrozenTables,
    choose_levels,
    ideal_bits,
    split_symbols,
    tables_from_arrays,
    tables_to_arrays,
)
from vcinr_batch.errors import CorruptBitstreamError

MakeTables = Callable[[NDArray[np.float64], list[float]], FrozenTables]


def hand_made(offset_counts: list[int] | None = None) -> FrozenTables:
    """One level, two dimensions: {-1, 0, escape} without low bits, {0, escape} with three of them."""
    return FrozenTables(
        steps=np.array([1.0]),
        shift=np.array([[0, 3]], np.uint8),
        first=np.array([[-1, 0]], np.int32),
        size=np.array([[3, 2]], np.uint16),
        counts=np.array([16384, 32768, 16384, 65535, 1], np.uint16),
        offset_counts=np.array([offset_counts or [8192, 8192, 32768, 8192, 8192]], np.uint16),
    )


@pytest.mark.parametrize(
    ("symbols", "bits"),
    [
        # Level choice 1 bit; -1 costs 2 bits, 0 one; the second dimension's entry is free but its low bits are 3.
        ([-1, 7], 1 + 2 + 3),
        ([0, 0], 1 + 1 + 3),
        # Escapes cost 2 bits; 1 is the first value above (u = 0: 1 bit), -2 the first below (u = 1: 3 bits),
        # 2 the second above (u = 2: 3 bits), -3 the second below (u = 3: 5 bits).
        ([1, 0], 1 + 2 + 1 + 3),
        ([-2, 0], 1 + 2 + 3 + 3),
        ([2, 0], 1 + 2 + 3 + 3),
        ([-3, 0], 1 + 2 + 5 + 3),
        # 8 >> 3 = 1 is an escape of 16 bits with u = 0.
        ([0, 8], 1 + 1 + 16 + 1 + 3),
    ],
)
def test_ideal_bits_are_those_counted_by_hand(symbols: list[int], bits: float) -> None:
    assert ideal_bits(hand_made(), 0, np.array([symbols], np.int32))[0] == pytest.approx(bits, abs=1e-4)


def test_symbols_split_into_entries_and_escape_numbers() -> None:
    tables = hand_made()
    symbols = np.array([[-1, 0], [5, -1], [-9, 15]], np.int32)
    entries, numbers = split_symbols(symbols, tables.shift[0], tables.first[0], tables.size[0])
    assert entries.tolist() == [[0, 0], [2, 1], [2, 1]]
    # Above the table 0, 2, 4..: 5 is the 5th of dimension 0, 15 >> 3 = 1 the 1st of dimension 1. Below 1, 3, 5..:
    # -1 >> 3 = -1 is the 1st of dimension 1, -9 the 8th of dimension 0.
    assert numbers.tolist() == [8, 1, 15, 0]


def test_the_extremes_of_int32_split_without_overflow() -> None:
    tables = hand_made()
    symbols = np.array([[2**31 - 1, -(2**31)]], np.int32)
    entries, numbers = split_symbols(symbols, tables.shift[0], tables.first[0], tables.size[0])
    assert entries.tolist() == [[2, 1]]
    assert numbers.tolist() == [2 * (2**31 - 1 - 1), 2 * 2**28 - 1]


def test_samples_choose_the_cheapest_tables_within_two_levels(make_tables: MakeTables) -> None:
    rng = np.random.default_rng(0)
    scale = np.geomspace(20, 0.05, 40)
    tables = make_tables(scale, [8.0, 4.0, 2.0, 1.0, 0.5, 0.25])
    gain = np.array([0.1, 0.25, 0.5, 1, 2, 4, 10])
    symbols = np.rint(gain[:, None] * rng.laplace(0, scale, (7, 40)) / 2.0).astype(np.int32)
    chosen = choose_levels(tables, 2, symbols)
    # Twice as large symbols look like those of half the step, one level finer.
    assert chosen.tolist() == [0, 0, 1, 2, 3, 4, 4]
    assert choose_levels(tables, 0, symbols).tolist()[0] == 0
    assert choose_levels(tables, 5, symbols).max() <= 5


def test_ideal_bits_are_those_of_the_chosen_level(make_tables: MakeTables) -> None:
    tables = make_tables(np.full(30, 2.0), [4.0, 2.0, 1.0])
    symbols = np.random.default_rng(1).integers(-9, 10, (4, 30)).astype(np.int32)
    levels = choose_levels(tables, 0, symbols)
    assert set(levels.tolist()) == {2}
    alone = ideal_bits(tables, 2, symbols)
    # The same tables at their own level differ only by what the choice of level costs.
    side = np.log2(tables.offset_counts[2, 2] / tables.offset_counts[0, 4])
    np.testing.assert_allclose(ideal_bits(tables, 0, symbols), alone + side, rtol=1e-9)


def test_arrays_restore_the_tables(make_tables: MakeTables) -> None:
    tables = make_tables(np.array([0.01, 1.0, 500.0]), [2.0, 1.0])
    restored = tables_from_arrays(tables_to_arrays(tables))
    for name, array in tables_to_arrays(tables).items():
        np.testing.assert_array_equal(getattr(restored, name), array)


def _change(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("first"), "missing first"),
        (_change("steps", np.array([1.0], np.float32)), "steps must be an array of float64"),
        (_change("steps", [1.0]), "steps must be an array"),
        (_change("steps", np.zeros(0)), "quality levels"),
        (_change("steps", np.array([1.0, 0.5])), "shift of shape"),
        (_change("steps", np.array([np.nan])), "steps in"),
        (_change("steps", np.array([0.0])), "steps in"),
        (_change("steps", np.array([1e300])), "steps in"),
        (_change("shift", np.array([[0, 31]], np.uint8)), "shift of at most 30"),
        (_change("shift", np.zeros((1, 0), np.uint8)), "shift of shape"),
        (_change("first", np.array([[0]], np.int32)), "first and size"),
        (_change("size", np.array([[3, 1]], np.uint16)), "2 to 128 entries"),
        (_change("size", np.array([[3, 129]], np.uint16)), "2 to 128 entries"),
        (_change("size", np.array([[3, 3]], np.uint16)), "as many counts"),
        (_change("counts", np.array([16384, 49152, 0, 65535, 1], np.uint16)), "at least 1"),
        (_change("counts", np.array([16384, 32768, 16383, 65535, 1], np.uint16)), "sum to 65536"),
        (_change("offset_counts", np.array([[8192, 8192, 32768, 16384]], np.uint16)), "offset_counts of shape"),
        (_change("offset_counts", np.array([[8192, 8192, 32768, 16384, 0]], np.uint16)), "offset_counts of at least"),
        (_change("offset_counts", np.array([[8192, 8192, 32768, 8192, 1]], np.uint16)), "offset_counts like"),
    ],
)
def test_arrays_that_are_not_tables_are_refused(change: Callable[[dict[str, Any]], None], message: str) -> None:
    arrays = tables_to_arrays(hand_made())
    change(arrays)
    with pytest.raises(CorruptBitstreamError, match=message):
        tables_from_arrays(arrays)


def test_levels_must_rise_in_quality(make_tables: MakeTables) -> None:
    with pytest.raises(CorruptBitstreamError, match="descending"):
        make_tables(np.array([1.0]), [1.0, 2.0])
