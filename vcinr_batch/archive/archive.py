"""An archive opened for reading: which samples it holds, their rows, and their values as an xarray dataset."""

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.archive.manifest import MANIFEST_NAME, ArchivePart, Manifest, read_manifest
from vcinr_batch.archive.parquet_container import PartIndex, read_rejected, read_rows
from vcinr_batch.archive.placement import Placement, allocate
from vcinr_batch.archive.query import Keys
from vcinr_batch.archive.row_finding import find_rows
from vcinr_batch.archive.rows import ArchiveRow
from vcinr_batch.archive.selection import Selection, make_selection, selected_positions
from vcinr_batch.data.auxiliary import auxiliary_variable, coordinates_among, take_auxiliary
from vcinr_batch.data.layout import Layout, axis_variable, sample_keys
from vcinr_batch.data.samples import RejectedSample, SampleKey
from vcinr_batch.errors import BundleMismatchError, ConfigError
from vcinr_batch.quality_request import bound_from_json
from vcinr_batch.storage import StorageOptions, join_url, public_url, read_bytes, sha256_hex, size_bytes

if TYPE_CHECKING:
    import xarray

    from vcinr_batch.compression import OpenBundle

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


def checked_bundle_bytes(url: str, sha256: str, storage_options: StorageOptions) -> bytes:
    """The bundle at a URL, which must have that digest.

    Raises:
        SourceError: it is missing or unreachable.
        BundleMismatchError: it is another one.
    """
    data = read_bytes(url, storage_options=storage_options)
    if sha256_hex(data) != sha256:
        raise BundleMismatchError(f"{public_url(url)}: its SHA-256 is {sha256_hex(data)}, the archive needs {sha256}")
    return data


class Archive:
    """An open archive. Holds its manifest and the indexes of the last parts read; no file is locked or kept open.

    Threads may share one. Pickled, it takes its manifest along and nothing that it has read since.
    """

    def __init__(self, url: str, manifest: Manifest, storage_options: StorageOptions = None) -> None:
        self.url = url
        self.manifest = manifest
        self.storage_options = storage_options
        self._indexes: dict[str, PartIndex] = {}
        self._changing_indexes = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "manifest": self.manifest, "storage_options": self.storage_options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @classmethod
    def open(cls, url: str | os.PathLike[str], storage_options: StorageOptions = None) -> "Archive":
        """Open the archive at a path or an fsspec URL; reads its manifest only.

        Raises:
            ConfigError: neither a path nor a URL.
            SourceError: no archive there, or it cannot be reached.
            BitstreamError, UnsupportedFormatError: a damaged manifest, or one of a later version.
        """
        if not isinstance(url, str | os.PathLike):
            raise ConfigError(f"expected a path or URL of an archive, got {url!r:.80} ({type(url).__name__})")
        place = os.fspath(url)
        return cls(place, read_manifest(place, storage_options=storage_options), storage_options)

    @property
    def layout(self) -> Layout:
        return self.manifest.layout

    def keys(self) -> Iterator[SampleKey]:
        """The keys of all rows, part by part. Raises as `index`."""
        for part in self.manifest.parts:
            yield from sample_keys(self.layout, self.index(part).blocks)

    def index(self, part: ArchivePart) -> PartIndex:
        """The small columns of one part.

        Raises:
            SourceError: the part is missing or unreachable.
            BitstreamError, UnsupportedFormatError: the part is damaged, or of a later version.
        """
        with self._changing_indexes:
            index = self._indexes.get(part.path)
        if index is None:
            index = find_rows(self.url, part, self.layout, storage_options=self.storage_options)
            with self._changing_indexes:  # never while reading: other threads read other parts
                while len(self._indexes) >= _CACHED_INDEXES:
                    del self._indexes[next(iter(self._indexes))]
                self._indexes[part.path] = index
        return index

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
        return list(self.select_at(selected_positions(self.layout, selection)))

    def select_at(self, positions: Sequence[NDArray[np.int64]]) -> Iterator[SelectedRows]:
        """The rows whose blocks hold any of the given positions along every axis, part by part. Raises as `index`."""
        wanted = _wanted_blocks(self.layout, positions)
        for part in self._parts_with(wanted):
            chosen = _blocks_in(self.index(part).blocks, wanted)
            if chosen.any():
                yield SelectedRows(part, np.flatnonzero(chosen))

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
        return checked_bundle_bytes(url, self.manifest.bundle_sha256, self.storage_options)

    def size_bytes(self) -> tuple[int, int]:
        """All bytes of the archive without its bundle (manifest, parts, rejected tables, Zarr's metadata and
        coordinates), and those of the bundle.

        Raises:
            SourceError: manifest or bundle are missing or unreachable.
        """
        options = self.storage_options
        parts = sum(part.bytes + part.rejected_bytes for part in self.manifest.parts)
        manifest = size_bytes(join_url(self.url, MANIFEST_NAME), storage_options=options)
        if self.manifest.container == "zarr":
            from vcinr_batch.archive.zarr_container import zarr_paths

            paths = zarr_paths(self.url, self.manifest, options)
            manifest += sum(size_bytes(join_url(self.url, path), storage_options=options) for path in paths)
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

    def read(self, keys: SampleKey | str | Iterable[SampleKey | str]) -> NDArray[np.float32]:
        """Decode samples by their keys: `read("t2m[time=2019-03-22T06:00:00]")`, `read(list(archive.keys())[:8])`.

        Args:
            keys: sample keys, as `keys` has them, or their texts; one of them, or any number in any order.

        Returns:
            float32 [number of keys, *layout.block_shape] in the order of the keys, with the channels last where there
            is more than one. Along every axis the labels are in the order of `layout.axes`, of which a key names the
            first (`to_xarray` has the source's order). NaN where there is no value, and where a block reaches past the
            end of an axis.

        Raises:
            SampleNotFoundError: one of the keys has no sample; names it.
            ConfigError: no keys but something else, or more samples than fit into memory.
            SourceError, BitstreamError, UnsupportedFormatError, BundleMismatchError: as `to_xarray`.
        """
        from vcinr_batch.archive.sample_reading import read_samples

        return read_samples(self, keys)

    @property
    def variable_attributes(self) -> dict[str, Any]:
        """The attributes of the decoded variable: the source's, and at least its unit."""
        return {**({"units": self.manifest.unit} if self.manifest.unit else {}), **self.manifest.attributes}

    def coordinates(self, selected: Selection) -> "xarray.Dataset":
        """The dataset of a selection but for its variable: coordinates, bounds and attributes like the source's."""
        import xarray

        coords = {axis.name: axis_variable(axis) for axis in selected.axes}
        beside: dict[str, xarray.Variable] = {}
        named = coordinates_among(self.manifest.auxiliaries, self.manifest.attributes)
        for whole in self.manifest.auxiliaries:
            part = whole
            for dim, places in zip(self.layout.dims, selected.places, strict=True):
                part = take_auxiliary(part, dim, places)
            # As xarray opens the source: bounds and grid mappings are variables beside the archive's.
            (coords if part.name in named else beside)[part.name] = auxiliary_variable(part)
        return xarray.Dataset(beside, coords, attrs=dict(self.manifest.dataset_attributes))

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
        values = allocate((*map(len, places), self.layout.channels))
        placement = Placement(places, self.layout.block_shape)
        for blocks, decoded in self.decoded_batches(self.select_at(places), decode):
            placement.put(blocks, decoded, values)
        return values

    def decoded_batches(
        self, selected: Iterable[SelectedRows], decode: Decode
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Decode rows, as many at a time as there is memory for, whatever parts they come from.

        Yields:
            The rows' blocks [B, axes], and their values float32 [B, *block_shape, C].

        Raises:
            SourceError, BitstreamError, UnsupportedFormatError: as `to_xarray`.
        """
        layout = self.layout
        size = max(1, _BATCH_VALUES // (layout.points_per_sample * layout.channels))
        for rows in self._row_batches(selected, size):
            blocks = np.array([row.block for row in rows], np.int64)
            yield blocks, decode(rows, layout).reshape(len(rows), *layout.block_shape, layout.channels)

    def evaluate(self, keys: Keys = None, **coordinates: Any) -> "xarray.DataArray":
        """Decode at any coordinates of the grid's dimensions: `evaluate(latitude=52.1, longitude=[4.2, 4.3])`.

        The network is a function of the coordinates and is evaluated there, on the very points; what the bundle has as
        tables on the grid (the background and the linear term) is interpolated between the grid's points: cubic, linear
        where cubic would need a point without a value. At the grid's points the result is what `to_xarray` gives, but
        for the last digits of float32.

        Between the grid's points trust the result as you would trust a careful interpolation, no more. The source is as
        fine as its grid: the network adds no information below that, and the errors recorded with the samples are
        measured at the grid's points only. Where blocks tile the grid, the network at a point is that of the tile
        around it, so that joints between tiles may show steps.

        Args:
            keys: which samples: a selection as `select` takes it, sample keys (or their texts), or None for all.
            coordinates: along each of the grid's dimensions a number, which takes the dimension away, or a list, which
                makes a region with the other lists; xarray.DataArrays that share one dimension of another name are
                points. Dimensions left out are on the grid. Longitudes count modulo 360, any order will do, and
                `latitude` and `longitude` are known by these names as well.

        Returns:
            float32, dimensions and attributes as `to_xarray` has them, in the order asked for; points last. NaN where
            there is no value: in rejected samples of a selection, and where one of the (two along each dimension)
            points of the grid around has none; nothing is filled in from further away.

        Raises:
            ConfigError: no such dimension; coordinates that are no finite numbers or lie outside of the grid (names its
                extent: nothing is extrapolated); as `select`; or an answer that does not fit into memory.
            SampleNotFoundError: as `select`, or one of the keys has no sample; names it.
            SourceError, BitstreamError, UnsupportedFormatError, BundleMismatchError: as `to_xarray`.
        """
        from vcinr_batch.evaluation import evaluate

        return evaluate(self, keys, coordinates)

    def decoder(self) -> Decode:
        """Decodes rows with the archive's own bundle. Raises as `opened_bundle`."""
        from vcinr_batch.compression import decompress_rows

        opened, bound = self.opened_bundle(), bound_from_json(self.manifest.quality)
        return lambda rows, layout: decompress_rows(rows, opened, layout, bound)

    def opened_bundle(self) -> "OpenBundle":
        """The archive's own bundle, which is opened once per process.

        Raises:
            SourceError, BitstreamError, UnsupportedFormatError, BundleMismatchError: the bundle is missing, damaged, of
                a later version or not the archive's.
        """
        from vcinr_batch.bundle_cache import is_remote_url, open_bundle_of

        name = public_url(join_url(self.url, self.manifest.bundle_path))
        is_remote = is_remote_url(self.url, self.storage_options)
        return open_bundle_of(self.manifest.bundle_sha256, self.bundle_bytes, name, is_remote)

    def _row_batches(self, selected: Iterable[SelectedRows], size: int) -> Iterator[list[ArchiveRow]]:
        """Rows, `size` at a time, whatever parts they come from."""
        waiting: list[ArchiveRow] = []
        for chosen in selected:
            left = chosen.positions
            while left.size:
                taken, left = np.split(left, [size - len(waiting)])
                waiting += self._read(chosen.part, taken)
                if len(waiting) == size:
                    yield waiting
                    waiting = []
        if waiting:
            yield waiting

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
        bundle, options = self.manifest.bundle_sha256, self.storage_options
        return read_rows(self.url, part, index, positions, self.layout, bundle, storage_options=options)


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
