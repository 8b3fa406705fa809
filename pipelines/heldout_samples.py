"""The samples that `evaluate` compares codecs on, in memory, and the training samples of the codecs that learn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray
from numpy.typing import NDArray

from vcinr_batch.bundle import Bundle
from vcinr_batch.compression import check_layout
from vcinr_batch.config import SourceConfig
from vcinr_batch.data.axes import take_labels
from vcinr_batch.data.layout import Layout, axis_variable, block_extent, sample_key
from vcinr_batch.data.normalization import background_at, range_at, scale_at
from vcinr_batch.data.samples import Sample, rejection_reason
from vcinr_batch.data.shards import iter_samples, make_layout, plan_shards, shard_blocks
from vcinr_batch.data.sources import FieldSource, open_fields, read_extent
from vcinr_batch.errors import ConfigError, SourceError
from vcinr_batch.training.training_samples import TrainingSamples, load_training_samples

MAX_TRAINING_SAMPLES = 5000
"""The baselines that learn take at most this many, drawn at random: they are held in memory, as float64 for a while."""
SMOOTHING_PASSES = 30

Fields = NDArray[np.float32]
Block = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """N samples side by side, as fields of the shape that codecs get: planes x rows x columns, or rows x columns."""

    blocks: tuple[Block, ...]
    values: Fields
    """[N, *shape] in the unit of the variable; smoothly filled where there is no value."""
    masks: NDArray[np.bool_]
    """[N, *shape], True where there is a value. Only there is an error measured."""
    anomalies: Fields
    """[N, *shape], values less the bundle's background; smoothly filled by themselves."""
    background: Fields
    """[N, *shape], the bundle's."""
    scale: NDArray[np.float32]
    """[N], the bundle's, in the unit."""
    value_range: NDArray[np.float64]
    """[N], of the training values in the unit: what a PSNR and a share of the range refer to."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one field."""
        return self.values.shape[1:]

    @property
    def value_count(self) -> int:
        """Values inside the masks."""
        return int(self.masks.sum())


def open_matching(
    sources: Sequence[str],
    bundle: Bundle,
    select: Mapping[str, str],
    variable: str | None,
    member_pattern: str | None,
    storage_options: Mapping[str, Any] | None,
) -> tuple[FieldSource, Layout]:
    """A source cut as the bundle cuts it.

    Raises:
        SourceError, ConfigError, SampleNotFoundError: as `open_fields`.
        BundleMismatchError: the bundle is for another variable, unit or grid.
    """
    config = SourceConfig(variable=variable or bundle.variable, select=dict(select), member_pattern=member_pattern)
    source = open_fields(tuple(sources), config, storage_options)
    layout = make_layout(source, bundle.config.sample)
    check_layout(bundle, layout, source.unit)
    return source, layout


def write_spread_samples(source: FieldSource, layout: Layout, bundle: Bundle, max_samples: int, path: str) -> None:
    """Copy evenly spread blocks, at most about that many samples, into a Zarr store: what is compressed in their stead.

    Blocks are left out along one axis, time or members, so that what stays is a source again and the bundle's place in
    space; where one slice across that axis has more samples than asked for, a single slice stays.
    """
    fixed = {axis.name for axis in bundle.normalizer.axes}
    counts = [1 if dim in fixed else count for dim, count in zip(layout.dims, layout.block_counts, strict=True)]
    k = int(np.argmax(counts))
    along = counts[k]
    keep = max(1, min(along, max_samples * along // layout.sample_count))
    chosen = np.unique(np.linspace(0, along - 1, keep).round().astype(np.int64))
    slices = [_slice_across(layout, k, int(i)) if along > 1 else _whole(layout) for i in chosen]
    values = np.concatenate([read_extent(source, extent) for extent in slices], axis=k)
    positions = np.concatenate([np.arange(extent[k].start, extent[k].stop) for extent in slices])
    # Canonical labels for values in canonical order.
    axes = [replace(axis, source_values=None) for axis in layout.axes]
    axes[k] = take_labels(axes[k], positions)[0]
    dataset = xarray.Dataset(
        {source.variable: (layout.dims, values, {"units": source.unit} if source.unit else {})},
        {axis.name: axis_variable(axis) for axis in axes},
    )
    dataset.to_zarr(path, zarr_format=3, consolidated=False)


def load_held_out(source: FieldSource, layout: Layout, bundle: Bundle) -> tuple[HeldOut, int]:
    """Read all samples that can be compressed, and how many cannot.

    Raises:
        SourceError: there is none, or the source cannot be read.
    """
    samples, rejected = list[Sample](), 0
    first = ""
    for shard in plan_shards(layout, bundle.config.sample.shard_samples, source.chunk_shape):
        for sample in iter_samples(source, layout, bundle.grid, shard):
            reason = rejection_reason(sample)
            if reason is None:
                samples.append(sample)
            else:
                first = first or f"{sample.key}: {reason}"
                rejected += 1
    if not samples:
        raise SourceError(f"{source.variable}: all {rejected} samples would be rejected, the first is {first}")
    return _side_by_side(samples, layout, bundle), rejected


def load_training(source: FieldSource, layout: Layout, bundle: Bundle) -> TrainingSamples:
    """Training samples of the codecs that learn, normalised by the bundle.

    Raises:
        SourceError: fewer than two usable samples, or they all are their background.
    """
    config = bundle.config.meta_learning
    limit = min(config.max_samples or MAX_TRAINING_SAMPLES, MAX_TRAINING_SAMPLES)
    shards = plan_shards(layout, bundle.config.sample.shard_samples, source.chunk_shape)
    capped = config.model_copy(update={"max_samples": limit})
    return load_training_samples(source, layout, bundle.grid, bundle.normalizer, shards, capped)


def check_disjoint(test: tuple[FieldSource, Layout], train: tuple[FieldSource, Layout]) -> None:
    """Make sure that what is judged was not learned from.

    Raises:
        ConfigError: a sample of a file that both read is in both selections.
    """
    if not {file.url for file in test[0].files} & {file.url for file in train[0].files}:
        return
    known, tested = _keys(train[1]), _keys(test[1])
    both = [key for key in tested if key in known]
    if both:
        raise ConfigError(
            f"{len(both)} of the {len(tested)} samples to be evaluated, the first is {both[0]}, are among the training "
            "samples; --select and --train-select must not overlap"
        )


def fill_smoothly(values: Fields, masks: NDArray[np.bool_]) -> Fields:
    """Fields [N, *shape] with values everywhere: those outside the masks spread from the nearest ones, then smoothed.

    A field codec pays for edges: without values it is given what costs it little.
    """
    if masks.all():
        return values
    filled, known = np.where(masks, values, np.float32(0)), masks.copy()
    while not known.all():
        total, count = (
            _neighbour_sums(np.where(known, filled, np.float32(0))),
            _neighbour_sums(known.astype(np.float32)),
        )
        reached = ~known & (count > 0)
        if not reached.any():  # a plane without any value
            filled = np.where(known, filled, _sample_means(filled, known))
            break
        filled[reached] = (total / np.maximum(count, 1))[reached]
        known |= reached
    neighbours = _neighbour_sums(np.ones_like(filled))
    for _ in range(SMOOTHING_PASSES):
        filled = np.where(masks, values, _neighbour_sums(filled) / neighbours)
    return filled.astype(np.float32)


def _side_by_side(samples: Sequence[Sample], layout: Layout, bundle: Bundle) -> HeldOut:
    blocks = [sample.block for sample in samples]
    shape = (len(samples), *_field_shape(layout))
    full = np.ones(layout.points_per_sample, bool)
    masks = np.stack([full if sample.mask is None else sample.mask for sample in samples]).reshape(shape)
    values = np.stack([sample.values for sample in samples]).reshape(shape)
    background = background_at(bundle.normalizer, layout, blocks).reshape(shape)
    return HeldOut(
        blocks=tuple(blocks),
        values=fill_smoothly(values, masks),
        masks=masks,
        # Not the filled values less the background, which may jump where it has never seen a value.
        anomalies=fill_smoothly(values - background, masks),
        background=background,
        scale=scale_at(bundle.normalizer, layout, blocks).reshape(-1),
        value_range=range_at(bundle.normalizer, layout, blocks).astype(np.float64),
    )


def _field_shape(layout: Layout) -> tuple[int, ...]:
    """Two or three dimensions: those longer than 1, all in front of the last two merged."""
    long = [1, 1, *(n for n in layout.block_shape if n > 1)]
    planes = int(np.prod(long[:-2]))
    return (planes, *long[-2:]) if planes > 1 else (long[-2], long[-1])


def _slice_across(layout: Layout, k: int, i: int) -> tuple[slice, ...]:
    """All of the layout, but along axis k block i only."""
    whole = _whole(layout)
    block = block_extent(layout, tuple(i if j == k else 0 for j in range(len(whole))))
    return tuple(block[j] if j == k else part for j, part in enumerate(whole))


def _whole(layout: Layout) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in layout.shape)


def _keys(layout: Layout) -> dict[str, None]:
    shards = plan_shards(layout, layout.sample_count, layout.shape)
    return {str(sample_key(layout, block)): None for shard in shards for block in shard_blocks(shard)}


def _neighbour_sums(fields: Fields) -> Fields:
    """Sums of the four neighbours in the last two dimensions; fewer at the edges."""
    total = np.zeros_like(fields)
    total[..., 1:, :] += fields[..., :-1, :]
    total[..., :-1, :] += fields[..., 1:, :]
    total[..., 1:] += fields[..., :-1]
    total[..., :-1] += fields[..., 1:]
    return total


def _sample_means(fields: Fields, known: NDArray[np.bool_]) -> Fields:
    axes = tuple(range(1, fields.ndim))
    total = np.where(known, fields, 0).sum(axis=axes, keepdims=True)
    mean: Fields = (total / np.maximum(known.sum(axis=axes, keepdims=True), 1)).astype(np.float32)
    return mean
