"""What an evaluation compares codecs on: the job as a user asks for it, and all that it reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.compress_plan import CompressJob
from pipelines.evaluate_results import BOUND_SHARES, TARGETS_DB
from pipelines.heldout_samples import (
    HeldOut,
    check_disjoint,
    load_held_out,
    load_training,
    open_matching,
    write_spread_samples,
)
from vcinr_batch.bundle import Bundle, find_bundle, parse_bundle
from vcinr_batch.compression import QualityRequest
from vcinr_batch.config import SourceConfig
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.sources import FieldSource
from vcinr_batch.errors import ConfigError
from vcinr_batch.storage import check_url, public_url, read_bytes
from vcinr_batch.training.training_samples import TrainingSamples

MAX_SAMPLES = 500
MAX_VALUES = 1 << 27
"""Samples are held in memory several times over: of large ones fewer are taken."""


@dataclass(frozen=True)
class EvaluateJob:
    """What a user asks for."""

    sources: tuple[str, ...]
    """URLs and patterns of the held-out samples."""
    bundle: str
    output: str
    """URL of the folder that gets the results."""
    select: Mapping[str, str] = field(default_factory=dict)
    variable: str | None = None
    """The bundle's by default."""
    member_pattern: str | None = None
    train_sources: tuple[str, ...] = ()
    """What the learned baselines learn from; the sources by default."""
    train_select: Mapping[str, str] = field(default_factory=dict)
    """Of those; without it and without `train_sources` there are no learned baselines: a bundle does not say."""
    max_samples: int = MAX_SAMPLES
    """Of more samples about this many are compared, evenly spread; of large ones fewer."""
    targets_db: tuple[float, ...] = TARGETS_DB
    """PSNRs to compare at."""
    bound_shares: tuple[float, ...] = BOUND_SHARES
    """Bounds to compare at, as shares of the range."""
    overwrite: bool = False
    """Replace results in the output."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_samples < 1:
            raise ConfigError(f"max_samples must be 1 or more, got {self.max_samples}")
        urls = [*(("source", url) for url in self.sources), *(("train source", url) for url in self.train_sources)]
        for what, url in [*urls, ("bundle", self.bundle), ("output", self.output)]:
            check_url(url, what)


@dataclass(frozen=True, eq=False)
class EvaluationInputs:
    """All that the codecs are compared on."""

    bundle: Bundle
    bundle_bytes: int
    held_out: HeldOut
    rejected: int
    available: int
    training: TrainingSamples | None
    job: CompressJob
    """Makes our archives of the same samples, in a folder of this machine."""


def read_inputs(job: EvaluateJob, folder: Path) -> EvaluationInputs:
    """Read bundle, held-out samples and training samples.

    Args:
        job: the whole of it.
        folder: of this machine, for copies that last as long as the comparison.

    Raises:
        VcinrError: as `evaluate`.
    """
    options = job.storage_options
    url = find_bundle(job.bundle, options)
    data = read_bytes(url, storage_options=options)
    bundle = parse_bundle(data, Path(url).stem, public_url(url))
    source, layout = open_matching(job.sources, bundle, job.select, job.variable, job.member_pattern, options)
    available = layout.sample_count
    training = _read_training(job, bundle, (source, layout))
    local_bundle = folder / Path(url).name
    local_bundle.write_bytes(data)
    compress_job = CompressJob(
        sources=job.sources,
        bundle=str(local_bundle),
        output=str(folder / "archive"),
        request=QualityRequest(level=0),
        source=SourceConfig(variable=source.variable, select=dict(job.select), member_pattern=job.member_pattern),
    )
    most = min(job.max_samples, max(1, MAX_VALUES // layout.points_per_sample))
    if available > most or options:
        # A copy on this machine: archives are made of it many times.
        copy = str(folder / "samples.zarr")
        write_spread_samples(source, layout, bundle, most, copy)
        source, layout = open_matching([copy], bundle, {}, source.variable, None, None)
        compress_job = CompressJob((copy,), compress_job.bundle, compress_job.output, compress_job.request)
    held_out, rejected = load_held_out(source, layout, bundle)
    return EvaluationInputs(bundle, len(data), held_out, rejected, available, training, compress_job)


def _read_training(job: EvaluateJob, bundle: Bundle, test: tuple[FieldSource, Layout]) -> TrainingSamples | None:
    select = dict(job.train_select)
    if not job.train_sources and not select:
        return None
    sources = job.train_sources or job.sources
    train = open_matching(sources, bundle, select, test[0].variable, job.member_pattern, job.storage_options)
    check_disjoint(test, train)
    return load_training(*train, bundle)
