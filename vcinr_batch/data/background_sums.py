"""Streams training samples into the sums that a normaliser is made of, in one pass and float64."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.config import NormalizerConfig
from vcinr_batch.data.axes import Axis
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.times import axis_microseconds, day_and_year_fraction

# A spread below float32's own resolution of the values is none.
_NO_SPREAD = 1e-7


@dataclass(eq=False)
class BackgroundSums:
    """Counts and sums of the samples seen so far; values are taken relative to `shift`, against cancellation."""

    layout: Layout
    domain: tuple[int, ...]
    """Places of the axes that the background distinguishes."""
    bins: NDArray[np.int64] | None
    """For each time label its bin; None where there is one bin or no time."""
    shift: float
    count: NDArray[np.int64]
    """[bins, *domain] values seen."""
    total: NDArray[np.float64]
    """[bins, *domain] their sum."""
    cover: NDArray[np.int64]
    """[*domain] values there would be without gaps."""
    squares: NDArray[np.float64]
    """Sum of squares, one per cell of the scale."""
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def time_axis(self) -> int | None:
        return next((k for k, axis in enumerate(self.layout.axes) if axis.is_time), None)

    @property
    def mean(self) -> float:
        """Of all values."""
        return float(self.total.sum() / self.count.sum()) + self.shift


def start_sums(
    layout: Layout, config: NormalizerConfig, bin_count: int, bins: NDArray[np.int64] | None, shift: float
) -> BackgroundSums:
    """Empty sums; `shift` is any typical value."""
    domain = domain_axes(layout, config)
    shape = tuple(len(layout.axes[k]) for k in domain)
    # A block that spans several levels is normalised by one scale.
    scale_shape = tuple(
        len(layout.axes[k]) if is_level_like(layout.axes[k]) and layout.block_shape[k] == 1 else 1 for k in domain
    )
    return BackgroundSums(
        layout=layout,
        domain=domain,
        bins=bins,
        shift=shift,
        count=np.zeros((bin_count, *shape), np.int64),
        total=np.zeros((bin_count, *shape), np.float64),
        cover=np.zeros(shape, np.int64),
        squares=np.zeros(scale_shape, np.float64),
        low=np.full(scale_shape, np.inf),
        high=np.full(scale_shape, -np.inf),
    )


def add_box(
    sums: BackgroundSums, extent: tuple[slice, ...], values: NDArray[np.float32], usable: NDArray[np.bool_]
) -> None:
    """Add the values of an index range.

    Args:
        sums: to add to.
        extent: the range along every axis.
        values: of that shape, NaN where one is missing.
        usable: False where the sample is rejected, of the same shape.
    """
    there = usable & ~np.isnan(values)
    shifted = np.where(there, values, sums.shift).astype(np.float64) - sums.shift
    cells = tuple(extent[k] for k in sums.domain)
    for bin_, chosen in _by_bin(sums, extent):
        place: tuple[Any, ...] = (bin_, *cells)  # in one index: without a domain, `count[bin_]` is a number
        sums.count[place] += _reduce(there[chosen], sums)
        sums.total[place] += _reduce(shifted[chosen], sums)
    sums.cover[cells] += _reduce(usable, sums)
    _add_spread(sums, shifted, there, cells)


def usable_samples(values: NDArray[np.float32], block_shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """For values that start at a block: False in every block with an infinite value or without any value."""
    infinite, there = np.isinf(values), ~np.isnan(values)
    for k, length in enumerate(block_shape):
        starts = np.arange(0, values.shape[k], length)
        infinite, there = (np.logical_or.reduceat(flags, starts, axis=k) for flags in (infinite, there))
    usable = there & ~infinite
    for k, length in enumerate(block_shape):
        usable = np.repeat(usable, length, axis=k).take(range(values.shape[k]), axis=k)
    return usable


def backgrounds(sums: BackgroundSums, hours: int, seasons: int) -> NDArray[np.float32]:
    """Mean per bin and cell, [bins, *domain].

    An empty bin takes the mean of the same hour, else of the same season, else of the cell, else of everything.
    """
    shape = (seasons, hours, *sums.cover.shape)
    count, total = sums.count.reshape(shape), sums.total.reshape(shape)
    mean = np.full(shape, sums.mean - sums.shift)
    for over in ((0, 1), (1,), (0,), ()):
        n = count.sum(axis=over, keepdims=True)
        of_these = total.sum(axis=over, keepdims=True) / np.maximum(n, 1)
        mean = np.where(n > 0, of_these, mean)
    return (mean + sums.shift).reshape(sums.count.shape).astype(np.float32)


def spread(sums: BackgroundSums, around_mean: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Standard deviation of the anomalies and range of the values, 1 where there is none.

    Args:
        sums: of the training samples.
        around_mean: anomalies from the one mean of everything, else from the mean of each bin and cell.
    """
    count, total = _to_scale(sums, sums.count), _to_scale(sums, sums.total)
    if around_mean:
        centre = sums.mean - sums.shift
        explained = 2 * centre * total - centre**2 * count
    else:
        explained = _to_scale(sums, sums.total**2 / np.maximum(sums.count, 1))
    variance = np.maximum(sums.squares - explained, 0) / np.maximum(count, 1)
    largest = np.maximum(np.abs(sums.low + sums.shift), np.abs(sums.high + sums.shift))
    seen = count > 0
    deviation = np.where(seen & (np.sqrt(variance) > _NO_SPREAD * largest), np.sqrt(variance), 1.0)
    value_range = np.where(seen & (sums.high > sums.low), sums.high - sums.low, 1.0)
    tiny = np.finfo(np.float32).tiny
    return np.maximum(deviation, tiny).astype(np.float32), np.maximum(value_range, tiny).astype(np.float32)


def always_there(sums: BackgroundSums) -> NDArray[np.bool_] | None:
    """[*domain], cells with a value in every sample; None where that is all of them."""
    mask = (sums.count.sum(axis=0) == sums.cover) & (sums.cover > 0)
    return None if mask.all() else mask


def domain_axes(layout: Layout, config: NormalizerConfig) -> tuple[int, ...]:
    """Places of the axes that a background distinguishes; without one, of those that are like a level."""
    return tuple(
        k
        for k, axis in enumerate(layout.axes)
        if not axis.is_time
        and axis.name not in config.average_over
        and (config.background != "none" or is_level_like(axis))
    )


def is_level_like(axis: Axis) -> bool:
    """Neither latitude nor longitude: its labels may differ in scale."""
    return not (axis.is_latitude or axis.is_longitude)


def time_bins(axis: Axis, places: NDArray[np.int64], hours: int, seasons: int) -> NDArray[np.int64]:
    """Climatology bin of some labels of a time axis: hour bin + hours * season bin."""
    calendar = str(axis.attributes.get("calendar", "standard"))
    times = axis_microseconds(axis.values[places], str(axis.attributes["units"]), calendar)
    of_day, of_year = day_and_year_fraction(times, calendar)
    # Both fractions are below 1, but the product may round up to the number of bins.
    hour = np.minimum((of_day * hours).astype(np.int64), hours - 1)
    season = np.minimum((of_year * seasons).astype(np.int64), seasons - 1)
    bins: NDArray[np.int64] = hour + hours * season
    return bins


def _by_bin(sums: BackgroundSums, extent: tuple[slice, ...]) -> list[tuple[int, tuple[Any, ...]]]:
    """For each bin that a block touches, the part of the block in it."""
    k = sums.time_axis
    if sums.bins is None or k is None:
        return [(0, ())]
    bins = sums.bins[extent[k]]
    return [(int(b), (*(slice(None),) * k, np.flatnonzero(bins == b))) for b in np.unique(bins)]


def _reduce(block: NDArray[Any], sums: BackgroundSums) -> Any:
    """Sum over the axes that the background does not distinguish."""
    return block.sum(axis=tuple(k for k in range(block.ndim) if k not in sums.domain))


def _add_spread(
    sums: BackgroundSums, values: NDArray[np.float64], there: NDArray[np.bool_], cells: tuple[slice, ...]
) -> None:
    keep = [k for k, n in zip(sums.domain, sums.squares.shape, strict=True) if n > 1]
    over = tuple(k for k in range(values.ndim) if k not in keep)
    into = tuple(cell if n > 1 else slice(0, 1) for cell, n in zip(cells, sums.squares.shape, strict=True))
    shape = sums.squares[into].shape
    sums.squares[into] += (values**2).sum(axis=over).reshape(shape)
    low = np.where(there, values, np.inf).min(axis=over).reshape(shape)
    high = np.where(there, values, -np.inf).max(axis=over).reshape(shape)
    sums.low[into] = np.minimum(sums.low[into], low)
    sums.high[into] = np.maximum(sums.high[into], high)


def _to_scale(sums: BackgroundSums, array: NDArray[Any]) -> NDArray[np.float64]:
    """Sum [bins, *domain] over the bins and every axis along which the scale does not vary."""
    over = tuple(1 + k for k, n in enumerate(sums.squares.shape) if n == 1)
    summed: NDArray[np.float64] = array.sum(axis=(0, *over), keepdims=True, dtype=np.float64)[0]
    return summed
