"""The whole codec in two functions: `compress_samples` and `decompress_rows`. Read this first.

compress:   normalise -> fit latents -> choose the quality -> symbols -> bytes -> decode those bytes -> measure -> rows
decompress: rows -> check -> symbols -> latents -> shared network -> denormalise
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vcinr_batch.archive.rows import ArchiveRow, check_row, pack_mask, row_checksum, unpack_mask
from vcinr_batch.bounded_rows import (
    BASE_ONLY,
    BOUNDED,
    LOSSLESS,
    bound_steps,
    check_residual_coder,
    decode_bounded_rows,
    store_bounded,
)
from vcinr_batch.bundle import Bundle
from vcinr_batch.data.coordinates import describe_grid, grids_equal, make_grid
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.normalization import background_at, check_domain, expected_mask
from vcinr_batch.data.samples import RejectedSample, Sample, rejection_reason
from vcinr_batch.error_bound import add_residual, unpack_values
from vcinr_batch.errors import BundleMismatchError, CorruptBitstreamError, FittingError
from vcinr_batch.metrics import psnr_db
from vcinr_batch.network.fitting import ClosedFormSolver, fit_latents, make_solver
from vcinr_batch.opened_bundle import OpenBundle, decode_values, open_bundle
from vcinr_batch.quality_request import QualityRequest, check_level
from vcinr_batch.sample_batch import Batch, make_batch, recorded_errors

__all__ = [
    "OpenBundle",
    "QualityRequest",
    "check_layout",
    "check_request",
    "compress_samples",
    "decompress_rows",
    "one_thread",
    "open_bundle",
    "row_masks",
]

OUT_OF_REACH_DB = 0.1
"""A sample that cannot reach its target PSNR may lose this much against the finest level."""

Values = NDArray[np.float32]
Masks = NDArray[np.bool_]


def compress_samples(
    samples: Sequence[Sample], opened: OpenBundle, layout: Layout, request: QualityRequest
) -> tuple[list[ArchiveRow], list[RejectedSample]]:
    """Compress samples of one layout.

    Args:
        samples: fields, in the unit of the bundle's variable, on the bundle's grid.
        opened: from `open_bundle`.
        layout: of the source; must agree with the bundle (`check_layout`).
        request: how good they shall be.

    Returns:
        Rows in the order of the samples, each with the error measured on its decoded bytes; and the samples that could
        not be compressed (infinite values, no value at all, a fit that diverged) with the reason. A sample that does
        not reach its target even at the finest level is stored at the coarsest within 0.1 dB of that one. Under an
        error bound a sample that cannot be fitted, or misses the bound, is stored losslessly.

    Raises:
        ConfigError: no such quality level, or an error bound and a bundle without a residual coder.
    """
    rejected = [RejectedSample(s.key, s.block, reason) for s in samples if (reason := rejection_reason(s))]
    refused = {item.block for item in rejected}
    accepted = [sample for sample in samples if sample.block not in refused]
    if not accepted:
        return [], rejected
    batch = make_batch(accepted, opened.bundle, layout)
    latents, failures = _fit_each(opened, batch)
    if request.is_bound:
        fitted = np.array([i not in failures for i in range(len(accepted))])
        return _encode_bounded_rows(accepted, batch, latents, fitted, opened, layout, request), rejected
    rejected += [RejectedSample(accepted[i].key, accepted[i].block, reason) for i, reason in failures.items()]
    good = np.array([i for i in range(len(accepted)) if i not in failures], np.int64)
    if good.size == 0:
        return [], rejected
    rows = _encode_rows([accepted[i] for i in good], batch.take(good), latents[good], opened, layout, request)
    return rows, rejected


def decompress_rows(
    rows: Sequence[ArchiveRow], opened: OpenBundle, layout: Layout, request: QualityRequest | None = None
) -> Values:
    """Decompress rows of one archive.

    Args:
        request: what the archive was asked for; only rows under an error bound need it.

    Returns:
        float32 [B, P, C] in the unit of the variable, NaN outside each sample's mask.

    Raises:
        CorruptBitstreamError: a row fails its checksum or its bytes do not decode; names the sample.
    """
    if not rows:
        return np.empty((0, layout.points_per_sample, layout.channels), np.float32)
    decoded = decode_rows(rows, opened, layout, request)
    return decoded.finish(decode_values(opened, decoded.latents, layout, [row.block for row in rows]))


@dataclass(frozen=True, eq=False)
class DecodedRows:
    """What the payloads of B rows say."""

    latents: Values
    """[B, L]; phi0 where the sample is stored losslessly."""
    masks: Masks
    """[B, P]."""
    residual: dict[int, NDArray[np.int32]]
    """[P], of rows under an error bound, by their place."""
    steps: NDArray[np.float64]
    """[B], of the residual, in the unit."""
    lossless: dict[int, Values]
    """[P, C], of rows stored so, by their place."""

    def finish(self, base: Values) -> Values:
        """The base decoded from the latents [B, P, C], made the rows' values in place: NaN outside the masks."""
        for i, residual in self.residual.items():
            base[i] = add_residual(base[i : i + 1], residual[None], self.steps[i : i + 1])[0]
        for i, values in self.lossless.items():
            base[i] = values
        base[~self.masks] = np.nan
        return base


def decode_rows(
    rows: Sequence[ArchiveRow], opened: OpenBundle, layout: Layout, request: QualityRequest | None = None
) -> DecodedRows:
    """Payloads to latents, residuals and stored values; arguments and errors as `decompress_rows`."""
    for row in rows:
        check_row(row, opened.bundle.sha256)
        if not row.quality < opened.codec.quality_count:
            raise CorruptBitstreamError(
                f"{row.key}: quality {row.quality}, the bundle has {opened.codec.quality_count} levels"
            )
    latents = np.repeat(opened.network.phi0.numpy()[None], len(rows), axis=0)
    masks, steps, indices = row_masks(rows, opened, layout), np.zeros(len(rows)), np.zeros(len(rows), np.int64)
    if request is not None and request.is_bound:
        _, steps, indices = bound_steps(request, opened, layout, [row.block for row in rows])
    decoded = DecodedRows(latents, masks, {}, steps, {})
    kinds = [(row.coding, row.quality) for row in rows]
    for kind in sorted(set(kinds)):
        at = np.array([i for i, other in enumerate(kinds) if other == kind])
        _decode_payloads(rows, at, decoded, indices, opened, layout)
    return decoded


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


def check_request(request: QualityRequest, bundle: Bundle) -> None:
    """Make sure that a bundle can give what is asked for.

    Raises:
        ConfigError: no such quality level, or an error bound and a bundle without a residual coder.
    """
    check_level(request, len(bundle.quality_psnr_db))
    if request.is_bound:
        check_residual_coder(bundle)


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


def _fit_each(opened: OpenBundle, batch: Batch) -> tuple[Values, dict[int, str]]:
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
    batch: Batch,
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
    decoded = decode_values(opened, decoded_latents, layout, blocks)
    recorded_rmse, recorded_max = recorded_errors(
        decoded, batch, background_at(opened.bundle.normalizer, layout, blocks)
    )
    coding = np.full(len(samples), BASE_ONLY)
    return _make_rows(samples, batch.masks, payloads, quality, coding, recorded_rmse, recorded_max, opened, layout)


def _encode_bounded_rows(
    samples: Sequence[Sample],
    batch: Batch,
    latents: Values,
    fitted: NDArray[np.bool_],
    opened: OpenBundle,
    layout: Layout,
    request: QualityRequest,
) -> list[ArchiveRow]:
    blocks = [sample.block for sample in samples]
    stored = store_bounded(batch, latents, fitted, opened, layout, blocks, request)
    errors = recorded_errors(stored.decoded, batch, background_at(opened.bundle.normalizer, layout, blocks))
    exact = stored.coding == LOSSLESS
    # Rounding up must not make the record larger than what was promised, and is kept.
    recorded_rmse, recorded_max = (
        np.where(exact, np.float32(0), np.minimum(error, stored.bounds.astype(np.float32))) for error in errors
    )
    return _make_rows(
        samples,
        batch.masks,
        stored.payloads,
        stored.quality,
        stored.coding,
        recorded_rmse,
        recorded_max,
        opened,
        layout,
    )


def _make_rows(
    samples: Sequence[Sample],
    masks: Masks,
    payloads: Sequence[bytes],
    quality: NDArray[np.int64],
    coding: NDArray[np.int64],
    recorded_rmse: NDArray[np.float32],
    recorded_max: NDArray[np.float32],
    opened: OpenBundle,
    layout: Layout,
) -> list[ArchiveRow]:
    rows = []
    for i, sample in enumerate(samples):
        expected = expected_mask(opened.bundle.normalizer, layout, sample.block)
        mask = None if np.array_equal(masks[i], expected) else pack_mask(masks[i])
        level, kind = int(quality[i]), int(coding[i])
        checksum = row_checksum(sample.key, level, payloads[i], mask, opened.bundle.sha256, kind)
        errors = float(recorded_rmse[i]), float(recorded_max[i])
        rows.append(ArchiveRow(sample.key, sample.block, payloads[i], level, *errors, checksum, mask, kind))
    return rows


def _choose_quality(
    batch: Batch,
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
    check_level(request, opened.codec.quality_count)
    if request.level is not None:
        return np.full(len(latents), request.level, np.int64)
    if request.target_rmse is not None:
        wanted = psnr_db(request.target_rmse, batch.value_range)
    else:
        wanted = np.full(len(latents), request.target_psnr_db, np.float64)
    background = background_at(opened.bundle.normalizer, layout, blocks)

    def psnr_at(levels: NDArray[np.int64]) -> NDArray[np.float64]:
        trial = np.empty_like(latents)
        for level in np.unique(levels):
            at = np.flatnonzero(levels == level)
            trial[at] = opened.codec.latents_of(opened.codec.symbols(latents[at], int(level)), int(level))
        recorded_rmse, _ = recorded_errors(decode_values(opened, trial, layout, blocks), batch, background)
        return psnr_db(recorded_rmse, batch.value_range)

    low, high = np.zeros(len(latents), np.int64), np.full(len(latents), finest, np.int64)
    best = psnr_at(high)
    target = np.where(best >= wanted, wanted, best - OUT_OF_REACH_DB)
    while (low < high).any():
        middle = (low + high) // 2
        reached = psnr_at(middle) >= target
        low, high = np.where(reached, low, np.minimum(middle + 1, high)), np.where(reached, middle, high)
    return high


def _decode_payloads(
    rows: Sequence[ArchiveRow],
    at: NDArray[np.int64],
    decoded: DecodedRows,
    indices: NDArray[np.int64],
    opened: OpenBundle,
    layout: Layout,
) -> None:
    """Decode the rows at some places, of one coding and one level; one by one if any fails, to name the sample."""
    coding, level, payloads = rows[at[0]].coding, rows[at[0]].quality, [rows[i].payload for i in at]
    try:
        if coding == BASE_ONLY:
            decoded.latents[at] = opened.codec.decode(payloads, level)
        elif coding == BOUNDED:
            if not (decoded.steps[at] > 0).all():
                raise CorruptBitstreamError("holds a residual, but the archive was asked for no error bound")
            masks = decoded.masks[at]
            latents, residual = decode_bounded_rows(payloads, level, masks, opened, layout, indices[at])
            decoded.latents[at] = latents
            decoded.residual.update(zip(at.tolist(), residual, strict=True))
        else:
            for i, payload in zip(at.tolist(), payloads, strict=True):
                decoded.lossless[i] = unpack_values(payload, decoded.masks[i], layout.channels)
    except CorruptBitstreamError as error:
        if len(at) == 1:
            raise CorruptBitstreamError(f"{rows[at[0]].key}: {error}") from error
        for i in range(len(at)):
            _decode_payloads(rows, at[i : i + 1], decoded, indices, opened, layout)
        raise


def _row_mask(row: ArchiveRow, bundle: Bundle, layout: Layout) -> Masks:
    if row.mask is None:
        expected: Masks = expected_mask(bundle.normalizer, layout, row.block)
        return expected
    try:
        return unpack_mask(row.mask, layout.points_per_sample)
    except CorruptBitstreamError as error:
        raise CorruptBitstreamError(f"{row.key}: {error}") from error
