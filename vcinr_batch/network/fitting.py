"""Sample -> latent: the closed form with chord steps, or the published gradient steps."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp, vmap

from vcinr_batch.config import FitConfig
from vcinr_batch.errors import FittingError
from vcinr_batch.network.gated_siren import GatedSiren
from vcinr_batch.row_groups import GROUP_ROWS, in_groups

DECODE_FLOATS = 1 << 25
"""Hidden activations held at once when many samples are decoded: 128 MiB of float32."""


@dataclass(frozen=True)
class ClosedFormSolver:
    """What the closed form needs, the same for every sample on the same points."""

    value0: Tensor
    """[P, C], the network at phi0."""
    operator: Tensor
    """[L, P * C], (J0^T J0 / N + mu I)^-1 J0^T / N; zero at points outside the mask."""


def tangent(network: GatedSiren, points: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Value [P, C] and Jacobian J0 = df/dphi [P * C, L] of the network at phi0."""
    if network.siren is None and network.linear is not None:
        # A linear term is its own derivative; torch's forward mode costs seconds of imports in every worker.
        basis = network.linear.basis if points is None else network.linear.basis[points]
        return torch.zeros_like(basis[..., 0]), basis.flatten(0, 1)

    def at(phi: Tensor) -> Tensor:
        values: Tensor = network(phi[None], points)
        return values.flatten()

    def along(direction: Tensor) -> Tensor:
        derivative: Tensor = jvp(at, (network.phi0,), (direction,))[1]
        return derivative

    # Tangents in pieces: all L at once on a whole grid would take L times the memory of one decode.
    directions = torch.eye(len(network.phi0)).to(network.phi0)
    jacobian: Tensor = vmap(along, out_dims=1, chunk_size=_batch_size(network, points))(directions)
    value0: Tensor = network(network.phi0[None], points)[0]
    return value0, jacobian


def make_solver(
    network: GatedSiren, points: Tensor | None = None, mask: Tensor | None = None, dtype: torch.dtype = torch.float64
) -> ClosedFormSolver:
    """Prepare `phi1 = phi0 + (J0^T J0 / N + mu I)^-1 J0^T (x - f0) / N`, Gauss-Newton at phi0.

    Args:
        network: the shared network; differentiable through all of this.
        points: indices [P] of the grid points to fit on; all by default.
        mask: bool [P] over those points, True where values exist.
        dtype: of the normal equations; float64 outside training.

    Raises:
        FittingError: the normal equations cannot be solved (a network that is not finite).
    """
    value0, jacobian = tangent(network, points)
    if mask is not None:
        jacobian = jacobian * mask.repeat_interleave(network.channels)[:, None]
    count = value0.numel() if mask is None else max(int(mask.sum()) * network.channels, 1)
    wide = jacobian.to(dtype)
    system = wide.T @ wide / count
    system = system + network.log_ridge.to(dtype).exp() * torch.eye(len(system), dtype=dtype, device=system.device)
    factor, failed_at = torch.linalg.cholesky_ex(system)
    if failed_at:
        raise FittingError("closed-form fit: the normal equations of the shared network are singular or not finite")
    operator = torch.cholesky_solve(wide.T / count, factor)
    return ClosedFormSolver(value0, operator.to(value0.dtype))


def first_step(network: GatedSiren, solver: ClosedFormSolver, values: Tensor) -> Tensor:
    """Values [B, P, C] -> latents [B, L] by one matrix product."""
    return network.phi0 + (values - solver.value0).flatten(1) @ solver.operator.T


def chord_step(
    network: GatedSiren, solver: ClosedFormSolver, latents: Tensor, values: Tensor, points: Tensor | None = None
) -> Tensor:
    """One more step with the Jacobian of phi0: a forward pass, no backward."""
    decoded: Tensor = network(latents, points)
    return latents + (values - decoded).flatten(1) @ solver.operator.T


def gradient_fit(
    network: GatedSiren,
    values: Tensor,
    steps: int,
    points: Tensor | None = None,
    mask: Tensor | None = None,
    training: bool = False,
) -> Tensor:
    """The published inner loop: `steps` of gradient descent on the MSE from phi0, one step size per dimension.

    VC-INR and Functa: 3 steps, Meta-SGD (Li et al. 2017). In training the graph is kept (second order).

    Args:
        values: [B, P, C].
        mask: bool [P].

    Returns:
        [B, L].
    """
    latents = network.phi0.expand(len(values), -1)
    weight = torch.ones_like(values[0, :, :1]) if mask is None else mask[:, None].to(values)
    weight = weight / (weight.sum() * values.shape[2])
    with torch.enable_grad():
        if not latents.requires_grad or not training:  # phi0 of the shifts is zero, not learned
            latents = latents.detach().requires_grad_()
        for _ in range(steps):
            # A sum over samples, so that each sample's gradient is that of its own mean squared error.
            error = ((network(latents, points) - values) ** 2 * weight).sum()
            (gradient,) = torch.autograd.grad(error, latents, create_graph=training)
            latents = latents - network.inner_rate * gradient
            if not training:
                latents = latents.detach().requires_grad_()
    return latents if training else latents.detach()


@torch.no_grad()
def fit_latents(
    network: GatedSiren,
    values: Tensor,
    config: FitConfig,
    mask: Tensor | None = None,
    solver: ClosedFormSolver | None = None,
) -> Tensor:
    """Fit one latent per sample on the whole grid.

    Args:
        values: [B, P, C], normalised, finite; zero outside the mask.
        mask: bool [P], the same for all of these samples.
        solver: from `make_solver(network, mask=mask)`, if there is one already.

    Returns:
        float32 [B, L].

    Raises:
        FittingError: a latent is not finite; names the positions in the batch.
    """
    if config.method == "gradient":
        # A backward pass keeps what goes into each layer and comes out of it.
        size = max(1, _batch_size(network) // (2 * network.config.hidden_layers + 2))
        batches = torch.split(values, size)
        latents = torch.cat([gradient_fit(network, part, config.inner_steps, mask=mask) for part in batches])
    else:
        solver = solver or make_solver(network, mask=mask)
        latents = first_step(network, solver, values)
        if network.siren is not None:  # a purely linear network is solved by its first step
            latents = _chord_steps(network, solver, latents, values, config.chord_steps, mask)
    bad = (~torch.isfinite(latents).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise FittingError(f"the fit left the finite numbers for samples {bad[:8]} of a batch of {len(latents)}")
    return latents


@torch.no_grad()
def decode_latents(network: GatedSiren, latents: Tensor) -> Tensor:
    """Latents [B, L] -> normalised values float32 [B, P, C] on the whole grid, in pieces of bounded memory.

    On a CPU a sample's values are the same to the last bit whatever other samples are decoded with it.
    """
    if network.siren is None:
        return decode_linear_term(network, latents)
    values = decode_siren(network, latents, network.coordinates)
    if network.linear is not None:
        values += decode_linear_term(network, latents)
    return values


@torch.no_grad()
def decode_linear_term(network: GatedSiren, latents: Tensor) -> Tensor:
    """Latents [B, L] -> what the linear term alone has on the grid, float32 [B, P, C]; zeros where there is none."""
    if network.linear is None:
        return latents.new_zeros(len(latents), len(network.coordinates), network.channels)
    return in_groups(network.linear, latents - network.phi0)


@torch.no_grad()
def decode_siren(network: GatedSiren, latents: Tensor, coordinates: Tensor) -> Tensor:
    """What the SIREN alone has at any coordinates [P, D], float32 [B, P, C], in pieces of bounded memory.

    A sample's values depend in their last bits on the coordinates, all of them, but on no other sample.
    """
    points = max(1, DECODE_FLOATS // network.config.hidden_dim)
    pieces = [_decode_siren_piece(network, latents, part) for part in torch.split(coordinates, points)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def _decode_siren_piece(network: GatedSiren, latents: Tensor, coordinates: Tensor) -> Tensor:
    size = _group_size(network, coordinates)
    return in_groups(lambda group: network.at_coordinates(group, coordinates), latents, size)


def _group_size(network: GatedSiren, coordinates: Tensor) -> int:
    """How many samples pass through the SIREN at once: always the same for a network, a grid and a kind of device.

    One on a CPU: its layers take the points of all samples as the rows of one matrix, and how a row of an odd-sized
    matrix is rounded depends on where it stands (seen with groups of 6 x 333 points). From 2700 points on that is as
    fast as all samples together; at 1000 points it takes up to twice as long, and a sample of a few points takes 0.3 to
    1 ms (measured on one core, 32 to 128 hidden units).
    """
    if coordinates.device.type == "cpu":
        return 1
    floats = network.config.hidden_dim * max(len(coordinates), network.config.hidden_dim)
    return max(1, min(GROUP_ROWS, DECODE_FLOATS // floats))


def _chord_steps(
    network: GatedSiren, solver: ClosedFormSolver, latents: Tensor, values: Tensor, steps: int, mask: Tensor | None
) -> Tensor:
    """Chord steps that keep, for each sample, the best latent met on the way: a chord step may diverge.

    A sample for which no latent decodes to finite values gets NaN.
    """
    best, least = torch.full_like(latents, torch.nan), torch.full_like(latents[:, 0], torch.inf)
    for step in range(steps + 1):
        # As many at once as there is memory for: the fit need not give the same bits in every batch.
        residual = values - torch.cat([network(part) for part in torch.split(latents, _batch_size(network))])
        if mask is not None:
            residual = residual * mask[:, None]
        error = (residual**2).flatten(1).mean(dim=1)
        better = error < least
        best, least = torch.where(better[:, None], latents, best), torch.where(better, error, least)
        if step < steps:
            latents = latents + residual.flatten(1) @ solver.operator.T
    return best


def _batch_size(network: GatedSiren, points: Tensor | None = None) -> int:
    """How many samples, or tangents, pass through the network at once."""
    width = network.config.hidden_dim if network.siren is not None else network.channels
    return max(1, DECODE_FLOATS // (len(network.coordinates if points is None else points) * width))
