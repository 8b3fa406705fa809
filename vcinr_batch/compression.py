"""The whole codec in two functions: `compress_samples` and `decompress_rows`. Read this first.

compress:   normalise -> fit latents -> choose the quality -> symbols -> bytes -> decode those bytes -> measure -> rows
decompress: rows -> check -> symbols -> latents -> shared network -> denormalise
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from vcinr_batch.archive.rows import ArchiveRow, check_row, pack_mask, row_checksum, unpack_mask
from vcinr_batch.bundle import Bundle
from vcinr_batch.codec.latent_codec import LatentCodec
from vcinr_batch.data.coordinates import describe_grid, grids_equal, make_grid
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.normalization import (
    background_at,
    check_domain,
    denormalize,
    expected_mask,
    normalize,
    range_at,
    scale_at,
)
from vcinr_batch.data.samples import RejectedSample, Sample, rejection_reason
from vcinr_batch.errors import BundleMismatchError, ConfigError, CorruptBitstreamError, FittingError
from vcinr_batch.metrics import max_error, psnr_db, rmse, round_up
from vcinr_batch.network.fitting import ClosedFormSolver, decode_latents, fit_latents, make_solver
from vcinr_batch.network.gated_siren import GatedSiren, parameter_shapes

OUT_OF_REACH_DB = 0.1
"""A sample that cannot reach its target PSNR may lose this much against the finest level."""
GUARD_BAND = 1e-5
"""Added to every recorded error, as a share of the largest anomaly from the background: fp32 decodes on two machines
differ by less. Measured: fp32 is off float64 by 4e-7 (2 layers of 48, w0 20) to 4e-6 (14 layers of 512, w0 30)."""

_CHANNELS = 1

Values = NDArray[np.float32]
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class QualityRequest:
    """How good the decoded samples shall be: one quality level, or for each sample the coarsest that reaches a PSNR."""

    level: int | None = None
    target_psnr_db: float | None = None

    def __post_init__(self) -> None:
        if (self.level is None) == (self.target_psnr_db is None):
            raise ConfigError("give either a quality level or a target PSNR, not both")
        if self.level is not None and type(self.level) is not int:
            raise ConfigError(f"quality: expected the number of a level, got {self.level!r:.80}")
        if isinstance(self.target_psnr_db, bool) or not isinstance(self.target_psnr_db, int | float | None):
            raise ConfigError(f"target PSNR: expected a number of dB, got {self.target_psnr_db!r:.80}")
        if self.target_psnr_db is not None and not math.isfinite(self.target_psnr_db):
            raise ConfigError(f"target PSNR must be a finite number of dB, got {self.target_psnr_db}")


@dataclass
class OpenBundle:
    """A bundle brought to life: built once per process, then used for every batch."""

    bundle: Bundle
    network: GatedSiren
    codec: LatentCodec
    solvers: dict[bytes, ClosedFormSolver] = field(default_factory=dict)
    """Closed-form solvers by mask; the last few masks met."""


def compress_samples(
    samples: Sequence[Sample], opened: OpenBundle, layout: Layout, request: QualityRequest
) -> tuple[list[ArchiveRow], list[RejectedSample]]:
    """Compress samples of one layout.

    Args:
        samples: fields, in the unit of the bundle's variable, on the bundle's grid.
        opened: from `open_bundle`.
        layout: of the source; must agree with the bundle (`check_layout`).
        request: quality level, or target PSNR in dB against the bundle's value range.

    Returns:
        Rows in the order of the samples, each with the error measured on its decoded bytes; and the samples that could
        not be compressed (infinite values, no value at all, a fit that diverged) with the reason. A sample that does
        not reach the target PSNR even at the finest level is stored at the coarsest within 0.1 dB of that one.

    Raises:
        ConfigError: no such quality level.
    """
    rejected = [RejectedSample(s.key, s.block, reason) for s in samples if (reason := rejection_reason(s))]
    refused = {item.block for item in rejected}
    accepted = [sample for sample in samples if sample.block not in refused]
    if not accepted:
        return [], rejected
    batch = _make_batch(accepted, opened.bundle, layout)
    latents, failures = _fit_each(opened, batch)
    rejected += [RejectedSample(accepted[i].key, accepted[i].block, reason) for i, reason in failures.items()]
    good = np.array([i for i in range(len(accepted)) if i not in failures], np.int64)
    if good.size == 0:
        return [], rejected
    rows = _encode_rows([accepted[i] for i in good], batch.take(good), latents[good], opened, layout, request)
    return rows, rejected


def decompress_rows(rows: Sequence[ArchiveRow], opened: OpenBundle, layout: Layout) -> Values:
    """Decompress rows of one archive.

    Returns:
        float32 [B, P, C] in the unit of the variable, NaN outside each sample's mask.

    Raises:
        CorruptBitstreamError: a row fails its checksum or its bytes do not decode; names the sample.
    """
    if not rows:
        return np.empty((0, layout.points_per_sample, layout.channels), np.float32)
    values = _decode_values(opened, decompress_latents(rows, opened), layout, [row.block for row in rows])
    values[~row_masks(rows, opened, layout)] = np.nan
    return values


def decompress_latents(rows: Sequence[ArchiveRow], opened: OpenBundle) -> Values:
    """The latents that rows of one archive hold, float32 [B, L].

    Raises:
        CorruptBitstreamError: as `decompress_rows`.
    """
    for row in rows:
        check_row(row, opened.bundle.sha256)
    latents = np.empty((len(rows), opened.codec.transform.latent_dim), np.float32)
    quality = np.array([row.quality for row in rows])
    for level in np.unique(quality):
        at = np.flatnonzero(quality == level)
        if not level < opened.codec.quality_count:
            raise CorruptBitstreamError(
                f"{rows[at[0]].key}: quality {level}, the bundle has {opened.codec.quality_count} levels"
            )
        latents[at] = _decode_payloads(opened, [rows[i] for i in at], int(level))
    return latents


def row_masks(rows: Sequence[ArchiveRow], opened: OpenBundle, layout: Layout) -> Masks:
    """Where rows have values, bool [B, P].

    Raises:
        CorruptBitstreamError: a row's own mask does not decode; names the sample.
    """
    return np.stack([_row_mask(row, opened.bundle, layout) for row in rows])


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: sums, and so the last bits of a result, depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def check_layout(bundle: Bundle, layout: Layout, unit: str | None = None) -> None:
    """Make sure that a bundle can compress a source of this layout, in this unit if it is given.

    Raises:
        BundleMismatchError: names both sides.
    """
    check_domain(bundle.normalizer, layout, unit)
    grid = make_grid(layout, "auto" if bundle.grid.system == "sphere" else "cartesian")
    if not grids_equal(bundle.grid, grid):
        raise BundleMismatchError(
            f"the bundle was trained on samples of {describe_grid(bundle.grid)}, the source has {describe_grid(grid)}"
        )


@dataclass(frozen=True)
class _Batch:
    """Samples side by side."""

    values: Values
    """[B, P, C], physical; anything outside the mask."""
    masks: Masks
    """[B, P]."""
    normalized: Values
    """[B, P, C], zero outside the mask."""
    value_range: NDArray[np.float32]
    """[B]."""

    def take(self, index: NDArray[np.int64]) -> "_Batch":
        return _Batch(self.values[index], self.masks[index], self.normalized[index], self.value_range[index])


def _make_batch(samples: Sequence[Sample], bundle: Bundle, layout: Layout) -> _Batch:
    blocks = [sample.block for sample in samples]
    values = np.stack([sample.values for sample in samples])
    full = np.ones(values.shape[1], bool)
    masks = np.stack([full if sample.mask is None else sample.mask for sample in samples])
    background = background_at(bundle.normalizer, layout, blocks)
    normalized = normalize(values, background, scale_at(bundle.normalizer, layout, blocks))
    normalized = np.where(masks[..., None], normalized, np.float32(0))
    return _Batch(values, masks, normalized, range_at(bundle.normalizer, layout, blocks))


def _fit_each(opened: OpenBundle, batch: _Batch) -> tuple[Values, dict[int, str]]:
    """Latents [B, L], and the reason for each sample whose fit failed; one bad sample does not take others along."""
    latents = np.zeros((len(batch.values), len(opened.network.phi0)), np.float32)
    failures: dict[int, str] = {}
    for mask, at in _groups_by_mask(batch.masks):
        try:
            latents[at] = _fit(opened, batch.normalized[at], mask)
        except FittingError:
            for i in at:
                try:
                    latents[i] = _fit(opened, batch.normalized[i : i + 1], mask)[0]
                except FittingError:
                    failures[int(i)] = "the fit diverged"  # the error counts samples within the batch of one
    return latents, failures


def _fit(opened: OpenBundle, normalized: Values, mask: Masks) -> Values:
    """Latents [B, L] that the codec can code.

    Raises:
        FittingError: a latent or its code is not finite.
    """
    config = opened.bundle.config.fit
    tensor_mask = None if mask.all() else torch.from_numpy(mask)
    solver = _solver(opened, mask, tensor_mask) if config.method == "closed_form" else None
    latents: Values = fit_latents(opened.network, torch.from_numpy(normalized), config, tensor_mask, solver).numpy()
    opened.codec.symbols(latents, 0, rate_weight=0)  # raises here, where one bad sample can be told from the others
    return latents


def _solver(opened: OpenBundle, mask: Masks, tensor_mask: torch.Tensor | None) -> ClosedFormSolver:
    name = np.packbits(mask).tobytes()
    if name not in opened.solvers:
        while len(opened.solvers) >= 4:  # an operator can be as large as the shared network; keep the last few
            opened.solvers.pop(next(iter(opened.solvers)))
        with torch.no_grad():
            opened.solvers[name] = make_solver(opened.network, mask=tensor_mask)
    return opened.solvers[name]


def _groups_by_mask(masks: Masks) -> Iterator[tuple[Masks, NDArray[np.int64]]]:
    _, first, group = np.unique(np.packbits(masks, axis=1), axis=0, return_index=True, return_inverse=True)
    for number, index in enumerate(first):
        yield masks[index], np.flatnonzero(group.ravel() == number)


def _encode_rows(
    samples: Sequence[Sample],
    batch: _Batch,
    latents: Values,
    opened: OpenBundle,
    layout: Layout,
    request: QualityRequest,
) -> list[ArchiveRow]:
    blocks = [sample.block for sample in samples]
    quality = _choose_quality(batch, latents, opened, layout, blocks, request)
    payloads: list[bytes] = [b""] * len(samples)
    decoded_latents = np.empty_like(latents)
    for level in np.unique(quality):
        at = np.flatnonzero(quality == level)
        coded = opened.codec.encode(latents[at], int(level))
        decoded_latents[at] = opened.codec.decode(coded, int(level))
        for i, payload in zip(at, coded, strict=True):
            payloads[i] = payload
    decoded = _decode_values(opened, decoded_latents, layout, blocks)
    recorded_rmse, recorded_max = _recorded_errors(
        decoded, batch, background_at(opened.bundle.normalizer, layout, blocks)
    )
    rows = []
    for i, sample in enumerate(samples):
        expected = expected_mask(opened.bundle.normalizer, layout, sample.block)
        mask = None if np.array_equal(batch.masks[i], expected) else pack_mask(batch.masks[i])
        level = int(quality[i])
        checksum = row_checksum(sample.key, level, payloads[i], mask, opened.bundle.sha256)
        errors = float(recorded_rmse[i]), float(recorded_max[i])
        rows.append(ArchiveRow(sample.key, sample.block, payloads[i], level, *errors, checksum, mask))
    return rows


def _choose_quality(
    batch: _Batch,
    latents: Values,
    opened: OpenBundle,
    layout: Layout,
    blocks: Sequence[tuple[int, ...]],
    request: QualityRequest,
) -> NDArray[np.int64]:
    """The level asked for, or for each sample the coarsest that reaches the target, by bisection over the levels.

    Where the fit leaves more error than the target allows, finer levels only cost bits: there the target is what the
    finest level reaches, less `OUT_OF_REACH_DB`.
    """
    finest = opened.codec.quality_count - 1
    if request.level is not None:
        if not 0 <= request.level <= finest:
            raise ConfigError(f"quality {request.level}: this bundle has levels 0 to {finest}")
        return np.full(len(latents), request.level, np.int64)
    assert request.target_psnr_db is not None
    background = background_at(opened.bundle.normalizer, layout, blocks)

    def psnr_at(levels: NDArray[np.int64]) -> NDArray[np.float64]:
        trial = np.empty_like(latents)
        for level in np.unique(levels):
            at = np.flatnonzero(levels == level)
            trial[at] = opened.codec.latents_of(opened.codec.symbols(latents[at], int(level)), int(level))
        recorded_rmse, _ = _recorded_errors(_decode_values(opened, trial, layout, blocks), batch, background)
        return psnr_db(recorded_rmse, batch.value_range)

    low, high = np.zeros(len(latents), np.int64), np.full(len(latents), finest, np.int64)
    best = psnr_at(high)
    target = np.where(best >= request.target_psnr_db, request.target_psnr_db, best - OUT_OF_REACH_DB)
    while (low < high).any():
        middle = (low + high) // 2
        reached = psnr_at(middle) >= target
        low, high = np.where(reached, low, np.minimum(middle + 1, high)), np.where(reached, middle, high)
    return high


def _recorded_errors(
    decoded: Values, batch: _Batch, background: Values
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """RMSE and max error [B] as rows hold them: with the guard band, rounded up."""
    error = np.where(batch.masks[..., None], decoded.astype(np.float64) - batch.values, 0.0)
    guard = _guard_band(decoded, background, batch.masks)
    return round_up(rmse(error, batch.masks) + guard), round_up(max_error(error, batch.masks) + guard)


def _guard_band(decoded: Values, background: Values, masks: Masks) -> NDArray[np.float64]:
    """How far another machine's decode may be off, [B]: the network's rounding, and that of adding the background."""
    anomaly = max_error(decoded.astype(np.float64) - background, masks)
    return GUARD_BAND * anomaly + 2 * np.finfo(np.float32).eps * max_error(decoded, masks)


def _decode_values(opened: OpenBundle, latents: Values, layout: Layout, blocks: Sequence[tuple[int, ...]]) -> Values:
    """Latents [B, L] -> physical values [B, P, C]: the canonical fp32 decode."""
    normalizer = opened.bundle.normalizer
    values = decode_latents(opened.network, torch.from_numpy(latents)).numpy()
    physical: Values = denormalize(
        values, background_at(normalizer, layout, blocks), scale_at(normalizer, layout, blocks)
    )
    return physical


def _decode_payloads(opened: OpenBundle, rows: Sequence[ArchiveRow], level: int) -> Values:
    try:
        return opened.codec.decode([row.payload for row in rows], level)
    except CorruptBitstreamError as error:
        for row in rows:  # once more, one by one, to name the sample
            try:
                opened.codec.decode([row.payload], level)
            except CorruptBitstreamError as cause:
                raise CorruptBitstreamError(f"{row.key}: {cause}") from error
        raise


def _row_mask(row: ArchiveRow, bundle: Bundle, layout: Layout) -> Masks:
    if row.mask is None:
        expected: Masks = expected_mask(bundle.normalizer, layout, row.block)
        return expected
    try:
        return unpack_mask(row.mask, layout.points_per_sample)
    except CorruptBitstreamError as error:
        raise CorruptBitstreamError(f"{row.key}: {error}") from error
