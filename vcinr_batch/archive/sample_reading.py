"""Samples by their keys, decoded: what `Archive.read` gives."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.archive.placement import allocate
from vcinr_batch.archive.sample_lookup import find_blocks
from vcinr_batch.data.layout import sample_key
from vcinr_batch.data.samples import SampleKey
from vcinr_batch.errors import ConfigError, SampleNotFoundError

if TYPE_CHECKING:
    from vcinr_batch.archive.archive import Archive, SelectedRows

Block = tuple[int, ...]


def read_samples(archive: "Archive", keys: SampleKey | str | Iterable[SampleKey | str]) -> NDArray[np.float32]:
    """Decode samples. Arguments, what comes back and errors as `Archive.read`."""
    layout = archive.layout
    blocks = list(map(tuple, find_blocks(layout, _as_keys(keys)).tolist()))
    shape = (len(blocks), *layout.block_shape, layout.channels)
    values = allocate(shape)
    if blocks:
        places: dict[Block, list[int]] = {}
        for place, block in enumerate(blocks):
            places.setdefault(block, []).append(place)
        selected = list(_rows_of(archive, places))
        for found, decoded in archive.decoded_batches(selected, archive.decoder()):
            for block, sample in zip(map(tuple, found.tolist()), decoded, strict=True):
                values[places[block]] = sample
    return values.reshape(shape[:-1]) if layout.channels == 1 else values


def _rows_of(archive: "Archive", blocks: Collection[Block]) -> "Iterator[SelectedRows]":
    """The rows of some blocks, part by part.

    Raises:
        SampleNotFoundError: in the end, that the archive has no row of one of them.
    """
    missing = dict.fromkeys(blocks)
    along = np.array(list(blocks), np.int64).T
    first_labels = [np.unique(index) * length for index, length in zip(along, archive.layout.block_shape, strict=True)]
    for chosen in archive.select_at(first_labels):  # all combinations of the blocks' indexes
        found = archive.index(chosen.part).blocks[chosen.positions].tolist()
        wanted = [tuple(block) in missing for block in found]
        for block in found:
            missing.pop(tuple(block), None)
        if any(wanted):
            yield replace(chosen, positions=chosen.positions[wanted])
    for block in missing:
        raise SampleNotFoundError(f"{sample_key(archive.layout, block)}: rejected when the archive was made")


def _as_keys(keys: SampleKey | str | Iterable[SampleKey | str]) -> Iterable[SampleKey | str]:
    if isinstance(keys, SampleKey | str):
        return [keys]
    if isinstance(keys, Mapping) or not isinstance(keys, Iterable):
        raise ConfigError(
            f"expected sample keys or their texts, got {type(keys).__name__}; `to_xarray` takes a selection of labels"
        )
    return keys
