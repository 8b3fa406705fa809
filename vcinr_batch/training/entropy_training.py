"""Learns the distributions of a code: one CompressAI bottleneck for all quantisation steps, then frozen tables."""

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vcinr_batch.codec.entropy_model import LEVEL_OFFSETS, FrozenTables, choose_levels
from vcinr_batch.codec.rate_distortion import choose_symbols
from vcinr_batch.codec.table_freezing import level_masses, round_masses
from vcinr_batch.errors import FittingError
from vcinr_batch.training.compressai_bridge import cumulative_logits, standard_bottleneck

BATCH_SIZE = 64
_VALIDATIONS = 30
_PATIENCE = 6
_VALIDATION_ROWS = 1024
# Weight of the learned distribution against counted symbols, in samples. More costs rate at coarse levels, less at
# fine ones, where a few hundred samples say little about the symbol 0 (measured on ERA5 between 5 and 80).
_PRIOR_SAMPLES = 40
_PRIOR_OFFSETS = 8 * np.array([0.1, 0.2, 0.4, 0.2, 0.1])
_REFINEMENTS = 3


class CodeDistribution(nn.Module):
    """Factorised distribution of a code [K]: the bottleneck's on the code divided by its standard deviation."""

    scale: Tensor

    def __init__(self, code: Tensor, seed: int) -> None:
        super().__init__()
        self.register_buffer("scale", code.std(dim=0, correction=0).clamp_min(torch.finfo(torch.float32).tiny))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.bottleneck = standard_bottleneck(code.shape[1])

    def bits(self, code: Tensor, step: Tensor) -> Tensor:
        """Bits [N, K] of intervals of length step [N, 1] around code [N, K]."""
        center, half = code / self.scale, step / (2 * self.scale)
        lower, upper = cumulative_logits(self.bottleneck, torch.cat([center - half, center + half])).chunk(2)
        # Take the difference on the side where both sigmoids are small: near one it would cancel.
        side = torch.where(lower + upper > 0, -1.0, 1.0)
        mass = (torch.sigmoid(side * upper) - torch.sigmoid(side * lower)).abs()
        return -torch.log2(mass.clamp_min(1e-9))

    def cdf(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Cumulative distributions [N, K] at x [N, K] or [N, 1] in the unit of the code, in the model's precision."""
        with torch.no_grad():
            scaled = torch.from_numpy(x).to(self.scale.dtype) / self.scale
            cumulative: NDArray[np.float64] = torch.sigmoid(cumulative_logits(self.bottleneck, scaled)).double().numpy()
        return cumulative


def fit_distribution(
    code: Tensor, validation: Tensor | None, steps: Tensor, step_count: int, stop_at: int, rate: float, seed: int
) -> tuple[CodeDistribution, int]:
    """Learn the distribution of a code for all quantisation steps at once.

    Each batch draws a level for every sample and adds uniform noise of that level's step; the loss is the rate, each
    level's as a share of what it is at the start.

    Args:
        code: [N, K] to learn from.
        validation: [M, K], whose rate decides which state is kept; None keeps the last.
        steps: [Q].
        step_count: length of the learning rate's cosine.
        stop_at: steps to take, at most `step_count`.
        rate: Adam's learning rate.

    Returns:
        The distribution and the step that it is from.

    Raises:
        FittingError: the loss is not finite.
    """
    model = CodeDistribution(code, seed)
    baseline = level_means(lambda x, step: model.bits(x, step).sum(1), code, steps)

    def loss(rows: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
        step = steps[level, None]
        noise = torch.rand(len(rows), code.shape[1], generator=generator) - 0.5
        return (model.bits(code[rows] + noise * step, step).sum(1) / baseline[level]).mean()

    def validation_loss(held_out: Tensor) -> float:
        means = level_means(lambda x, step: model.bits(torch.round(x / step) * step, step).sum(1), held_out, steps)
        return float((means / baseline).mean())

    groups = [([p for name, p in model.named_parameters() if "quantiles" not in name], rate)]
    best = descend(
        [model],
        groups,
        loss,
        None if validation is None else lambda: validation_loss(validation),
        (len(code), len(steps)),
        step_count,
        stop_at,
        seed,
    )
    return model, best


def descend(
    modules: Sequence[nn.Module],
    groups: Sequence[tuple[list[nn.Parameter], float]],
    loss: Callable[[Tensor, Tensor, torch.Generator], Tensor],
    validation_loss: Callable[[], float] | None,
    row_and_level_count: tuple[int, int],
    step_count: int,
    stop_at: int,
    seed: int,
    progress: Callable[[int, float], None] | None = None,
) -> int:
    """Adam with a cosine schedule on random rows and levels; leaves the best validated state in the modules.

    Returns:
        The step that the state is from; 0 is the start.

    Raises:
        FittingError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([{"params": parameters, "lr": rate} for parameters, rate in groups])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: 0.5 * (1 + math.cos(math.pi * min(i / max(step_count, 1), 1)))
    )
    every = max(1, step_count // _VALIDATIONS)
    best_step, best_loss = 0, math.inf if validation_loss is None else validation_loss()
    best_states = [copy.deepcopy(module.state_dict()) for module in modules]
    for step in range(1, stop_at + 1):
        rows = torch.randint(row_and_level_count[0], (BATCH_SIZE,), generator=generator)
        level = torch.randint(row_and_level_count[1], (BATCH_SIZE,), generator=generator)
        value = loss(rows, level, generator)
        if not torch.isfinite(value):
            raise FittingError(f"codec training diverged at step {step}: its loss is {value.item()}")
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if validation_loss is None or step % every:
            continue
        current = validation_loss()
        if progress is not None:
            progress(step, current)
        if current < best_loss:
            best_step, best_loss = step, current
            best_states = [copy.deepcopy(module.state_dict()) for module in modules]
        if step - best_step >= _PATIENCE * every:
            break
    if validation_loss is None:
        return stop_at
    for module, state in zip(modules, best_states, strict=True):
        module.load_state_dict(state)
    return best_step


def level_means(measure: Callable[[Tensor, Tensor], Tensor], rows: Tensor, steps: Tensor) -> Tensor:
    """Mean of `measure(rows, step [.., 1])` for each level [Q], each over as many rows as keep the work bounded."""
    count = max(1, _VALIDATION_ROWS // len(steps))
    stride = max(1, len(rows) // count)
    with torch.no_grad():
        return torch.stack([measure(rows[::stride], step.expand(len(rows[::stride]), 1)).mean() for step in steps])


def freeze_distribution(
    model: CodeDistribution, code: NDArray[np.float32], validation: NDArray[np.float32], steps: NDArray[np.float64]
) -> FrozenTables:
    """Tables of a learned distribution, adjusted to the symbols that the encoder really chooses.

    An encoder that weighs rate against error takes the symbol 0 more often than rounding does. Its probability is
    counted on the code and mixed with the distribution's; that changes the choice, so it is done three times over.

    Args:
        code: [N, K], all that there is.
        validation: [M, K], the part of it on which samples choose among the levels' tables.
        steps: [Q], descending.
    """
    model = copy.deepcopy(model).double()
    levels = [level_masses(model.cdf, float(step)) for step in steps]
    learned_zero = np.stack([np.diff(model.cdf(np.array([[-step / 2], [step / 2]])), axis=0)[0] for step in steps])
    tables = round_masses(levels, steps)
    for _ in range(_REFINEMENTS):
        zeros = np.stack([(choose_symbols(code, tables, q) == 0).sum(0) for q in range(len(steps))])
        offsets = np.stack([_count_offsets(validation, tables, q) for q in range(len(steps))]) + _PRIOR_OFFSETS
        tables = round_masses(
            levels,
            steps,
            zero_mass=(zeros + _PRIOR_SAMPLES * learned_zero) / (len(code) + _PRIOR_SAMPLES),
            offset_mass=offsets / offsets.sum(axis=1, keepdims=True),
        )
    return tables


def _count_offsets(code: NDArray[np.float32], tables: FrozenTables, quality: int) -> NDArray[np.int64]:
    offsets = choose_levels(tables, quality, choose_symbols(code, tables, quality)) - quality
    return np.bincount(offsets - LEVEL_OFFSETS[0], minlength=len(LEVEL_OFFSETS))
