"""Continuous distributions -> frozen integer tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.codec.entropy_model import COUNT_TOTAL, FrozenTables
from vcinr_batch.codec.quantization import SYMBOL_LIMIT

Cdf = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_OFFSET_MASS = np.array([1, 2, 4, 2, 1]) / 10


@dataclass(frozen=True, eq=False)
class LevelMasses:
    """Where the tables of one level lie and the probabilities that they are made from."""

    shift: NDArray[np.int64]
    """[K], as in `FrozenTables`, like the next two."""
    first: NDArray[np.int64]
    size: NDArray[np.int64]
    masses: tuple[NDArray[np.float64], ...]
    """For each dimension the probabilities of its table's entries [size], the escape last."""


def freeze_tables(
    cdf: Cdf, steps: NDArray[np.float64], tail_mass: float = 2.0**-14, max_size: int = 64
) -> FrozenTables:
    """Turn continuous distributions into integer tables: `level_masses` of each level, then `round_masses`."""
    return round_masses([level_masses(cdf, float(step), tail_mass, max_size) for step in steps], steps)


def level_masses(cdf: Cdf, step: float, tail_mass: float = 2.0**-14, max_size: int = 64) -> LevelMasses:
    """Choose the entries of one level's tables and integrate their probabilities.

    Args:
        cdf: maps x [N, K] in the unit of the code to the K cumulative distributions at x, [N, K], rising with x; also
            takes x [N, 1] for all dimensions.
        step: the probability of a symbol s is cdf((s + 1/2) step) - cdf((s - 1/2) step).
        tail_mass: probability at either end that is left to the escape.
        max_size: largest table, escape included; 4..128. Wider distributions give their low bits away uniformly.
    """
    low, high = _symbol_range(cdf, step, tail_mass)
    shift = _smallest_shift(low, high, max_size)
    first = low >> shift
    size = (high >> shift) - first + 2
    entry = np.arange(int(size.max()))[:, None]
    edges = (((first + np.minimum(entry, size - 1)) << shift) - 0.5) * step
    mass = np.maximum(np.diff(cdf(edges), axis=0), 0).T
    listed = [row[: n - 1] for row, n in zip(mass, size, strict=True)]
    return LevelMasses(shift, first, size, tuple(np.append(row, max(1 - row.sum(), 0)) for row in listed))


def round_masses(
    levels: Sequence[LevelMasses],
    steps: NDArray[np.float64],
    zero_mass: NDArray[np.float64] | None = None,
    offset_mass: NDArray[np.float64] | None = None,
) -> FrozenTables:
    """Integer tables of given probabilities.

    Args:
        levels: Q levels.
        steps: [Q], descending.
        zero_mass: [Q, K], probability of the symbol 0 where an encoder chooses it more often than the masses say; the
            other symbols are scaled to what is left. Tables with low bits ignore it.
        offset_mass: [Q, 5], probability that a sample takes the tables of level -2..+2 from its own.

    Returns:
        Tables whose counts are the probabilities rounded to multiples of 2^-16 by largest remainder, none below 2^-16.
    """
    counts = []
    for i, level in enumerate(levels):
        for k, mass in enumerate(level.masses):
            zero = int(-level.first[k])
            if zero_mass is not None and level.shift[k] == 0 and 0 <= zero < level.size[k] - 1:
                mass = _with_mass_at(mass, zero, float(zero_mass[i, k]))
            counts.append(_round_to_counts(mass))
    offset_mass = np.tile(_OFFSET_MASS, (len(steps), 1)) if offset_mass is None else offset_mass
    return FrozenTables(
        steps=np.asarray(steps, np.float64),
        shift=np.stack([level.shift for level in levels]).astype(np.uint8),
        first=np.stack([level.first for level in levels]).astype(np.int32),
        size=np.stack([level.size for level in levels]).astype(np.uint16),
        counts=np.concatenate(counts).astype(np.uint16),
        offset_counts=np.stack([_round_to_counts(mass) for mass in offset_mass]).astype(np.uint16),
    )


def _symbol_range(cdf: Cdf, step: float, tail_mass: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Smallest and largest symbol [K] outside the tails, by bisection of the cumulative distributions."""

    def at(symbol: NDArray[np.int64], side: float) -> NDArray[np.float64]:
        value: NDArray[np.float64] = cdf(((symbol + side) * step)[None])[0]
        return value

    dims = len(cdf(np.zeros((1, 1)))[0])
    # Both searches keep: the condition holds at `yes` and fails at `no`.
    yes, no = np.full(dims, -SYMBOL_LIMIT, np.int64), np.full(dims, SYMBOL_LIMIT, np.int64)
    while (no - yes > 1).any():
        middle = (yes + no) >> 1
        holds = at(middle, -0.5) <= tail_mass
        yes, no = np.where(holds, middle, yes), np.where(holds, no, middle)
    low = yes
    yes, no = np.full(dims, SYMBOL_LIMIT, np.int64), low - 1
    while (yes - no > 1).any():
        middle = (yes + no + 1) >> 1
        holds = at(middle, 0.5) >= 1 - tail_mass
        yes, no = np.where(holds, middle, yes), np.where(holds, no, middle)
    return low, yes


def _smallest_shift(low: NDArray[np.int64], high: NDArray[np.int64], max_size: int) -> NDArray[np.int64]:
    shift = np.zeros(len(low), np.int64)
    while (too_large := (high >> shift) - (low >> shift) + 2 > max_size).any():
        shift += too_large
    return shift


def _with_mass_at(mass: NDArray[np.float64], place: int, wanted: float) -> NDArray[np.float64]:
    others = mass.sum() - mass[place]
    scaled = mass * ((1 - wanted) / others if others > 0 else 0)
    scaled[place] = wanted
    return scaled


def _round_to_counts(mass: NDArray[np.float64]) -> NDArray[np.int64]:
    share = mass / mass.sum() * (COUNT_TOTAL - len(mass))
    counts: NDArray[np.int64] = np.floor(share).astype(np.int64)
    left = COUNT_TOTAL - len(mass) - int(counts.sum())
    # Stable, so that equal remainders go to the lower entry on every machine.
    counts[np.argsort(counts - share, kind="stable")[:left]] += 1
    counts += 1
    return counts
