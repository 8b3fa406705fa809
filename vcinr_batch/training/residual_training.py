"""Learns the residual model: prediction weights, scale maps and distributions for every base level and step.

Two regimes take turns as the bound gets tighter. A fine base leaves residuals that are mostly zero and white: they need
scales. A coarse base leaves smooth ones, and prediction with weights of their own at every point: they need those.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.codec.residual_model import NO_LOCAL, ResidualModel, block_shape, step_index
from vcinr_batch.errors import ConfigError
from vcinr_batch.training.residual_prediction import (
    Moments,
    common_weights,
    local_weights,
    moments,
    prediction_error,
    to_fixed,
)
from vcinr_batch.training.residual_statistics import SetStatistics, fit_set, scale_map

Array = NDArray[np.float64]

MAX_TRAINING_POINTS = 800_000
"""Samples are thinned out evenly to this many points for each set."""
_OCTAVES = 13
"""Steps from four times the spread of the fields down; finer ones take the last set, shifted."""
_FINE_RATIOS = (0.7, 12.0)
"""Steps over the level's rms error that sets for fine bases are made for."""
_LOCAL_OCTAVES = (2, 5)
"""Columns of local weights: for steps so many octaves below the anchor's rms error."""
_REACH = 4
_TAPS_IN_PLANE, _TAPS_BEFORE = 24, 5
_SPREAD = {(0, -1): 14, (-1, 0): 14, (-1, -1): 8, (-1, 1): 8, (0, -2): 6, (-2, 0): 6, (-1, -2): 4, (-1, 2): 4}


def train_residual(
    values: NDArray[np.float32],
    decoded: Callable[[int], NDArray[np.float32]],
    base_bits: Array,
    valid: NDArray[np.bool_],
    shape: tuple[int, ...],
) -> ResidualModel:
    """Learn how residuals against the decoded base are distributed.

    Args:
        values: [N, P], network units.
        decoded: level -> the same fields decoded from it, [N, P]; best from a codec that has not seen them.
        base_bits: [Q], bits per value of each level.
        valid: [P], points that take part.
        shape: of a sample, with P points.

    Raises:
        ConfigError: shapes that do not agree.
    """
    if values.ndim != 2 or valid.shape != values.shape[1:] or np.prod(shape) != values.shape[1] or not len(base_bits):
        raise ConfigError(f"values {values.shape}, valid {valid.shape}, shape {shape}: expected [N, P], [P], P points")
    return _Trainer(values, decoded, base_bits, valid, block_shape(shape)).train()


def neighbour_taps(block: tuple[int, int, int]) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Taps [T, 3] that fit into a block, nearest first, and their spread [T]."""
    reach = range(-_REACH, _REACH + 1)
    plane = [(0, row, column) for row in range(-_REACH, 1) for column in reach if (row, column) < (0, 0)]
    before = [(-1, row, column) for row in reach for column in reach]
    taps = [tap for tap in plane if _inside(tap, block)]
    taps = sorted(taps, key=_distance)[:_TAPS_IN_PLANE]
    taps += sorted((tap for tap in before if _inside(tap, block)), key=_distance)[:_TAPS_BEFORE]
    taps = taps or [(0, 0, -1)]
    share = np.array([_SPREAD.get(tap[1:], 0) if tap[0] == 0 else 20 * (tap == (-1, 0, 0)) for tap in taps], float)
    share = share if share.any() else np.ones(len(taps))
    spread = np.floor(64 * share / share.sum()).astype(np.uint8)
    spread[0] += 64 - int(spread.sum())
    return np.array(taps, np.int8), spread


def _inside(tap: tuple[int, int, int], block: tuple[int, int, int]) -> bool:
    return all(abs(offset) < length for offset, length in zip(tap, block, strict=True))


def _distance(tap: tuple[int, int, int]) -> tuple[float, tuple[int, int, int]]:
    return tap[1] ** 2 + tap[2] ** 2 + 0.1 * (tap[2] > 0), tap


@dataclass
class _Trainer:
    values: NDArray[np.float32]
    decoded: Callable[[int], NDArray[np.float32]]
    base_bits: Array
    valid: NDArray[np.bool_]
    block: tuple[int, int, int]
    weights: list[NDArray[np.int16]] = field(default_factory=list)
    locals: list[NDArray[np.int16]] = field(default_factory=list)
    scales: list[NDArray[np.uint8]] = field(default_factory=list)
    statistics: list[SetStatistics] = field(default_factory=list)
    scale_steps: list[int] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    """Scale map and local weights of each set."""

    def train(self) -> ResidualModel:
        self.taps, self.spread = neighbour_taps(self.block)
        count = max(8, MAX_TRAINING_POINTS // self.values.shape[1])
        self.kept = np.unique(np.linspace(0, len(self.values) - 1, count).astype(int))
        rms = np.array([self._rms(q) for q in range(len(self.base_bits))])
        rms = np.maximum(rms, 1e-6 * max(rms[0], 1e-20))
        octave = np.floor(np.log2(rms[0] / rms) + 0.25).astype(int)
        groups = [np.flatnonzero(octave == o) for o in np.unique(octave)]
        chosen = [int(group[len(group) // 2]) for group in groups]
        first = step_index(float(rms[0])) + 32 - 16 * (_OCTAVES - 1)
        sets = np.zeros((len(rms), _OCTAVES), np.uint8)
        level_shift = np.zeros(len(rms), np.int8)
        data = [self._residual(q) for q in chosen]
        known = [moments(e, self.valid, self.taps, self.block) for e in data]
        anchor = self._anchor(chosen, known)
        for g, group in enumerate(groups):
            level_shift[group] = np.clip(np.rint(16 * np.log2(rms[group] / rms[chosen[g]])), -100, 100)
            columns = self._fine_sets(first, rms[chosen[g]], data[g], known[g])
            if g == anchor:
                columns |= self._local_sets(first, rms[chosen[g]], data[g], known[g])
            for n in range(_OCTAVES):
                sets[group, n] = columns[min(columns, key=lambda m: abs(m - n))]
        maps, matrices = zip(*self.places, strict=True)
        points, taps = self.values.shape[1], len(self.taps)
        return ResidualModel(
            first_step=np.array([first], np.int32),
            sets=sets,
            level_shift=level_shift,
            set_scale=np.array(maps, np.uint8),
            set_local=np.array(matrices, np.uint8),
            taps=self.taps,
            spread=self.spread,
            weights=np.stack(self.weights),
            local=np.stack(self.locals) if self.locals else np.zeros((0, points, taps), np.int16),
            scale=np.stack(self.scales),
            scale_step=np.array(self.scale_steps, np.int32),
            context=np.stack([item.context for item in self.statistics]),
            cdf=np.stack([item.cdf for item in self.statistics]),
        )

    def _residual(self, quality: int) -> Array:
        difference = self.values[self.kept] - self.decoded(quality)[self.kept]
        residual: Array = (difference * self.valid).astype(np.float64)
        return residual

    def _rms(self, quality: int) -> float:
        residual = self._residual(quality)[:, self.valid]
        return float(np.sqrt(np.mean(residual**2))) if residual.size else 1.0

    def _anchor(self, chosen: list[int], known: list[Moments]) -> int:
        """Of which group a field is coded in the fewest bits when the step is small."""
        costs = []
        for level, item in zip(chosen, known, strict=True):
            weights = local_weights(item, self.noise_floor(known[0]), 1e-4)
            error = prediction_error(item, weights, self.noise_floor(known[0]))
            costs.append(float(self.base_bits[level]) + 0.5 * float(np.log2(error[self.valid]).sum()) / error.size)
        return int(np.argmin(costs))

    def noise_floor(self, item: Moments) -> float:
        """Variance of rounding at the steps that local weights are for: 2^-8 of the fields' spread."""
        return float(item.variance.mean()) * 2.0**-16 / 12

    def _fine_sets(self, first: int, rms: float, residual: Array, known: Moments) -> dict[int, int]:
        """Column of `sets` -> set, for steps of about the size of the residual; one scale map for all."""
        columns = [n for n in range(_OCTAVES) if _FINE_RATIOS[0] <= _step_of(first, n) / rms <= _FINE_RATIOS[1]]
        columns = columns or [_nearest_column(first, 3 * rms)]
        middle = columns[len(columns) // 2]
        found: dict[int, int] = {}
        shared: int | None = None
        for n in sorted(columns, key=lambda m: abs(m - middle)):
            step = _step_of(first, n)
            weights = to_fixed(known, common_weights(known, step**2 / 12), step**2 / 12)
            found[n] = self._add_set(first, n, residual, weights, None, shared)
            shared = self.places[found[n]][0]
        return found

    def _local_sets(self, first: int, rms: float, residual: Array, known: Moments) -> dict[int, int]:
        """Column of `sets` -> set, for steps below the residual, predicted with weights of each point's own."""
        found: dict[int, int] = {}
        matrices: dict[int, int] = {}
        for n in range(_OCTAVES):
            step = _step_of(first, n)
            if step > rms:
                continue
            below = min(_LOCAL_OCTAVES, key=lambda o: abs(o - np.log2(rms / step)))
            if below not in matrices:
                noise = (rms * 2.0**-below) ** 2 / 12
                matrices[below] = len(self.locals)
                self.locals.append(to_fixed(known, self._best_local(residual, known, noise), noise))
            weights = to_fixed(known, common_weights(known, step**2 / 12), step**2 / 12)
            found[n] = self._add_set(first, n, residual, weights, matrices[below], None)
        return found

    def _best_local(self, residual: Array, known: Moments, noise: float) -> Array:
        """As far from the common weights as held-out samples confirm."""
        half = len(residual) * 3 // 4
        if half < 4:
            return np.broadcast_to(common_weights(known, noise), known.cross.shape).copy()
        part = moments(residual[:half], self.valid, self.taps, self.block)
        rest = moments(residual[half:], self.valid, self.taps, self.block)
        trials = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e4)
        costs = []
        for ridge in trials:
            error = prediction_error(rest, local_weights(part, noise, ridge), noise)
            costs.append(float(np.log2(error[self.valid]).sum()))
        return local_weights(known, noise, trials[int(np.argmin(costs))])

    def _add_set(
        self,
        first: int,
        column: int,
        residual: Array,
        weights: NDArray[np.int16],
        local: int | None,
        shared: int | None,
    ) -> int:
        """Number of a new set, with scale map `shared` or one of its own."""
        index = first + 16 * column + 8
        integers = np.clip(np.rint(residual / _step_of(first, column)), -(2**30), 2**30).astype(np.int32)
        used = weights if local is None else self.locals[local]
        if shared is None:
            shared = len(self.scales)
            self.scales.append(scale_map(integers, self.valid, used, self.taps, self.spread, self.block))
            self.scale_steps.append(index)
        scale = np.clip(self.scales[shared].astype(np.int64) + self.scale_steps[shared] - index, 0, 255)
        self.statistics.append(
            fit_set(integers, self.valid, used, self.taps, self.spread, self.block, scale.astype(np.uint8))
        )
        self.weights.append(weights[0])
        self.places.append((shared, NO_LOCAL if local is None else local))
        return len(self.places) - 1


def _step_of(first: int, column: int) -> float:
    return float(2.0 ** ((first + 16 * column + 8.5) / 16))


def _nearest_column(first: int, step: float) -> int:
    return min(range(_OCTAVES), key=lambda n: abs(np.log2(_step_of(first, n) / step)))
