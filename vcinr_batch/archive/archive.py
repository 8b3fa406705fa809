"""An archive opened for reading: which samples it holds, their rows, and their values as an xarray dataset."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.archive.manifest import MANIFEST_NAME, ArchivePart, Manifest, read_manifest
from vcinr_batch.archive.parquet_container import PartIndex, read_index, read_rejected, read_rows
from vcinr_batch.archive.rows import ArchiveRow
from vcinr_batch.archive.selection import Selection, make_selection, selected_positions
from vcinr_batch.data.layout import Layout, axis_variable, sample_key
from vcinr_batch.data.samples import RejectedSample, SampleKey
from vcinr_batch.errors import BundleMismatchError, ConfigError
from vcinr_batch.storage import StorageOptions, join_url, public_url, read_bytes, sha256_hex, size_bytes

if TYPE_CHECKING:
    import xarray

Decode = Callable[[Sequence[ArchiveRow], Layout], NDArray[np.float32]]
"""Rows -> float32 [B, P, C] in the variable's unit, NaN where there is no value."""

_CACHED_INDEXES = 64
_BATCH_VALUES = 16 << 20


@dataclass(frozen=True, eq=False)
class SelectedRows:
    """Some rows of one part."""

    part: ArchivePart
    positions: NDArray[np.int64]
    """In the part's index, ascending."""


class Archive:
    """An open archive. Holds its manifest and the indexes of the last parts read; nothing is locked or kept open."""

    def __init__(self, url: str, manifest: Manifest, storage_options: StorageOptions = None) -> None:
        self.url = url
        self.manifest = manifest
        self.storage_options = storage_options
        self._indexes: dict[str, PartIndex] = {}

    @classmethod
    def open(cls, url: str, storage_options: StorageOptions = None) -> "Archive":
        """Open the archive at an fsspec URL; reads its manifest only.

        Raises:
            SourceError: no archive there, or it cannot be reached.
            BitstreamError, UnsupportedFormatError: a damaged manifest, or one of a later version.
        """
        return cls(url, read_manifest(url, storage_options=storage_options), storage_options)

    @property
    def layout(self) -> Layout:
        return self.manifest.layout

    def keys(self) -> Iterator[SampleKey]:
        """The keys of all rows, part by part. Raises as `index`."""
        for part in self.manifest.parts:
            for block in self.index(part).blocks.tolist():
                yield sample_key(self.layout, tuple(block))

    def index(self, part: ArchivePart) -> PartIndex:
        """The small columns of one part.

        Raises:
            SourceError: the part is missing or unreachable.
            BitstreamError, UnsupportedFormatError: the part is damaged, or of a later version.
        """
        if part.path not in self._indexes:
            index = read_index(self.url, part, self.layout, storage_options=self.storage_options)
            if len(self._indexes) >= _CACHED_INDEXES:
                del self._indexes[next(iter(self._indexes))]
            self._indexes[part.path] = index
        return self._indexes[part.path]

    def select(self, selection: Mapping[str, str] | None = None) -> list[SelectedRows]:
        """The rows whose blocks hold something of a selection, by part.

        Args:
            selection: a label, partial time or inclusive range `a..b` per dimension; None is everything.

        Returns:
            Empty where all selected samples were rejected.

        Raises:
            ConfigError: no such dimension, or a text that is no label of it.
            SampleNotFoundError: labels that the archive does not have; names its extent.
            SourceError, BitstreamError, UnsupportedFormatError: as `index`, of the parts concerned only.
        """
        return list(self._select(selected_positions(self.layout, selection)))

    def rows(self, selection: Mapping[str, str] | None = None) -> list[ArchiveRow]:
        """The rows of a selection, fetched by byte ranges. Arguments and errors as `select`."""
        return [row for chosen in self.select(selection) for row in self._read(chosen.part, chosen.positions)]

    def rejected(self) -> list[RejectedSample]:
        """The samples of the source that are not in the archive, and why.

        Raises:
            SourceError, BitstreamError, UnsupportedFormatError: a table is missing, damaged or of a later version.
        """
        tables = (
            read_rejected(self.url, part, self.layout, storage_options=self.storage_options)
            for part in self.manifest.parts
        )
        return [sample for table in tables for sample in table]

    def bundle_bytes(self) -> bytes:
        """The bundle that decodes this archive.

        Raises:
            SourceError: it is missing or unreachable.
            BundleMismatchError: it is not the one that the manifest names.
        """
        url = join_url(self.url, self.manifest.bundle_path)
        data = read_bytes(url, storage_options=self.storage_options)
        if sha256_hex(data) != self.manifest.bundle_sha256:
            raise BundleMismatchError(
                f"{public_url(url)}: its SHA-256 is {sha256_hex(data)}, the archive needs {self.manifest.bundle_sha256}"
            )
        return data

    def size_bytes(self) -> tuple[int, int]:
        """All bytes of the archive without its bundle (manifest, parts, rejected tables), and those of the bundle.

        Raises:
            SourceError: manifest or bundle are missing or unreachable.
        """
        options = self.storage_options
        parts = sum(part.bytes + part.rejected_bytes for part in self.manifest.parts)
        manifest = size_bytes(join_url(self.url, MANIFEST_NAME), storage_options=options)
        return parts + manifest, size_bytes(join_url(self.url, self.manifest.bundle_path), storage_options=options)

    def to_xarray(self, selection: Mapping[str, str] | None = None, decode: Decode | None = None) -> "xarray.Dataset":
        """Decode a selection.

        Args:
            selection: as `select`.
            decode: instead of the archive's own bundle.

        Returns:
            A dataset like the source's: its order of labels and dimensions, coordinates and attributes; float32, NaN
            where there is no value, rejected samples included.

        Raises:
            ConfigError: as `select`, or a selection that does not fit into memory.
            SampleNotFoundError: as `select`.
            SourceError, BitstreamError, UnsupportedFormatError, BundleMismatchError: a file is missing, damaged, of a
                later version or not the archive's.
        """
        import xarray

        selected = make_selection(self.layout, selection)
        values = self.values(selected.places, decode or self.decoder())
        dataset = self.coordinates(selected)
        variable = xarray.Variable(selected.dims, values.reshape(selected.shape), self.variable_attributes)
        return dataset.assign({self.layout.variable: variable})

    @property
    def variable_attributes(self) -> dict[str, Any]:
        """The attributes of the decoded variable: the source's, and at least its unit."""
        return {**({"units": self.manifest.unit} if self.manifest.unit else {}), **self.manifest.attributes}

    def coordinates(self, selected: Selection) -> "xarray.Dataset":
        """The dataset of a selection but for its variable: coordinates and attributes like the source's."""
        import xarray

        coords = {axis.name: axis_variable(axis) for axis in selected.axes}
        return xarray.Dataset(coords=coords, attrs=dict(self.manifest.dataset_attributes))

    def sample_count(self, selected: Selection) -> tuple[int, int]:
        """How many samples hold something of a selection: the stored and the rejected ones.

        Reads the index of a part only where some of its samples were rejected and some are not selected.

        Raises:
            SourceError, BitstreamError, UnsupportedFormatError: as `index`.
        """
        wanted = _wanted_blocks(self.layout, selected.places)
        stored = rejected = 0
        for part in self._parts_with(wanted):
            inside = [along[a:b] for along, a, b in zip(wanted, part.start, part.stop, strict=True)]
            count = math.prod(int(along.sum()) for along in inside)
            if part.rejected and count < part.sample_count:
                rows = int(_blocks_in(self.index(part).blocks, wanted).sum())
            else:
                rows = count - part.rejected
            stored, rejected = stored + rows, rejected + count - rows
        return stored, rejected

    def values(self, places: Sequence[NDArray[np.int64]], decode: Decode) -> NDArray[np.float32]:
        """Decode what stands at the given positions of the layout's axes, in any order.

        Args:
            places: positions along every axis.
            decode: from `decoder`.

        Returns:
            float32 [number of positions along every axis, C]; NaN where there is no value.

        Raises:
            ConfigError, SourceError, BitstreamError, UnsupportedFormatError: as `to_xarray`.
        """
        layout = self.layout
        values = _allocate((*map(len, places), layout.channels))
        by_block = [_by_block(p, length) for p, length in zip(places, layout.block_shape, strict=True)]
        batch = max(1, _BATCH_VALUES // (layout.points_per_sample * layout.channels))
        for chosen in self._select(places):
            for first in range(0, len(chosen.positions), batch):
                rows = self._read(chosen.part, chosen.positions[first : first + batch])
                for row, decoded in zip(rows, decode(rows, layout), strict=True):
                    pairs = [along[i] for along, i in zip(by_block, row.block, strict=True)]
                    block = decoded.reshape(*layout.block_shape, layout.channels)
                    values[np.ix_(*(there for there, _ in pairs))] = block[np.ix_(*(inside for _, inside in pairs))]
        return values

    def decoder(self) -> Decode:
        """Decodes rows with the archive's own bundle.

        Raises:
            SourceError, BitstreamError, UnsupportedFormatError, BundleMismatchError: the bundle is missing, damaged, of
                a later version or not the archive's.
        """
        from vcinr_batch.bundle import parse_bundle
        from vcinr_batch.compression import decompress_rows, open_bundle

        url = join_url(self.url, self.manifest.bundle_path)
        opened = open_bundle(parse_bundle(self.bundle_bytes(), self.manifest.bundle_sha256, public_url(url)))
        return lambda rows, layout: decompress_rows(rows, opened, layout)

    def _select(self, positions: Sequence[NDArray[np.int64]]) -> Iterator[SelectedRows]:
        """Rows whose blocks hold any of the given positions along every axis."""
        wanted = _wanted_blocks(self.layout, positions)
        for part in self._parts_with(wanted):
            chosen = _blocks_in(self.index(part).blocks, wanted)
            if chosen.any():
                yield SelectedRows(part, np.flatnonzero(chosen))

    def _parts_with(self, wanted: Sequence[NDArray[np.bool_]]) -> Iterator[ArchivePart]:
        """Parts whose shard has a wanted block along every axis."""
        parts = self.manifest.parts
        start = np.array([part.start for part in parts], np.int64).reshape(len(parts), len(wanted))
        stop = np.array([part.stop for part in parts], np.int64).reshape(len(parts), len(wanted))
        hit = np.ones(len(parts), bool)
        for k, along in enumerate(wanted):
            before = np.concatenate([[0], np.cumsum(along)])
            hit &= before[stop[:, k]] > before[start[:, k]]
        return (part for part, is_hit in zip(parts, hit.tolist(), strict=True) if is_hit)

    def _read(self, part: ArchivePart, positions: NDArray[np.int64]) -> list[ArchiveRow]:
        index = self.index(part)
        return read_rows(self.url, part, index, positions, self.layout, storage_options=self.storage_options)


def _wanted_blocks(layout: Layout, places: Sequence[NDArray[np.int64]]) -> list[NDArray[np.bool_]]:
    """For every axis and each of its blocks whether it holds one of the given positions."""
    wanted = []
    for along, length, count in zip(places, layout.block_shape, layout.block_counts, strict=True):
        wanted.append(np.zeros(count, bool))
        wanted[-1][along // length] = True
    return wanted


def _blocks_in(blocks: NDArray[np.integer[Any]], wanted: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Which of the blocks [N, axes] are wanted along every axis."""
    chosen = np.ones(len(blocks), bool)
    for k, along in enumerate(wanted):
        chosen &= along[blocks[:, k]]
    return chosen


def _allocate(shape: tuple[int, ...]) -> NDArray[np.float32]:
    try:
        return np.full(shape, np.nan, np.float32)
    except (MemoryError, ValueError) as error:
        gigabytes = 4 * math.prod(shape) / 1e9
        raise ConfigError(f"the selection has shape {shape}, {gigabytes:.0f} GB: select less") from error


def _by_block(places: NDArray[np.int64], length: int) -> dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Block index -> where its labels stand in `places`, and where within the block."""
    blocks = places // length
    order = np.argsort(blocks, kind="stable")
    found, first = np.unique(blocks[order], return_index=True)
    return {
        int(block): (there, places[there] - block * length)
        for block, there in zip(found, np.split(order, first[1:]), strict=True)
    }
