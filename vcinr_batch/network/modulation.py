"""What a latent does to the shared network: `gate` (VC-INR), `shift` (Functa), `sparse_shift` (MSCN).

One interface: `modulation(latents [B, L], weight [N, H, H], bias [N + 1, H])` returns the weight [B or 1, N, H, H] and
the bias [B or 1, N + 1, H] that each sample's network uses.
"""

import math

import torch
from torch import Tensor, nn

from vcinr_batch.config import NetworkConfig


class LayerNorm(nn.LayerNorm):
    """Layer normalisation written out in differentiable steps.

    A backward pass through the forward derivative (meta-learning through the closed form) needs it: there PyTorch's own
    operator silently gives its input, and so phi0, a wrong gradient (2.13; pytorch issue 196700).
    """

    def forward(self, latents: Tensor) -> Tensor:
        centred = latents - latents.mean(dim=-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + self.eps) * self.weight + self.bias


class GateModulation(nn.Module):
    """VC-INR: every hidden matrix is multiplied by the gate sigmoid(U V^T), U and V [H, R] from one latent.

    LayerNorm -> Linear -> LeakyReLU -> 2 residual blocks -> Linear, for all layers at once; the first sine layer is not
    gated (Schwarz et al. 2023). Differs from their poster by the factor 1/sqrt(R) inside the sigmoid, which keeps the
    spread of the gates independent of the rank.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.shape = (config.hidden_layers, 2, config.hidden_dim, config.rank)
        width = config.hyper_dim
        self.normalize = LayerNorm(config.latent_dim)
        self.enter = nn.Linear(config.latent_dim, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.leave = nn.Linear(width, math.prod(self.shape))
        # U and V must not both start at zero (no gradient reaches the latent), so their biases are drawn too.
        nn.init.normal_(self.leave.bias, std=0.3)

    def forward(self, latents: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return self.gates(latents) * weight, bias[None]

    def gates(self, latents: Tensor) -> Tensor:
        """[B, L] -> gates in (0, 1), [B, N, H, H]."""
        hidden = nn.functional.leaky_relu(self.enter(self.normalize(latents)))
        for block in self.blocks:
            hidden = hidden + nn.functional.leaky_relu(block(hidden))
        factors: Tensor = self.leave(hidden)
        u, v = factors.reshape(-1, *self.shape).unbind(2)  # [B, N, H, R] each
        return torch.sigmoid(u @ v.transpose(-1, -2) / math.sqrt(self.shape[-1]))


class ShiftModulation(nn.Module):
    """Functa: a linear map from the latent to a bias shift of every sine layer (Dupont et al. 2022)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.shape = (config.hidden_layers + 1, config.hidden_dim)
        self.to_shifts = nn.Linear(config.latent_dim, math.prod(self.shape), bias=False)

    def forward(self, latents: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return weight[None], bias + self.shifts(latents)

    def shifts(self, latents: Tensor) -> Tensor:
        """[B, L] -> [B, N + 1, H]."""
        shifts: Tensor = self.to_shifts(latents)
        return shifts.reshape(-1, *self.shape)


class SparseShiftModulation(ShiftModulation):
    """MSCN: the shifts pass through hard-concrete gates, shared by all samples, under an L0 penalty.

    Louizos et al. 2018, eq. 10-13: stretch limits -0.1 and 1.1, temperature 2/3. `noise` is drawn anew by `resample`
    for each training step and is None otherwise, where the gate takes its deterministic value.
    """

    stretch_low, stretch_high, temperature = -0.1, 1.1, 2 / 3

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.log_alpha = nn.Parameter(torch.full(self.shape, 2.0))
        self.noise: Tensor | None = None

    def shifts(self, latents: Tensor) -> Tensor:
        return super().shifts(latents) * self.keep()

    def keep(self) -> Tensor:
        """Hard-concrete gate in [0, 1], [N + 1, H]."""
        logit: Tensor = self.log_alpha
        if self.noise is not None:
            logit = (torch.logit(self.noise) + logit) / self.temperature
        span = self.stretch_high - self.stretch_low
        return torch.clamp(torch.sigmoid(logit) * span + self.stretch_low, 0, 1)

    def resample(self, generator: torch.Generator | None) -> None:
        """Draw the gates' noise for one training step, or with None return to the deterministic gate."""
        if generator is None:
            self.noise = None
        else:
            self.noise = torch.rand(self.shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(self.log_alpha.device)

    def expected_open(self) -> Tensor:
        """Expected share of shifts that are not zero, the L0 penalty (Louizos et al. 2018, eq. 12)."""
        shift = self.temperature * math.log(-self.stretch_low / self.stretch_high)
        return torch.sigmoid(self.log_alpha - shift).mean()


Modulation = GateModulation | ShiftModulation

_KINDS: dict[str, type[GateModulation] | type[ShiftModulation]] = {
    "gate": GateModulation,
    "shift": ShiftModulation,
    "sparse_shift": SparseShiftModulation,
}


def make_modulation(config: NetworkConfig) -> Modulation:
    """The modulation that `config.modulation` names."""
    return _KINDS[config.modulation](config)
