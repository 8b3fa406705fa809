"""Learning the shared network through the inner loop (VC-INR, Schwarz et al. 2023): the outer loop.

With several workers each one fits its slice of every batch, and the gradients are averaged. All of them draw the same
batches and points from the same seeded generator, so that the number of workers changes the rounding and nothing else:
neither the batch nor the learning rate grows with it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vcinr_batch.config import FitConfig, MetaLearningConfig
from vcinr_batch.errors import ConfigError, CorruptBitstreamError, FittingError
from vcinr_batch.network.fitting import chord_step, decode_latents, first_step, fit_latents, gradient_fit, make_solver
from vcinr_batch.network.gated_siren import GatedSiren
from vcinr_batch.network.modulation import SparseShiftModulation
from vcinr_batch.network.siren import hidden_precision
from vcinr_batch.storage import StorageOptions
from vcinr_batch.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    network_tensors,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from vcinr_batch.training.worker_group import ALONE, WorkerGroup, on_first, own_slice, share_gradients, sum_over

Progress = Callable[[int, int, dict[str, float]], None]
"""Called with step, steps and the latest figures."""

VALIDATION_SAMPLES = 256


@dataclass(frozen=True)
class TrainingData:
    """Normalised samples for the outer loop."""

    training: Tensor
    """[N, P, C], zero outside the mask; in host memory, a batch at a time goes to the mask's device."""
    validation: Tensor
    """[M, P, C], other samples."""
    mask: Tensor
    """bool [P], points that hold a value in at least one sample; the others take no part."""
    range_in_network_units: float
    """The value range over the scale: PSNR = -20 log10(RMSE / this)."""


def meta_learn(
    network: GatedSiren,
    data: TrainingData,
    config: MetaLearningConfig,
    fit: FitConfig,
    identity: str = "",
    checkpoint_url: str | None = None,
    progress: Progress | None = None,
    storage_options: StorageOptions = None,
    group: WorkerGroup = ALONE,
) -> dict[str, float]:
    """Train the network in place; it ends with the weights that were best on the validation samples.

    The start counts as a candidate, so the result is never worse on validation than the start. Every random number
    comes from `config.seed`; a run that is killed goes on from its checkpoint and reaches the same weights.

    In a group every worker calls this with the same arguments; the first one validates, reads and writes the checkpoint
    and calls `progress`, and its weights are where all start.

    Returns:
        steps, best_step, start_psnr_db, best_psnr_db, seconds.

    Raises:
        FittingError: the loss is not finite and no earlier weights are left to go back to.
        ConfigError: samples of a single point, more workers than samples in a batch, or a checkpoint that belongs to
            another run.
        CorruptBitstreamError: the checkpoint is damaged, or was written for another network.
    """
    started = time.monotonic()
    if group.size > config.batch_size:
        raise ConfigError(
            f"meta_learning.batch_size = {config.batch_size}, but there are {group.size} workers; take no more"
        )
    optimizer = make_optimizer(network, config)
    generator = torch.Generator().manual_seed(config.seed)
    start_score = on_first(group, lambda: validation_psnr(network, data, fit))
    step, best_step, best_score, best = 0, 0, start_score, network_tensors(network)
    resumed = on_first(
        group, lambda: load_checkpoint(checkpoint_url, identity, storage_options) if checkpoint_url else None
    )
    if resumed is not None:
        _restore(resumed, network, optimizer, generator)
        step, best_step = resumed.step, resumed.best_step
        best_score, best = resumed.best_score, dict(resumed.best_network)
    loss_of = share_gradients(group, OuterLoss(network, config, fit))
    in_time = True
    while step < config.steps and in_time:
        set_learning_rate(optimizer, config, step)
        loss = outer_step(loss_of, network, optimizer, data, config, generator, group)
        step += 1
        late = time.monotonic() - started >= config.max_minutes * 60
        in_time = sum_over(group, late)[0] == 0
        if step % config.validate_every and step < config.steps and in_time and math.isfinite(loss):
            continue
        score = on_first(group, lambda: validation_psnr(network, data, fit)) if math.isfinite(loss) else -math.inf
        if not math.isfinite(score):
            # Published runs collapse too: keep the best weights and stop.
            if best_step == 0 and not math.isfinite(best_score):
                raise FittingError(
                    f"meta-learning diverged at step {step} before any usable weights; lower learning_rate"
                )
            break
        if score > best_score:
            best_step, best_score, best = step, score, network_tensors(network)
        if progress:  # before the checkpoint: a run that goes on from it tells the steps after it only
            figures = {"loss": loss, "validation_psnr_db": score, "best_psnr_db": best_score}
            on_first(group, partial(progress, step, config.steps, figures))
        if checkpoint_url:
            state = (network_tensors(network), best, optimizer_tensors(optimizer), generator.get_state())
            checkpoint = Checkpoint(identity, step, best_step, best_score, *state)
            on_first(group, partial(save_checkpoint, checkpoint, checkpoint_url, storage_options))
    network.load_state_dict(best)
    return {
        "steps": step,
        "best_step": best_step,
        "start_psnr_db": start_score,
        "best_psnr_db": best_score,
        "seconds": time.monotonic() - started,
    }


class OuterLoss(nn.Module):
    """The loss of some samples after their inner loop, as the module that torch's DistributedDataParallel asks for."""

    def __init__(self, network: GatedSiren, config: MetaLearningConfig, fit: FitConfig) -> None:
        super().__init__()
        self.network, self.config, self.fit = network, config, fit

    def forward(self, values: Tensor, fit_at: Tensor, loss_at: Tensor) -> tuple[Tensor, Tensor]:
        """Values [B, P, C] -> what to descend on, and the mean squared error in it at the points `loss_at`.

        The points that the inner loop fits and those that the loss sees are kept apart, or the latent overfits the
        sampled points (ERA5, 3 x 64, L = 64: 43 dB in training, 36.9 dB on the full grid).
        """
        with hidden_precision(self.network, self.config.precision):
            latents = inner_loop(self.network, values[:, fit_at], fit_at, self.fit)
            loss = ((self.network(latents, loss_at) - values[:, loss_at]) ** 2).mean()
        sparse = _sparse(self.network)
        return (loss + self.config.sparsity * sparse.expected_open() if sparse else loss), loss


def outer_step(
    loss_of: nn.Module,
    network: GatedSiren,
    optimizer: torch.optim.Optimizer,
    data: TrainingData,
    config: MetaLearningConfig,
    generator: torch.Generator,
    group: WorkerGroup = ALONE,
) -> float:
    """One step of the outer optimiser on a random batch; returns its loss, NaN where the inner loop failed.

    Args:
        loss_of: `OuterLoss` of the network, in a group with shared gradients.
        generator: in the same state on every worker.
    """
    rows = torch.randint(len(data.training), (config.batch_size,), generator=generator)
    fit_at, loss_at = split_points(data.mask, config, generator)
    mine = rows[own_slice(group, len(rows))]
    batch = data.training[mine.to(data.training.device)].to(data.mask.device)
    sparse = _sparse(network)
    if sparse:
        sparse.resample(generator)
    # A worker's mean counts by its part of the batch; the gradients' mean over workers divides by their number.
    share = len(mine) / len(rows)
    try:
        total, loss = loss_of(batch, fit_at, loss_at)
        mean, failures = sum_over(group, float(loss.detach()) * share, 0.0)
        if failures:
            return math.nan
        optimizer.zero_grad()
        torch.autograd.backward(total * (share * group.size) if group.size > 1 else total)
    except FittingError:
        sum_over(group, math.nan, 1.0)
        return math.nan
    finally:
        if sparse:
            sparse.resample(None)
    nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
    optimizer.step()
    return mean


def _sparse(network: GatedSiren) -> SparseShiftModulation | None:
    return network.modulation if isinstance(network.modulation, SparseShiftModulation) else None


def inner_loop(network: GatedSiren, values: Tensor, points: Tensor, fit: FitConfig) -> Tensor:
    """The fit inside a training step, differentiable: values [B, F, C] at points [F] -> latents [B, L]."""
    if fit.method == "gradient":
        return gradient_fit(network, values, fit.inner_steps, points, training=True)
    # float32: the backward pass through the float64 normal equations would cost more than the network itself. Without
    # a SIREN it does not, and the ridge is too small for float32.
    solver = make_solver(network, points, dtype=torch.float64 if network.siren is None else torch.float32)
    latents = first_step(network, solver, values)
    for _ in range(fit.chord_steps):
        latents = chord_step(network, solver, latents, values, points)
    return latents


def split_points(mask: Tensor, config: MetaLearningConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random disjoint indices of valid points, for the fit and for the loss; small grids are shared in proportion.

    Raises:
        ConfigError: fewer than two valid points.
    """
    valid = mask.nonzero().flatten().cpu()
    if len(valid) < 2:
        raise ConfigError(f"meta-learning needs samples of at least 2 points with values, these have {len(valid)}")
    order = valid[torch.randperm(len(valid), generator=generator)].to(mask.device)
    wanted = config.fit_points + config.loss_points
    share = min(1.0, len(order) / wanted)
    fit_count = max(1, int(config.fit_points * share))
    return order[:fit_count], order[fit_count : fit_count + max(1, int(config.loss_points * share))]


def make_optimizer(network: GatedSiren, config: MetaLearningConfig) -> torch.optim.Optimizer:
    """AdamW with a rate of its own for the linear term."""
    linear = [p for name, p in network.named_parameters() if name.startswith("linear.") and p.requires_grad]
    others = [p for name, p in network.named_parameters() if not name.startswith("linear.") and p.requires_grad]
    groups = [{"params": others, "factor": 1.0}]
    if linear:
        groups.append({"params": linear, "factor": config.linear_rate_factor})
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: MetaLearningConfig, step: int) -> None:
    """Linear warm-up, then a cosine to 2 % of the peak."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    cosine = max(0.02, 0.5 + 0.5 * math.cos(math.pi * step / max(config.steps, 1)))
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * group["factor"] * warm * cosine


def validation_psnr(network: GatedSiren, data: TrainingData, fit: FitConfig) -> float:
    """Mean PSNR (dB) of fitted validation samples on the whole grid, before quantisation; -inf where the fit fails."""
    values = spread(data.validation, VALIDATION_SAMPLES).to(data.mask.device)
    try:
        latents = fit_latents(network, values, fit, data.mask)
    except FittingError:
        return -math.inf
    return mean_psnr(decode_latents(network, latents) - values, data)


def mean_psnr(error: Tensor, data: TrainingData) -> float:
    """Mean over samples of the PSNR in dB, for errors [B, P, C] in network units; an exact sample counts as 200 dB."""
    squared = (error[:, data.mask] ** 2).flatten(1).mean(dim=1) / data.range_in_network_units**2
    score = -10 * torch.log10(squared.clamp_min(1e-20))
    return float(score.mean())


def spread(values: Tensor, count: int) -> Tensor:
    """At most `count` samples, evenly spread."""
    if len(values) <= count:
        return values
    return values[torch.linspace(0, len(values) - 1, count).round().long()]


def _restore(
    checkpoint: Checkpoint, network: GatedSiren, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> None:
    try:
        network.load_state_dict(dict(checkpoint.network))
        restore_optimizer(optimizer, checkpoint.optimizer)
        generator.set_state(checkpoint.generator_state)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CorruptBitstreamError(
            f"the checkpoint was written for another network; delete it to start the training anew ({error})"
        ) from error
