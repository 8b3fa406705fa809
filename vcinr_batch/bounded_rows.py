"""Samples under a hard error bound: a decoded base, the residual in whole steps, and a check of every value.

compress:   for each sample the base level that takes the fewest bits in all -> symbols and residual in one stream
            -> decode those bytes -> compare every value with the bound; a sample that misses it is stored losslessly
decompress: base of the symbols, plus residual times step
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.bundle import Bundle
from vcinr_batch.codec.residual import bounded_bits, decode_bounded, encode_bounded, step_index
from vcinr_batch.codec.residual_model import ResidualModel
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.normalization import background_at
from vcinr_batch.error_bound import add_residual, bounds_of, pack_values, residual_of, residual_steps
from vcinr_batch.errors import ConfigError, CorruptBitstreamError
from vcinr_batch.metrics import max_error
from vcinr_batch.opened_bundle import OpenBundle, decode_values
from vcinr_batch.quality_request import QualityRequest
from vcinr_batch.sample_batch import Batch, Masks, Values, guard_band

BASE_ONLY, BOUNDED, LOSSLESS = 0, 1, 2
"""What a row's payload holds: `ArchiveRow.coding`."""

_PROBED_SAMPLES = 6
"""So many samples of a batch try every second base level; the others begin with the one that suits these."""

Blocks = Sequence[tuple[int, ...]]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StoredSamples:
    """What B rows store."""

    payloads: list[bytes]
    quality: Integers
    """[B], base level; 0 where the sample is stored losslessly."""
    coding: Integers
    """[B], `BOUNDED` or `LOSSLESS`."""
    decoded: Values
    """[B, P, C], what the payloads decode to, in the unit."""
    bounds: NDArray[np.float64]
    """[B], in the unit."""


def check_residual_coder(bundle: Bundle) -> None:
    """Raise a `ConfigError` if a bundle cannot keep an error bound."""
    if not any(name.startswith("residual.") for name in bundle.codec):
        raise ConfigError(
            f"bundle {bundle.sha256[:16]}... was trained without a residual coder, which a max error needs: "
            "train it again, or ask for a quality level, PSNR or RMSE"
        )


def store_bounded(
    batch: Batch,
    latents: Values,
    fitted: NDArray[np.bool_],
    opened: OpenBundle,
    layout: Layout,
    blocks: Blocks,
    request: QualityRequest,
) -> StoredSamples:
    """Store samples so that no decoded value is farther from the source's than the bound.

    Args:
        batch: B samples.
        latents: [B, L], of the samples that are fitted.
        fitted: bool [B]; the others are stored losslessly.
        request: a max error.

    Raises:
        ConfigError: a bundle without a residual coder.
    """
    check_residual_coder(opened.bundle)
    bounds, steps, indices = bound_steps(request, opened, layout, blocks)
    task = _Task(batch, latents, opened, layout, blocks, steps, indices)
    none = np.zeros(len(latents), np.int64)
    stored = StoredSamples([b""] * len(latents), none, none + LOSSLESS, batch.values.copy(), bounds)
    coded = np.flatnonzero(fitted & (steps > 0))
    levels = _choose_levels(task, coded)
    for level, index in sorted(set(zip(levels.tolist(), indices[coded].tolist(), strict=True))):
        _store_level(task, stored, coded[(levels == level) & (indices[coded] == index)], level, index)
    for i in np.flatnonzero(stored.coding == LOSSLESS).tolist():
        stored.payloads[i] = pack_values(batch.values[i], batch.masks[i])
    return stored


def decode_bounded_rows(
    payloads: Sequence[bytes], quality: int, masks: Masks, opened: OpenBundle, layout: Layout, indices: Integers
) -> tuple[Values, NDArray[np.int32]]:
    """Payloads of `BOUNDED` rows of one level -> their latents [B, L] and residual [B, P].

    Args:
        indices: [B], `step_index` of each row's step in the network's units.

    Raises:
        CorruptBitstreamError: bytes that `store_bounded` never writes, or a bundle that cannot have written them.
    """
    model = opened.codec.residual
    if model is None:
        raise CorruptBitstreamError("holds a residual, for which the bundle has no coder")
    latents = np.empty((len(payloads), opened.codec.transform.latent_dim), np.float32)
    residual = np.empty(masks.shape, np.int32)
    for index in np.unique(indices).tolist():
        at = np.flatnonzero(indices == index)
        arguments = (opened.codec.tables, model, quality, index, layout.block_shape)
        symbols, residual[at] = decode_bounded([payloads[i] for i in at], masks[at], *arguments)
        latents[at] = opened.codec.latents_of(symbols, quality)
    return latents, residual


def bound_steps(
    request: QualityRequest, opened: OpenBundle, layout: Layout, blocks: Blocks
) -> tuple[NDArray[np.float64], NDArray[np.float64], Integers]:
    """Bounds [B] and steps [B] in the unit, and the `step_index` [B] of the steps; 0 where there is no step."""
    normalizer = opened.bundle.normalizer
    bounds = bounds_of(request, normalizer, layout, blocks)
    steps, in_network_units = residual_steps(bounds, normalizer, layout, blocks)
    indices = [step_index(step) if step > 0 else 0 for step in in_network_units.tolist()]
    return bounds, steps, np.array(indices, np.int64)


@dataclass(frozen=True, eq=False)
class _Task:
    """A batch to be stored; B samples."""

    batch: Batch
    latents: Values
    opened: OpenBundle
    layout: Layout
    blocks: Blocks
    steps: NDArray[np.float64]
    indices: Integers

    @property
    def model(self) -> ResidualModel:
        assert self.opened.codec.residual is not None
        return self.opened.codec.residual

    def decode(self, latents: Values, at: Integers) -> Values:
        return decode_values(self.opened, latents, self.layout, [self.blocks[i] for i in at])

    def bits(self, trial: "_Trial", at: Integers, level: int) -> NDArray[np.float64]:
        """Of each sample at a level, infinite where its residual is too large."""
        bits = np.full(len(at), np.inf)
        for index in np.unique(self.indices[at]).tolist():
            here = np.flatnonzero(self.indices[at] == index)
            arguments = (self.opened.codec.tables, self.model, level, index)
            masks = self.batch.masks[at[here]]
            bits[here] = bounded_bits(
                trial.symbols[here], trial.residual[here], masks, *arguments, self.layout.block_shape
            )
        return np.where(trial.fits, bits, np.inf)


@dataclass(frozen=True, eq=False)
class _Trial:
    """Some samples at one base level."""

    symbols: NDArray[np.int32]
    residual: NDArray[np.int32]
    fits: NDArray[np.bool_]


def _try_level(task: _Task, at: Integers, level: int) -> _Trial:
    codec, batch = task.opened.codec, task.batch
    symbols = codec.symbols(task.latents[at], level)
    base = task.decode(codec.latents_of(symbols, level), at)
    return _Trial(symbols, *residual_of(batch.values[at], base, batch.masks[at], task.steps[at]))


def _choose_levels(task: _Task, coded: Integers) -> Integers:
    """The base level [len(coded)] at which each sample takes the fewest bits, base and residual together.

    Bits fall and rise again with the level, so that a descent in halving strides finds the least but for ripples.
    """
    if len(coded) == 0:
        return np.zeros(0, np.int64)
    finest = task.opened.codec.quality_count - 1
    seen: dict[tuple[int, int], float] = {}
    probed = coded[:: -(-len(coded) // _PROBED_SAMPLES)]
    for level in range(0, finest + 1, 2):
        _weigh(task, seen, {level: probed})
    start = int(np.median([min(range(0, finest + 1, 2), key=lambda q: seen[i, q]) for i in probed.tolist()]))
    best = np.full(len(coded), start, np.int64)
    _weigh(task, seen, {start: coded})
    for stride in (4, 2, 1):
        for direction in (-stride, stride):
            levels = np.clip(best + direction, 0, finest)
            _weigh(task, seen, {int(level): coded[levels == level] for level in np.unique(levels)})
            pairs = zip(coded.tolist(), levels.tolist(), best.tolist(), strict=True)
            best = np.array([new if seen[i, new] < seen[i, old] else old for i, new, old in pairs], np.int64)
    return best


def _weigh(task: _Task, seen: dict[tuple[int, int], float], wanted: dict[int, Integers]) -> None:
    """Bits of samples at levels, those that are not known yet."""
    for level, samples in wanted.items():
        new = np.array([i for i in samples.tolist() if (i, level) not in seen], np.int64)
        if len(new):
            bits = task.bits(_try_level(task, new, level), new, level)
            seen.update(((i, level), amount) for i, amount in zip(new.tolist(), bits.tolist(), strict=True))


def _store_level(task: _Task, stored: StoredSamples, at: Integers, level: int, index: int) -> None:
    """Code samples of one level and one step, and keep those whose every value is within its bound."""
    opened, masks, steps = task.opened, task.batch.masks[at], task.steps[at]
    trial = _try_level(task, at, level)
    arguments = (opened.codec.tables, task.model, level, index, task.layout.block_shape)
    payloads = encode_bounded(trial.symbols, trial.residual, masks, *arguments)
    latents, residual = decode_bounded_rows(payloads, level, masks, opened, task.layout, np.full(len(at), index))
    decoded = add_residual(task.decode(latents, at), residual, steps)
    keeps = trial.fits & _keeps_bound(task, at, decoded, stored.bounds[at])
    for i, payload, values, good in zip(at.tolist(), payloads, decoded, keeps.tolist(), strict=True):
        if good:
            stored.payloads[i], stored.coding[i], stored.quality[i] = payload, BOUNDED, level
            stored.decoded[i] = values


def _keeps_bound(task: _Task, at: Integers, decoded: Values, bounds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether no value of each sample is off by more than its bound, on this machine or another one."""
    masks = task.batch.masks[at]
    error = np.where(masks[..., None], decoded.astype(np.float64) - task.batch.values[at], 0.0)
    background = background_at(task.opened.bundle.normalizer, task.layout, [task.blocks[i] for i in at])
    return np.asarray(max_error(error, masks) + guard_band(decoded, background, masks) <= bounds)
