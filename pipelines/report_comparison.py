"""Compares all of an archive with its source, over space: decoded in batches, in bounded memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.field_slices import map_dimensions
from vcinr_batch.archive.archive import Archive, Decode
from vcinr_batch.data.layout import Axis, Layout
from vcinr_batch.data.shards import Shard, halves, shard_extent
from vcinr_batch.data.sources import FieldSource, read_extent
from vcinr_batch.errors import DamagedSourceError

BATCH_VALUES = 1 << 22
"""Values decoded at once: 16 MiB of float32, and a few times that while errors are measured."""

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Errors of the decoded bytes against the source, per cell of the grid and in all."""

    axes: tuple[Axis, ...]
    """Of the cells: at most two, the vertical one first."""
    rmse: Array
    """[one dimension per axis], over all samples; NaN where no value was compared, as the rest."""
    max_error: Array
    bias: Array
    """Mean of decoded minus source."""
    values: int
    """Values compared."""
    total_rmse: float
    total_max_error: float
    total_bias: float
    only_archive: int
    """Values of stored samples that the source does not have; 0 where the masks agree."""
    unreadable: int
    """Samples whose bytes in the source are damaged."""


def compare_over_space(
    archive: Archive, source: FieldSource, progress: Callable[[int, int], None] | None = None
) -> Comparison:
    """Decode every sample of an archive and compare it with its source.

    Args:
        archive: open.
        source: with the archive's very axes (`open_matching_source`).
        progress: called with samples done and samples in all.

    Raises:
        SourceError, BitstreamError, UnsupportedFormatError, BundleMismatchError: a file is missing or damaged.
    """
    layout, decode = archive.layout, archive.decoder()
    sums = _Sums(layout)
    done, total = 0, layout.sample_count
    for part in archive.manifest.parts:
        for batch in _batches(Shard(0, part.start, part.stop), layout):
            _add(archive, source, decode, batch, sums)
            done += batch.sample_count
            if progress:
                progress(done, total)
    return sums.comparison()


class _Sums:
    """Per cell, over everything that is not one of the map's dimensions."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        # Cells lie in what a sample spans; without such a dimension there is one cell.
        spanned = [k for k, length in enumerate(layout.block_shape) if length > 1]
        chosen = map_dimensions([layout.axes[k] for k in spanned])
        self.kept = [spanned[k] for k in chosen]
        shape = [len(layout.axes[k]) for k in self.kept]
        self.count = np.zeros(shape, np.int64)
        self.error, self.square, self.largest = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.only_archive = self.unreadable = 0

    def add(self, extent: tuple[slice, ...], difference: Array) -> None:
        """Add the errors of a piece [one dimension per axis], NaN where there is none."""
        others = tuple(k for k in range(difference.ndim) if k not in self.kept)
        ranks = np.argsort(np.argsort(self.kept)).tolist()
        cells = tuple(extent[k] for k in self.kept)
        there = np.isfinite(difference)
        error = np.where(there, difference, 0.0)
        self.count[cells] += there.sum(axis=others).transpose(ranks)
        self.error[cells] += error.sum(axis=others).transpose(ranks)
        self.square[cells] += np.square(error).sum(axis=others).transpose(ranks)
        largest = np.abs(error).max(axis=others).transpose(ranks)
        self.largest[cells] = np.maximum(self.largest[cells], largest)

    def comparison(self) -> Comparison:
        some, none = np.maximum(self.count, 1), self.count == 0
        values = int(self.count.sum())
        return Comparison(
            axes=tuple(self.layout.axes[k] for k in self.kept),
            rmse=np.where(none, np.nan, np.sqrt(self.square / some)),
            max_error=np.where(none, np.nan, self.largest),
            bias=np.where(none, np.nan, self.error / some),
            values=values,
            total_rmse=float(np.sqrt(self.square.sum() / max(values, 1))),
            total_max_error=float(self.largest.max()),
            total_bias=float(self.error.sum() / max(values, 1)),
            only_archive=self.only_archive,
            unreadable=self.unreadable,
        )


def _batches(shard: Shard, layout: Layout) -> Iterator[Shard]:
    """A shard cut into boxes of blocks that are small enough."""
    if shard.sample_count <= 1 or shard.sample_count * layout.points_per_sample <= BATCH_VALUES:
        yield shard
        return
    for half in halves(shard):
        yield from _batches(half, layout)


def _add(archive: Archive, source: FieldSource, decode: Decode, batch: Shard, sums: _Sums) -> None:
    extent = shard_extent(archive.layout, batch)
    try:
        original = read_extent(source, extent)
    except DamagedSourceError:
        if batch.sample_count == 1:
            sums.unreadable += 1
            return
        for half in halves(batch):
            _add(archive, source, decode, half, sums)
        return
    decoded = archive.values([np.arange(part.start, part.stop) for part in extent], decode)[..., 0]
    sums.only_archive += int((np.isnan(original) & ~np.isnan(decoded)).sum())
    # What was rejected is NaN in `decoded`; what is infinite in the source was rejected.
    sums.add(extent, decoded.astype(np.float64) - original)
