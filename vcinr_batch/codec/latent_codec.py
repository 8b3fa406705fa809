"""Latents <-> bytes: transform, quantiser and entropy coder in one object."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vcinr_batch.codec.entropy_coder import decode_symbols, encode_symbols
from vcinr_batch.codec.entropy_model import FrozenTables, tables_from_arrays, tables_to_arrays
from vcinr_batch.codec.quantization import dequantize
from vcinr_batch.codec.rate_distortion import choose_symbols
from vcinr_batch.codec.residual_model import ResidualModel, residual_model_from_arrays, residual_model_to_arrays
from vcinr_batch.codec.transforms import LatentTransform
from vcinr_batch.errors import ConfigError, CorruptBitstreamError
from vcinr_batch.row_groups import in_groups


class LatentCodec:
    """A trained codec for latents [B, L]; every quality level shares the transform.

    Args:
        transform: latents [L] <-> code [K].
        tables: entropy tables for K dimensions.
        residual: codes what is left of a field under an error bound; None in bundles without.

    Raises:
        ConfigError: transform and tables disagree about K.
    """

    def __init__(self, transform: LatentTransform, tables: FrozenTables, residual: ResidualModel | None = None) -> None:
        if transform.code_dim != tables.code_dim:
            raise ConfigError(f"transform codes {transform.code_dim} dimensions, the tables {tables.code_dim}")
        self.transform = transform.eval().requires_grad_(False)
        self.tables = tables
        self.residual = residual

    @property
    def quality_count(self) -> int:
        """Number of quality levels Q; level 0 is the coarsest."""
        return self.tables.quality_count

    def symbols(self, latents: NDArray[np.float32], quality: int, rate_weight: float = 1.0) -> NDArray[np.int32]:
        """Latents [B, L] -> symbols int32 [B, K].

        Args:
            rate_weight: how much rate counts in the choice of symbols; 0 rounds plainly.

        Raises:
            ConfigError: no such quality level, or latents of another length.
            FittingError: latents that are not finite.
        """
        self._step(quality)
        if latents.ndim != 2 or latents.shape[1] != self.transform.latent_dim:
            raise ConfigError(f"expected latents [B, {self.transform.latent_dim}], got {latents.shape}")
        with torch.no_grad():
            code = self.transform.analysis(torch.from_numpy(np.ascontiguousarray(latents, np.float32)))
        return choose_symbols(code.numpy(), self.tables, quality, rate_weight)

    def latents_of(self, symbols: NDArray[np.int32], quality: int) -> NDArray[np.float32]:
        """Symbols int32 [B, K] -> decoded latents float32 [B, L], to the last bit the same whatever the others are.

        Raises:
            ConfigError: no such quality level.
        """
        code = torch.from_numpy(dequantize(symbols, self._step(quality)))
        with torch.no_grad():
            latents: NDArray[np.float32] = in_groups(self.transform.synthesis, code).numpy()
        return latents

    def encode(self, latents: NDArray[np.float32], quality: int, rate_weight: float = 1.0) -> list[bytes]:
        """Latents [B, L] -> B payloads.

        Raises:
            ConfigError, FittingError: as `symbols`.
        """
        return encode_symbols(self.symbols(latents, quality, rate_weight), self.tables, quality)

    def decode(self, payloads: Sequence[bytes], quality: int) -> NDArray[np.float32]:
        """B payloads -> decoded latents float32 [B, L].

        Raises:
            ConfigError: no such quality level.
            CorruptBitstreamError: bytes that `encode` never writes.
        """
        return self.latents_of(decode_symbols(payloads, self.tables, quality), quality)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything a decoder needs, by name, for a bundle."""
        arrays: dict[str, NDArray[Any]] = {
            f"transform.{name}": tensor.numpy() for name, tensor in self.transform.state_dict().items()
        }
        arrays |= {f"tables.{name}": array for name, array in tables_to_arrays(self.tables).items()}
        if self.residual is not None:
            arrays |= {f"residual.{name}": array for name, array in residual_model_to_arrays(self.residual).items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "LatentCodec":
        """Inverse of `to_arrays`, on untrusted arrays.

        Raises:
            CorruptBitstreamError: arrays that are missing, not expected, of a wrong shape or dtype, or not valid.
        """
        tables = tables_from_arrays(_under("tables.", arrays))
        transform = _transform_from_arrays(_under("transform.", arrays))
        residual_arrays = _under("residual.", arrays)
        residual = residual_model_from_arrays(residual_arrays) if residual_arrays else None
        unknown = sorted(name for name in arrays if not name.startswith(("tables.", "transform.", "residual.")))
        if unknown or transform.code_dim != tables.code_dim:
            raise CorruptBitstreamError(
                f"latent codec: unexpected arrays {unknown}"
                if unknown
                else f"latent codec: transform codes {transform.code_dim} dimensions, the tables {tables.code_dim}"
            )
        if residual is not None and len(residual.sets) != tables.quality_count:
            raise CorruptBitstreamError(
                f"latent codec: residual model of {len(residual.sets)} levels, the tables have {tables.quality_count}"
            )
        return cls(transform, tables, residual)

    def _step(self, quality: int) -> float:
        if not 0 <= quality < self.quality_count:
            raise ConfigError(f"quality {quality}: this bundle has levels 0 to {self.quality_count - 1}")
        return float(self.tables.steps[quality])


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _transform_from_arrays(arrays: Mapping[str, NDArray[Any]]) -> LatentTransform:
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or not np.isfinite(array).all():
            raise CorruptBitstreamError(f"latent codec: transform.{name} must be finite float32")
    if "mean" not in arrays or "scale" not in arrays:
        raise CorruptBitstreamError("latent codec: transform.mean or transform.scale is missing")
    mean, scale = arrays["mean"], arrays["scale"]
    if mean.ndim != 1 or scale.ndim != 1 or not 1 <= scale.size <= mean.size or (scale <= 0).any():
        raise CorruptBitstreamError("latent codec: expected transform.mean [L] and transform.scale [K] > 0, K <= L")
    first_bias = arrays.get("analysis_mlp.0.bias")
    hidden_dim = 0 if first_bias is None else first_bias.size
    expected = _expected_shapes(mean.size, scale.size, hidden_dim)
    actual = {name: array.shape for name, array in arrays.items()}
    if actual != expected:
        wrong = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
        raise CorruptBitstreamError(f"latent codec: missing, unexpected or misshapen transform arrays: {wrong}")
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    transform = LatentTransform(
        tensors["mean"], tensors["W_analysis"], tensors["W_synthesis"], tensors["scale"], hidden_dim
    )
    transform.load_state_dict(tensors)
    return transform


def _expected_shapes(latent_dim: int, code_dim: int, hidden_dim: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "mean": (latent_dim,),
        "scale": (code_dim,),
        "W_analysis": (latent_dim, code_dim),
        "W_synthesis": (code_dim, latent_dim),
    }
    widths = (code_dim, hidden_dim, hidden_dim, code_dim)
    for mlp in ("analysis_mlp", "synthesis_mlp") if hidden_dim else ():
        for layer in range(3):
            shapes[f"{mlp}.{2 * layer}.weight"] = (widths[layer + 1], widths[layer])
            shapes[f"{mlp}.{2 * layer}.bias"] = (widths[layer + 1],)
    return shapes
