"""What a compression will cost, from really doing a few shards of it; writes nothing anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.compress_plan import (
    CompressJob,
    CompressPlan,
    made_up_part,
    make_manifest,
    plan_compression,
    source_bytes,
)
from pipelines.probe import Probe, ProbeTask, run_probe
from pipelines.shard_status import finished_results, run_identity
from pipelines.zarr_output import metadata_files
from vcinr_batch.archive.manifest import MANIFEST_NAME, manifest_data
from vcinr_batch.bundle import find_bundle, load_bundle
from vcinr_batch.data.shards import Shard
from vcinr_batch.storage import exists, join_url, public_url, size_bytes

PROBE_SHARDS = 3
"""Shards that are tried: more than two, so that one is read while the one before is compressed."""
PROBE_SECONDS = 60.0
"""About how long they may be compressed; then they are cut to fewer samples."""
RAY_WORKER_BYTES = 24 << 20
"""What a Ray worker holds besides its modules: its connections and threads. Measured with Ray 2.60 on Linux."""


@dataclass(frozen=True)
class DryRunReport:
    """What `estimate` expects."""

    output: str
    variable: str
    archive_exists: bool
    """Then the job is refused without `--overwrite`, and one that writes a Zarr archive is in any case."""
    shards: int
    samples: int
    finished_shards: int
    """Of them, by a job that did not come to its end; they are not done again."""
    finished_samples: int
    source_bytes: float
    """Of all samples, as delivered."""
    archive_bytes: int
    """Expected, without the bundle."""
    bundle_bytes: int
    worker_bytes: int
    """Peak resident memory of each worker."""
    workers: int | None
    """None: as many as the cluster has."""
    seconds: float | None
    """Expected, for the shards that are left; None where the number of workers is not known."""
    worker_seconds: float
    """The same, of all workers together."""
    probe_samples: int
    """Samples that this was measured on."""
    probe_rejected: int
    """Of them."""
    is_extrapolated: bool
    """The shards tried were cut to fewer samples, so memory is less certain."""
    container: str = "parquet"
    left_out: tuple[str, ...] = ()
    """Auxiliary variables of the source that will not be in the archive: too large, or not the same in all files."""


def estimate(job: CompressJob) -> DryRunReport:
    """What a job will cost.

    Raises:
        SourceError, ConfigError, SampleNotFoundError, BundleMismatchError, BitstreamError: as `compress` would.
        VcinrError: the process that tries a shard was killed, e.g. for its memory.
    """
    options = job.storage_options
    bundle_url = find_bundle(job.bundle, options)
    plan, shards = plan_compression(job, load_bundle(bundle_url, options))
    plan = replace(plan, bundle_url=bundle_url)
    finished = finished_results(plan, run_identity(plan, shards), shards)
    probe = run_probe(ProbeTask(plan, _representative(shards), PROBE_SECONDS, on_ray=job.workers != 0))
    done = sum(result.part.sample_count for result in finished.values())
    worker_seconds, seconds = _time(job, probe, plan.layout.sample_count - done)
    return DryRunReport(
        output=public_url(job.output),
        variable=plan.layout.variable,
        archive_exists=exists(join_url(job.output, MANIFEST_NAME), storage_options=options),
        shards=len(shards),
        samples=plan.layout.sample_count,
        finished_shards=len(finished),
        finished_samples=done,
        source_bytes=source_bytes(plan, plan.layout.sample_count),
        archive_bytes=_archive_bytes(plan, shards, probe),
        bundle_bytes=size_bytes(bundle_url, storage_options=options),
        worker_bytes=probe.peak_bytes + (RAY_WORKER_BYTES if job.workers != 0 else 0),
        workers=job.workers,
        seconds=seconds,
        worker_seconds=worker_seconds,
        probe_samples=probe.samples,
        probe_rejected=probe.rejected,
        is_extrapolated=not probe.is_whole,
        container=plan.container,
        left_out=plan.source.left_out,
    )


def _representative(shards: Sequence[Shard]) -> tuple[Shard, ...]:
    """A few of the largest shards, from all over the source."""
    largest = max(shard.sample_count for shard in shards)
    whole = [shard for shard in shards if shard.sample_count == largest]
    count = min(PROBE_SHARDS, len(whole))
    places = sorted({round(i * (len(whole) - 1) / max(count - 1, 1)) for i in range(count)})
    return tuple(whole[place] for place in places)


def _time(job: CompressJob, probe: Probe, samples: int) -> tuple[float, float | None]:
    """Seconds of all workers together, and by the clock. Workers read ahead; without any, one thing follows another."""
    if not samples:
        return 0.0, 0.0
    if job.workers == 0:
        total = samples * (probe.read_seconds + probe.compress_seconds)
        return total, total
    total = samples * max(probe.read_seconds, probe.compress_seconds)
    if job.workers is None:
        return total, None
    return total, total / job.workers + probe.start_seconds


def _archive_bytes(plan: CompressPlan, shards: Sequence[Shard], probe: Probe) -> int:
    parts = len(shards) * probe.empty_part_bytes + plan.layout.sample_count * probe.part_bytes / max(probe.samples, 1)
    return int(parts) + _manifest_bytes(plan, shards, int(parts / len(shards)))


def _manifest_bytes(plan: CompressPlan, shards: Sequence[Shard], part_bytes: int) -> int:
    """Size of the manifest, from one with made-up digests: they are most of it, and the same size whatever they are.
    And of Zarr's metadata and coordinates.
    """
    manifest = make_manifest(plan, [made_up_part(plan, shard, part_bytes) for shard in shards])
    return len(manifest_data(manifest)) + sum(map(len, metadata_files(manifest).values()))
