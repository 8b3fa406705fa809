"""Cuts a layout into shards, the pieces one worker handles, and turns a shard into samples."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.config import SampleConfig
from vcinr_batch.data.coordinates import Grid
from vcinr_batch.data.layout import Axis, Layout, block_extent, sample_key
from vcinr_batch.data.samples import Sample
from vcinr_batch.data.sources import FieldSource, read_extent
from vcinr_batch.errors import ConfigError


@dataclass(frozen=True)
class Shard:
    """A box of blocks."""

    index: int
    start: tuple[int, ...]
    """First block along every axis."""
    stop: tuple[int, ...]
    """One past the last block along every axis."""

    @property
    def sample_count(self) -> int:
        return math.prod(b - a for a, b in zip(self.start, self.stop, strict=True))


def make_layout(source: FieldSource, config: SampleConfig) -> Layout:
    """How a source is cut into samples.

    A dimension named in `config.block` gets that length, capped at the axis; one in `config.per_label` gets 1; every
    other one is spanned whole.

    Raises:
        ConfigError: `config.block` names a dimension that the source has not.
    """
    return cut_axes(source.variable, source.axes, config)


def cut_axes(variable: str, axes: tuple[Axis, ...], config: SampleConfig) -> Layout:
    """What `make_layout` gives, of a variable that is not in a source.

    Raises:
        ConfigError: as `make_layout`.
    """
    dims = [axis.name for axis in axes]
    for name in config.block:
        if name not in dims:
            raise ConfigError(f"sample.block names {name!r}, but {variable} has {', '.join(dims)}")
    lengths = [
        min(config.block.get(axis.name, 1 if axis.name in config.per_label else len(axis)), len(axis)) for axis in axes
    ]
    return Layout(variable, axes, tuple(lengths))


def plan_shards(layout: Layout, shard_samples: int, chunk_shape: Sequence[int]) -> list[Shard]:
    """All shards, in row-major order of their first block: disjoint, complete, a pure function of the arguments.

    Args:
        layout: what to cut.
        shard_samples: about how many samples a shard holds; at least one, and no more than this.
        chunk_shape: the store's chunks along every axis. Where a shard spans several, it ends with one.
    """
    shape = _shard_shape(layout, max(shard_samples, 1), chunk_shape)
    counts = layout.block_counts
    starts = product(*(range(0, count, length) for count, length in zip(counts, shape, strict=True)))
    return [
        Shard(i, start, tuple(min(a + n, count) for a, n, count in zip(start, shape, counts, strict=True)))
        for i, start in enumerate(starts)
    ]


def shard_name(layout: Layout, shard: Shard) -> str:
    """The name of the part that a shard becomes: `t2m-00000012`; `a%d` becomes `a~25d-00000012`, for any store."""
    escaped = re.sub(r"^\.|[^A-Za-z0-9._-]", lambda found: _tilde_hex(found[0]), layout.variable)
    return f"{escaped}-{shard.index:08d}"


def shard_blocks(shard: Shard) -> Iterator[tuple[int, ...]]:
    """The blocks of a shard in row-major order."""
    return product(*(range(a, b) for a, b in zip(shard.start, shard.stop, strict=True)))


def halves(shard: Shard) -> tuple[Shard, Shard]:
    """A shard of two samples or more in two, cut along its outermost axis of more than one block: the order stays."""
    k = next(k for k, (a, b) in enumerate(zip(shard.start, shard.stop, strict=True)) if b - a > 1)
    middle = (shard.start[k] + shard.stop[k]) // 2
    first = replace(shard, stop=(*shard.stop[:k], middle, *shard.stop[k + 1 :]))
    return first, replace(shard, start=(*shard.start[:k], middle, *shard.start[k + 1 :]))


def iter_samples(source: FieldSource, layout: Layout, grid: Grid, shard: Shard) -> Iterator[Sample]:
    """The samples of a shard in the order of `shard_blocks`, from one read of the source.

    Padding and missing values are masked; the values there are 0.

    Raises:
        SourceError: the source cannot be read.
    """
    return cut_samples(read_extent(source, shard_extent(layout, shard)), layout, grid, shard)


def cut_samples(values: NDArray[np.float32], layout: Layout, grid: Grid, shard: Shard) -> Iterator[Sample]:
    """What `iter_samples` gives, from the shard's values in canonical order, NaN where one is missing."""
    extent, coordinates = shard_extent(layout, shard), grid.coordinates()
    for block in shard_blocks(shard):
        part = tuple(
            slice(inner.start - outer.start, inner.stop - outer.start)
            for inner, outer in zip(block_extent(layout, block), extent, strict=True)
        )
        block_values, mask = _padded(values[part], layout.block_shape)
        yield Sample(sample_key(layout, block), block, coordinates, block_values.reshape(-1, 1), mask)


def shard_extent(layout: Layout, shard: Shard) -> tuple[slice, ...]:
    """Index range of a shard along each axis."""
    return tuple(
        slice(a * length, min(b * length, len(axis)))
        for a, b, length, axis in zip(shard.start, shard.stop, layout.block_shape, layout.axes, strict=True)
    )


def _tilde_hex(character: str) -> str:
    # A tilde, since stores, URLs and patterns each have a meaning for a percent sign.
    return "".join(f"~{byte:02x}" for byte in character.encode("utf-8", errors="surrogatepass"))


def _shard_shape(layout: Layout, shard_samples: int, chunk_shape: Sequence[int]) -> list[int]:
    """Blocks of a shard along each axis: whole inner axes first, then a piece of one, then single blocks."""
    shape = [1] * len(layout.axes)
    left = shard_samples
    for k in reversed(range(len(layout.axes))):
        count = layout.block_counts[k]
        if count <= left:
            shape[k] = count
            left //= count
            continue
        blocks_per_chunk = max(chunk_shape[k] // layout.block_shape[k], 1)
        shape[k] = left // blocks_per_chunk * blocks_per_chunk if left >= blocks_per_chunk else left
        break
    return shape


def _padded(
    values: NDArray[np.float32], shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """A block of the full shape, 0 where there is no value, and its mask [P], None where there is one everywhere."""
    missing = np.isnan(values)
    if values.shape == shape and not missing.any():
        return values, None
    filled, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
    inner = tuple(slice(0, n) for n in values.shape)
    filled[inner] = np.where(missing, np.float32(0), values)
    mask[inner] = ~missing
    return filled, mask.reshape(-1)
