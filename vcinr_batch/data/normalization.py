"""Physical values <-> the network's values: subtract a stored background, divide by a stored scale.

`value = background(x, time) + scale * normalised`. The background costs the archive nothing per sample, since every
sample's time is known; the VC-INR paper models the values without one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.config import NormalizerConfig
from vcinr_batch.data.axes import Axis
from vcinr_batch.data.background_sums import (
    BackgroundSums,
    add_box,
    always_there,
    backgrounds,
    spread,
    start_sums,
    time_bins,
    usable_samples,
)
from vcinr_batch.data.layout import Layout, block_extent
from vcinr_batch.data.normalizer import Normalizer, normalizer_from_arrays, normalizer_to_arrays
from vcinr_batch.data.shards import Shard, shard_extent
from vcinr_batch.data.sources import FieldSource, read_extent
from vcinr_batch.errors import BundleMismatchError, SourceError
from vcinr_batch.storage import public_url

__all__ = [
    "Normalizer",
    "background_at",
    "check_domain",
    "denormalize",
    "expected_mask",
    "fit_normalizer",
    "normalize",
    "normalizer_from_arrays",
    "normalizer_to_arrays",
    "range_at",
    "scale_at",
]

_DEGREE_TOLERANCE = 1e-4
_LABEL_TOLERANCE = 1e-6
_SLAB_VALUES = 2**22


def fit_normalizer(
    source: FieldSource, layout: Layout, config: NormalizerConfig, shards: Iterable[Shard]
) -> Normalizer:
    """Learn background, scale, range and mask from the samples of some shards, in one pass.

    Samples that would be rejected are left out.

    Args:
        source: where the samples come from.
        layout: how it is cut.
        config: which background, and what it averages over.
        shards: the training shards.

    Raises:
        SourceError: not one usable value in them, or the source cannot be read.
    """
    has_time = any(axis.is_time for axis in layout.axes)
    seasonal = config.background == "climatology" and has_time
    hours, seasons = (config.hours, config.seasons) if seasonal else (1, 1)
    sums = _sum_up(source, layout, config, shards, hours, seasons)
    if sums is None:
        names = ", ".join(public_url(url) for url in source.urls[:3])
        raise SourceError(f"{source.variable} has no usable value in the training samples of {names}")
    without = config.background == "none"
    scale, value_range = spread(sums, around_mean=without)
    return Normalizer(
        variable=source.variable,
        unit=source.unit,
        axes=tuple(layout.axes[k] for k in sums.domain),
        background=None if without else backgrounds(sums, hours, seasons),
        hours=hours,
        seasons=seasons,
        offset=sums.mean,
        scale=scale,
        value_range=value_range,
        mask=None if without else always_there(sums),
    )


def check_domain(normalizer: Normalizer, layout: Layout, unit: str | None = None) -> None:
    """Make sure that a normaliser was learned for this variable and these axes.

    Args:
        normalizer: of a bundle.
        layout: of a source or an archive.
        unit: of the source; not checked where it is None.

    Raises:
        BundleMismatchError: names the variable, unit or axis, what the bundle expects and what came.
    """
    for what, expected, got in (("variable", normalizer.variable, layout.variable), ("unit", normalizer.unit, unit)):
        if got is not None and expected != got:
            raise BundleMismatchError(f"the bundle is for {what} {expected!r}, the source has {got!r}")
    for axis in normalizer.axes:
        k = _place(axis, layout)
        if k is None:
            raise BundleMismatchError(
                f"the bundle needs dimension {axis.name!r}, the source has {', '.join(layout.dims)}"
            )
        if not _same_labels(axis, layout.axes[k]):
            raise BundleMismatchError(
                f"the bundle is for {axis.name} {_extent_text(axis)}, the source has {_extent_text(layout.axes[k])}"
            )


def background_at(normalizer: Normalizer, layout: Layout, blocks: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
    """The background of some blocks, float32 [B, P, 1] in the unit; in the padding that of the nearest point."""
    result = np.full((len(blocks), *layout.block_shape), normalizer.offset, np.float32)
    if normalizer.background is None:
        return result.reshape(len(blocks), -1, 1)
    bins = _block_bins(normalizer, layout, blocks)
    for b, block in enumerate(blocks):
        result[b] = normalizer.background[(bins[b], *_domain_index(normalizer, layout, block))]
    return result.reshape(len(blocks), -1, 1)


def scale_at(normalizer: Normalizer, layout: Layout, blocks: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
    """The scale of some blocks, float32 [B, 1, 1] in the unit."""
    return _per_block(normalizer, layout, blocks, normalizer.scale).reshape(-1, 1, 1)


def range_at(normalizer: Normalizer, layout: Layout, blocks: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
    """The range of the training values that belongs to some blocks, float32 [B] in the unit."""
    return _per_block(normalizer, layout, blocks, normalizer.value_range)


def expected_mask(normalizer: Normalizer, layout: Layout, block: tuple[int, ...]) -> NDArray[np.bool_]:
    """[P], True where a sample is expected to have a value: not in the padding and not where the training had gaps."""
    mask = np.zeros(layout.block_shape, np.bool_)
    mask[tuple(slice(0, part.stop - part.start) for part in block_extent(layout, block))] = True
    if normalizer.mask is not None:
        np.logical_and(mask, normalizer.mask[_domain_index(normalizer, layout, block)], out=mask)
    return mask.reshape(-1)


def normalize(
    values: NDArray[np.float32], background: NDArray[np.float32], scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Values in the unit [B, P, C] to the network's values; background [B, P, 1] and scale [B, 1, 1] as from above."""
    return (values - background) / scale


def denormalize(
    values: NDArray[np.float32], background: NDArray[np.float32], scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Mirror of `normalize`."""
    return values * scale + background


def _sum_up(
    source: FieldSource, layout: Layout, config: NormalizerConfig, shards: Iterable[Shard], hours: int, seasons: int
) -> BackgroundSums | None:
    """None where there was nothing to sum up."""
    time = next((axis for axis in layout.axes if axis.is_time), None)
    bins = None if time is None or hours * seasons == 1 else time_bins(time, np.arange(len(time)), hours, seasons)
    sums: BackgroundSums | None = None
    for shard in shards:
        for part in _slabs(layout, shard):
            extent = shard_extent(layout, part)
            values = read_extent(source, extent)
            usable = usable_samples(values, layout.block_shape)
            seen = values[usable & ~np.isnan(values)]
            if seen.size:
                if sums is None:
                    sums = start_sums(layout, config, hours * seasons, bins, float(seen.mean(dtype=np.float64)))
                add_box(sums, extent, values, usable)
    return sums


def _slabs(layout: Layout, shard: Shard) -> Iterator[Shard]:
    """A shard in slices along its longest axis, so that the sums need little memory beside it."""
    counts = [b - a for a, b in zip(shard.start, shard.stop, strict=True)]
    k = int(np.argmax(counts))
    slab = max(_SLAB_VALUES * counts[k] // (layout.points_per_sample * shard.sample_count), 1)
    for start in range(shard.start[k], shard.stop[k], slab):
        stop = min(start + slab, shard.stop[k])
        yield replace(
            shard,
            start=(*shard.start[:k], start, *shard.start[k + 1 :]),
            stop=(*shard.stop[:k], stop, *shard.stop[k + 1 :]),
        )


def _place(axis: Axis, layout: Layout) -> int | None:
    """Where a domain axis is in a layout: by its name, latitude and longitude also under another name."""
    for k, other in enumerate(layout.axes):
        if other.name == axis.name:
            return k
    for k, other in enumerate(layout.axes):
        if (axis.is_latitude and other.is_latitude) or (axis.is_longitude and other.is_longitude):
            return k
    return None


def _same_labels(expected: Axis, got: Axis) -> bool:
    a, b = expected.values, got.values
    if a.shape != b.shape or (a.dtype.kind == "U") != (b.dtype.kind == "U"):
        return False
    if a.dtype.kind == "U":
        return bool(np.array_equal(a, b))
    difference = np.abs(a.astype(np.float64) - b)
    if expected.is_longitude:
        difference = np.abs(np.mod(a - b + 180.0, 360.0) - 180.0)
    if expected.is_latitude or expected.is_longitude:
        return bool(np.all(difference <= _DEGREE_TOLERANCE))
    return bool(np.all(difference <= _LABEL_TOLERANCE * np.abs(a)))


def _extent_text(axis: Axis) -> str:
    if axis.values.dtype.kind == "U" or len(axis) == 1:
        return ", ".join(str(value) for value in axis.values[:8])
    return f"{axis.values[0]:g} to {axis.values[-1]:g} ({len(axis)} labels)"


def _block_bins(normalizer: Normalizer, layout: Layout, blocks: Sequence[tuple[int, ...]]) -> list[NDArray[np.int64]]:
    """For each block its bins, shaped to broadcast along the block's time axis."""
    k = next((k for k, axis in enumerate(layout.axes) if axis.is_time), None)
    if k is None or normalizer.hours * normalizer.seasons == 1:
        return [np.zeros([1] * len(layout.axes), np.int64)] * len(blocks)
    shape = [-1 if j == k else 1 for j in range(len(layout.axes))]
    places = np.stack([_block_places(layout, k, block[k]) for block in blocks]) if blocks else np.zeros((0, 1), int)
    bins = time_bins(layout.axes[k], places.reshape(-1), normalizer.hours, normalizer.seasons)
    return [row.reshape(shape) for row in bins.reshape(places.shape)]


def _domain_index(normalizer: Normalizer, layout: Layout, block: tuple[int, ...]) -> tuple[NDArray[np.int64], ...]:
    """Index arrays into the domain, that broadcast together to the block's shape (1 along averaged axes)."""
    index = []
    for axis in normalizer.axes:
        k = _place(axis, layout)
        if k is None:
            raise BundleMismatchError(f"the normaliser needs dimension {axis.name!r}, got {', '.join(layout.dims)}")
        shape = [-1 if j == k else 1 for j in range(len(layout.axes))]
        index.append(_block_places(layout, k, block[k]).reshape(shape))
    return tuple(index)


def _block_places(layout: Layout, k: int, i: int) -> NDArray[np.int64]:
    """Places on an axis of a block's points; in the padding that of the last one."""
    length = layout.block_shape[k]
    return np.minimum(np.arange(i * length, (i + 1) * length), len(layout.axes[k]) - 1)


def _per_block(
    normalizer: Normalizer, layout: Layout, blocks: Sequence[tuple[int, ...]], array: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The largest entry that a block touches, of an array with the domain's axes at full length or 1."""
    if array.size == 1:
        return np.full(len(blocks), array.reshape(-1)[0], np.float32)
    result = np.empty(len(blocks), np.float32)
    for b, block in enumerate(blocks):
        index = _domain_index(normalizer, layout, block)
        result[b] = array[tuple(i if n > 1 else i[..., :1] * 0 for i, n in zip(index, array.shape, strict=True))].max()
    return result
