"""Learns a latent codec: KLT, entropy model for every quality level, optional residual MLPs, frozen tables."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vcinr_batch.codec.entropy_model import ideal_bits
from vcinr_batch.codec.latent_codec import LatentCodec
from vcinr_batch.codec.transforms import LatentTransform, klt_transform
from vcinr_batch.config import CodecConfig
from vcinr_batch.errors import ConfigError, FittingError
from vcinr_batch.training.entropy_training import (
    CodeDistribution,
    descend,
    fit_distribution,
    freeze_distribution,
    level_means,
)
from vcinr_batch.training.klt_choice import BITS_PER_STEP2, choose_correlations

Decode = Callable[[Tensor], Tensor]
Progress = Callable[[int, float], None]


def train_codec(
    latents_train: NDArray[np.float32],
    latents_validation: NDArray[np.float32],
    metric: NDArray[np.float64],
    point_count: int,
    value_range: float,
    config: CodecConfig,
    seed: int = 0,
    decode: Decode | None = None,
    values: tuple[Tensor, Tensor] | None = None,
    progress: Progress | None = None,
) -> tuple[LatentCodec, dict[str, Any]]:
    """Learn transform and entropy tables from fitted latents (the codec of VC-INR, Schwarz et al. 2023).

    1. KLT under the decoder's metric, of those correlations that the validation latents confirm.
    2. With `residual_mlp`: MLPs on top, trained with the rate of an entropy bottleneck for all levels at once; the KLT
       itself stays if nothing does better on validation.
    3. The entropy bottleneck again on all latents, for as many steps as were best on validation, then frozen.

    Args:
        latents_train: [N, L].
        latents_validation: [M, L], not used for fitting anything that overfits easily.
        metric: J0^T J0 [L, L], summed over points: squared error of the decoded values per squared error of a latent.
        point_count: values per sample, P * C.
        value_range: range of the values for PSNR, in the unit of the decoded values.
        decode: latents [B, L] -> values [B, P, C], differentiable; for `distortion: reconstruction`.
        values: what the training and the validation latents should decode to, [N, P, C] and [M, P, C]; NaN is left out.
        progress: called with a step and the validation loss (a share of the start's) now and then.

    Returns:
        The codec and a report that json can write: dimensions, choices, and bits and PSNR of the validation latents
        per level (PSNR from the linear model, without the error of the fit).

    Raises:
        ConfigError: shapes that do not agree, `reconstruction` without `decode` and `values`, compressai missing.
        FittingError: values that are not finite, or training that diverges.
    """
    _check_arguments(latents_train, latents_validation, config, decode, values)
    steps = quality_steps(config, value_range)
    shrinkage, leading = choose_correlations(latents_train, latents_validation, metric, steps)
    hidden_dim = config.hidden_dim if config.transform == "residual_mlp" else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transform = klt_transform(latents_train, metric, shrinkage, leading, hidden_dim)
    train, validation = torch.from_numpy(latents_train), torch.from_numpy(latents_validation)
    step_tensor = torch.from_numpy(steps).float()

    def fit(code: Tensor, held_out: Tensor | None, stop_at: int) -> tuple[CodeDistribution, int]:
        return fit_distribution(code, held_out, step_tensor, config.steps, stop_at, config.learning_rate, seed)

    with torch.no_grad():
        code_train, code_validation = transform.analysis(train), transform.analysis(validation)
    model, entropy_step = fit(code_train, code_validation, config.steps)
    transform_step = 0
    if hidden_dim:
        targets = (train, validation) if values is None or config.distortion == "latent" else values
        distortion = _distortion(metric, decode if config.distortion == "reconstruction" else None)
        transform_step = _train_transform(
            transform, model, (train, validation), targets, distortion, step_tensor, config, seed, progress
        )
    with torch.no_grad():
        code_all = transform.analysis(torch.cat([train, validation]))
    model, _ = fit(code_all, None, entropy_step)
    held_out = code_all[len(train) :].numpy()
    codec = LatentCodec(transform, freeze_distribution(model, code_all.numpy(), held_out, steps))
    report = {
        "code_dim": transform.code_dim,
        "shrinkage": shrinkage,
        "leading": leading,
        "entropy_model_step": entropy_step,
        "transform_step": transform_step,
        "levels": _level_report(codec, latents_validation, metric, point_count, value_range),
    }
    return codec, report


def quality_steps(config: CodecConfig, value_range: float) -> NDArray[np.float64]:
    """Quantisation step [Q] of each level, in the unit of the values.

    A basis that is orthonormal over the points, all of it quantised with one step, has a mean squared error of
    step^2 / 12: `step = sqrt(12) * value_range * 10^(-PSNR / 20)`. Samples reach a higher PSNR than that nominal one
    where most symbols are 0.
    """
    psnr_db = np.asarray(config.quality_psnr_db, np.float64)
    return np.asarray(math.sqrt(12) * value_range * 10 ** (-psnr_db / 20))


def _check_arguments(
    latents_train: NDArray[np.float32],
    latents_validation: NDArray[np.float32],
    config: CodecConfig,
    decode: Decode | None,
    values: tuple[Tensor, Tensor] | None,
) -> None:
    if len(latents_train) < 2 or len(latents_validation) < 1:
        raise ConfigError(
            f"codec training needs 2 training samples and 1 for validation, got {len(latents_train)} and "
            f"{len(latents_validation)}"
        )
    if latents_train.shape[1:] != latents_validation.shape[1:]:
        raise ConfigError(f"latents differ in length: {latents_train.shape} and {latents_validation.shape}")
    if not np.isfinite(latents_validation).all():
        raise FittingError("validation latents are not finite, the fit diverged")
    if config.transform == "residual_mlp" and config.distortion == "reconstruction":
        if decode is None or values is None:
            raise ConfigError("codec.distortion 'reconstruction' needs the decoder and the values to reconstruct")
        if (len(values[0]), len(values[1])) != (len(latents_train), len(latents_validation)):
            raise ConfigError("one target is needed for each latent")


def _distortion(metric: NDArray[np.float64], decode: Decode | None) -> Callable[[Tensor, Tensor], Tensor]:
    """(decoded latents [B, L], targets) -> squared error [B], summed over values; targets are latents or values."""
    if decode is not None:
        # Not nansum of the square: its gradient would be NaN where the value is.
        return lambda latents, values: (
            torch.where(values.isnan(), 0.0, decode(latents) - values).square().flatten(1).sum(1)
        )
    weight = torch.from_numpy(np.asarray(metric, np.float32))
    return lambda latents, targets: (((latents - targets) @ weight) * (latents - targets)).sum(1)


def _train_transform(
    transform: LatentTransform,
    model: CodeDistribution,
    latents: tuple[Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
    distortion: Callable[[Tensor, Tensor], Tensor],
    steps: Tensor,
    config: CodecConfig,
    seed: int,
    progress: Progress | None,
) -> int:
    """Train the MLPs and the bottleneck on rate + lambda * distortion; leaves the best in both, returns its step."""

    def cost(phi: Tensor, target: Tensor, step: Tensor, noise: Tensor | None) -> Tensor:
        code = transform.analysis(phi)
        code = torch.round(code / step) * step if noise is None else code + noise * step
        error = distortion(transform.synthesis(code), target)
        weight = config.distortion_weight * BITS_PER_STEP2 / step[:, 0] ** 2
        return model.bits(code, step).sum(1) + weight * error

    def level_costs(part: int) -> Tensor:
        rows = torch.arange(len(latents[part]))
        return level_means(lambda i, step: cost(latents[part][i], targets[part][i], step, None), rows, steps)

    baseline, baseline_validation = level_costs(0), level_costs(1)

    def loss(rows: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.rand(len(rows), transform.code_dim, generator=generator) - 0.5
        return (cost(latents[0][rows], targets[0][rows], steps[level, None], noise) / baseline[level]).mean()

    groups = [
        ([p for name, p in model.named_parameters() if "quantiles" not in name], config.learning_rate),
        (list(transform.parameters()), config.learning_rate / 10),
    ]
    return descend(
        [transform, model],
        groups,
        loss,
        lambda: float((level_costs(1) / baseline_validation).mean()),
        (len(latents[0]), len(steps)),
        config.steps,
        config.steps,
        seed,
        progress,
    )


def _level_report(
    codec: LatentCodec,
    latents: NDArray[np.float32],
    metric: NDArray[np.float64],
    point_count: int,
    value_range: float,
) -> list[dict[str, float]]:
    levels = []
    for quality in range(codec.quality_count):
        symbols = codec.symbols(latents, quality)
        error = (latents - codec.latents_of(symbols, quality)).astype(np.float64)
        squared = np.einsum("bi,ij,bj->b", error, metric, error, optimize=True) / point_count
        bits = ideal_bits(codec.tables, quality, symbols).mean() / point_count
        psnr_db = -10 * np.log10(np.maximum(squared, 1e-30) / value_range**2).mean()
        levels.append(
            {"step": float(codec.tables.steps[quality]), "bits_per_value": float(bits), "psnr_db": float(psnr_db)}
        )
    return levels
