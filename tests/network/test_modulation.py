"""The three modulations against numpy loops, limits and Monte Carlo."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vcinr_batch.config import NetworkConfig
from vcinr_batch.network.modulation import (
    GateModulation,
    ShiftModulation,
    SparseShiftModulation,
    make_modulation,
)

CONFIG = NetworkConfig(latent_dim=4, hidden_dim=5, hidden_layers=2, rank=3, hyper_dim=6)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def arrays(module: torch.nn.Module) -> dict[str, NDArray[np.float64]]:
    return {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}


def leaky(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(x > 0, x, 0.01 * x)


def test_gates_equal_a_loop_over_the_hyper_network_and_the_low_rank_product() -> None:
    gate = GateModulation(CONFIG).double()
    latents = torch.randn(3, 4, dtype=torch.float64)

    gates = gate.gates(latents).detach().numpy()

    a = arrays(gate)
    expected = np.empty((3, 2, 5, 5))
    for b, phi in enumerate(latents.numpy()):
        normal = (phi - phi.mean()) / np.sqrt(phi.var() + 1e-5) * a["normalize.weight"] + a["normalize.bias"]
        hidden = leaky(a["enter.weight"] @ normal + a["enter.bias"])
        for k in range(2):
            hidden = hidden + leaky(a[f"blocks.{k}.weight"] @ hidden + a[f"blocks.{k}.bias"])
        u_and_v = (a["leave.weight"] @ hidden + a["leave.bias"]).reshape(2, 2, 5, 3)  # [N, U or V, H, R]
        for layer in range(2):
            u, v = u_and_v[layer]
            for i in range(5):
                for j in range(5):
                    expected[b, layer, i, j] = 1 / (1 + math.exp(-sum(u[i] * v[j]) / math.sqrt(3)))
    np.testing.assert_allclose(gates, expected, rtol=0, atol=1e-12)
    assert ((gates > 0) & (gates < 1)).all()


def test_the_gate_multiplies_hidden_matrices_elementwise_and_leaves_biases_alone() -> None:
    gate = GateModulation(CONFIG)
    latents, weight, bias = torch.randn(3, 4), torch.randn(2, 5, 5), torch.randn(3, 5)
    modulated, same_bias = gate(latents, weight, bias)
    assert torch.equal(modulated, gate.gates(latents) * weight)
    assert torch.equal(same_bias, bias[None])


def test_a_new_gate_depends_on_the_latent() -> None:
    """U and V both at zero would pass no gradient to the latent."""
    gate = GateModulation(CONFIG)
    latents = torch.randn(1, 4, requires_grad=True)
    gate.gates(latents).pow(2).sum().backward()
    assert latents.grad is not None
    assert (latents.grad.abs() > 1e-6).any()


def test_shift_adds_a_linear_map_of_the_latent_to_every_bias() -> None:
    shift = ShiftModulation(CONFIG).double()
    latents, weight, bias = (torch.randn(*s, dtype=torch.float64) for s in ((3, 4), (2, 5, 5), (3, 5)))
    same_weight, shifted = shift(latents, weight, bias)
    matrix = arrays(shift)["to_shifts.weight"]  # [(N + 1) * H, L]
    for b in range(3):
        expected = bias.numpy() + (matrix @ latents[b].numpy()).reshape(3, 5)
        np.testing.assert_allclose(shifted[b].detach().numpy(), expected, rtol=0, atol=1e-13)
    assert torch.equal(same_weight, weight[None])


@pytest.mark.parametrize("kind", [ShiftModulation, SparseShiftModulation])
def test_shifts_of_a_zero_latent_are_zero(kind: type[ShiftModulation]) -> None:
    assert not kind(CONFIG).shifts(torch.zeros(1, 4)).any()


@pytest.mark.parametrize(("log_alpha", "expected"), [(-20.0, 0.0), (20.0, 1.0), (0.0, 0.5), (1.0, 0.7772703)])
def test_the_deterministic_hard_concrete_gate(log_alpha: float, expected: float) -> None:
    """clip(1.2 sigmoid(log_alpha) - 0.1, 0, 1); at log_alpha = 1: 1.2 * 0.7310586 - 0.1."""
    sparse = SparseShiftModulation(CONFIG)
    torch.nn.init.constant_(sparse.log_alpha, log_alpha)
    torch.testing.assert_close(sparse.keep(), torch.full((3, 5), expected), rtol=0, atol=1e-6)


def test_sparse_shifts_are_the_shifts_times_the_gate() -> None:
    sparse = SparseShiftModulation(CONFIG)
    with torch.no_grad():
        sparse.log_alpha[0] = -20.0
    latents = torch.randn(3, 4)
    plain = (latents @ sparse.to_shifts.weight.T).reshape(3, 3, 5)
    shifts = sparse.shifts(latents)
    assert not shifts[:, 0].any()
    torch.testing.assert_close(shifts[:, 1:], plain[:, 1:] * sparse.keep()[1:])


def test_noise_is_drawn_from_the_generator_and_gone_afterwards() -> None:
    sparse = SparseShiftModulation(CONFIG)
    still = sparse.keep()
    assert torch.equal(still, sparse.keep())
    draws = []
    for seed in (1, 1, 2):
        sparse.resample(torch.Generator().manual_seed(seed))
        draws.append(sparse.keep())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    sparse.resample(None)
    assert torch.equal(still, sparse.keep())


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.5])
def test_the_expected_share_of_open_gates_is_what_drawing_them_gives(log_alpha: float) -> None:
    wide = NetworkConfig(latent_dim=1, hidden_dim=500, hidden_layers=99)
    sparse = SparseShiftModulation(wide)
    torch.nn.init.constant_(sparse.log_alpha, log_alpha)
    sparse.resample(torch.Generator().manual_seed(0))
    drawn = float((sparse.keep() > 0).float().mean())
    # 50,000 draws: the share's standard deviation is at most 0.5 / sqrt(50,000) = 0.0022.
    assert sparse.expected_open().item() == pytest.approx(drawn, abs=4 * 0.0022)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("gate", GateModulation), ("shift", ShiftModulation), ("sparse_shift", SparseShiftModulation)],
)
def test_the_config_names_the_modulation(name: str, kind: type) -> None:
    assert type(make_modulation(CONFIG.model_copy(update={"modulation": name}))) is kind
