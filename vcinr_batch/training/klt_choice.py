"""How far to believe the correlations of a small sample: decided on held-out latents."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vcinr_batch.codec.transforms import LatentTransform, klt_transform

# Error of a dimension in bits: at high rate D = step^2 / 12 and a bit divides it by four.
BITS_PER_STEP2 = 6 / math.log(2)

# Tried on the validation latents: which latents keep their correlations (None: all), and how much of them is left out.
_LEADING = (None, 128, 64, 32, 16, 8)
_SHRINKAGES = (0.0, 0.25, 0.5, 0.75)


def choose_correlations(
    train: NDArray[np.float32], validation: NDArray[np.float32], metric: NDArray[np.float64], steps: NDArray[np.float64]
) -> tuple[float, int | None]:
    """Which correlations of the training latents a KLT should trust.

    Args:
        train: [N, L].
        validation: [M, L].
        metric: M [L, L], as in `klt_transform`.
        steps: [Q], quantisation steps; each level counts alike.

    Returns:
        shrinkage and leading, of `klt_transform`: the pair that gives the validation latents the least rate and error,
        coded with Laplace priors of the training latents.
    """
    choices: list[tuple[float, int | None]] = [(1.0, None)]
    choices += [(s, m) for m in _LEADING if m is None or m < train.shape[1] for s in _SHRINKAGES]
    centred = validation.astype(np.float64) - train.mean(0, dtype=np.float64)
    energy = float(np.einsum("bi,ij,bj->", centred, metric, centred, optimize=True))
    costs = [
        _laplace_cost(klt_transform(train, metric, *choice), train, validation, steps, energy) for choice in choices
    ]
    return choices[int(np.argmin(costs))]


def _laplace_cost(
    transform: LatentTransform,
    train: NDArray[np.float32],
    validation: NDArray[np.float32],
    steps: NDArray[np.float64],
    energy: float,
) -> float:
    """Log of rate and error in bits, summed over levels; `energy` is that of the validation latents in the output."""
    with torch.no_grad():
        code = transform.analysis(torch.from_numpy(train)).double()
        held_out = transform.analysis(torch.from_numpy(validation)).double()
    scale = code.abs().mean(0).clamp_min(1e-30)
    dropped = max(energy - float(held_out.square().sum()), 0.0)
    total = 0.0
    for step in steps:
        quantised = torch.round(held_out / step) * step
        # Mirrored to the negative side, where the Laplace cdf is exp(x / scale) / 2 and nothing cancels.
        upper, lower = (torch.exp(x.clamp_max(0) / scale) / 2 for x in _interval(quantised, float(step)))
        mass = torch.where(quantised == 0, 1 - 2 * lower, upper - lower)
        error = (float((held_out - quantised).square().sum()) + dropped) / step**2
        # A logarithm, so that every level counts alike: each tells the relative change of its own cost.
        total += math.log(BITS_PER_STEP2 * error - float(torch.log2(mass.clamp_min(2.0**-20)).sum()))
    return total


def _interval(x: Tensor, step: float) -> tuple[Tensor, Tensor]:
    return -x.abs() + step / 2, -x.abs() - step / 2
