"""Sine layers shared by all samples (SIREN, Sitzmann et al. 2020), laid out so that a modulation can act on each."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn


class SirenWeights(nn.Module):
    """Shared weights of a SIREN: one first layer, N hidden layers of width H, one output layer.

    `weight_scale` multiplies the usual range of the hidden matrices: a sigmoid gate starts at one half, so the gated
    network draws them from twice the range. `output_scale` multiplies the range of the output layer:
    where only biases are shifted, a small output layer makes the closed form ask for shifts of several radians, far
    outside the range in which the network is linear (MPI-ESM, L = 64: it then does not learn at all).
    """

    def __init__(
        self,
        coordinate_dim: int,
        hidden_dim: int,
        hidden_layers: int,
        channels: int,
        w0: float,
        weight_scale: float = 1.0,
        output_scale: float = 0.1,
    ) -> None:
        super().__init__()
        bound = math.sqrt(6 / hidden_dim)
        self.w0 = w0
        self.hidden_precision = "float32"
        self.first_weight = nn.Parameter(_uniform(hidden_dim, coordinate_dim, bound=1 / coordinate_dim))
        self.weight = nn.Parameter(_uniform(hidden_layers, hidden_dim, hidden_dim, bound=weight_scale * bound / w0))
        self.bias = nn.Parameter(_uniform(hidden_layers + 1, hidden_dim, bound=1 / math.sqrt(hidden_dim)))
        self.output_weight = nn.Parameter(_uniform(channels, hidden_dim, bound=output_scale * bound))
        self.output_bias = nn.Parameter(torch.zeros(channels))


def evaluate_siren(shared: SirenWeights, coordinates: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Evaluate `c_l = sin(w0 * (W_l c_{l-1} + b_l))` with per-sample weights and biases (VC-INR, Schwarz et al. 2023).

    Args:
        shared: the first layer's matrix and the output layer.
        coordinates: [P, D].
        weight: [B or 1, N, H, H], hidden matrices after modulation.
        bias: [B or 1, N + 1, H], biases after modulation, the first layer's at index 0.

    Returns:
        [max(B), P, C].
    """
    w0 = shared.w0
    first = coordinates @ (w0 * shared.first_weight).T  # [P, H], the same for all samples
    hidden = torch.sin(first + w0 * bias[:, 0, None])  # [B or 1, P, H]
    scaled_weight, scaled_bias = w0 * weight, w0 * bias
    for layer in range(weight.shape[1]):
        product = _product(hidden, scaled_weight[:, layer].transpose(-1, -2), shared.hidden_precision)
        hidden = torch.sin(product + scaled_bias[:, layer + 1, None])
    return hidden @ shared.output_weight.T + shared.output_bias


@contextmanager
def hidden_precision(network: nn.Module, precision: Literal["float32", "bfloat16"]) -> Iterator[None]:
    """Inside, the hidden layers of every SIREN in the network multiply in this precision; sums, sines and the first and
    the last layer stay float32.
    """
    shared = [module for module in network.modules() if isinstance(module, SirenWeights)]
    for module in shared:
        module.hidden_precision = precision
    try:
        yield
    finally:
        for module in shared:
            module.hidden_precision = "float32"


def _product(hidden: Tensor, matrix: Tensor, precision: str) -> Tensor:
    if precision == "float32":
        return hidden @ matrix
    return (hidden.bfloat16() @ matrix.bfloat16()).float()


def _uniform(*shape: int, bound: float) -> Tensor:
    return (torch.rand(*shape) * 2 - 1) * bound
