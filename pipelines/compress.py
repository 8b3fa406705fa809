"""Compresses a source into an archive: the driver. What is done to a shard is in `shard_work`, by whom in
`shard_engine`.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipelines.archive_output import (
    check_present,
    old_files,
    refuse_existing,
    refuse_zarr,
    remember_replaced,
    remove_replaced,
    start_archive,
)
from pipelines.compress_plan import (
    CompressJob,
    CompressPlan,
    make_manifest,
    max_rejected,
    plan_compression,
    source_bytes,
    worker_options,
)
from pipelines.compress_progress import CompressProgress, Progress, RunTally
from pipelines.ray_session import Notice, import_ray
from pipelines.shard_engine import run_shards
from pipelines.shard_status import (
    finished_results,
    has_begun,
    read_statuses,
    remove_statuses,
    replaced_archive,
    run_identity,
    write_run,
)
from pipelines.shard_work import ShardResult
from pipelines.zarr_output import claim_output, refuse_replacing, release_output, write_metadata
from vcinr_batch.archive.manifest import (
    MANIFEST_NAME,
    ArchivePart,
    Manifest,
    commit_manifest,
    manifest_to_json,
    read_manifest,
)
from vcinr_batch.bundle import find_bundle, load_bundle
from vcinr_batch.data.samples import RejectedSample
from vcinr_batch.data.shards import Shard, shard_name
from vcinr_batch.data.sources import check_source_unchanged
from vcinr_batch.errors import ArchiveExistsError, BitstreamError, SourceError, StoreUnavailableError, VcinrError
from vcinr_batch.inspection import ArchiveSummary, RowFigures, add_figures, inspect_archive, rate_distortion
from vcinr_batch.storage import exists, join_url, public_url, read_bytes, size_bytes

__all__ = ["CompressJob", "CompressProgress", "CompressReport", "compress"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompressReport:
    """What `compress` wrote."""

    summary: ArchiveSummary
    rejected_examples: tuple[RejectedSample, ...]
    """The first of the rejected samples."""
    source_bytes: float
    """Of all samples, as delivered."""
    seconds: float
    last: CompressProgress
    """The counts at the end."""
    left_out: tuple[str, ...] = ()
    """Auxiliary variables of the source that are not in the archive: too large, or not the same in all files."""


@dataclass(frozen=True, eq=False)
class _Run:
    """A job when its plan is made."""

    job: CompressJob
    plan: CompressPlan
    shards: Sequence[Shard]
    identity: str
    bundle_data: bytes
    tally: RunTally
    notice: Notice | None


def compress(job: CompressJob, progress: Progress | None = None, notice: Notice | None = None) -> CompressReport:
    """Compress a source into an archive.

    The manifest is written last: until then there is no archive, or with `overwrite` the old one, whole. A run that was
    killed is completed by the same call. The bytes depend on source, bundle and request alone, not on workers or the
    order in which they finish. A Zarr archive has the very files that `convert` makes of the Parquet archive.

    Args:
        job: the whole of it.
        progress: called after each shard.
        notice: called with one line while no worker has room on a cluster, now and then; from another thread.

    Raises:
        ArchiveExistsError: there is another archive at the output, or another run wrote one meanwhile, and `overwrite`
            is off or a Zarr archive is asked for; another run is writing a Zarr archive there.
        SourceError: the source or bundle cannot be read, the output cannot be written, shards failed again and again,
            or more samples were rejected than the job allows.
        ConfigError, SampleNotFoundError: no such quality level, variable or label; Ray or its cluster is not there.
        BundleMismatchError: the bundle is for another variable, unit or grid.
        CorruptBitstreamError: the bundle is damaged or was renamed.
    """
    started = time.monotonic()
    if job.workers != 0:
        import_ray()
    run = _plan_run(job, progress, notice)
    if not _replaces(job) and exists(join_url(job.output, MANIFEST_NAME), storage_options=job.storage_options):
        summary = _clean_up_after(run)
    else:
        summary = _compress(run)
    return CompressReport(
        summary=summary,
        rejected_examples=run.tally.examples,
        source_bytes=source_bytes(run.plan, run.plan.layout.sample_count),
        seconds=time.monotonic() - started,
        last=run.tally.progress(),
        left_out=run.plan.source.left_out,
    )


def _plan_run(job: CompressJob, progress: Progress | None, notice: Notice | None) -> _Run:
    bundle_url = find_bundle(job.bundle, job.storage_options)
    bundle = load_bundle(bundle_url, job.storage_options)
    plan, shards = plan_compression(job, bundle)
    data = read_bytes(bundle_url, storage_options=job.storage_options)
    tally = RunTally(plan, max_rejected(job, plan.layout.sample_count), progress)
    return _Run(job, plan, shards, run_identity(plan, shards), data, tally, notice)


def _compress(run: _Run) -> ArchiveSummary:
    """Do what is missing, write the manifest and clear away what it replaces."""
    job, plan, tally, options = run.job, run.plan, run.tally, run.job.storage_options
    refuse_zarr(job.output, options)
    claim_output(plan, run.shards, run.identity)
    old = old_files(job.output, options) if _replaces(job) else frozenset()
    start_archive(job.output, PurePosixPath(plan.bundle_url).name, run.bundle_data, options)
    _run_shards(run)
    check_source_unchanged(plan.source)
    results = [result for _, result in sorted(tally.results.items())]
    figures = add_figures(result.figures for result in results)
    if figures.samples == 0:
        raise SourceError(
            f"{plan.layout.variable}: all {plan.layout.sample_count} samples were rejected, "
            f"the first is {tally.examples[0].key}: {tally.examples[0].reason}; no archive was written"
        )
    parts = [result.part for result in results]
    manifest = make_manifest(plan, parts)
    if _replaces(job):
        check_present(job.output, manifest, options)
        old |= remember_replaced(job.output, manifest, replaced_archive(plan, run.identity), options)
    metadata_bytes = write_metadata(plan, manifest, parts)
    manifest_bytes = metadata_bytes + _commit(job, manifest)
    _tidy_up(run, old)
    rate = rate_distortion(figures, manifest, manifest_bytes, len(run.bundle_data))
    bundle = load_bundle(plan.bundle_url, options)
    return ArchiveSummary(public_url(job.output), manifest, bundle, figures, rate)


def _run_shards(run: _Run) -> None:
    """Do the shards that an earlier run has not done."""
    plan, shards, tally = run.plan, run.shards, run.tally
    tally.resume(finished_results(plan, run.identity, shards))
    left = [shard for shard in shards if shard.index not in tally.results]
    if not left:
        return
    outcomes = run_shards(
        plan,
        left,
        worker_options(run.job),
        run.identity,
        lambda: write_run(plan, run.identity, shards),
        run.notice,
    )
    with closing(outcomes):
        for outcome in outcomes:
            tally.add(outcome)
    tally.check_complete()


def _commit(job: CompressJob, manifest: Manifest) -> int:
    """Write the manifest, unless another driver of the same run was faster; its size in bytes."""
    try:
        return commit_manifest(manifest, job.output, overwrite=_replaces(job), storage_options=job.storage_options)
    except ArchiveExistsError:
        if not _is_same(read_manifest(job.output, storage_options=job.storage_options), manifest):
            raise
        return size_bytes(join_url(job.output, MANIFEST_NAME), storage_options=job.storage_options)


def _clean_up_after(run: _Run) -> ArchiveSummary:
    """Finish a run whose driver died between writing the manifest and removing the last of its objects.

    Raises:
        ArchiveExistsError: the archive is not this run's, or nothing was left to be cleaned up.
        SourceError: the archive has been damaged since, or has more rejected samples than the job allows.
    """
    job, plan, options = run.job, run.plan, run.job.storage_options
    statuses = read_statuses(plan, run.identity)
    is_ours = bool(statuses) or has_begun(plan, run.identity)
    written = read_manifest(job.output, storage_options=options) if is_ours else None
    if written is None or not _is_of(run, written):
        (refuse_existing if job.container == "parquet" else refuse_replacing)(job.output, options)
        raise ArchiveExistsError(f"{public_url(job.output)} was removed meanwhile; run the same command again")
    summary = _inspect(job)
    _tidy_up(run, frozenset())
    done = {}
    for shard, part in zip(run.shards, written.parts, strict=True):
        status = statuses.get(shard_name(plan.layout, shard))
        examples = status.rejected_examples if status is not None and _has_bytes(status.part, part) else ()
        done[shard.index] = ShardResult(shard.index, part, RowFigures(), examples)
    run.tally.resume(done, is_committed=True)
    return summary


def _inspect(job: CompressJob) -> ArchiveSummary:
    try:
        return inspect_archive(job.output, storage_options=job.storage_options)
    except StoreUnavailableError:
        raise
    except (SourceError, BitstreamError) as error:
        name = public_url(job.output)
        raise SourceError(
            f"the archive at {name} is damaged: {error}; `vcinr repair {name}` redoes its parts"
        ) from error


def _tidy_up(run: _Run, old: frozenset[str]) -> None:
    """Remove what the archive replaced, then the status objects; the archive is there, whatever becomes of this."""
    plan, options = run.plan, run.job.storage_options
    try:
        old |= old_files(replaced_archive(plan, run.identity), options)
        remove_replaced(run.job.output, old, options)
        release_output(plan)
        remove_statuses(plan, run.identity, run.shards)
    except VcinrError as error:
        _log.warning("the archive is written, but clearing up behind it failed: %s", error)


def _replaces(job: CompressJob) -> bool:
    """Whether an archive that is there gives way; never to chunks, which could not stay apart from its own."""
    return job.overwrite and job.container == "parquet"


def _has_bytes(one: ArchivePart | None, other: ArchivePart) -> bool:
    return one is not None and one.sha256 == other.sha256


def _is_of(run: _Run, written: Manifest) -> bool:
    boxes = [(shard.start, shard.stop) for shard in run.shards]
    has_shards = [(part.start, part.stop) for part in written.parts] == boxes
    return has_shards and _is_same(written, make_manifest(run.plan, written.parts))


def _is_same(one: Manifest, other: Manifest) -> bool:
    return manifest_to_json(one) == manifest_to_json(other)
