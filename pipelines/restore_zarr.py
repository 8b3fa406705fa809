"""Restores into a Zarr store: workers write disjoint chunks, the driver adds the metadata when all of them are there.

Until then the place holds chunks and a marker, no metadata: nothing opens it. The chunks' bytes are those that
`xarray.Dataset.to_zarr` would write, save that chunks without any value are written, too: a chunk that is not there is
one that is not done, and the same command does just these.
"""

import itertools
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.output_place import read_marker
from pipelines.restore_regions import ArchiveSelection, OpenSelection, Region, decode_region
from vcinr_batch.data.auxiliary import coordinates_attribute
from vcinr_batch.storage import exists, join_url, read_bytes, size_bytes, write_bytes

ROOT_METADATA = "zarr.json"


@dataclass(frozen=True)
class ZarrTarget:
    """Where the chunks go and how they are encoded; sent to every worker."""

    source: ArchiveSelection
    store: str
    """URL of the store under construction."""
    variable: str
    metadata: str
    """The variable's `zarr.json`."""
    chunk: tuple[int, ...]
    resumed: bool
    """Whether some chunks may be there already, from a run that was killed."""
    marker: str
    """Chunks are written only while the store has this marker; empty where nobody else can write there."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def chunk_url(self, index: tuple[int, ...]) -> str:
        return join_url(self.store, *chunk_path(self.variable, index))


@dataclass(frozen=True)
class WrittenRegion:
    """What became of a region."""

    region: Region
    bytes: int
    """Of its chunks."""
    is_there: bool = True
    """False where the store is not this restore's any more, and holds other chunks: then nothing was written."""


def write_region(target: ZarrTarget, region: Region) -> WrittenRegion:
    """Decode a region and write its chunks; a retry writes the same bytes to the same places.

    Raises:
        SourceError: as `decode_region`, or a chunk cannot be written.
        BitstreamError, UnsupportedFormatError, BundleMismatchError: as `decode_region`.
    """
    urls = {index: target.chunk_url(index) for index in region_chunks(region, target.chunk)}
    options = target.storage_options
    if target.resumed and all(exists(url, storage_options=options) for url in urls.values()):
        return WrittenRegion(region, sum(size_bytes(url, storage_options=options) for url in urls.values()))
    encoded = encode_chunks(target.metadata, target.chunk, region, decode_region(target.source, region))
    chunks = {urls[index]: data for index, data in encoded}
    del encoded  # with the values
    size = sum(map(len, chunks.values()))
    if target.marker and read_marker(target.store, options) != target.marker:
        return WrittenRegion(region, size, is_there=all(_holds(url, data, options) for url, data in chunks.items()))
    for url, data in chunks.items():
        write_bytes(url, data, storage_options=options)
    return WrittenRegion(region, size)


def _holds(url: str, data: bytes, options: Mapping[str, Any]) -> bool:
    return exists(url, storage_options=options) and read_bytes(url, storage_options=options) == data


def region_chunks(region: Region, chunk: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The indexes of a region's chunks; a region consists of whole ones."""
    ranges = (range(a // c, -(-b // c)) for a, b, c in zip(region.start, region.stop, chunk, strict=True))
    return itertools.product(*ranges)


def chunk_path(variable: str, index: tuple[int, ...]) -> tuple[str, ...]:
    """Where a chunk is in a store: `t2m/c/0/3/0`."""
    return (variable, "c", *map(str, index))


def store_files(opened: OpenSelection, shape: tuple[int, ...], chunk: tuple[int, ...]) -> dict[str, bytes]:
    """All files of a store but the variable's chunks: coordinates and metadata, as `xarray.Dataset.to_zarr` has them.

    Returns:
        Contents by path in the order in which they are to be written: the root's metadata, which have a copy of all
        others (consolidated metadata), last.
    """
    archive, selection = opened.archive, opened.selection
    attributes = archive.variable_attributes
    attributes |= coordinates_attribute(archive.manifest.auxiliaries, attributes)
    sizes = dict(zip(selection.dims, shape, strict=True))
    return variable_files(archive.layout.variable, sizes, chunk, attributes, archive.coordinates(selection))


def variable_files(
    name: str, sizes: Mapping[str, int], chunk: tuple[int, ...], attributes: Mapping[str, Any], coordinates: Any
) -> dict[str, bytes]:
    """As `store_files`, for a variable of that name and these attributes and the dataset of its coordinates."""
    import xarray

    # xarray decides on attributes, fill value and codecs from a single value; then only the shape has to be changed.
    one = np.full((1,) * len(sizes), np.nan, np.float32)
    single = xarray.Dataset({name: xarray.Variable(tuple(sizes), one, dict(attributes))})
    described = json.loads(_zarr_files(single)[f"{name}/{ROOT_METADATA}"])
    described["shape"] = list(sizes.values())
    described["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": list(chunk)}}
    files = _zarr_files(coordinates.reset_coords())
    files[f"{name}/{ROOT_METADATA}"] = json.dumps(described, indent=2).encode()
    files = _consolidated(files)
    return {path: files[path] for path in sorted(files, key=lambda path: (path == ROOT_METADATA, path))}


def _zarr_files(dataset: Any) -> dict[str, bytes]:
    from zarr.storage import MemoryStore

    held: dict[str, Any] = {}
    dataset.to_zarr(MemoryStore(held), zarr_format=3, consolidated=False)
    return {path: content.to_bytes() for path, content in held.items()}


def _consolidated(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same files with a copy of all metadata in the root's: one request opens the store."""
    import zarr
    from zarr.buffer.cpu import Buffer
    from zarr.storage import MemoryStore

    held: dict[str, Any] = {path: Buffer.from_bytes(content) for path, content in files.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that version 3 of Zarr does not specify it yet; every reader may ignore it
        zarr.consolidate_metadata(MemoryStore(held), zarr_format=3)
    return {path: content.to_bytes() for path, content in held.items()}


def encode_chunks(
    metadata: str, chunk: tuple[int, ...], region: Region, values: NDArray[np.float32]
) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Index and bytes of each chunk of a region, which consists of whole ones; `metadata` is the variable's."""
    # Zarr writes an array of the region's shape into memory.
    import zarr
    from zarr.buffer.cpu import Buffer
    from zarr.storage import MemoryStore

    described = {**json.loads(metadata), "shape": list(region.shape)}
    held: dict[str, Any] = {ROOT_METADATA: Buffer.from_bytes(json.dumps(described).encode())}
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_array(MemoryStore(held), mode="r+")[...] = values
    first = tuple(a // c for a, c in zip(region.start, chunk, strict=True))
    for index in region_chunks(region, chunk):
        inside = tuple(i - a for i, a in zip(index, first, strict=True))
        yield index, held.pop("/".join(chunk_path("", inside)).lstrip("/")).to_bytes()
