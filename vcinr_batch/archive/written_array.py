"""What is kept of a Zarr array that `to_zarr` compresses: its layout in the codec's configuration, a record per chunk.

Both stand for a manifest, which nobody can write before the last chunk is there. FORMAT.md has their fields.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vcinr_batch.archive.chunk_grid import CHUNK_FOLDER
from vcinr_batch.archive.manifest import ArchivePart, part_from_json, part_to_json
from vcinr_batch.data.attributes_json import attributes_from_json, attributes_to_json
from vcinr_batch.data.axis_json import checked_int
from vcinr_batch.data.layout import Layout, layout_from_json, layout_to_json
from vcinr_batch.data.shards import Shard
from vcinr_batch.errors import ConfigError, CorruptBitstreamError

WRITTEN_KEYS = {"layout", "source_encoding", "source_bits"}

# In the array's own folder, where nobody who lists the group comes by, and which goes with the array.
_FOLDER = "vcinr"


@dataclass(frozen=True, eq=False)
class WrittenArray:
    """What a manifest would say of the array, as far as the array's own metadata do not."""

    layout: Layout
    source_encoding: Mapping[str, Any]
    """How the values came: dtype, scale_factor, add_offset, _FillValue."""
    source_bits: int
    """Bits per value as they came."""


def written_to_json(written: WrittenArray) -> dict[str, Any]:
    """Entries of the codec's configuration."""
    return {
        "layout": layout_to_json(written.layout),
        "source_encoding": attributes_to_json(written.source_encoding),
        "source_bits": written.source_bits,
    }


def written_from_json(content: Mapping[str, Any]) -> WrittenArray:
    """Mirror of `written_to_json`, for JSON that anyone may have written.

    Raises:
        CorruptBitstreamError: no layout, or one of samples that are not fields.
    """
    layout = layout_from_json(content["layout"])
    if layout.channels != 1:
        raise CorruptBitstreamError(f"samples of {layout.channels} channels; a Zarr array has fields, of one channel")
    encoding = attributes_from_json(content["source_encoding"], "source_encoding")
    return WrittenArray(layout, encoding, checked_int(content["source_bits"], "source_bits", 1, 1024))


def shard_of_chunk(layout: Layout, index: tuple[int, ...], chunk_shape: tuple[int, ...]) -> Shard:
    """The blocks that a chunk holds.

    Args:
        layout: of the array.
        index: of the chunk along every axis.
        chunk_shape: its labels along every axis.

    Raises:
        ConfigError: chunks that would cut a sample in two, or one that is outside of the array.
    """
    for length, block, axis in zip(chunk_shape, layout.block_shape, layout.axes, strict=True):
        if length > len(axis) or (length % block and length != len(axis)):
            raise ConfigError(
                f"{layout.variable}: chunks of {length} labels along {axis.name!r}; expected a multiple of {block}, "
                f"the length of a sample, or all {len(axis)}"
            )
    blocks = tuple(-(-length // block) for length, block in zip(chunk_shape, layout.block_shape, strict=True))
    start = tuple(i * n for i, n in zip(index, blocks, strict=True))
    counts = layout.block_counts
    if any(a >= count for a, count in zip(start, counts, strict=True)):
        raise ConfigError(
            f"{layout.variable}: chunk {index} is outside of the {layout.shape} labels that the array was made for; "
            "an array is not made longer: write another store"
        )
    return Shard(0, start, tuple(min(a + n, count) for a, n, count in zip(start, blocks, counts, strict=True)))


def chunk_path(variable: str, index: tuple[int, ...]) -> str:
    """Of a chunk, relative to the group: `t2m/c/3/0/0`."""
    return "/".join((variable, CHUNK_FOLDER, *map(str, index)))


def record_folder(variable: str) -> str:
    """Of the records of all chunks and the bundle, relative to the group."""
    return f"{variable}/{_FOLDER}"


def record_path(variable: str, index: tuple[int, ...]) -> str:
    """Of a chunk's record, relative to the group: `t2m/vcinr/3.0.0.json`. It is written when the chunk is there."""
    return f"{record_folder(variable)}/{'.'.join(map(str, index))}.json"


def written_bundle_path(variable: str, sha256: str) -> str:
    """Of the bundle, relative to the group."""
    return f"{record_folder(variable)}/{sha256}.safetensors"


def record_data(part: ArchivePart) -> bytes:
    """The bytes of a chunk's record: what a manifest says of the part."""
    return json.dumps(part_to_json(part), sort_keys=True, separators=(",", ":")).encode()


def parse_record(data: bytes, name: str, path: str, shard: Shard) -> ArchivePart:
    """Mirror of `record_data`, for bytes that anyone may have written.

    Args:
        data: of the record.
        name: of its file, for messages.
        path: of the chunk.
        shard: the blocks of the chunk.

    Raises:
        CorruptBitstreamError: it is no record of that chunk.
    """
    try:
        part = part_from_json(json.loads(data), len(shard.start))
    except (ConfigError, CorruptBitstreamError) as error:
        raise CorruptBitstreamError(f"{name}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CorruptBitstreamError(f"{name} is not JSON: {error}") from error
    if (part.path, part.start, part.stop, part.rejected) != (path, shard.start, shard.stop, 0):
        raise CorruptBitstreamError(
            f"{name}: the record of {part.path}, blocks {part.start} to {part.stop}; "
            f"expected {path}, blocks {shard.start} to {shard.stop}"
        )
    return part
