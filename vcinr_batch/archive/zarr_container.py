"""An archive as a Zarr group: the same files, the parts under the keys of Zarr's chunks, and the metadata of Zarr.

The group has the variable's array, whose chunks are the parts, and a coordinate array for every axis.
"""

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.chunk_grid import (
    CHUNK_FOLDER,
    chunk_key,
    chunk_shape,
    regular_shard_shape,
    shows_source_order,
    source_places,
)
from vcinr_batch.archive.manifest import Manifest
from vcinr_batch.archive.parquet_container import content_path
from vcinr_batch.archive.selection import Selection
from vcinr_batch.archive.zarr_codec import PartCodec
from vcinr_batch.data.attributes_json import attributes_to_json
from vcinr_batch.data.auxiliary import coordinates_attribute
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.shards import Shard, shard_name
from vcinr_batch.errors import ConfigError
from vcinr_batch.storage import StorageOptions, join_url, list_urls

if TYPE_CHECKING:
    import xarray

ROOT_METADATA = "zarr.json"

_MOST_LABELS = 1 << 20
_LONG = 512
_UNFIT = r"^__|^\.|[\x00-\x1f\x7f\\/:*?\[\]%#]"  # Zarr's own names, and what no path in an archive may have
_TAKEN = ("models", "parts", "rejected", "status")


def as_zarr(manifest: Manifest) -> Manifest:
    """The manifest of the same archive with its parts as the chunks of a Zarr array.

    Raises:
        ConfigError: its shards are no regular grid, or a name cannot be that of a Zarr array.
    """
    layout = manifest.layout
    _check_names(layout, [auxiliary.name for auxiliary in manifest.auxiliaries])
    shape = regular_shard_shape(layout, manifest.parts)
    parts = tuple(replace(part, path=chunk_key(layout.variable, part.start, shape)) for part in manifest.parts)
    return replace(manifest, parts=parts, container="zarr")


def as_parquet(manifest: Manifest) -> Manifest:
    """The manifest of the same archive with its parts as files named by their shard and their content."""
    parts = tuple(
        replace(
            part,
            path=content_path("parts", shard_name(manifest.layout, Shard(i, part.start, part.stop)), part.sha256),
        )
        for i, part in enumerate(manifest.parts)
    )
    return replace(manifest, parts=parts, container="parquet")


def zarr_files(manifest: Manifest) -> dict[str, bytes]:
    """All files of a Zarr archive that belong to Zarr but the chunks of the variable: metadata and coordinates.

    Labels stand in the source's order, except where several chunks share an axis that the source orders differently:
    there they stand in the archive's own order, each with its values.

    Args:
        manifest: from `as_zarr`.

    Returns:
        Contents by path in the order in which to write them: the root's metadata, which has a copy of all others, last.
    """
    layout = manifest.layout
    chunk = chunk_shape(layout, regular_shard_shape(layout, manifest.parts))
    shown = [shows_source_order(axis, length) for axis, length in zip(layout.axes, chunk, strict=True)]
    axes = tuple(
        axis if is_source else replace(axis, source_values=None)
        for axis, is_source in zip(layout.axes, shown, strict=True)
    )
    order = tuple(axis.name for axis, kept in zip(layout.axes, axes, strict=True) if kept.source_values is not None)
    places = tuple(source_places(axis) for axis in axes)
    places = tuple(np.arange(len(axis)) if axis.source_values is None else source_places(axis) for axis in axes)
    files = _coordinate_files(Archive("", manifest).coordinates(Selection(axes, places)).reset_coords())
    files[f"{layout.variable}/{ROOT_METADATA}"] = _json_bytes(_array_metadata(manifest, chunk, order))
    files[ROOT_METADATA] = _consolidated(files)
    return {path: files[path] for path in sorted(files, key=lambda path: (path == ROOT_METADATA, path))}


def zarr_paths(archive_url: str, manifest: Manifest, storage_options: StorageOptions) -> list[str]:
    """Paths of what `zarr_files` gave for the Zarr archive that is at `archive_url`, as far as they are there.

    Raises:
        SourceError: the store cannot be asked.
    """
    dims, others = manifest.layout.dims, manifest.auxiliaries
    # An auxiliary variable has one chunk, `c`, `c/0` or `c/0/0`; an axis may have several.
    chunks = {f"{other.name}/{CHUNK_FOLDER}{'/0' * len(other.dims)}" for other in others}
    folders = ["", *(f"{name}/" for name in (manifest.variable, *dims, *(other.name for other in others)))]
    folders += [f"{dim}/{CHUNK_FOLDER}/" for dim in dims] + [path.rpartition("/")[0] + "/" for path in sorted(chunks)]
    found = set()
    for folder in folders:
        for url in list_urls(join_url(archive_url, folder), storage_options=storage_options):
            path = folder + url.rsplit("/", 1)[-1]
            if path.endswith(ROOT_METADATA) or path in chunks or folder in {f"{dim}/{CHUNK_FOLDER}/" for dim in dims}:
                found.add(path)
    return sorted(found)


def _array_metadata(manifest: Manifest, chunk: tuple[int, ...], source_order: tuple[str, ...]) -> dict[str, Any]:
    """The variable's array, as xarray describes one of a single value, with our shape, chunks and codec."""
    import xarray

    layout = manifest.layout
    one = np.full((1,) * len(layout.dims), np.nan, np.float32)
    attributes = Archive("", manifest).variable_attributes
    attributes |= coordinates_attribute(manifest.auxiliaries, attributes)
    variable = xarray.Variable(layout.dims, one, attributes)
    files = _store_files(xarray.Dataset({layout.variable: variable}), {})
    described: dict[str, Any] = json.loads(files[f"{layout.variable}/{ROOT_METADATA}"])
    quality = attributes_to_json(manifest.quality)
    codec = PartCodec(manifest.bundle_sha256, manifest.bundle_path, quality, source_order)
    described["shape"] = list(layout.shape)
    described["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": list(chunk)}}
    described["codecs"] = [codec.to_dict()]
    return described


def _coordinate_files(dataset: "xarray.Dataset") -> dict[str, bytes]:
    """A dataset of coordinates as a Zarr group; times in the source's units where those give them back exactly."""
    import xarray

    files = _store_files(dataset, _chunk_encoding(dataset))
    stored = xarray.open_zarr(_memory_store(files), consolidated=False, chunks=None)
    for name in dataset.variables:
        if not stored[name].variable.identical(dataset[name].variable):
            # Fractions of the source's unit would be rounded; xarray chooses one that fits.
            dataset = dataset.assign({name: dataset[name].drop_encoding()})
            files = _store_files(dataset, _chunk_encoding(dataset))
    return files


def _chunk_encoding(dataset: "xarray.Dataset") -> dict[str, dict[str, Any]]:
    """Coordinates in one chunk each, which is one request; of long ones the bytes in an order that compresses well."""
    from zarr.codecs import BloscCodec

    encoding = dict[str, dict[str, Any]]()
    for name, variable in dataset.variables.items():
        if variable.shape:
            encoding[str(name)] = {"chunks": tuple(min(n, _MOST_LABELS) for n in variable.shape)}
        if variable.size >= _LONG and variable.dtype.kind in "iufMm":
            encoding[str(name)]["compressors"] = [BloscCodec(cname="zstd", clevel=9, shuffle="shuffle")]
    return encoding


def _store_files(dataset: "xarray.Dataset", encoding: dict[str, dict[str, Any]]) -> dict[str, bytes]:
    from zarr.storage import MemoryStore

    held: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about strings and times, which are read back and compared
        dataset.to_zarr(MemoryStore(held), zarr_format=3, consolidated=False, encoding=encoding)
    return {path: content.to_bytes() for path, content in held.items()}


def _consolidated(files: dict[str, bytes]) -> bytes:
    """The group's metadata with those of its arrays."""
    content = json.loads(files[ROOT_METADATA])
    suffix = f"/{ROOT_METADATA}"
    arrays = {path.removesuffix(suffix): json.loads(files[path]) for path in sorted(files) if path.endswith(suffix)}
    content["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": arrays}
    return _json_bytes(content)


def _memory_store(files: dict[str, bytes]) -> Any:
    from zarr.buffer.cpu import Buffer
    from zarr.storage import MemoryStore

    return MemoryStore({path: Buffer.from_bytes(data) for path, data in files.items()})


def _json_bytes(content: Any) -> bytes:
    return json.dumps(content, indent=2).encode()


def _check_names(layout: Layout, others: Sequence[str]) -> None:
    """Raise unless variable and dimensions can be Zarr arrays side by side with an archive's folders."""
    names = (layout.variable, *layout.dims, *others)
    for name in names:
        if name in _TAKEN:
            raise ConfigError(
                f"{name!r} cannot be the name of an array in a Zarr archive, where {', '.join(_TAKEN)} are folders of "
                "its own; keep this one in Parquet, or rename it in the source and compress again"
            )
        if re.search(_UNFIT, name) or not name:
            raise ConfigError(f"{name!r} cannot be the name of an array in a Zarr archive; keep this one in Parquet")
    if len(set(names)) != len(names):
        raise ConfigError(f"{layout.variable!r} is the name of the variable and of a dimension; Zarr needs two names")
