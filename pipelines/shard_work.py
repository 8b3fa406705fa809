"""One shard on its way into an archive in three stages: read (waits for the store), compress (computes), write (waits).

A retry of any stage repeats its own work and writes the same bytes to the same place.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.compress_plan import CompressPlan
from vcinr_batch.archive.manifest import ArchivePart
from vcinr_batch.archive.parquet_container import content_path, write_part
from vcinr_batch.archive.rows import ArchiveRow
from vcinr_batch.bundle import load_bundle
from vcinr_batch.compression import OpenBundle, compress_samples, one_thread, open_bundle
from vcinr_batch.data.layout import BATCH_VALUES, sample_key
from vcinr_batch.data.samples import RejectedSample, Sample
from vcinr_batch.data.shards import Shard, halves, iter_samples, shard_name
from vcinr_batch.errors import DamagedSourceError
from vcinr_batch.inspection import RowFigures, measure_rows

REJECTED_EXAMPLES = 8
"""Rejected samples that a report spells out; the archive lists them all."""

_opened: dict[str, OpenBundle] = {}
_opening = threading.Lock()


@dataclass(frozen=True, eq=False)
class ShardSamples:
    """A shard as it was read."""

    shard: Shard
    samples: Sequence[Sample]
    rejected: Sequence[RejectedSample]
    """Samples whose bytes do not decode."""


@dataclass(frozen=True, eq=False)
class ShardRows:
    """A shard compressed."""

    shard: Shard
    rows: Sequence[ArchiveRow]
    rejected: Sequence[RejectedSample]


@dataclass(frozen=True)
class ShardResult:
    """What became of one shard; small, whatever the shard."""

    index: int
    part: ArchivePart
    figures: RowFigures
    rejected_examples: tuple[RejectedSample, ...]
    attempts: int = 1
    seconds: float = 0.0
    """Of the last attempt."""


def compress_shard(plan: CompressPlan, shard: Shard) -> ShardResult:
    """Read a shard, compress its samples and write its part.

    Raises:
        SourceError: the source cannot be read, or the part cannot be written.
    """
    return write_shard(plan, compress_read(plan, read_shard(plan, shard)))


def read_shard(plan: CompressPlan, shard: Shard) -> ShardSamples:
    """First stage: one read of the source; where its bytes are damaged, smaller ones around the damage.

    Raises:
        SourceError: the source cannot be read for a reason that is not in its bytes.
    """
    grid = open_bundle_once(plan).bundle.grid
    try:
        return ShardSamples(shard, list(iter_samples(plan.source, plan.layout, grid, shard)), ())
    except DamagedSourceError as error:
        if shard.sample_count == 1:
            reason = f"cannot be read: {error}"
            return ShardSamples(shard, (), (RejectedSample(sample_key(plan.layout, shard.start), shard.start, reason),))
    read = [read_shard(plan, half) for half in halves(shard)]
    samples = [sample for half in read for sample in half.samples]
    return ShardSamples(shard, samples, [sample for half in read for sample in half.rejected])


def compress_read(plan: CompressPlan, read: ShardSamples) -> ShardRows:
    """Second stage: fit and code; every error is measured on the decoded bytes."""
    opened = open_bundle_once(plan)
    rows, rejected = list[ArchiveRow](), list(read.rejected)
    size = max(1, BATCH_VALUES // (plan.layout.points_per_sample * plan.layout.channels))
    with one_thread():
        for first in range(0, len(read.samples), size):
            batch = read.samples[first : first + size]
            batch_rows, batch_rejected = compress_samples(batch, opened, plan.layout, plan.request)
            rows += batch_rows
            rejected += batch_rejected
    return ShardRows(read.shard, rows, sorted(rejected, key=lambda sample: sample.block))


def write_shard(plan: CompressPlan, compressed: ShardRows) -> ShardResult:
    """Third stage: the part, and the table of the rejected samples.

    The part in the result has the name that it has in a Parquet archive, which says what is in it, even where its bytes
    lie under the key of a Zarr chunk.

    Raises:
        ArchiveExistsError: another run has completed a Zarr archive with another chunk meanwhile.
        SourceError: the part cannot be written.
    """
    shard, rows, rejected = compressed.shard, compressed.rows, compressed.rejected
    name = shard_name(plan.layout, shard)
    part = write_part(
        rows,
        plan.layout,
        plan.output,
        name,
        start=shard.start,
        stop=shard.stop,
        rejected=rejected,
        path=plan.chunk_path(shard.start) if plan.container == "zarr" else None,
        storage_options=plan.storage_options,
    )
    part = replace(part, path=content_path("parts", name, part.sha256))
    figures = measure_rows(rows, open_bundle_once(plan).bundle.normalizer, plan.layout)
    return ShardResult(shard.index, part, figures, tuple(rejected[:REJECTED_EXAMPLES]))


def open_bundle_once(plan: CompressPlan) -> OpenBundle:
    """This process's open bundle.

    Raises:
        SourceError, CorruptBitstreamError: it cannot be read, or is not the plan's.
    """
    with _opening:
        if plan.bundle_sha256 not in _opened:
            _opened.clear()
            _opened[plan.bundle_sha256] = open_bundle(load_bundle(plan.bundle_url, plan.storage_options))
        return _opened[plan.bundle_sha256]
