"""The shared network: coordinates and latents -> values. value(x; phi) = B(x) (phi - phi0) + siren(x; phi)."""

import torch
from torch import Tensor, nn

from vcinr_batch.config import NetworkConfig
from vcinr_batch.network.linear_term import LinearTerm
from vcinr_batch.network.modulation import make_modulation
from vcinr_batch.network.siren import SirenWeights, evaluate_siren


class GatedSiren(nn.Module):
    """A modulated SIREN and a linear term, each optional, driven by one latent.

    The background (mean or climatology) is not here but in the normaliser: it needs no latent.

    Attributes:
        phi0: [L], where every fit starts. Learned for `gate`; zero for the shifts, as in Functa.
        log_ridge: log of the ridge mu of the closed-form fit, learned. A component is shrunk by half where its share of
            the field's variance is mu: -43 dB at the start, but -61 dB beside a linear term, which is there for the
            small components, and -78 dB where there is nothing else (float32 training does not go as low).
        inner_rate: [L], learned step sizes of the gradient fit (Meta-SGD).
    """

    coordinates: Tensor

    def __init__(self, config: NetworkConfig, coordinates: Tensor, channels: int, inner_rate: float = 1.0) -> None:
        """`coordinates` [P, D] are the points of the bundle's grid; weights are drawn from torch's global generator."""
        super().__init__()
        self.config = config
        self.channels = channels
        self.register_buffer("coordinates", coordinates, persistent=False)
        gated = config.modulation == "gate"
        phi0 = torch.randn(config.latent_dim) if gated else torch.zeros(config.latent_dim)
        self.phi0 = nn.Parameter(phi0, requires_grad=gated)
        self.log_ridge = nn.Parameter(torch.tensor(_start_log_ridge(config)))
        self.inner_rate = nn.Parameter(torch.full((config.latent_dim,), inner_rate))
        self.siren = self.modulation = self.linear = None
        if config.modulation != "none":
            self.siren = SirenWeights(
                coordinates.shape[1],
                config.hidden_dim,
                config.hidden_layers,
                channels,
                config.w0,
                weight_scale=2.0 if gated else 1.0,
                output_scale=0.1 if gated else 1.0,
            )
            self.modulation = make_modulation(config)
        if config.linear_term != "none":
            self.linear = LinearTerm(len(coordinates), channels, config.latent_dim)

    def forward(self, latents: Tensor, points: Tensor | None = None) -> Tensor:
        """Decode latents [B, L] to values [B, P, C] at all grid points, or at those of the given indices [P]."""
        values = torch.zeros((), device=latents.device)
        if self.siren is not None:
            values = self.at_coordinates(latents, self.coordinates if points is None else self.coordinates[points])
        if self.linear is not None:
            values = values + self.linear(latents - self.phi0, points)
        return values

    def at_coordinates(self, latents: Tensor, coordinates: Tensor) -> Tensor:
        """The SIREN alone, of latents [B, L] at any coordinates [P, D], on the grid or not: [B, P, C]."""
        assert self.siren is not None
        assert self.modulation is not None
        weight, bias = self.modulation(latents, self.siren.weight, self.siren.bias)
        return evaluate_siren(self.siren, coordinates, weight, bias)


def parameter_shapes(
    config: NetworkConfig, point_count: int, coordinate_dim: int, channels: int
) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of such a network, so that untrusted weights can be checked before one is built."""
    L, H, N, W = config.latent_dim, config.hidden_dim, config.hidden_layers, config.hyper_dim
    shapes: dict[str, tuple[int, ...]] = {"phi0": (L,), "log_ridge": (), "inner_rate": (L,)}
    if config.modulation != "none":
        shapes |= {"siren.first_weight": (H, coordinate_dim), "siren.weight": (N, H, H), "siren.bias": (N + 1, H)}
        shapes |= {"siren.output_weight": (channels, H), "siren.output_bias": (channels,)}
    if config.modulation == "gate":
        shapes |= {"modulation.normalize.weight": (L,), "modulation.normalize.bias": (L,)}
        layers = {"enter": (W, L), "blocks.0": (W, W), "blocks.1": (W, W), "leave": (2 * N * H * config.rank, W)}
        shapes |= {f"modulation.{name}.weight": shape for name, shape in layers.items()}
        shapes |= {f"modulation.{name}.bias": shape[:1] for name, shape in layers.items()}
    if config.modulation in ("shift", "sparse_shift"):
        shapes["modulation.to_shifts.weight"] = ((N + 1) * H, L)
    if config.modulation == "sparse_shift":
        shapes["modulation.log_alpha"] = (N + 1, H)
    if config.linear_term != "none":
        shapes["linear.basis"] = (point_count, channels, L)
    return shapes


def _start_log_ridge(config: NetworkConfig) -> float:
    # ERA5 t2m, UK, 384 localised vectors, validation PSNR before training: -10 gives 48.5 dB, -14 and below 53.2 dB.
    if config.modulation == "none":
        return -18.0
    return -10.0 if config.linear_term == "none" else -14.0
