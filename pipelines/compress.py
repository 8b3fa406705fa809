"""Compresses a source into an archive, shard by shard: plain functions first, Ray as one way to call them."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipelines.archive_output import check_present, old_files, refuse_existing, remove_replaced, start_archive
from pipelines.compress_plan import CompressJob, CompressPlan, plan_compression, source_bytes
from pipelines.ray_tasks import import_ray, run_on_ray
from pipelines.shard_work import REJECTED_EXAMPLES, ShardResult, compress_shard
from vcinr_batch import __version__
from vcinr_batch.archive.manifest import ArchivePart, Manifest, commit_manifest
from vcinr_batch.bundle import find_bundle, load_bundle
from vcinr_batch.data.samples import RejectedSample
from vcinr_batch.data.shards import Shard
from vcinr_batch.errors import SourceError
from vcinr_batch.inspection import ArchiveSummary, add_figures, rate_distortion
from vcinr_batch.storage import public_url, read_bytes

__all__ = ["CompressJob", "CompressProgress", "CompressReport", "compress"]


@dataclass(frozen=True)
class CompressProgress:
    """How far a run has come."""

    samples: int
    """Done, the rejected ones included."""
    total_samples: int
    rejected: int
    source_bytes: float
    """Of the samples done, as delivered."""
    archive_bytes: int
    seconds: float


@dataclass(frozen=True)
class CompressReport:
    """What `compress` wrote."""

    summary: ArchiveSummary
    rejected_examples: tuple[RejectedSample, ...]
    """The first of the rejected samples."""
    source_bytes: float
    """Of all samples, as delivered."""
    seconds: float


Progress = Callable[[CompressProgress], None]


def compress(job: CompressJob, progress: Progress | None = None) -> CompressReport:
    """Compress a source into an archive.

    The manifest is written last: until then there is no archive, or with `overwrite` the old one, whole. A run that was
    killed is completed by the same call. The bytes depend on source, bundle and request alone, not on workers or the
    order in which they finish.

    Raises:
        ArchiveExistsError: there is an archive at the output, or another run wrote one meanwhile, and `overwrite` is
            off.
        SourceError: the source or bundle cannot be read, the output cannot be written, or every sample was rejected.
        ConfigError, SampleNotFoundError: no such quality level, variable or label.
        BundleMismatchError: the bundle is for another variable, unit or grid.
        CorruptBitstreamError: the bundle is damaged or was renamed.
    """
    started = time.monotonic()
    options = job.storage_options
    if not job.overwrite:
        refuse_existing(job.output, options)
    if job.workers:
        import_ray()
    bundle_url = find_bundle(job.bundle, options)
    bundle = load_bundle(bundle_url, options)
    plan, shards = plan_compression(job, bundle)
    bundle_data = read_bytes(bundle_url, storage_options=options)
    old = old_files(job.output, options) if job.overwrite else frozenset()
    start_archive(job.output, bundle.file_name, bundle_data, options)
    results = _run_shards(plan, shards, job.workers, progress)
    figures = add_figures(result.figures for result in results)
    examples = [example for result in results for example in result.rejected_examples]
    if figures.samples == 0:
        raise SourceError(
            f"{bundle.variable}: all {plan.layout.sample_count} samples were rejected, "
            f"the first is {examples[0].key}: {examples[0].reason}; no archive was written"
        )
    manifest = _make_manifest(plan, [result.part for result in results])
    if job.overwrite:
        check_present(job.output, manifest, options)
    manifest_bytes = commit_manifest(manifest, job.output, overwrite=job.overwrite, storage_options=options)
    remove_replaced(job.output, old, options)
    rate = rate_distortion(figures, manifest, manifest_bytes, len(bundle_data))
    return CompressReport(
        summary=ArchiveSummary(public_url(job.output), manifest, bundle, figures, rate),
        rejected_examples=tuple(examples[:REJECTED_EXAMPLES]),
        source_bytes=source_bytes(plan, plan.layout.sample_count),
        seconds=time.monotonic() - started,
    )


def _run_shards(
    plan: CompressPlan, shards: Sequence[Shard], workers: int, progress: Progress | None
) -> list[ShardResult]:
    """Results in the order of the shards, whatever the order in which they came."""
    started = time.monotonic()
    results, done, rejected, archive_bytes = list[ShardResult](), 0, 0, 0

    def report() -> None:
        if progress:
            total, size_bytes = plan.layout.sample_count, source_bytes(plan, done)
            seconds = time.monotonic() - started
            progress(CompressProgress(done, total, rejected, size_bytes, archive_bytes, seconds))

    report()
    running = run_on_ray(compress_shard, plan, shards, workers) if workers else _run_here(plan, shards)
    with closing(running):
        for result in running:
            results.append(result)
            done += result.part.sample_count
            rejected += result.part.rejected
            archive_bytes += result.part.bytes + result.part.rejected_bytes
            report()
    return sorted(results, key=lambda result: result.index)


def _run_here(plan: CompressPlan, shards: Sequence[Shard]) -> Generator[ShardResult, None, None]:
    for shard in shards:
        yield compress_shard(plan, shard)


def _make_manifest(plan: CompressPlan, parts: Sequence[ArchivePart]) -> Manifest:
    source, request = plan.source, plan.request
    wanted = {"quality": request.level, "target_psnr": request.target_psnr_db}
    return Manifest(
        layout=plan.layout,
        unit=source.unit,
        attributes=source.attributes,
        dataset_attributes=source.dataset_attributes,
        encoding=source.encoding,
        source_bits=source.source_bits,
        source_names=tuple(PurePosixPath(public_url(url)).name for url in source.urls),
        bundle_sha256=plan.bundle_sha256,
        quality={name: value for name, value in wanted.items() if value is not None},
        parts=tuple(parts),
        generator=f"vcinr-batch {__version__}",
    )
