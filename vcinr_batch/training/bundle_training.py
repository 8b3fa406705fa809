"""From a source to a bundle: normaliser, then the shared network (meta-learning), then the latent codec."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vcinr_batch.bundle import Bundle, make_bundle
from vcinr_batch.config import RunConfig
from vcinr_batch.data.coordinates import Grid, make_grid
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.normalization import (
    Normalizer,
    background_at,
    fit_normalizer,
    normalize,
    range_at,
    scale_at,
)
from vcinr_batch.data.samples import Sample, rejection_reason
from vcinr_batch.data.shards import Shard, iter_samples, make_layout, plan_shards
from vcinr_batch.data.sources import FieldSource
from vcinr_batch.errors import ConfigError, SourceError
from vcinr_batch.network.fitting import decode_latents, fit_latents, tangent
from vcinr_batch.network.gated_siren import GatedSiren
from vcinr_batch.storage import StorageOptions, sha256_hex
from vcinr_batch.training.codec_training import train_codec
from vcinr_batch.training.localized_basis import start_linear_term
from vcinr_batch.training.meta_learning import TrainingData, mean_psnr, meta_learn

_ROUNDING = 4 * float(np.finfo(np.float32).eps)

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called with the stage, the step, the number of steps and the latest figures."""


@dataclass(frozen=True, eq=False)
class TrainingSamples:
    """All training samples in memory, normalised."""

    normalized: NDArray[np.float32]
    """[N, P, C], zero outside each sample's mask: a missing value is as good as the background."""
    valid: NDArray[np.bool_]
    """[P], points that hold a value in at least one sample."""
    validation: NDArray[np.bool_]
    """[N], samples kept for validation."""
    value_range: float
    """Mean over samples of the value range in network units."""


def train_bundle(
    source: FieldSource,
    config: RunConfig,
    checkpoint_url: str | None = None,
    progress: Progress | None = None,
    storage_options: StorageOptions = None,
) -> tuple[Bundle, bytes]:
    """Train a bundle on every sample of a source, the last of them kept for validation.

    Args:
        source: training samples only; held-out data is left out by `config.source.select` or another file.
        config: the whole run.
        checkpoint_url: where meta-learning keeps its state; a killed run goes on from there to the same bundle.
        progress: called with the stage, its step and figures.
        storage_options: of the checkpoint's file system.

    Returns:
        The bundle and its file's bytes.

    Raises:
        SourceError: no usable sample, too few to hold some back for validation, or nothing in them that varies.
        ConfigError: a block, basis or latent that does not fit the source, or a checkpoint of another run.
        FittingError: training diverged from the start.
    """
    layout = make_layout(source, config.sample)
    grid = make_grid(layout, config.sample.coordinates)
    shards = plan_shards(layout, config.sample.shard_samples, source.chunk_shape)
    normalizer = fit_normalizer(source, layout, config.normalizer, shards)
    samples = load_training_samples(source, layout, grid, normalizer, shards, config.meta_learning.validation_share)
    _check_latent_dim(samples, layout, config)
    network = start_network(samples, grid, config)
    data = _tensors(samples)
    outer = meta_learn(
        network,
        data,
        config.meta_learning,
        config.fit,
        _identity(config, samples),
        checkpoint_url,
        _stage("meta-learning", progress),
        storage_options,
    )
    _round_basis(network)
    codec_arrays, codec_report = _train_codec(network, samples, data, config, _stage("codec", progress))
    # No times in it: the same run gives the same bytes, killed in between or not.
    report = {
        "samples": len(samples.normalized),
        "validation_samples": int(samples.validation.sum()),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "meta_learning": {key: round(value, 4) for key, value in outer.items() if key != "seconds"},
        "codec": codec_report,
    }
    weights = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
    if network.linear is not None:
        weights["linear.basis"] = weights["linear.basis"].astype(np.float16)
    return make_bundle(config, grid, normalizer, weights, codec_arrays, report)


def load_training_samples(
    source: FieldSource,
    layout: Layout,
    grid: Grid,
    normalizer: Normalizer,
    shards: Sequence[Shard],
    validation_share: float,
) -> TrainingSamples:
    """Read and normalise every usable sample; the last along the first axis are marked for validation.

    Raises:
        SourceError: fewer than two usable samples, or they all are their background.
    """
    varies = False
    normalized, masks, blocks, ranges = [], [], [], []
    for shard in shards:
        usable = [sample for sample in iter_samples(source, layout, grid, shard) if rejection_reason(sample) is None]
        if not usable:
            continue
        index = [sample.block for sample in usable]
        mask = np.stack([_mask(sample) for sample in usable])
        scale = scale_at(normalizer, layout, index)
        values, background = np.stack([sample.values for sample in usable]), background_at(normalizer, layout, index)
        varies = varies or bool(
            np.any(mask[..., None] & (np.abs(values - background) > _ROUNDING * np.abs(background)))
        )
        normalized.append(np.where(mask[..., None], normalize(values, background, scale), np.float32(0)))
        masks.append(mask)
        blocks += index
        ranges.append(range_at(normalizer, layout, index) / scale[:, 0, 0])
    if len(blocks) < 2:
        raise SourceError(f"{source.variable}: training needs at least 2 usable samples, found {len(blocks)}")
    if not varies:
        raise SourceError(f"{source.variable} does not vary: all {len(blocks)} samples are their background everywhere")
    held_back = _last_share(np.array(blocks), layout, validation_share)
    every = np.concatenate(normalized)
    return TrainingSamples(every, np.concatenate(masks).any(axis=0), held_back, float(np.concatenate(ranges).mean()))


def start_network(samples: TrainingSamples, grid: Grid, config: RunConfig) -> GatedSiren:
    """The shared network before meta-learning, drawn from the run's seed; its linear term starts at the basis."""
    channels = samples.normalized.shape[2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.meta_learning.seed)
        network = GatedSiren(config.network, torch.from_numpy(grid.coordinates()), channels, config.fit.inner_rate)
    if config.fit.ridge is not None:
        torch.nn.init.constant_(network.log_ridge, math.log(config.fit.ridge))
    if network.linear is not None:
        start = start_linear_term(samples.normalized[~samples.validation], samples.valid, grid, config.network)
        with torch.no_grad():
            network.linear.basis.copy_(torch.from_numpy(start))
    return network


def _check_latent_dim(samples: TrainingSamples, layout: Layout, config: RunConfig) -> None:
    latent_dim, values = config.network.latent_dim, int(samples.valid.sum()) * layout.channels
    if latent_dim > values:
        raise ConfigError(
            f"network.latent_dim = {latent_dim}, but a sample of {layout.variable} has {values} values; take no more"
        )


def _round_basis(network: GatedSiren) -> None:
    """Round the linear term to float16, which halves the bundle; the codec is trained on what a decoder will have."""
    if network.linear is not None:
        with torch.no_grad():
            network.linear.basis.copy_(network.linear.basis.half())


def _train_codec(
    network: GatedSiren, samples: TrainingSamples, data: TrainingData, config: RunConfig, progress: Callable[..., None]
) -> tuple[dict[str, NDArray[np.generic]], dict[str, object]]:
    network.eval().requires_grad_(False)
    training, validation = (
        fit_latents(network, values, config.fit, data.mask) for values in (data.training, data.validation)
    )
    fitted = decode_latents(network, validation)
    _, jacobian = tangent(network)
    masked = jacobian.double()[data.mask.repeat_interleave(network.channels)]
    # A point that no sample has counts neither in the distortion nor in the rate.
    targets = [torch.where(data.mask[:, None], values, torch.nan) for values in (data.training, data.validation)]
    codec, report = train_codec(
        training.numpy(),
        validation.numpy(),
        (masked.T @ masked).numpy(),
        point_count=len(masked),
        value_range=samples.value_range,
        config=config.codec,
        seed=config.meta_learning.seed,
        decode=network,
        values=(targets[0], targets[1]),
        progress=lambda step, loss: progress(step, config.codec.steps, {"validation_loss": loss}),
    )
    for quality, level in enumerate(report["levels"]):
        decoded = torch.from_numpy(codec.latents_of(codec.symbols(validation.numpy(), quality), quality))
        level["psnr_db"] = round(mean_psnr(decode_latents(network, decoded) - data.validation, data), 2)
    return codec.to_arrays(), report | {
        "validation_psnr_before_quantisation_db": round(mean_psnr(fitted - data.validation, data), 3)
    }


def _tensors(samples: TrainingSamples) -> TrainingData:
    normalized = torch.from_numpy(samples.normalized)
    held_back = torch.from_numpy(samples.validation)
    return TrainingData(
        normalized[~held_back], normalized[held_back], torch.from_numpy(samples.valid), samples.value_range
    )


def _last_share(blocks: NDArray[np.int64], layout: Layout, share: float) -> NDArray[np.bool_]:
    """Samples in the last share of the time axis, so that no held-back hour has its neighbours in training.

    At least one sample is held back and at least one is not.
    """
    times = (i for i, axis in enumerate(layout.axes) if axis.is_time and len(np.unique(blocks[:, i])) > 1)
    column = next(times, None)
    order = blocks[:, column] if column is not None else np.arange(len(blocks))
    labels = np.unique(order)
    first = labels[min(len(labels) - 1, max(1, round(len(labels) * (1 - share))))]
    held_back: NDArray[np.bool_] = order >= first
    return held_back


def _mask(sample: Sample) -> NDArray[np.bool_]:
    return np.ones(len(sample.values), bool) if sample.mask is None else sample.mask


def _identity(config: RunConfig, samples: TrainingSamples) -> str:
    """What a checkpoint belongs to: the run's config and its data."""
    text = json.dumps(config.model_dump(mode="json", exclude={"source", "codec"}), sort_keys=True)
    return sha256_hex(text.encode() + sha256_hex(np.ascontiguousarray(samples.normalized).tobytes()).encode())


def _stage(name: str, progress: Progress | None) -> Callable[[int, int, dict[str, float]], None]:
    def report(step: int, steps: int, figures: dict[str, float]) -> None:
        if progress:
            progress(name, step, steps, figures)

    return report
