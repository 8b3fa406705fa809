"""From a source to a bundle: normaliser, then the shared network (meta-learning), then the latent codec."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vcinr_batch.bundle import Bundle, make_bundle
from vcinr_batch.codec.latent_codec import LatentCodec
from vcinr_batch.codec.residual_model import ResidualModel
from vcinr_batch.config import RunConfig
from vcinr_batch.data.coordinates import Grid, make_grid
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.normalization import Normalizer, fit_normalizer
from vcinr_batch.data.shards import make_layout, plan_shards
from vcinr_batch.data.sources import FieldSource
from vcinr_batch.errors import ConfigError
from vcinr_batch.network.fitting import decode_latents, fit_latents, make_solver, tangent
from vcinr_batch.network.gated_siren import GatedSiren
from vcinr_batch.storage import StorageOptions, sha256_hex
from vcinr_batch.training.codec_training import train_codec
from vcinr_batch.training.localized_basis import start_linear_term
from vcinr_batch.training.meta_learning import VALIDATION_SAMPLES, TrainingData, mean_psnr, meta_learn
from vcinr_batch.training.residual_training import train_residual
from vcinr_batch.training.training_samples import TrainingSamples, load_training_samples
from vcinr_batch.training.unseen_fields import unseen_fields
from vcinr_batch.training.worker_group import ALONE, WorkerGroup, on_first

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called with the stage, the step, the number of steps and the latest figures."""


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """What the first stage leaves to the second."""

    network: GatedSiren
    grid: Grid
    normalizer: Normalizer
    samples: TrainingSamples
    data: TrainingData
    figures: Mapping[str, float]
    """As `meta_learn` returns them."""


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
    return train_codec_of(train_network(source, config, checkpoint_url, progress, storage_options), config, progress)


def train_network(
    source: FieldSource,
    config: RunConfig,
    checkpoint_url: str | None = None,
    progress: Progress | None = None,
    storage_options: StorageOptions = None,
    group: WorkerGroup = ALONE,
    device: str = "cpu",
) -> TrainedNetwork:
    """The first stage: samples, normaliser and the meta-learned network. Every worker of a group calls it.

    The first worker learns the normaliser and starts the network; reading samples and the steps are shared out.

    Args:
        group: this worker's place among those that train together.
        device: where the network and the batches are; all samples stay in this machine's memory.

    Raises:
        VcinrError: as `train_bundle`, the same error on every worker.
    """
    layout = make_layout(source, config.sample)
    grid = make_grid(layout, config.sample.coordinates)
    shards = plan_shards(layout, config.sample.shard_samples, source.chunk_shape)
    normalizer = on_first(group, lambda: fit_normalizer(source, layout, config.normalizer, shards))
    samples = load_training_samples(source, layout, grid, normalizer, shards, config.meta_learning, group)
    _check_latent_dim(samples, layout, config)
    network = start_network(samples, grid, config, group).to(device)
    data = _tensors(samples, device)
    outer = meta_learn(
        network,
        data,
        config.meta_learning,
        config.fit,
        _identity(config, samples) if group.rank == 0 else "",
        checkpoint_url,
        _stage("meta-learning", progress),
        storage_options,
        group,
    )
    _round_basis(network)
    return TrainedNetwork(network, grid, normalizer, samples, data, outer)


def train_codec_of(
    trained: TrainedNetwork, config: RunConfig, progress: Progress | None = None
) -> tuple[Bundle, bytes]:
    """The second stage: fits all samples, learns their codec and puts the bundle together. On one worker.

    Raises:
        VcinrError: as `train_bundle`.
    """
    network, samples = trained.network, trained.samples
    codec_arrays, codec_report = _train_codec(trained, config, _stage("codec", progress))
    # No times in it: the same run gives the same bytes, killed in between or not.
    report = {
        "samples": len(samples.normalized),
        "validation_samples": int(samples.validation.sum()),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "meta_learning": {key: round(value, 4) for key, value in trained.figures.items() if key != "seconds"},
        "codec": codec_report,
    }
    weights = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
    if network.linear is not None:
        weights["linear.basis"] = weights["linear.basis"].astype(np.float16)
    return make_bundle(config, trained.grid, trained.normalizer, weights, codec_arrays, report)


def start_network(samples: TrainingSamples, grid: Grid, config: RunConfig, group: WorkerGroup = ALONE) -> GatedSiren:
    """The shared network before meta-learning, drawn from the run's seed; its linear term starts at the basis.

    Raises:
        ConfigError: too many points for a dense covariance.
    """
    channels = samples.normalized.shape[2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.meta_learning.seed)
        network = GatedSiren(config.network, torch.from_numpy(grid.coordinates()), channels, config.fit.inner_rate)
    if config.fit.ridge is not None:
        torch.nn.init.constant_(network.log_ridge, math.log(config.fit.ridge))
    if network.linear is not None:
        # By one worker: the covariance takes memory, and two machines would differ in its eigenvectors' last bits.
        start = on_first(
            group,
            lambda: start_linear_term(samples.normalized[~samples.validation], samples.valid, grid, config.network),
        )
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
    trained: TrainedNetwork, config: RunConfig, progress: Callable[..., None]
) -> tuple[dict[str, NDArray[np.generic]], dict[str, object]]:
    network, samples = trained.network, trained.samples
    network.eval().requires_grad_(False)
    fits = [
        _fit_all(network, values, config, trained.data) for values in (trained.data.training, trained.data.validation)
    ]
    # Small networks and latents: from here on a graphics card has nothing to gain.
    network.cpu()
    (training, validation), data = fits, replace(trained.data, mask=trained.data.mask.cpu())
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
    base_bits = [float(level["bits_per_value"]) for level in report["levels"]]
    codec.residual = _residual_model(trained, codec, validation, config, base_bits)
    return codec.to_arrays(), report | {
        "validation_psnr_before_quantisation_db": round(mean_psnr(fitted - data.validation, data), 3)
    }


def _residual_model(
    trained: TrainedNetwork, codec: LatentCodec, validation: Tensor, config: RunConfig, base_bits: list[float]
) -> ResidualModel | None:
    """What codes residuals under an error bound, learned on fields that the base has not seen; for one channel."""
    if trained.samples.normalized.shape[2] != 1:
        return None
    unseen = unseen_fields(trained.samples, validation.numpy(), trained.network, codec, trained.grid, config)
    valid = trained.samples.valid
    return train_residual(unseen.values, unseen.decoded, np.asarray(base_bits), valid, trained.grid.shape)


def _fit_all(network: GatedSiren, values: Tensor, config: RunConfig, data: TrainingData) -> Tensor:
    """Latents [N, L] of samples [N, P, C], on the CPU; a graphics card gets them in batches."""
    device = data.mask.device
    if device.type == "cpu":
        return fit_latents(network, values, config.fit, data.mask)
    solver = make_solver(network, mask=data.mask) if config.fit.method == "closed_form" else None
    batches = (part.to(device) for part in torch.split(values, VALIDATION_SAMPLES))
    return torch.cat([fit_latents(network, part, config.fit, data.mask, solver).cpu() for part in batches])


def _tensors(samples: TrainingSamples, device: str) -> TrainingData:
    normalized = torch.from_numpy(samples.normalized)
    held_back = torch.from_numpy(samples.validation)
    valid = torch.from_numpy(samples.valid).to(device)
    return TrainingData(normalized[~held_back], normalized[held_back], valid, samples.value_range)


def _identity(config: RunConfig, samples: TrainingSamples) -> str:
    """What a checkpoint belongs to: the run's config and its data."""
    text = json.dumps(config.model_dump(mode="json", exclude={"source", "codec"}), sort_keys=True)
    return sha256_hex(text.encode() + sha256_hex(np.ascontiguousarray(samples.normalized).tobytes()).encode())


def _stage(name: str, progress: Progress | None) -> Callable[[int, int, dict[str, float]], None]:
    def report(step: int, steps: int, figures: dict[str, float]) -> None:
        if progress:
            progress(name, step, steps, figures)

    return report
