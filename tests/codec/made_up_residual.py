"""Residual models and entropy tables with arbitrary but valid contents."""

import numpy as np

from vcinr_batch.codec.entropy_model import LEVEL_OFFSETS, FrozenTables
from vcinr_batch.codec.residual_model import CDF_SIZE, CDF_TOTAL, CONTEXT_SIZE, NO_LOCAL, OVERALL_SIZE, ResidualModel

TAPS = ((0, 0, -1), (0, -1, 0), (0, -1, 1), (0, -4, -4), (0, 0, -4), (0, -4, 4), (-1, 0, 0), (-4, 4, 4))


def make_tables(rng: np.random.Generator, levels: int = 3, dims: int = 7) -> FrozenTables:
    """Tables of 2 to 128 entries, with low bits, so that every part of a payload is there."""
    size = rng.integers(2, 129, (levels, dims)).astype(np.uint16)
    counts = []
    for entries in size.ravel().tolist():
        share = 1 + np.floor(rng.dirichlet(np.full(entries, 0.2)) * (65536 - entries)).astype(np.int64)
        share[rng.integers(entries)] += 65536 - share.sum()
        counts.append(share)
    offsets = np.full((levels, len(LEVEL_OFFSETS)), 13107, np.uint16)
    offsets[:, 0] += 1
    return FrozenTables(
        steps=2.0 ** -np.arange(levels),
        shift=rng.integers(0, 31, (levels, dims)).astype(np.uint8),
        first=rng.integers(-60, 10, (levels, dims)).astype(np.int32),
        size=size,
        counts=np.concatenate(counts).astype(np.uint16),
        offset_counts=offsets,
    )


def make_symbols(rng: np.random.Generator, count: int, dims: int) -> np.ndarray:
    """int32 [count, dims] of all magnitudes."""
    wild = rng.standard_cauchy((count, dims)) * 10.0 ** rng.uniform(0, 9, (count, 1))
    return wild.clip(-(2**31), 2**31 - 1).astype(np.int32)


def make_arrays(rng: np.random.Generator, points: int, levels: int = 3) -> dict[str, np.ndarray]:
    """Arrays of a model with two sets, the second with local weights."""
    taps = np.array(TAPS, np.int8)
    rise = np.sort(rng.integers(CDF_TOTAL // 2, CDF_TOTAL + 1, (2, CDF_SIZE)), axis=1)
    rise[:, 0] = CDF_TOTAL // 2
    return {
        "first_step": np.array([-8], np.int32),
        "sets": rng.integers(0, 2, (levels, 4)).astype(np.uint8),
        "level_shift": rng.integers(-20, 20, levels).astype(np.int8),
        "set_scale": np.array([0, 1], np.uint8),
        "set_local": np.array([NO_LOCAL, 0], np.uint8),
        "taps": taps,
        "spread": np.array([20, 20, 4, 4, 4, 4, 4, 4], np.uint8),
        "weights": rng.integers(-300, 300, (2, len(taps))).astype(np.int16),
        "local": rng.integers(-300, 300, (1, points, len(taps))).astype(np.int16),
        "scale": rng.integers(0, 256, (2, points)).astype(np.uint8),
        "scale_step": np.array([0, 12], np.int32),
        "context": rng.integers(-40, 41, (2, CONTEXT_SIZE, OVERALL_SIZE)).astype(np.int8),
        "cdf": rise.astype(np.uint32),
    }


def make_model(rng: np.random.Generator, points: int) -> ResidualModel:
    return ResidualModel(**make_arrays(rng, points))
