"""Compresses a source into an archive, shard by shard: plain functions first, Ray as one way to call them."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import torch

from pipelines.archive_output import check_present, old_files, refuse_existing, remove_replaced, start_archive
from pipelines.ray_tasks import import_ray, run_on_ray
from vcinr_batch import __version__
from vcinr_batch.archive.manifest import ArchivePart, Manifest, commit_manifest
from vcinr_batch.archive.parquet_container import write_part
from vcinr_batch.bundle import Bundle, find_bundle, load_bundle
from vcinr_batch.compression import OpenBundle, QualityRequest, check_layout, compress_samples, open_bundle
from vcinr_batch.config import SourceConfig
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.samples import RejectedSample, Sample
from vcinr_batch.data.shards import Shard, iter_samples, make_layout, plan_shards, shard_name
from vcinr_batch.data.sources import FieldSource, open_fields
from vcinr_batch.errors import ConfigError, SourceError
from vcinr_batch.inspection import ArchiveSummary, RowFigures, add_figures, measure_rows, rate_distortion
from vcinr_batch.storage import check_url, join_url, public_url, read_bytes

BATCH_VALUES = 1 << 24
"""Values compressed at once: 64 MiB of float32, of which a fit holds a few copies."""
REJECTED_EXAMPLES = 8
"""Rejected samples that a report spells out; the archive lists them all."""

_opened: dict[str, OpenBundle] = {}


@dataclass(frozen=True)
class CompressJob:
    """What a user asks for."""

    sources: tuple[str, ...]
    """URLs and patterns."""
    bundle: str
    """URL of a bundle, or of a directory that holds one."""
    output: str
    """URL of the archive to be."""
    request: QualityRequest
    source: SourceConfig = field(default_factory=SourceConfig)
    """Variable (the bundle's by default), selection, member pattern."""
    shard_samples: int | None = None
    """About how many samples a worker handles at a time; the bundle's configuration by default."""
    workers: int = 0
    """Ray workers; 0 runs in this process, without Ray. The archive's bytes do not depend on it."""
    overwrite: bool = False
    storage_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, url in [*(("source", url) for url in self.sources), ("bundle", self.bundle), ("output", self.output)]:
            check_url(url, what)
        if self.workers < 0:
            raise ConfigError(f"workers must be 0 or more, got {self.workers}")
        if self.shard_samples is not None and self.shard_samples < 1:
            raise ConfigError(f"shard_samples must be 1 or more, got {self.shard_samples}")


@dataclass(frozen=True, eq=False)
class CompressPlan:
    """All that a worker needs besides its shard; sent to each of them once."""

    source: FieldSource
    layout: Layout
    output: str
    bundle_sha256: str
    request: QualityRequest
    storage_options: Mapping[str, Any]


@dataclass(frozen=True)
class ShardResult:
    """What became of one shard."""

    index: int
    part: ArchivePart
    figures: RowFigures
    rejected_examples: tuple[RejectedSample, ...]


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
        source_bytes=_source_bytes(plan, plan.layout.sample_count),
        seconds=time.monotonic() - started,
    )


def plan_compression(job: CompressJob, bundle: Bundle) -> tuple[CompressPlan, list[Shard]]:
    """Open the source, check it against the bundle and cut it into shards; writes nothing.

    Raises:
        SourceError, ConfigError, SampleNotFoundError, BundleMismatchError: as `compress`.
    """
    _check_level(job.request, bundle)
    config = job.source.model_copy(update={"variable": job.source.variable or bundle.variable})
    source = open_fields(job.sources, config, job.storage_options)
    layout = make_layout(source, bundle.config.sample)
    check_layout(bundle, layout, source.unit)
    plan = CompressPlan(source, layout, job.output, bundle.sha256, job.request, job.storage_options)
    shard_samples = job.shard_samples or bundle.config.sample.shard_samples
    return plan, plan_shards(layout, shard_samples, source.chunk_shape)


def compress_shard(plan: CompressPlan, shard: Shard) -> ShardResult:
    """Read a shard, compress its samples and write its part; a retry writes the same bytes to the same place.

    Raises:
        SourceError: the source cannot be read, or the part cannot be written.
    """
    with one_thread():
        opened = _open_bundle_once(plan)
        rows, rejected = [], []
        for batch in _batches(plan, opened, shard):
            batch_rows, batch_rejected = compress_samples(batch, opened, plan.layout, plan.request)
            rows += batch_rows
            rejected += batch_rejected
    part = write_part(
        rows,
        plan.layout,
        plan.output,
        shard_name(plan.layout, shard),
        start=shard.start,
        stop=shard.stop,
        rejected=rejected,
        storage_options=plan.storage_options,
    )
    figures = measure_rows(rows, opened.bundle.normalizer, plan.layout)
    return ShardResult(shard.index, part, figures, tuple(rejected[:REJECTED_EXAMPLES]))


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: sums, and so the archive's last bits, would depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_level(request: QualityRequest, bundle: Bundle) -> None:
    finest = len(bundle.quality_psnr_db) - 1
    if request.level is not None and not 0 <= request.level <= finest:
        raise ConfigError(f"quality {request.level}: this bundle has levels 0 to {finest}")


def _run_shards(
    plan: CompressPlan, shards: Sequence[Shard], workers: int, progress: Progress | None
) -> list[ShardResult]:
    """Results in the order of the shards, whatever the order in which they came."""
    started = time.monotonic()
    results, done, rejected, archive_bytes = list[ShardResult](), 0, 0, 0

    def report() -> None:
        if progress:
            total, source_bytes = plan.layout.sample_count, _source_bytes(plan, done)
            seconds = time.monotonic() - started
            progress(CompressProgress(done, total, rejected, source_bytes, archive_bytes, seconds))

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


def _open_bundle_once(plan: CompressPlan) -> OpenBundle:
    """This process's open bundle, from the archive's own copy."""
    if plan.bundle_sha256 not in _opened:
        _opened.clear()
        url = join_url(plan.output, "models", f"{plan.bundle_sha256}.safetensors")
        _opened[plan.bundle_sha256] = open_bundle(load_bundle(url, plan.storage_options))
    return _opened[plan.bundle_sha256]


def _batches(plan: CompressPlan, opened: OpenBundle, shard: Shard) -> Iterator[list[Sample]]:
    size = max(1, BATCH_VALUES // (plan.layout.points_per_sample * plan.layout.channels))
    batch: list[Sample] = []
    for sample in iter_samples(plan.source, plan.layout, opened.bundle.grid, shard):
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


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


def _source_bytes(plan: CompressPlan, samples: int) -> float:
    return samples * plan.layout.points_per_sample * plan.layout.channels * plan.source.source_bits / 8
