"""Latent <-> code: the KLT under the decoder's metric, optionally with learned residual MLPs (VC-INR's g_a and g_s)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vcinr_batch.errors import ConfigError, FittingError

# Directions with less than this share of the largest metric or variance cannot be told from rounding.
_NEGLIGIBLE = 1e-10


class LatentTransform(nn.Module):
    """Analysis and synthesis transform: a linear pair, and residual MLPs on the standardised code if there are any.

    `analysis(phi) = z + s * mlp_a(z / s)` with `z = (phi - mean) W_analysis`, and
    `synthesis(z) = mean + (z + s * mlp_s(z / s)) W_synthesis`; s is the code's scale. The MLPs start at zero.

    Args:
        mean: [L].
        W_analysis: [L, K].
        W_synthesis: [K, L].
        scale: [K], > 0, standard deviation of the code.
        hidden_dim: width of the MLPs; 0 for none.
    """

    mean: Tensor
    W_analysis: Tensor
    W_synthesis: Tensor
    scale: Tensor

    def __init__(
        self, mean: Tensor, W_analysis: Tensor, W_synthesis: Tensor, scale: Tensor, hidden_dim: int = 0
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("W_analysis", W_analysis)
        self.register_buffer("W_synthesis", W_synthesis)
        self.register_buffer("scale", scale)
        self.hidden_dim = hidden_dim
        self.analysis_mlp = _residual_mlp(len(scale), hidden_dim) if hidden_dim else None
        self.synthesis_mlp = _residual_mlp(len(scale), hidden_dim) if hidden_dim else None

    @property
    def latent_dim(self) -> int:
        """L."""
        return len(self.mean)

    @property
    def code_dim(self) -> int:
        """K."""
        return len(self.scale)

    def analysis(self, latents: Tensor) -> Tensor:
        """Latents [B, L] -> code [B, K]."""
        code = (latents - self.mean) @ self.W_analysis
        if self.analysis_mlp is not None:
            code = code + self.scale * self.analysis_mlp(code / self.scale)
        return code

    def synthesis(self, code: Tensor) -> Tensor:
        """Code [B, K] -> latents [B, L]."""
        if self.synthesis_mlp is not None:
            code = code + self.scale * self.synthesis_mlp(code / self.scale)
        return self.mean + code @ self.W_synthesis


def klt_transform(
    latents: NDArray[np.float32],
    metric: NDArray[np.float64],
    shrinkage: float = 0.0,
    leading: int | None = None,
    hidden_dim: int = 0,
) -> LatentTransform:
    """Karhunen-Loeve transform of latents whose errors count under a metric.

    The code is orthonormal in the decoder's output: an error in z costs what it costs there,
    `(phi - phi')^T M (phi - phi') = |z - z'|^2`, and its dimensions are uncorrelated, largest variance first.

    Args:
        latents: [N, L], finite.
        metric: M [L, L], symmetric, positive semi-definite: J0^T J0 summed over points.
        shrinkage: 0..1, how much of the latents' correlations is left out. Those of few samples are largely spurious,
            and latents that come from a localised basis are nearly uncorrelated to begin with.
        leading: how many latents, those that matter most in the output, keep correlations at all: the large-scale ones
            repeat in every sample, so theirs are known better than the others'. None for all of them.
        hidden_dim: width of the residual MLPs; 0 for none.

    Returns:
        Transform with K <= L dimensions; directions without metric or variance are dropped and decode to the mean.

    Raises:
        ConfigError: shapes that do not agree.
        FittingError: values that are not finite, or latents that do not vary under the metric.
    """
    if latents.ndim != 2 or metric.shape != (latents.shape[1],) * 2:
        raise ConfigError(f"expected latents [N, L] and metric [L, L], got {latents.shape} and {metric.shape}")
    if not (np.isfinite(latents).all() and np.isfinite(metric).all()):
        raise FittingError("latents or metric are not finite, the fit diverged")
    mean = latents.mean(0, dtype=np.float64)
    to_output, from_output = _metric_roots(metric.astype(np.float64))
    covariance = np.cov(latents.astype(np.float64), rowvar=False, bias=True).reshape(metric.shape)
    output_variance: NDArray[np.float64] = np.asarray(np.diag(covariance) * np.diag(metric), np.float64)
    covariance *= _trust(output_variance, shrinkage, leading)
    variance, rotation = np.linalg.eigh(to_output.T @ covariance @ to_output)
    variance, rotation = variance[::-1], _fix_signs(rotation[:, ::-1])
    kept = variance > _NEGLIGIBLE * variance[0]
    if not kept.any() or variance[0] <= 0:
        raise FittingError("the latents do not vary under the metric: nothing to code")
    return LatentTransform(
        mean=_float32(mean),
        W_analysis=_float32(to_output @ rotation[:, kept]),
        W_synthesis=_float32(rotation[:, kept].T @ from_output),
        scale=_float32(np.sqrt(variance[kept])),
        hidden_dim=hidden_dim,
    )


def _trust(output_variance: NDArray[np.float64], shrinkage: float, leading: int | None) -> NDArray[np.float64]:
    """Factors [L, L] of the covariances; one on the diagonal."""
    leads: NDArray[np.bool_] = np.zeros(len(output_variance), np.bool_)
    leads[np.argsort(-output_variance, kind="stable")[:leading]] = True
    factors: NDArray[np.float64] = np.where(np.outer(leads, leads), 1 - shrinkage, 0.0)
    np.fill_diagonal(factors, 1)
    return factors


def _metric_roots(metric: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """T [L, r] with M = T T^T, and its inverse on M's range [r, L]."""
    weight, vectors = np.linalg.eigh((metric + metric.T) / 2)
    kept = weight > _NEGLIGIBLE * max(weight[-1], 0.0)
    if not kept.any():
        raise FittingError("the metric is zero: the latents do not reach the output")
    root = np.sqrt(weight[kept])
    return vectors[:, kept] * root, (vectors[:, kept] / root).T


def _fix_signs(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Make the largest component of each column positive: eigenvectors come with either sign."""
    largest = vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])]
    fixed: NDArray[np.float64] = vectors * np.where(largest < 0, -1, 1)
    return fixed


def _float32(array: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


def _residual_mlp(code_dim: int, hidden_dim: int) -> nn.Sequential:
    last = nn.Linear(hidden_dim, code_dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Linear(code_dim, hidden_dim), nn.LeakyReLU(), nn.Linear(hidden_dim, hidden_dim), nn.LeakyReLU(), last
    )
