"""What the rows of an archive say of themselves: how rates and errors are spread, and how they go along an axis.

Read from the parts' small columns alone; what is kept does not grow with the number of rows.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.parquet_container import PartIndex, read_rejected
from vcinr_batch.data.layout import Axis, Layout
from vcinr_batch.data.normalization import Normalizer
from vcinr_batch.inspection import value_counts

MAX_BINS = 240
"""Most bins along an axis."""
WORST = 4
"""Samples that are shown as maps."""
MAX_REJECTED = 100
"""Rejected samples that are spelt out."""
RECORDED_STEP = 2.0**-7
"""Recorded errors have 8 significant bits: two neighbours differ by this share of them or less."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """How often each value occurs, exactly."""

    values: NDArray[np.float64]
    """Ascending, each once."""
    counts: NDArray[np.int64]

    def histogram(self, step: float, most: int = 48) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Edges [n + 1] and counts [n] of at most about `most` even bins, each as wide as some whole `step`s.

        Values lie on multiples of a step or sparser: bins of broken steps would show a comb that is not in the data.
        """
        low, high = float(self.values[0]), float(self.values[-1])
        width = step * max(1, np.ceil((high - low) / step / most)) if step > 0 else 1.0
        count = int((high - low) / width + 0.5) + 1
        edges = low - step / 2 + width * np.arange(count + 1)
        place = np.clip(((self.values - edges[0]) / width).astype(np.int64), 0, count - 1)
        return edges, np.bincount(place, self.counts, count).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Course:
    """How samples go along one axis, in bins of neighbouring blocks; n bins."""

    axis: Axis
    positions: NDArray[np.float64]
    """[n], the middle of each bin as a position on the axis."""
    samples: NDArray[np.int64]
    """[n], stored ones; 0 where all were rejected."""
    mean_rmse: NDArray[np.float64]
    """[n], NaN where there is no sample, as the rest."""
    largest_rmse: NDArray[np.float64]
    largest_error: NDArray[np.float64]
    bits_per_value: NDArray[np.float64]
    """Of the payloads."""

    @property
    def has_gaps(self) -> bool:
        """Whether all samples of some bin were rejected."""
        return bool((self.samples == 0).any())


@dataclass(frozen=True, order=True)
class WorstSample:
    """A sample with a large error."""

    max_error: float
    block: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Statistics:
    """All that the rows say."""

    payload_bytes: Distribution
    rmse: Distribution
    max_error: Distribution
    quality: Distribution
    course: Course | None
    """Along time, else along the first axis of several blocks; None where there is one block along all of them."""
    worst: tuple[WorstSample, ...]
    """By recorded max error, the largest first."""
    stored_payload_bytes: int


def measure_archive(
    archive: Archive, normalizer: Normalizer, progress: Callable[[int, int], None] | None = None
) -> Statistics:
    """Read the index of every part once.

    Args:
        archive: of at least one row.
        normalizer: of its bundle; knows which values of a sample count.
        progress: called with samples done and samples in all.

    Raises:
        SourceError, BitstreamError, UnsupportedFormatError: a part is missing, damaged or of a later version.
    """
    sums = _Sums(archive.layout, normalizer)
    done, total = 0, archive.layout.sample_count
    for part in archive.manifest.parts:
        sums.add(archive.index(part))
        done += part.sample_count
        if progress:
            progress(done, total)
    return Statistics(
        payload_bytes=sums.payload_bytes.distribution(),
        rmse=sums.rmse.distribution(),
        max_error=sums.max_error.distribution(),
        quality=sums.quality.distribution(),
        course=sums.course(),
        worst=tuple(sums.worst),
        stored_payload_bytes=int(sums.payload.sum()),
    )


def count_reasons(archive: Archive) -> tuple[list[tuple[str, str]], Counter[str]]:
    """Keys and reasons of the first rejected samples, and how often each reason was given.

    Table by table: what is held does not grow with the number of rejected samples.

    Raises:
        SourceError, BitstreamError, UnsupportedFormatError: a table is missing, damaged or of a later version.
    """
    first: list[tuple[str, str]] = []
    reasons: Counter[str] = Counter()
    for part in archive.manifest.parts:
        if part.rejected:
            table = read_rejected(archive.url, part, archive.layout, storage_options=archive.storage_options)
            first += [(str(sample.key), sample.reason) for sample in table[: MAX_REJECTED - len(first)]]
            reasons.update(sample.reason for sample in table)
    return first, reasons


@dataclass
class _Tally:
    counts: Counter[float] = field(default_factory=Counter)

    def add(self, values: NDArray[Any]) -> None:
        found, counts = np.unique(values, return_counts=True)
        for value, count in zip(found.tolist(), counts.tolist(), strict=True):
            self.counts[value] += count

    def distribution(self) -> Distribution:
        values = sorted(self.counts)
        return Distribution(np.array(values, np.float64), np.array([self.counts[v] for v in values], np.int64))


class _Sums:
    """What is added up over the parts."""

    def __init__(self, layout: Layout, normalizer: Normalizer) -> None:
        self._layout, self._normalizer = layout, normalizer
        self._along = _course_dimension(layout)
        blocks = layout.block_counts[self._along] if self._along is not None else 1
        self._blocks, self._bins = blocks, min(blocks, MAX_BINS)
        self.payload_bytes, self.rmse, self.max_error, self.quality = _Tally(), _Tally(), _Tally(), _Tally()
        self.samples, self.values, self.payload = (np.zeros(self._bins, np.int64) for _ in range(3))
        self.rmse_sum, self.largest_rmse, self.largest_error = (np.zeros(self._bins) for _ in range(3))
        self.worst: list[WorstSample] = []

    def add(self, index: PartIndex) -> None:
        if len(index) == 0:
            return
        self.payload_bytes.add(index.payload_bytes)
        self.rmse.add(index.rmse)
        self.max_error.add(index.max_error)
        self.quality.add(index.quality)
        place = self._bin(index.blocks[:, self._along]) if self._along is not None else np.zeros(len(index), np.int64)
        counts = value_counts(index.blocks, index.masks, self._normalizer, self._layout)
        for total, amounts in ((self.values, counts), (self.payload, index.payload_bytes), (self.rmse_sum, index.rmse)):
            np.add.at(total, place, amounts.astype(total.dtype))
        np.add.at(self.samples, place, 1)
        np.maximum.at(self.largest_rmse, place, index.rmse)
        np.maximum.at(self.largest_error, place, index.max_error)
        worst = np.argsort(-index.max_error, kind="stable")[:WORST]
        found = [WorstSample(float(index.max_error[i]), tuple(index.blocks[i].tolist())) for i in worst]
        self.worst = heapq.nlargest(WORST, [*self.worst, *found])

    def course(self) -> Course | None:
        if self._along is None:
            return None
        axis, length = self._layout.axes[self._along], self._layout.block_shape[self._along]
        bin_of_block = self._bin(np.arange(self._blocks))
        middle = np.arange(self._blocks) * length + (length - 1) / 2
        positions = np.bincount(bin_of_block, middle, self._bins) / np.bincount(bin_of_block, minlength=self._bins)
        empty = self.samples == 0
        some = np.maximum(self.samples, 1)
        return Course(
            axis=axis,
            positions=np.minimum(positions, len(axis) - 1),
            samples=self.samples,
            mean_rmse=np.where(empty, np.nan, self.rmse_sum / some),
            largest_rmse=np.where(empty, np.nan, self.largest_rmse),
            largest_error=np.where(empty, np.nan, self.largest_error),
            bits_per_value=np.where(empty, np.nan, 8 * self.payload / np.maximum(self.values, 1)),
        )

    def _bin(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        return blocks.astype(np.int64) * self._bins // self._blocks


def _course_dimension(layout: Layout) -> int | None:
    several = [k for k, count in enumerate(layout.block_counts) if count > 1]
    times = [k for k in several if layout.axes[k].is_time]
    return next(iter(times or several), None)
