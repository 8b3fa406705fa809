"""Decodes an archive at any coordinates: value(x) = table(x) + scale * siren(x; phi).

The table is background + scale * B (phi - phi0), which the bundle has on the grid only: it is interpolated. The SIREN
is defined everywhere: it is evaluated at the coordinates themselves, by the transform that makes the network's own.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vcinr_batch.archive.query import (
    AxisQuery,
    Keys,
    Query,
    answer_coordinates,
    evaluable_dims,
    label_answer,
    make_query,
)
from vcinr_batch.archive.query_tiles import Block, query_tiles
from vcinr_batch.archive.rows import ArchiveRow
from vcinr_batch.compression import OpenBundle, decode_rows
from vcinr_batch.data.coordinates import Grid, make_grid
from vcinr_batch.data.interpolation import Floats, Stencil, interpolate
from vcinr_batch.data.layout import Layout, sample_key
from vcinr_batch.data.normalization import background_at, denormalize, scale_at
from vcinr_batch.errors import ConfigError, SampleNotFoundError
from vcinr_batch.network.fitting import decode_linear_term, decode_siren
from vcinr_batch.quality_request import QualityRequest, bound_from_json

if TYPE_CHECKING:
    import xarray

    from vcinr_batch.archive.archive import Archive

PIECE_VALUES = 1 << 21
"""Evaluated at once. A piece takes up to ten times its own float32 size while it is made."""
_LEAST_COST = 512
"""Of a sample in values, however few its points are: its latent is held, too."""


def evaluate(archive: "Archive", keys: Keys, coordinates: Mapping[str, Any]) -> "xarray.DataArray":
    """The whole answer in memory. Arguments, result and errors are those of `Archive.evaluate`."""
    query = make_query(archive.layout, keys, coordinates)
    values = evaluate_region(archive, query, tuple(slice(0, n) for n in query.shape))
    labelled = answer_coordinates(query, archive.layout, archive.manifest.auxiliaries)
    return label_answer(query, values, labelled, archive.layout.variable, archive.variable_attributes)


def evaluate_region(archive: "Archive", query: Query, region: Sequence[slice]) -> NDArray[np.float32]:
    """A region of the answer, one slice for each dimension of `query.shape`; the channels come last.

    Raises:
        ConfigError: it does not fit into memory.
        SampleNotFoundError, SourceError, BitstreamError, UnsupportedFormatError, BundleMismatchError: as
            `evaluate_pieces`.
    """
    part = replace(query, axes=query.piece(region))
    shape = (*part.shape, archive.layout.channels)
    try:
        values = np.empty(shape, np.float32)
    except (MemoryError, ValueError) as error:
        raise ConfigError(f"the answer has shape {shape}, {4 * math.prod(shape) / 1e9:.0f} GB: ask for less") from error
    for inside, piece in evaluate_pieces(archive, part):
        values[inside] = piece
    return values


def evaluate_pieces(archive: "Archive", query: Query) -> Iterator[tuple[tuple[slice, ...], NDArray[np.float32]]]:
    """The answer in pieces of bounded size, in row-major order: one after the other, they are the answer's values.

    Yields:
        Where in the answer, one slice per dimension of `query.shape`; and the values there with the channels last.

    Raises:
        SampleNotFoundError: a sample that was asked for by its key was rejected.
        SourceError, BitstreamError, UnsupportedFormatError, BundleMismatchError: as `Archive.to_xarray`.
    """
    decoding = _Decoding(archive.layout, archive.opened_bundle(), bound_from_json(archive.manifest.quality))
    for region in _regions(query, archive.layout):
        yield region, _evaluate_piece(archive, decoding, query, query.piece(region))


@dataclass
class _Decoding:
    """Decodes rows to tables, and keeps the latents of the piece at hand for the SIREN."""

    layout: Layout
    opened: OpenBundle
    bound: QualityRequest | None
    latents: dict[Block, NDArray[np.float32]] = field(default_factory=dict)

    def __call__(self, rows: Sequence[ArchiveRow], layout: Layout) -> NDArray[np.float32]:
        """What the archive's `values` takes: float32 [B, P, C], NaN where there is no value."""
        decoded = decode_rows(rows, self.opened, layout, self.bound)
        blocks, latents = [row.block for row in rows], decoded.latents
        self.latents |= dict(zip(blocks, latents, strict=True))
        normalizer, network = self.opened.bundle.normalizer, self.opened.network
        linear = decode_linear_term(network, torch.from_numpy(latents)).numpy()
        scale = scale_at(normalizer, layout, blocks)
        tables = decoded.finish(denormalize(linear, background_at(normalizer, layout, blocks), scale))
        if decoded.lossless and network.siren is not None:  # the values are whole: take out what is added again later
            at = list(decoded.lossless)
            siren = decode_siren(network, torch.from_numpy(latents[at]), network.coordinates).numpy()
            tables[at] -= siren * scale[at]
        return tables

    @property
    def grid(self) -> Grid:
        """The bundle's grid, with the dimensions that the layout has."""
        grid = self.opened.bundle.grid
        same = make_grid(self.layout, "auto" if grid.system == "sphere" else "cartesian")
        return replace(same, latitude_deg=grid.latitude_deg, longitude_deg=grid.longitude_deg)


def _evaluate_piece(
    archive: "Archive", decoding: _Decoding, query: Query, axes: tuple[AxisQuery, ...]
) -> NDArray[np.float32]:
    decoding.latents.clear()
    places = [axis.stencil.used_places for axis in axes]
    table = archive.values(places, decoding)
    if query.are_required:
        _check_samples(decoding, axes)
    values = _interpolate(table, query, axes, places)
    if decoding.opened.network.siren is not None:
        _add_siren(values, decoding, query, axes)
    return values.astype(np.float32)


def _interpolate(
    table: NDArray[np.float32], query: Query, axes: Sequence[AxisQuery], places: Sequence[NDArray[np.int64]]
) -> Floats:
    """A table at these places of every axis [n_1, n_2, ..., C] -> values [*piece of query.shape, C].

    Cubic; where that would need a label without a value, linear; NaN where that does, too.
    """
    stencils = [
        replace(axis.stencil, places=np.searchsorted(at, axis.stencil.places).clip(max=len(at) - 1))
        for axis, at in zip(axes, places, strict=True)
    ]
    values = _interpolate_as("cubic", table, query, stencils)
    gaps = np.isnan(values)
    if gaps.any():
        values[gaps] = _interpolate_as("linear", table, query, stencils)[gaps]
    return values


def _interpolate_as(
    kind: Literal["cubic", "linear"], table: NDArray[np.float32], query: Query, stencils: Sequence[Stencil]
) -> Floats:
    values: NDArray[Any] = table
    if query.pointwise:
        shared = range(len(query.pointwise))
        together = [stencils[k] for k in query.pointwise]
        values = np.moveaxis(interpolate(np.moveaxis(values, query.pointwise, shared), together, kind), 0, -2)
    for at, k in enumerate(query.outer):
        values = np.moveaxis(interpolate(np.moveaxis(values, at, 0), [stencils[k]], kind), 0, at)
    return np.ascontiguousarray(values, np.float64)


def _add_siren(values: Floats, decoding: _Decoding, query: Query, axes: Sequence[AxisQuery]) -> None:
    """Add the SIREN's part to values [*piece of query.shape, C], tile by tile."""
    layout, opened = decoding.layout, decoding.opened
    grid = decoding.grid
    for tile in query_tiles(layout, grid, query, axes):
        coordinates = torch.from_numpy(grid.coordinates_at(tile.positions))
        held = [block for block in tile.blocks if block in decoding.latents]
        step = max(1, PIECE_VALUES // len(coordinates))
        for first in range(0, len(held), step):
            blocks = held[first : first + step]
            latents = torch.from_numpy(np.stack([decoding.latents[block] for block in blocks]))
            siren = decode_siren(opened.network, latents, coordinates).numpy()
            siren *= scale_at(opened.bundle.normalizer, layout, blocks)
            for block, part in zip(blocks, siren, strict=True):
                there = np.ix_(*tile.blocks[block])
                values[there] += part.reshape(values[there].shape)


def _regions(query: Query, layout: Layout) -> Iterator[tuple[slice, ...]]:
    """The answer cut into pieces of bounded cost, row-major: innermost dimensions whole as long as that goes."""
    shape, grown = query.shape, [1] * len(query.shape)
    limit = max(1, int(PIECE_VALUES / _cost(query, layout)))
    for k in reversed(range(len(shape))):
        grown[k] = max(1, min(shape[k], limit // math.prod(grown[k + 1 :])))
        if grown[k] < shape[k]:
            break
    for start in itertools.product(*(range(0, n, step) for n, step in zip(shape, grown, strict=True))):
        yield tuple(slice(a, min(a + step, n)) for a, step, n in zip(start, grown, shape, strict=True))


def _cost(query: Query, layout: Layout) -> float:
    """Of one value of the answer, in values held: few points of a sample need its latent and what is around them."""
    gridded = evaluable_dims(layout)
    around = math.prod(len(query.axes[k].stencil.used_places) for k in gridded)
    values = math.prod(n for k, n in zip(query.outer, query.shape, strict=False) if k in gridded)
    values *= query.shape[-1] if query.pointwise else 1
    return max(1.0, around / values, _LEAST_COST / values)


def _check_samples(decoding: _Decoding, axes: Sequence[AxisQuery]) -> None:
    blocks = [
        np.unique(axis.stencil.used_places // length)
        for axis, length in zip(axes, decoding.layout.block_shape, strict=True)
    ]
    for block in itertools.product(*(along.tolist() for along in blocks)):
        if block not in decoding.latents:
            raise SampleNotFoundError(f"{sample_key(decoding.layout, block)}: rejected when the archive was made")
