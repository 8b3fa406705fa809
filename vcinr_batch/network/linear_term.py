"""B(x) phi: the part of a sample that is linear in its latent, tabulated on the bundle's grid."""

import torch
from torch import Tensor, nn


class LinearTerm(nn.Module):
    """A basis [P, C, L] on the grid, started from a covariance basis; EOF is a special case."""

    def __init__(self, point_count: int, channels: int, latent_dim: int) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.zeros(point_count, channels, latent_dim))

    def forward(self, latents: Tensor, points: Tensor | None = None) -> Tensor:
        """[B, L] -> [B, P, C], at all grid points or at those of the given indices."""
        basis = self.basis if points is None else self.basis[points]
        return (latents @ basis.flatten(0, 1).T).reshape(-1, *basis.shape[:2])
