"""What a compression is to do: the job as a user asks for it, and the plan that every worker gets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vcinr_batch.bundle import Bundle
from vcinr_batch.compression import QualityRequest, check_layout
from vcinr_batch.config import SourceConfig
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.shards import Shard, make_layout, plan_shards
from vcinr_batch.data.sources import FieldSource, open_fields
from vcinr_batch.errors import ConfigError
from vcinr_batch.storage import check_url, join_url


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
    bundle_url: str
    """Where the workers read the bundle: the archive's own copy, once there is one."""
    request: QualityRequest
    storage_options: Mapping[str, Any]


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
    bundle_url = join_url(job.output, "models", bundle.file_name)
    plan = CompressPlan(source, layout, job.output, bundle.sha256, bundle_url, job.request, job.storage_options)
    shard_samples = job.shard_samples or bundle.config.sample.shard_samples
    return plan, plan_shards(layout, shard_samples, source.chunk_shape)


def source_bytes(plan: CompressPlan, samples: int) -> float:
    """Size of that many samples as the source delivers them."""
    return samples * plan.layout.points_per_sample * plan.layout.channels * plan.source.source_bits / 8


def _check_level(request: QualityRequest, bundle: Bundle) -> None:
    finest = len(bundle.quality_psnr_db) - 1
    if request.level is not None and not 0 <= request.level <= finest:
        raise ConfigError(f"quality {request.level}: this bundle has levels 0 to {finest}")
