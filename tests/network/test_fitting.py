"""The fit against least squares, finite differences and limits."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vcinr_batch.config import FitConfig, NetworkConfig
from vcinr_batch.errors import FittingError
from vcinr_batch.network import fitting
from vcinr_batch.network.fitting import (
    chord_step,
    decode_latents,
    first_step,
    fit_latents,
    gradient_fit,
    make_solver,
    tangent,
)
from vcinr_batch.network.gated_siren import GatedSiren

POINTS, CHANNELS, LATENT = 40, 2, 4
MODULATIONS = ["gate", "shift", "sparse_shift"]
MASK = torch.arange(POINTS) % 3 > 0


def make_network(modulation: str = "gate", linear_term: str = "none", **settings: Any) -> GatedSiren:
    torch.manual_seed(1)
    config = NetworkConfig(
        modulation=modulation,
        linear_term=linear_term,
        **{"latent_dim": LATENT, "hidden_dim": 8, "hidden_layers": 2, "rank": 2, "hyper_dim": 8, "w0": 5.0} | settings,
    )
    network = GatedSiren(config, torch.rand(POINTS, 2) * 2 - 1, CHANNELS, inner_rate=0.3)
    if network.linear is not None:
        torch.nn.init.normal_(network.linear.basis)
    return network.double().requires_grad_(False)


def near_fields(network: GatedSiren, spread: float, count: int = 3) -> Tensor:
    """Fields [B, P, C] that the network can show, of latents at a distance from phi0."""
    latents = network.phi0 + spread * torch.randn(count, LATENT, dtype=torch.float64)
    return decode_latents(network, latents)


def mse(network: GatedSiren, latents: Tensor, values: Tensor) -> Tensor:
    return ((network(latents) - values) ** 2).flatten(1).mean(dim=1)


def central_differences(function: Any, at: NDArray[np.float64], step: float = 1e-6) -> NDArray[np.float64]:
    """Derivatives of a numpy function along every entry of `at`, stacked on a new last axis."""
    columns = []
    for i in range(at.size):
        delta = np.zeros(at.size)
        delta[i] = step
        delta = delta.reshape(at.shape)
        columns.append((function(at + delta) - function(at - delta)) / (2 * step))
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("modulation", MODULATIONS)
@pytest.mark.parametrize("linear_term", ["none", "eof"])
def test_the_tangent_equals_central_differences(modulation: str, linear_term: str) -> None:
    network = make_network(modulation, linear_term)
    value0, jacobian = tangent(network)

    def decode(phi: NDArray[np.float64]) -> NDArray[np.float64]:
        return network(torch.from_numpy(phi)[None])[0].flatten().numpy()

    expected = central_differences(decode, network.phi0.numpy())
    np.testing.assert_allclose(jacobian.numpy(), expected, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(value0.flatten().numpy(), decode(network.phi0.numpy()))


def test_the_tangent_in_pieces_is_the_tangent(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network()
    _, whole = tangent(network)
    monkeypatch.setattr(fitting, "DECODE_FLOATS", 3 * POINTS * 8)  # 3 of the 4 tangents at a time
    _, pieces = tangent(network)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("modulation", MODULATIONS)
def test_the_first_step_is_the_ridge_regression_on_the_tangent(modulation: str, mask: Tensor | None) -> None:
    network = make_network(modulation)
    network.log_ridge.fill_(-3.0)
    values = torch.randn(3, POINTS, CHANNELS, dtype=torch.float64)
    latents = first_step(network, make_solver(network, mask=mask), values)

    # min |J d - r|^2 / N + mu |d|^2 as an ordinary least-squares problem with the ridge in further rows.
    value0, jacobian = (a.numpy() for a in tangent(network))
    rows = np.repeat(np.ones(POINTS, bool) if mask is None else mask.numpy(), CHANNELS)
    count = rows.sum()
    system = np.concatenate([jacobian[rows] / np.sqrt(count), np.exp(-1.5) * np.eye(LATENT)])
    for b in range(3):
        residual = (values[b].numpy() - value0).ravel()[rows]
        right = np.concatenate([residual / np.sqrt(count), np.zeros(LATENT)])
        expected = network.phi0.numpy() + np.linalg.lstsq(system, right, rcond=None)[0]
        np.testing.assert_allclose(latents[b].numpy(), expected, rtol=0, atol=1e-10)


def test_a_solver_on_some_points_is_the_solver_of_a_mask_of_those_points() -> None:
    network = make_network()
    points = MASK.nonzero().flatten()
    some, masked = make_solver(network, points), make_solver(network, mask=MASK)
    columns = MASK.repeat_interleave(CHANNELS)
    torch.testing.assert_close(some.operator, masked.operator[:, columns])
    assert not masked.operator[:, ~columns].any()


def test_a_solver_of_float32_equations_agrees_to_single_precision() -> None:
    network = make_network()
    exact, single = make_solver(network), make_solver(network, dtype=torch.float32)
    difference = (exact.operator - single.operator).norm() / exact.operator.norm()
    assert 0 < difference < 1e-3


def test_a_chord_step_repeats_the_first_step_from_another_latent() -> None:
    network = make_network()
    values, solver = near_fields(network, 0.3), make_solver(network)
    start = network.phi0.expand(3, -1)
    torch.testing.assert_close(chord_step(network, solver, start, values), first_step(network, solver, values))


def test_fields_in_the_span_of_a_purely_linear_network_are_reproduced() -> None:
    """The ridge of 1.5e-8 against singular values J^T J / N near 1 leaves a relative error of about 1.5e-8."""
    network = make_network("none", "eof")
    latents = torch.randn(5, LATENT, dtype=torch.float64)
    values = decode_latents(network, latents)
    fitted = fit_latents(network, values, FitConfig())
    torch.testing.assert_close(fitted, latents, rtol=0, atol=3e-7)
    torch.testing.assert_close(decode_latents(network, fitted), values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_chord_steps_reduce_the_error_of_every_mildly_non_linear_sample(modulation: str) -> None:
    network = make_network(modulation)
    values = near_fields(network, 0.03, count=8)
    errors = [mse(network, fit_latents(network, values, FitConfig(chord_steps=k)), values) for k in (0, 1, 3)]
    assert (errors[1] < errors[0]).all()
    assert (errors[2] < errors[1]).all()


def test_chord_steps_never_worsen_a_sample_even_where_they_diverge() -> None:
    network = make_network("gate", w0=30.0)
    values = 5 * torch.randn(64, POINTS, CHANNELS, dtype=torch.float64)
    solver = make_solver(network)
    first = first_step(network, solver, values)
    diverging = mse(network, chord_step(network, solver, first, values), values) > mse(network, first, values)
    assert 0 < diverging.sum() < 64  # or the comparison below would show nothing
    errors = [mse(network, fit_latents(network, values, FitConfig(chord_steps=k)), values) for k in range(4)]
    for fewer, more in pairwise(errors):
        assert (more <= fewer).all()


@pytest.mark.parametrize("config", [FitConfig(chord_steps=2), FitConfig(method="gradient", inner_steps=3)])
def test_masked_points_have_no_influence(config: FitConfig) -> None:
    network = make_network()
    values = near_fields(network, 0.5) * MASK[:, None]
    spoiled = values.clone()
    spoiled[:, ~MASK] = 1e6
    plain = fit_latents(network, values, config, MASK)
    assert torch.equal(fit_latents(network, spoiled, config, MASK), plain)
    assert not torch.allclose(fit_latents(network, values, config), plain)


@pytest.mark.parametrize("modulation", MODULATIONS)
@pytest.mark.parametrize("mask", [None, MASK])
def test_one_gradient_step_follows_central_differences_of_the_mean_squared_error(
    modulation: str, mask: Tensor | None
) -> None:
    network = make_network(modulation)
    network.inner_rate.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64))
    values = torch.randn(2, POINTS, CHANNELS, dtype=torch.float64)
    latents = gradient_fit(network, values, steps=1, mask=mask)

    rows = np.ones(POINTS, bool) if mask is None else mask.numpy()
    phi0 = network.phi0.numpy()
    for b in range(2):

        def loss(phi: NDArray[np.float64], b: int = b) -> Any:
            error = network(torch.from_numpy(phi)[None])[0] - values[b]
            return np.mean(error.numpy()[rows] ** 2)

        expected = phi0 - np.array([0.1, 0.2, 0.3, 0.4]) * central_differences(loss, phi0)
        np.testing.assert_allclose(latents[b].numpy(), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_gradient_steps_reduce_the_error(modulation: str) -> None:
    network = make_network(modulation)
    network.inner_rate.fill_(0.01)
    values = near_fields(network, 1.0)
    errors = [mse(network, gradient_fit(network, values, steps), values) for steps in (0, 1, 3)]
    assert (errors[1] < errors[0]).all()
    assert (errors[2] < errors[1]).all()


@pytest.mark.parametrize("modulation", MODULATIONS)
@pytest.mark.parametrize("name", ["inner_rate", "siren.weight", "siren.output_bias"])
def test_training_differentiates_through_the_gradient_steps(modulation: str, name: str) -> None:
    """Second order: d loss / d weight through two inner steps against central differences."""
    network = make_network(modulation).requires_grad_()
    network.phi0.requires_grad_(modulation == "gate")
    values = torch.randn(2, POINTS, CHANNELS, dtype=torch.float64)
    parameter = network.get_parameter(name)

    def loss(training: bool) -> Tensor:
        return mse(network, gradient_fit(network, values, steps=2, training=training), values).sum()

    loss(training=True).backward()
    assert parameter.grad is not None
    original = parameter.detach().clone().numpy()

    def loss_at(weight: NDArray[np.float64]) -> Any:
        parameter.data.copy_(torch.from_numpy(weight))
        return loss(training=False).item()

    some = np.random.default_rng(0).choice(original.size, min(original.size, 6), replace=False)
    directions = np.zeros((len(some), original.size))
    directions[np.arange(len(some)), some] = 1

    def along(amounts: NDArray[np.float64]) -> Any:
        return loss_at(original + (amounts @ directions).reshape(original.shape))

    expected = central_differences(along, np.zeros(len(some)), step=1e-5)
    np.testing.assert_allclose(parameter.grad.flatten()[some].numpy(), expected, rtol=1e-5, atol=1e-8)


def test_training_reaches_a_learned_phi0_through_the_inner_steps() -> None:
    network = make_network("gate").requires_grad_()
    values = torch.randn(2, POINTS, CHANNELS, dtype=torch.float64)
    mse(network, gradient_fit(network, values, steps=1, training=True), values).sum().backward()
    analytic = network.phi0.grad
    assert analytic is not None
    start = network.phi0.detach().clone().numpy()

    def loss_at(phi0: NDArray[np.float64]) -> Any:
        network.phi0.data.copy_(torch.from_numpy(phi0))
        return mse(network, gradient_fit(network, values, steps=1), values).sum().item()

    np.testing.assert_allclose(analytic.numpy(), central_differences(loss_at, start, 1e-5), rtol=1e-5, atol=1e-8)


def test_training_differentiates_through_the_closed_form() -> None:
    network = make_network("gate").requires_grad_()
    values = torch.randn(2, POINTS, CHANNELS, dtype=torch.float64)

    def loss() -> Tensor:
        solver = make_solver(network)
        return mse(network, chord_step(network, solver, first_step(network, solver, values), values), values).sum()

    loss().backward()
    for name in ("log_ridge", "siren.output_bias", "phi0"):
        parameter = network.get_parameter(name)
        start = parameter.detach().clone().numpy()

        def loss_at(value: NDArray[np.float64], parameter: torch.nn.Parameter = parameter) -> Any:
            parameter.data.copy_(torch.as_tensor(value))
            return loss().item()

        expected = central_differences(loss_at, start, 1e-5).reshape(start.shape)
        parameter.data.copy_(torch.from_numpy(start))
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad.numpy(), expected, rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("config", [FitConfig(), FitConfig(method="gradient")])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_are_named_by_their_position(config: FitConfig, bad: float) -> None:
    network = make_network()
    values = near_fields(network, 0.1, count=5)
    values[3, 7, 1] = bad
    with pytest.raises(FittingError, match=r"samples \[3\] of a batch of 5"):
        fit_latents(network, values, config)


def test_a_latent_that_decodes_to_no_number_is_a_failed_fit() -> None:
    """Latents of 1e200 overflow inside the gate's LayerNorm although they are finite themselves."""
    network = make_network("gate")
    values = near_fields(network, 0.1, count=2)
    values[1] = 1e200
    with pytest.raises(FittingError, match=r"samples \[1\] of a batch of 2"):
        fit_latents(network, values, FitConfig())


def test_a_network_that_is_not_finite_cannot_be_solved_for() -> None:
    network = make_network()
    assert network.siren is not None
    network.siren.weight.fill_(float("nan"))
    with pytest.raises(FittingError, match="normal equations"):
        make_solver(network)


@pytest.mark.parametrize("config", [FitConfig(), FitConfig(method="gradient")])
def test_a_batch_in_small_pieces_is_fitted_and_decoded_alike(
    config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make_network()
    values = near_fields(network, 0.3, count=5)
    whole = fit_latents(network, values, config)
    monkeypatch.setattr(fitting, "DECODE_FLOATS", 12 * POINTS * 8)  # 12 decoded at a time, 2 fitted by gradient
    torch.testing.assert_close(fit_latents(network, values, config), whole, rtol=0, atol=1e-12)
    monkeypatch.setattr(fitting, "DECODE_FLOATS", 1)
    torch.testing.assert_close(decode_latents(network, whole), network(whole), rtol=0, atol=1e-12)


def test_no_samples_give_no_latents() -> None:
    network = make_network()
    nothing = torch.empty(0, POINTS, CHANNELS, dtype=torch.float64)
    assert fit_latents(network, nothing, FitConfig()).shape == (0, LATENT)
    assert decode_latents(network, torch.empty(0, LATENT, dtype=torch.float64)).shape == (0, POINTS, CHANNELS)
