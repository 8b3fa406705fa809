"""The whole network against a numpy loop, and where its latents start."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vcinr_batch.config import NetworkConfig
from vcinr_batch.network.gated_siren import GatedSiren, parameter_shapes

POINTS, COORDINATE_DIM, CHANNELS = 7, 3, 2


def make_network(**settings: Any) -> GatedSiren:
    torch.manual_seed(3)
    config = NetworkConfig(
        **{"latent_dim": 4, "hidden_dim": 6, "hidden_layers": 2, "rank": 2, "hyper_dim": 5, "w0": 5.0} | settings
    )
    network = GatedSiren(config, torch.randn(POINTS, COORDINATE_DIM), CHANNELS)
    if network.linear is not None:
        torch.nn.init.normal_(network.linear.basis)
    return network.double()


def reference(network: GatedSiren, phi: NDArray[np.float64]) -> NDArray[np.float64]:
    """value(x; phi) = B(x) (phi - phi0) + siren(x; phi), point by point."""
    a = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    coordinates, w0 = network.coordinates.numpy(), network.config.w0
    weight, bias = a["siren.weight"].copy(), a["siren.bias"].copy()
    if network.config.modulation == "gate":
        hidden = (phi - phi.mean()) / np.sqrt(phi.var() + 1e-5)  # a new LayerNorm's own scale and offset are 1 and 0
        hidden = a["modulation.enter.weight"] @ hidden + a["modulation.enter.bias"]
        hidden = np.maximum(hidden, 0.01 * hidden)
        for k in range(2):
            block = a[f"modulation.blocks.{k}.weight"] @ hidden + a[f"modulation.blocks.{k}.bias"]
            hidden = hidden + np.maximum(block, 0.01 * block)
        factors = (a["modulation.leave.weight"] @ hidden + a["modulation.leave.bias"]).reshape(2, 2, 6, 2)
        for layer, (u, v) in enumerate(factors):
            weight[layer] /= 1 + np.exp(-u @ v.T / math.sqrt(2))
    else:
        shifts = (a["modulation.to_shifts.weight"] @ phi).reshape(3, 6)
        if network.config.modulation == "sparse_shift":
            shifts *= np.clip(1.2 / (1 + np.exp(-a["modulation.log_alpha"])) - 0.1, 0, 1)
        bias += shifts
    values = np.empty((POINTS, CHANNELS))
    for p in range(POINTS):
        h = np.sin(w0 * (a["siren.first_weight"] @ coordinates[p] + bias[0]))
        for layer in range(2):
            h = np.sin(w0 * (weight[layer] @ h + bias[layer + 1]))
        values[p] = a["siren.output_weight"] @ h + a["siren.output_bias"]
        if network.linear is not None:
            values[p] += a["linear.basis"][p] @ (phi - a["phi0"])
    return values


@pytest.mark.parametrize("modulation", ["gate", "shift", "sparse_shift"])
@pytest.mark.parametrize("linear_term", ["none", "eof"])
def test_values_equal_a_numpy_loop(modulation: str, linear_term: str) -> None:
    network = make_network(modulation=modulation, linear_term=linear_term)
    latents = torch.randn(3, 4, dtype=torch.float64)
    expected = np.stack([reference(network, phi) for phi in latents.numpy()])
    with torch.no_grad():
        np.testing.assert_allclose(network(latents).numpy(), expected, rtol=0, atol=1e-12)
        some = torch.tensor([5, 0, 2])
        np.testing.assert_allclose(network(latents, some).numpy(), expected[:, some], rtol=0, atol=1e-12)


def test_without_a_siren_only_the_linear_term_is_left() -> None:
    network = make_network(modulation="none", linear_term="localized")
    assert network.siren is None
    assert network.linear is not None
    latents = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(network(latents), torch.einsum("pcl,bl->bpc", network.linear.basis, latents))


@pytest.mark.parametrize(
    ("modulation", "learned"), [("gate", True), ("shift", False), ("sparse_shift", False), ("none", False)]
)
def test_phi0_is_learned_for_gates_and_zero_for_the_others(modulation: str, learned: bool) -> None:
    network = make_network(modulation=modulation, linear_term="eof")
    assert network.phi0.requires_grad == learned
    assert bool(network.phi0.any()) == learned


@pytest.mark.parametrize(
    ("modulation", "linear_term"),
    [("gate", "none"), ("shift", "none"), ("sparse_shift", "none"), ("gate", "eof"), ("shift", "eof"), ("none", "eof")],
)
def test_parameter_shapes_are_those_of_the_network(modulation: str, linear_term: str) -> None:
    network = make_network(modulation=modulation, linear_term=linear_term)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert parameter_shapes(network.config, POINTS, COORDINATE_DIM, CHANNELS) == shapes


@pytest.mark.parametrize(
    ("modulation", "linear_term", "share"),
    [("gate", "none", 4.54e-5), ("gate", "eof", 8.3e-7), ("none", "eof", 1.52e-8)],
)
def test_the_ridge_starts_smaller_beside_a_linear_term(modulation: str, linear_term: str, share: float) -> None:
    network = make_network(modulation=modulation, linear_term=linear_term)
    assert network.log_ridge.exp().item() == pytest.approx(share, rel=0.01)
