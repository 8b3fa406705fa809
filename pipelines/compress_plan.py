"""What a compression is to do: the job as a user asks for it, and the plan that every worker gets."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from vcinr_batch import __version__
from vcinr_batch.archive.chunk_grid import chunk_key, regular_shard_shape
from vcinr_batch.archive.manifest import CONTAINERS, ArchivePart, Manifest
from vcinr_batch.archive.parquet_container import content_path
from vcinr_batch.bundle import Bundle
from vcinr_batch.compression import QualityRequest, check_layout, check_request
from vcinr_batch.config import SourceConfig, configured_request
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.shards import Shard, make_layout, plan_shards, shard_name
from vcinr_batch.data.sources import FieldSource, open_fields
from vcinr_batch.errors import ConfigError
from vcinr_batch.quality_request import request_to_json
from vcinr_batch.storage import check_url, join_url, public_url, sha256_hex

_log = logging.getLogger(__name__)

SHARD_TIMEOUT_SECONDS = 3600.0
"""Generous: only what will never end should reach it."""
MAX_TIMEOUT_SECONDS = 30 * 86400.0


@dataclass(frozen=True)
class WorkerOptions:
    """How many workers, and where. The archive's bytes do not depend on it."""

    count: int | None = 0
    """0 runs in this process, without Ray; None takes what the cluster has at the start."""
    address: str | None = None
    """Of a cluster: `auto`, `host:port` or `ray://host:port`; by default RAY_ADDRESS, or a Ray started here."""
    num_gpus: float = 0.0
    """Reserved for each worker."""
    shard_timeout_seconds: float = SHARD_TIMEOUT_SECONDS
    """How long a worker may take for one shard before it is replaced; without Ray there is no limit."""

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 0:
            raise ConfigError(f"workers must be 0 or more, got {self.count}")
        if self.count == 0 and (self.address or self.num_gpus):
            raise ConfigError("0 workers run in this process: expected no address and no GPUs")
        if not math.isfinite(self.num_gpus) or self.num_gpus < 0:
            raise ConfigError(f"num_gpus must be 0 or more, got {self.num_gpus}")
        if not 0 < self.shard_timeout_seconds <= MAX_TIMEOUT_SECONDS:
            raise ConfigError(
                f"shard_timeout must be more than 0 and at most {MAX_TIMEOUT_SECONDS:.0f} seconds (30 days), "
                f"got {self.shard_timeout_seconds:g}"
            )


@dataclass(frozen=True)
class CompressJob:
    """What a user asks for."""

    sources: tuple[str, ...]
    """URLs and patterns."""
    bundle: str
    """URL of a bundle, or of a directory that holds one."""
    output: str
    """URL of the archive to be."""
    request: QualityRequest | None = None
    """How good the samples shall be; by default what the bundle's configuration says (`quality.max_error`)."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """Variable (the bundle's by default), selection, member pattern."""
    shard_samples: int | None = None
    """About how many samples a worker handles at a time; the bundle's configuration by default."""
    workers: int | None = 0
    """Ray workers; 0 runs in this process, without Ray; None takes what the cluster has."""
    address: str | None = None
    """Of a Ray cluster, as in `WorkerOptions`."""
    num_gpus: float = 0.0
    """Reserved for each worker."""
    shard_timeout_seconds: float = SHARD_TIMEOUT_SECONDS
    max_rejected: str | None = None
    """More rejected samples than this number or percentage (`10`, `0.5%`): no archive. By default there is no limit."""
    overwrite: bool = False
    """Replace an archive at the output; a Zarr archive neither replaces one nor is replaced."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    container: str = "parquet"
    """Or `zarr`, whose chunks are the same parts."""

    def __post_init__(self) -> None:
        if self.container not in CONTAINERS:
            raise ConfigError(f"container {self.container[:40]!r}: expected {' or '.join(CONTAINERS)}")
        for what, url in [*(("source", url) for url in self.sources), ("bundle", self.bundle), ("output", self.output)]:
            check_url(url, what)
        worker_options(self)
        max_rejected(self, 0)
        if self.shard_samples is not None and self.shard_samples < 1:
            raise ConfigError(f"shard_samples must be 1 or more, got {self.shard_samples}")


@dataclass(frozen=True, eq=False)
class CompressPlan:
    """All that a worker needs besides its shard; sent to each of them once."""

    source: FieldSource
    layout: Layout
    output: str
    bundle_sha256: str
    bundle_url: str
    """Where the workers read the bundle: the archive's own copy, once there is one."""
    request: QualityRequest
    storage_options: Mapping[str, Any]
    chunk_blocks: tuple[int, ...] | None = None
    """Blocks of a Zarr chunk along every axis; None writes Parquet files named by their content."""

    @property
    def container(self) -> str:
        """`zarr` or `parquet`."""
        return "parquet" if self.chunk_blocks is None else "zarr"

    def part_path(self, part: ArchivePart) -> str:
        """Where the file of a part is that names itself as in a Parquet archive: there, or under its chunk's key."""
        return part.path if self.chunk_blocks is None else self.chunk_path(part.start)

    def chunk_path(self, start: tuple[int, ...]) -> str:
        """Key of the chunk of the shard that begins with this block; only for Zarr."""
        assert self.chunk_blocks is not None
        return chunk_key(self.layout.variable, start, self.chunk_blocks)


def plan_compression(job: CompressJob, bundle: Bundle) -> tuple[CompressPlan, list[Shard]]:
    """Open the source, check it against the bundle and cut it into shards; writes nothing.

    Raises:
        SourceError, ConfigError, SampleNotFoundError, BundleMismatchError: as `compress`.
    """
    request = job.request or configured_request(bundle.config, job.source.variable or bundle.variable)
    check_request(request, bundle)
    config = job.source.model_copy(update={"variable": job.source.variable or bundle.variable})
    source = open_fields(job.sources, config, job.storage_options)
    if source.left_out:
        _log.warning("%s: auxiliary variables left out: %s", source.variable, ", ".join(source.left_out))
    layout = make_layout(source, bundle.config.sample)
    check_layout(bundle, layout, source.unit)
    bundle_url = join_url(job.output, "models", bundle.file_name)
    plan = CompressPlan(source, layout, job.output, bundle.sha256, bundle_url, request, job.storage_options)
    shard_samples = job.shard_samples or bundle.config.sample.shard_samples
    shards = plan_shards(layout, shard_samples, source.chunk_shape)
    if job.container == "zarr":
        parts = [made_up_part(plan, shard) for shard in shards]
        plan = replace(plan, chunk_blocks=regular_shard_shape(layout, parts))
        make_manifest(plan, parts)  # a name that Zarr refuses is known before any work is done
    return plan, shards


def worker_options(job: CompressJob) -> WorkerOptions:
    """How many workers, and where.

    Raises:
        ConfigError: the job's values make no sense.
    """
    return WorkerOptions(job.workers, job.address, job.num_gpus, job.shard_timeout_seconds)


def max_rejected(job: CompressJob, samples: int) -> float:
    """How many of that many samples may be rejected; infinite without a limit.

    Raises:
        ConfigError: not a number or percentage.
    """
    if job.max_rejected is None:
        return math.inf
    found = re.fullmatch(r"([0-9]{1,18})|([0-9]{1,18}(?:\.[0-9]+)?)%", job.max_rejected.strip())
    if not found or float(found[2] or 0) > 100:
        raise ConfigError(f"max_rejected must be a number or a percentage like 0.5%, got {job.max_rejected!r}")
    return int(found[1]) if found[1] else samples * float(found[2]) / 100


def make_manifest(plan: CompressPlan, parts: Sequence[ArchivePart]) -> Manifest:
    """The manifest of an archive of these parts; its bytes do not depend on who wrote them, or where.

    Raises:
        ConfigError: a name cannot be that of a Zarr array, or the shards are no regular grid.
    """
    source = plan.source
    manifest = Manifest(
        layout=plan.layout,
        unit=source.unit,
        attributes=source.attributes,
        dataset_attributes=source.dataset_attributes,
        encoding=source.encoding,
        source_bits=source.source_bits,
        source_names=tuple(PurePosixPath(public_url(url)).name for url in source.urls),
        bundle_sha256=plan.bundle_sha256,
        quality=request_to_json(plan.request),
        parts=tuple(parts),
        generator=f"vcinr-batch {__version__}",
        auxiliaries=source.auxiliaries,
    )
    if plan.container == "parquet":
        return manifest
    from vcinr_batch.archive.zarr_container import as_zarr  # imports zarr, which workers need not

    return as_zarr(manifest)


def made_up_part(plan: CompressPlan, shard: Shard, part_bytes: int = 1000) -> ArchivePart:
    """A part of about that size with a made-up digest, for what depends only on the shards."""
    digest = sha256_hex(str(shard.index).encode())
    path = content_path("parts", shard_name(plan.layout, shard), digest)
    size = part_bytes + int(digest[:2], 16)
    spans = ((int(digest[2:4], 16), size),)
    return ArchivePart(path, shard.sample_count, size, digest, int(digest[:8], 16), spans, shard.start, shard.stop)


def source_bytes(plan: CompressPlan, samples: int) -> float:
    """Size of that many samples as the source delivers them."""
    return samples * plan.layout.points_per_sample * plan.layout.channels * plan.source.source_bits / 8
