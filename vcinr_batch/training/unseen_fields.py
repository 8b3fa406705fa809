"""Training fields as the base decodes fields that it has not seen: what residual statistics are learned from.

What a codec leaves of its own training samples is less than what it leaves of others. Where the network is its linear
term alone, the term is made again without each quarter of the samples in turn, and those are coded with it
(cross-fitting); else the validation samples have to do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vcinr_batch.codec.latent_codec import LatentCodec
from vcinr_batch.codec.quantization import dequantize
from vcinr_batch.codec.rate_distortion import choose_symbols
from vcinr_batch.config import RunConfig
from vcinr_batch.data.coordinates import Grid
from vcinr_batch.network.fitting import decode_latents
from vcinr_batch.network.gated_siren import GatedSiren
from vcinr_batch.training.localized_basis import start_linear_term
from vcinr_batch.training.training_samples import TrainingSamples

Values = NDArray[np.float32]

_FOLDS = 4
_FEWEST_SAMPLES = 24
"""With fewer, a quarter left out changes the basis too much."""


@dataclass(frozen=True, eq=False)
class UnseenFields:
    """Fields, and what each quality level decodes them to; one channel."""

    values: Values
    """[N, P], network units."""
    decoded: Callable[[int], Values]
    """Level -> [N, P]."""


def unseen_fields(
    samples: TrainingSamples,
    validation_latents: Values,
    network: GatedSiren,
    codec: LatentCodec,
    grid: Grid,
    config: RunConfig,
) -> UnseenFields:
    """Fields for `train_residual`, of samples with one channel.

    Args:
        validation_latents: of the validation samples, [M, L].
    """
    linear_alone = config.network.modulation == "none" and config.network.linear_term != "none"
    if linear_alone and config.meta_learning.steps == 0 and len(samples.normalized) >= _FEWEST_SAMPLES:
        return _cross_fitted(samples, codec, grid, config)

    def decoded(quality: int) -> Values:
        latents = codec.latents_of(codec.symbols(validation_latents, quality), quality)
        values: Values = decode_latents(network, torch.from_numpy(latents)).numpy()[..., 0]
        return values

    return UnseenFields(samples.normalized[samples.validation, :, 0], decoded)


def _cross_fitted(samples: TrainingSamples, codec: LatentCodec, grid: Grid, config: RunConfig) -> UnseenFields:
    count = len(samples.normalized)
    fold = np.arange(count) * _FOLDS // count
    codes, bases = np.empty((count, codec.tables.code_dim), np.float32), []
    for k in range(_FOLDS):
        table = start_linear_term(samples.normalized[fold != k], samples.valid, grid, config.network)[:, 0]
        length = np.linalg.norm(table, axis=0)
        # Orthonormal, largest variance first: close to what the codec's own transform makes of the whole basis.
        basis = (table / np.maximum(length, 1e-30))[:, : codec.tables.code_dim]
        codes[fold == k] = samples.normalized[fold == k, :, 0] @ basis
        bases.append(basis)

    def decoded(quality: int) -> Values:
        symbols = choose_symbols(codes, codec.tables, quality)
        rounded = dequantize(symbols, float(codec.tables.steps[quality]))
        values = np.empty(samples.normalized.shape[:2], np.float32)
        for k, basis in enumerate(bases):
            values[fold == k] = rounded[fold == k] @ basis.T
        return values

    return UnseenFields(samples.normalized[..., 0], decoded)
