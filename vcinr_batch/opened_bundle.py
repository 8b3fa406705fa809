"""A bundle brought to life: its network and codec, and the canonical decode of latents."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from vcinr_batch.bundle import Bundle
from vcinr_batch.codec.latent_codec import LatentCodec
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.normalization import background_at, denormalize, scale_at
from vcinr_batch.errors import CorruptBitstreamError
from vcinr_batch.network.fitting import ClosedFormSolver, decode_latents
from vcinr_batch.network.gated_siren import GatedSiren, parameter_shapes

_CHANNELS = 1

Values = NDArray[np.float32]


@dataclass
class OpenBundle:
    """A bundle brought to life: built once per process, then used for every batch."""

    bundle: Bundle
    network: GatedSiren
    codec: LatentCodec
    solvers: dict[bytes, ClosedFormSolver] = field(default_factory=dict)
    """Closed-form solvers by mask; the last few masks met."""


def open_bundle(bundle: Bundle) -> OpenBundle:
    """Build the network and the codec that a bundle describes.

    Raises:
        CorruptBitstreamError: weights that are not finite or do not fit the bundle's own config, or a broken codec.
    """
    name, config, grid = f"bundle {bundle.sha256[:16]}...", bundle.config.network, bundle.grid
    # Checked before anything is built, so that a config that lies about its sizes costs no memory. (Building on torch's
    # meta device would do the same, but imports sympy: a second and 70 MB in every process.)
    expected = parameter_shapes(config, grid.point_count, grid.coordinate_dim, _CHANNELS)
    shapes = {key: array.shape for key, array in bundle.network.items()}
    wrong = sorted(key for key in expected.keys() | shapes.keys() if expected.get(key) != shapes.get(key))
    if wrong:
        raise CorruptBitstreamError(f"{name}: weights do not fit its config: {', '.join(wrong)}"[:300])
    if not all(
        array.dtype in (np.float32, np.float16) and np.isfinite(array).all() for array in bundle.network.values()
    ):
        raise CorruptBitstreamError(f"{name}: weights that are not finite float32 or float16 numbers")
    codec = LatentCodec.from_arrays(bundle.codec)
    if codec.transform.latent_dim != config.latent_dim:
        raise CorruptBitstreamError(
            f"{name}: codes latents of length {codec.transform.latent_dim}, its network has {config.latent_dim}"
        )
    with torch.random.fork_rng(devices=[]):  # building draws weights; the caller's generator shall not notice
        network = GatedSiren(config, torch.from_numpy(grid.coordinates()), _CHANNELS)
    weights = {key: torch.from_numpy(array.astype(np.float32)) for key, array in bundle.network.items()}
    network.load_state_dict(weights, assign=True)
    return OpenBundle(bundle, network.eval().requires_grad_(False), codec)


def decode_values(opened: OpenBundle, latents: Values, layout: Layout, blocks: Sequence[tuple[int, ...]]) -> Values:
    """Latents [B, L] -> physical values [B, P, C]: the canonical fp32 decode."""
    normalizer = opened.bundle.normalizer
    values = decode_latents(opened.network, torch.from_numpy(latents)).numpy()
    physical: Values = denormalize(
        values, background_at(normalizer, layout, blocks), scale_at(normalizer, layout, blocks)
    )
    return physical
