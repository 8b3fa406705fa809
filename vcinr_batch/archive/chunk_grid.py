"""The chunks of a Zarr archive: one for each shard, so that its shards have to form a regular grid."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.data.layout import Axis, Layout, source_order
from vcinr_batch.errors import ConfigError, CorruptBitstreamError

if TYPE_CHECKING:
    from vcinr_batch.archive.manifest import ArchivePart

CHUNK_FOLDER = "c"


def regular_shard_shape(layout: Layout, parts: Sequence["ArchivePart"]) -> tuple[int, ...]:
    """Blocks of a shard along every axis; the last shard of an axis may have fewer.

    Args:
        layout: the archive's.
        parts: from its manifest.

    Raises:
        ConfigError: the shards are no regular grid; names the first part that is out of place.
    """
    shape = next((part.stop for part in parts if not any(part.start)), layout.block_counts)
    for part in parts:
        stop = tuple(min(a + n, count) for a, n, count in zip(part.start, shape, layout.block_counts, strict=True))
        if any(a % n for a, n in zip(part.start, shape, strict=True)) or part.stop != stop:
            raise ConfigError(
                f"{part.path}: shard {part.start} to {part.stop} is not one of a regular grid of {shape} blocks, "
                "which the chunks of a Zarr array have to be"
            )
    return shape


def chunk_shape(layout: Layout, shard_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Labels of a chunk along every axis: those of a shard, but no more than there are."""
    return tuple(min(n * b, len(axis)) for n, b, axis in zip(shard_shape, layout.block_shape, layout.axes, strict=True))


def chunk_key(variable: str, start: tuple[int, ...], shard_shape: tuple[int, ...]) -> str:
    """Where Zarr keeps the chunk of a shard, relative to the archive: `t2m/c/3/0/0`.

    Args:
        variable: the array's name.
        start: first block of the shard.
        shard_shape: from `regular_shard_shape`.
    """
    index = (str(a // n) for a, n in zip(start, shard_shape, strict=True))
    return "/".join((variable, CHUNK_FOLDER, *index))


def parse_chunk_key(key: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    """Of an array's chunk its path and its index: `a/t2m/c/0/3/0` is chunk (0, 3, 0) of the array `a/t2m`.

    Raises:
        CorruptBitstreamError: it is not the key of such a chunk.
    """
    names = key.split("/")
    head, numbers = names[: len(names) - ndim], names[len(names) - ndim :]
    if len(head) < 2 or head[-1] != CHUNK_FOLDER or not all(number.isdecimal() for number in numbers):
        raise CorruptBitstreamError(f"{key}: not a chunk of an archive, expected <variable>/{CHUNK_FOLDER}/0/0/...")
    return "/".join(head[:-1]), tuple(map(int, numbers))


def source_places(axis: Axis) -> NDArray[np.int64]:
    """For each label in the source's order its position on the archive's axis."""
    return np.argsort(source_order(axis), kind="stable")


def shows_source_order(axis: Axis, chunk_length: int) -> bool:
    """Whether each label stands in the same chunk in the source's order and in the archive's."""
    return axis.source_values is None or np.array_equal(
        source_places(axis) // chunk_length, np.arange(len(axis)) // chunk_length
    )


def check_chunk_keys(layout: Layout, parts: Sequence["ArchivePart"]) -> None:
    """Raise unless every part lies where Zarr looks for its chunk.

    Raises:
        ConfigError: names the part.
    """
    shape = regular_shard_shape(layout, parts)
    for part in parts:
        expected = chunk_key(layout.variable, part.start, shape)
        if part.path != expected:
            raise ConfigError(f"{part.path}: the part of a Zarr archive, but its chunk is {expected}")
