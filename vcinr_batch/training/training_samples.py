"""Reads the samples that training sees: normalised, in memory, the last of them kept for validation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.config import MetaLearningConfig
from vcinr_batch.data.coordinates import Grid
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.normalization import Normalizer, background_at, normalize, range_at, scale_at
from vcinr_batch.data.samples import Sample, rejection_reason
from vcinr_batch.data.shards import Shard, iter_samples
from vcinr_batch.data.sources import FieldSource
from vcinr_batch.errors import SourceError
from vcinr_batch.training.worker_group import ALONE, WorkerGroup, gather, gather_rows, on_every, own_slice

_ROUNDING = 4 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True, eq=False)
class TrainingSamples:
    """All training samples in memory, normalised."""

    normalized: NDArray[np.float32]
    """[N, P, C], zero outside each sample's mask: a missing value is as good as the background."""
    valid: NDArray[np.bool_]
    """[P], points that hold a value in at least one sample."""
    validation: NDArray[np.bool_]
    """[N], samples kept for validation."""
    value_range: float
    """Mean over samples of the value range in network units."""


@dataclass(frozen=True, eq=False)
class _Piece:
    """What one worker has read."""

    normalized: NDArray[np.float32]
    valid: NDArray[np.bool_]
    blocks: list[tuple[int, ...]]
    ranges: list[NDArray[np.float32]]
    varies: bool


def load_training_samples(
    source: FieldSource,
    layout: Layout,
    grid: Grid,
    normalizer: Normalizer,
    shards: Sequence[Shard],
    config: MetaLearningConfig,
    group: WorkerGroup = ALONE,
) -> TrainingSamples:
    """Read and normalise every usable sample; the last along the first axis are marked for validation.

    Each worker of a group reads its part of the shards; then all have all samples, since a random batch may need any
    of them. The result does not depend on the number of workers.

    Raises:
        SourceError: fewer than two usable samples, or they all are their background.
    """
    mine = shards[own_slice(group, len(shards))]
    wanted = _wanted(shards, config)
    piece = on_every(group, lambda: _read_piece(source, layout, grid, normalizer, mine, wanted))
    normalized = gather_rows(group, piece.normalized)
    others = gather(group, (piece.valid, piece.blocks, piece.ranges, piece.varies))
    blocks = [block for other in others for block in other[1]]
    if len(blocks) < 2:
        raise SourceError(f"{source.variable}: training needs at least 2 usable samples, found {len(blocks)}")
    if not any(other[3] for other in others):
        raise SourceError(f"{source.variable} does not vary: all {len(blocks)} samples are their background everywhere")
    held_back = _last_share(np.array(blocks), layout, config.validation_share)
    valid: NDArray[np.bool_] = np.any([other[0] for other in others], axis=0)
    ranges = np.concatenate([part for other in others for part in other[2]])
    return TrainingSamples(normalized, valid, held_back, float(ranges.mean()))


def _wanted(shards: Sequence[Shard], config: MetaLearningConfig) -> dict[int, NDArray[np.int64]] | None:
    """By shard, the places of the samples to take; None where that is all of them.

    Drawn at random: every k-th sample of an hourly series may be the same hour of the day.
    """
    counts = [shard.sample_count for shard in shards]
    total = sum(counts)
    if config.max_samples is None or config.max_samples >= total:
        return None
    chosen = np.sort(np.random.default_rng(config.seed).choice(total, config.max_samples, replace=False))
    stops = np.cumsum(counts)
    bounds = np.searchsorted(chosen, stops)
    parts = np.split(chosen, bounds[:-1])
    pairs = zip(shards, parts, stops - counts, strict=True)
    return {shard.index: part - start for shard, part, start in pairs}


def _read_piece(
    source: FieldSource,
    layout: Layout,
    grid: Grid,
    normalizer: Normalizer,
    shards: Sequence[Shard],
    wanted: dict[int, NDArray[np.int64]] | None,
) -> _Piece:
    normalized: list[NDArray[np.float32]] = []
    valid, varies = np.zeros(layout.points_per_sample, bool), False
    blocks: list[tuple[int, ...]] = []
    ranges: list[NDArray[np.float32]] = []
    for shard in shards:
        usable = _usable_samples(source, layout, grid, shard, None if wanted is None else wanted[shard.index])
        if not usable:
            continue
        index = [sample.block for sample in usable]
        mask = np.stack([_mask(sample) for sample in usable])
        scale = scale_at(normalizer, layout, index)
        values, background = np.stack([sample.values for sample in usable]), background_at(normalizer, layout, index)
        varies = varies or bool(
            np.any(mask[..., None] & (np.abs(values - background) > _ROUNDING * np.abs(background)))
        )
        normalized.append(np.where(mask[..., None], normalize(values, background, scale), np.float32(0)))
        valid |= mask.any(axis=0)
        blocks += index
        ranges.append(range_at(normalizer, layout, index) / scale[:, 0, 0])
    shape = (0, layout.points_per_sample, layout.channels)
    every = np.concatenate(normalized) if normalized else np.zeros(shape, np.float32)
    return _Piece(every, valid, blocks, ranges, varies)


def _usable_samples(
    source: FieldSource, layout: Layout, grid: Grid, shard: Shard, places: NDArray[np.int64] | None
) -> list[Sample]:
    if places is not None and not len(places):
        return []  # nothing of this shard is wanted: it is not read
    taken = None if places is None else set(places.tolist())
    return [
        sample
        for place, sample in enumerate(iter_samples(source, layout, grid, shard))
        if (taken is None or place in taken) and rejection_reason(sample) is None
    ]


def _last_share(blocks: NDArray[np.int64], layout: Layout, share: float) -> NDArray[np.bool_]:
    """Samples in the last share of the time axis, so that no held-back hour has its neighbours in training.

    At least one sample is held back and at least one is not.
    """
    times = (i for i, axis in enumerate(layout.axes) if axis.is_time and len(np.unique(blocks[:, i])) > 1)
    column = next(times, None)
    order = blocks[:, column] if column is not None else np.arange(len(blocks))
    labels = np.unique(order)
    first = labels[min(len(labels) - 1, max(1, round(len(labels) * (1 - share))))]
    held_back: NDArray[np.bool_] = order >= first
    return held_back


def _mask(sample: Sample) -> NDArray[np.bool_]:
    return np.ones(len(sample.values), bool) if sample.mask is None else sample.mask
