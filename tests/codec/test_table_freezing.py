import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vcinr_batch.codec.entropy_model import COUNT_TOTAL, FrozenTables
from vcinr_batch.codec.table_freezing import freeze_tables, level_masses, round_masses


def normal_cdf(mean: NDArray[np.float64], std: NDArray[np.float64]):  # type: ignore[no-untyped-def]
    erf = np.vectorize(math.erf)
    return lambda x: 0.5 * (1 + erf((x - mean) / (std * math.sqrt(2))))


def table(tables: FrozenTables, quality: int, k: int) -> NDArray[np.int64]:
    start, size = tables.starts[quality, k], tables.size[quality, k]
    return tables.counts[start : start + size].astype(np.int64)


def test_counts_are_the_probabilities_of_the_symbols() -> None:
    tables = freeze_tables(normal_cdf(np.array([0.3]), np.array([2.0])), np.array([1.0]))
    counts, first = table(tables, 0, 0), int(tables.first[0, 0])
    # P(s) of a normal of mean 0.3 and deviation 2, rounded to integers: (Phi(s + 0.5) - Phi(s - 0.5)).
    expected = [
        0.5 * (math.erf((s + 0.5 - 0.3) / (2 * math.sqrt(2))) - math.erf((s - 0.5 - 0.3) / (2 * math.sqrt(2))))
        for s in range(first, first + len(counts) - 1)
    ]
    # One count of rounding, one for the floor of each entry, and the share that the other floors take.
    assert np.abs(counts[:-1] - COUNT_TOTAL * np.array(expected)).max() <= 2 + len(counts) * max(expected)
    assert tables.shift[0, 0] == 0


def test_the_escape_gets_the_tails() -> None:
    tables = freeze_tables(normal_cdf(np.zeros(1), np.ones(1)), np.array([0.5]), tail_mass=0.01)
    low, high = int(tables.first[0, 0]), int(tables.first[0, 0]) + int(tables.size[0, 0]) - 2
    outside = 0.5 * (1 + math.erf((low - 0.5) * 0.5 / math.sqrt(2))) + 0.5 * math.erfc(
        (high + 0.5) * 0.5 / math.sqrt(2)
    )
    assert 0 < outside <= 0.02
    assert table(tables, 0, 0)[-1] / COUNT_TOTAL == pytest.approx(outside, abs=2 / COUNT_TOTAL)


def test_wide_distributions_give_low_bits_away_and_keep_their_entropy() -> None:
    std = np.array([5000.0])
    tables = freeze_tables(normal_cdf(np.zeros(1), std), np.array([1.0]))
    assert tables.size[0, 0] <= 64
    probability = table(tables, 0, 0) / COUNT_TOTAL
    bits = -(probability * np.log2(probability)).sum() + tables.shift[0, 0]
    # Differential entropy of a normal: log2(std sqrt(2 pi e)).
    assert bits == pytest.approx(math.log2(5000 * math.sqrt(2 * math.pi * math.e)), abs=0.02)


def test_a_step_far_above_the_spread_needs_one_symbol_and_the_escape() -> None:
    tables = freeze_tables(normal_cdf(np.zeros(1), np.array([1e-3])), np.array([1.0]))
    assert (tables.first[0, 0], tables.size[0, 0]) == (0, 2)
    assert table(tables, 0, 0).tolist() == [COUNT_TOTAL - 1, 1]


def test_a_finer_step_has_its_own_tables() -> None:
    tables = freeze_tables(normal_cdf(np.zeros(2), np.array([1.0, 3.0])), np.array([2.0, 1.0]))
    assert tables.quality_count == 2
    assert tables.code_dim == 2
    assert (tables.size[1] > tables.size[0]).all()
    assert table(tables, 1, 1)[-int(tables.first[1, 1])] < table(tables, 0, 1)[-int(tables.first[0, 1])]


def test_the_mass_of_zero_can_be_given() -> None:
    levels, steps = [level_masses(normal_cdf(np.zeros(1), np.ones(1)), 1.0)], np.array([1.0])
    plain, zeroed = round_masses(levels, steps), round_masses(levels, steps, zero_mass=np.array([[0.75]]))
    place = -int(plain.first[0, 0])
    before, after = table(plain, 0, 0), table(zeroed, 0, 0)
    assert after[place] / COUNT_TOTAL == pytest.approx(0.75, abs=1e-3)
    # The others keep their proportions: P(1) / P(2) of a normal is 0.2417 / 0.0606.
    assert after[place + 1] / after[place + 2] == pytest.approx(0.24173 / 0.06060, rel=0.01)
    assert before[place] / COUNT_TOTAL == pytest.approx(0.38292, abs=1e-3)


@given(
    st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(1e-6, 1e6)), min_size=1, max_size=5),
    st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=3, unique=True),
)
def test_any_distribution_gives_valid_tables(mean_std: list[tuple[float, float]], steps: list[float]) -> None:
    mean, std = np.array(mean_std).T
    tables = freeze_tables(lambda x: 0.5 * (1 + np.tanh((x - mean) / std)), np.sort(steps)[::-1])
    assert (tables.size <= 64).all()
    assert tables.counts.sum(dtype=np.int64) == COUNT_TOTAL * tables.size.size


def test_freezing_twice_gives_the_same_bytes() -> None:
    cdf, steps = normal_cdf(np.zeros(3), np.array([0.1, 1.0, 300.0])), np.array([4.0, 0.5])
    first, second = freeze_tables(cdf, steps), freeze_tables(cdf, steps)
    assert first.counts.tobytes() == second.counts.tobytes()
