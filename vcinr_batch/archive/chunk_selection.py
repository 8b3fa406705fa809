"""What is asked of one chunk of a Zarr array, the samples that hold it, and where their values go."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.errors import ConfigError

Places = Sequence[NDArray[np.int64]]
"""Positions on the axes of the archive; -1 where there is none (a chunk at the end of an axis is padded)."""


@dataclass(frozen=True)
class Box:
    """All combinations of positions along every axis."""

    places: tuple[NDArray[np.int64], ...]
    dropped: tuple[int, ...] = ()
    """Axes of one position that the result does not have."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values to fill."""
        return tuple(map(len, self.places))

    def at(self, places: Places) -> "Box":
        return Box(tuple(places), self.dropped)

    def choose(self, blocks: NDArray[np.integer[Any]], block_shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Which of the blocks [N, axes] hold something of it."""
        chosen = np.ones(len(blocks), bool)
        for k, (along, length) in enumerate(zip(self.places, block_shape, strict=True)):
            chosen &= np.isin(blocks[:, k], np.unique(along[along >= 0] // length))
        return chosen

    def fill(self, values: NDArray[np.float32], block: tuple[int, ...], decoded: NDArray[np.float32]) -> None:
        """Put what it asks of one block, decoded to the shape of a block, where it belongs in `values`."""
        pairs = [_inside(along, i * n, n) for along, i, n in zip(self.places, block, decoded.shape, strict=True)]
        values[_outer([there for there, _ in pairs])] = decoded[_outer([inside for _, inside in pairs])]

    def result(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The values in the shape that was asked for."""
        kept: NDArray[np.float32] = values.squeeze(axis=self.dropped)
        return kept


@dataclass(frozen=True)
class Points:
    """Single points: as many positions [M] along every axis."""

    places: tuple[NDArray[np.int64], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values to fill."""
        return self.places[0].shape

    def at(self, places: Places) -> "Points":
        return Points(tuple(places))

    def choose(self, blocks: NDArray[np.integer[Any]], block_shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """As `Box.choose`."""
        there = np.stack([along // n for along, n in zip(self.places, block_shape, strict=True)], axis=-1)
        found = np.unique(there.reshape(-1, len(block_shape)), axis=0)
        wanted = set(map(tuple, found.tolist()))
        return np.array([tuple(block) in wanted for block in blocks.tolist()], bool)

    def fill(self, values: NDArray[np.float32], block: tuple[int, ...], decoded: NDArray[np.float32]) -> None:
        """As `Box.fill`."""
        inside = np.ones(self.shape, bool)
        for along, i, n in zip(self.places, block, decoded.shape, strict=True):
            inside &= along // n == i
        at = tuple(along[inside] - i * n for along, i, n in zip(self.places, block, decoded.shape, strict=True))
        values[inside] = decoded[at]

    def result(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `Box.result`."""
        return values


def parse_selection(selection: Any, shape: tuple[int, ...]) -> Box | Points:
    """What Zarr's indexers ask of a chunk: integers and slices, `numpy.ix_` of positions, or positions of points.

    Args:
        selection: one item per axis.
        shape: of the chunk.

    Raises:
        ConfigError: anything else.
    """
    items = selection if isinstance(selection, tuple) else (selection,)
    if len(items) == len(shape):
        if all(isinstance(item, slice | int | np.integer) for item in items):
            numbers = tuple(k for k, item in enumerate(items) if not isinstance(item, slice))
            return Box(tuple(np.atleast_1d(np.arange(n)[item]) for item, n in zip(items, shape, strict=True)), numbers)
        arrays = [np.asarray(item) for item in items]
        if all(array.dtype.kind in "iu" for array in arrays):
            if all(_is_along(array, k, len(shape)) for k, array in enumerate(arrays)):
                return Box(tuple(array.ravel().astype(np.int64) for array in arrays))
            if len({array.shape for array in arrays}) == 1:
                return Points(tuple(array.astype(np.int64) for array in arrays))
    kinds = ", ".join(type(item).__name__ for item in items)
    raise ConfigError(f"a chunk of shape {shape} cannot be indexed by ({kinds})")


def _is_along(array: NDArray[Any], axis: int, ndim: int) -> bool:
    return array.ndim == ndim and all(n == 1 for k, n in enumerate(array.shape) if k != axis)


def _inside(places: NDArray[np.int64], first: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where positions of a block stand among the places, and where they are within the block."""
    there = np.flatnonzero((places >= first) & (places < first + length))
    return there, places[there] - first


def _outer(positions: Sequence[NDArray[np.int64]]) -> tuple[Any, ...]:
    """An index of all combinations; of slices where it can be, which copy several times as fast."""
    slices = [_as_slice(along) for along in positions]
    return np.ix_(*positions) if None in slices else tuple(slices)


def _as_slice(positions: NDArray[np.int64]) -> slice | None:
    if positions.size == 0:
        return slice(0, 0)
    first, last = int(positions[0]), int(positions[-1])
    step = -1 if last < first else 1
    if abs(last - first) + 1 != positions.size or np.any(np.diff(positions) != step):
        return None
    return slice(first, last + step if last + step >= 0 else None, step)
