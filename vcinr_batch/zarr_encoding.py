"""Compressing from xarray: `ds.to_zarr("out.zarr", encoding=vcinr_batch.encoding(ds, bundle=...))`.

What that writes reads back with `xarray.open_zarr`. `commit` then makes an archive of it, with a manifest.
"""

from collections.abc import Mapping
from math import gcd
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import xarray

from vcinr_batch.archive.chunk_grid import chunk_shape, shows_source_order
from vcinr_batch.archive.written_array import WrittenArray, shard_of_chunk, written_bundle_path
from vcinr_batch.archive.zarr_codec import PartCodec
from vcinr_batch.archive.zarr_writing import remember_bundle
from vcinr_batch.bundle import Bundle, find_bundle, parse_bundle
from vcinr_batch.compression import QualityRequest, check_layout, check_request
from vcinr_batch.data.auxiliary import RELATIONS
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.shards import cut_axes, plan_shards
from vcinr_batch.data.source_parts import read_axis, source_encoding
from vcinr_batch.errors import ConfigError
from vcinr_batch.quality_request import request_to_json
from vcinr_batch.storage import StorageOptions, read_bytes, sha256_hex


def encoding(
    dataset: xarray.Dataset,
    *,
    bundle: str | bytes,
    quality: int | QualityRequest,
    variable: str | None = None,
    chunks: Mapping[str, int] | None = None,
    storage_options: StorageOptions = None,
) -> dict[str, dict[str, Any]]:
    """What `to_zarr` needs to compress a variable; join the results of several calls (`|`) for several variables.

    Every sample of the dataset is fitted when its chunk is written, and its error measured on the decoded bytes, as
    `vcinr compress` does. A chunk is written as a whole or not at all. Nothing can be appended: that is refused, but
    xarray has lengthened the store's coordinates by then, which `zarr.open_array(...).resize(...)` undoes.

    Args:
        dataset: what is to be written, with all its labels; a region of it can be written later.
        bundle: URL of a bundle or of a directory that holds one, or the bytes of its file.
        quality: a quality level, or a `QualityRequest`.
        variable: its name in the dataset; the bundle's by default.
        chunks: labels of a chunk along some dimensions. By default as many samples as the bundle's `shard_samples`,
            fewer where Dask has smaller chunks.
        storage_options: of the file system that the bundle is on.

    Returns:
        `{variable: {...}}`: the encoding of one variable, for Zarr format 3.

    Raises:
        ConfigError: no such variable, quality level or dimension, chunks that would cut samples in two, or labels in an
            order that no chunks can keep.
        BundleMismatchError: the bundle is for another variable, unit or grid.
        SourceError: the bundle is not there, or a label is missing.
        CorruptBitstreamError, UnsupportedFormatError: it is damaged, renamed or of a later version.
    """
    data, opened = _read_bundle(bundle, storage_options)
    array = _array(dataset, variable or opened.variable)
    name, request = str(array.name), quality if isinstance(quality, QualityRequest) else QualityRequest(level=quality)
    check_request(request, opened)
    layout = _layout(dataset, array, opened)
    shape = _chunk_shape(array, layout, opened, chunks or {})
    source = source_encoding(array)
    written = WrittenArray(layout, source, 8 * np.dtype(source["dtype"]).itemsize)
    order = tuple(axis.name for axis in layout.axes if axis.source_values is not None)
    path = written_bundle_path(name, remember_bundle(data))
    codec = PartCodec(opened.sha256, path, request_to_json(request), order, written, data)
    related = {key: array.encoding[key] for key in RELATIONS if key in array.encoding}
    zarr = {"serializer": codec, "filters": (), "compressors": (), "chunks": shape, "fill_value": np.float32(np.nan)}
    return {name: {"dtype": np.dtype(np.float32), **zarr, **related}}


def _read_bundle(bundle: str | bytes, storage_options: StorageOptions) -> tuple[bytes, Bundle]:
    """The bundle's file and what it holds; a file must have its digest for a name, as everywhere."""
    if isinstance(bundle, bytes):
        return bundle, parse_bundle(bundle, sha256_hex(bundle))
    url = find_bundle(bundle, storage_options)
    data = read_bytes(url, storage_options=storage_options)
    return data, parse_bundle(data, PurePosixPath(url).stem, url)


def _array(dataset: xarray.Dataset, name: str) -> xarray.DataArray:
    if name not in dataset.data_vars:
        there = ", ".join(sorted(map(str, dataset.data_vars))) or "none"
        raise ConfigError(
            f"no variable {name!r} in the dataset; it has {there}: pass `variable` if it has another name"
        )
    array = dataset[name]
    if array.dtype.kind not in "biuf" or 0 in array.shape or array.ndim == 0:
        raise ConfigError(f"{name!r} holds no field of numbers: {array.dtype} of shape {array.shape}")
    return array


def _layout(dataset: xarray.Dataset, array: xarray.DataArray, bundle: Bundle) -> Layout:
    """As `vcinr compress` would cut the variable into samples, if the bundle is for such."""
    axes = tuple(read_axis(dataset, str(dim)) for dim in array.dims)
    layout = cut_axes(str(array.name), axes, bundle.config.sample)
    check_layout(bundle, layout, str(array.attrs.get("units", "")))
    return layout


def _chunk_shape(array: xarray.DataArray, layout: Layout, bundle: Bundle, chunks: Mapping[str, int]) -> tuple[int, ...]:
    """Labels of a chunk along every axis, as asked for or as many samples as the shards of `vcinr compress` have."""
    for name, length in chunks.items():
        if name not in layout.dims or type(length) is not int or length < 1:
            raise ConfigError(
                f"chunks: {name!r}: {length!r}; expected a number of labels from 1, of one of {', '.join(layout.dims)}"
            )
    dask = [array.chunksizes.get(dim, (len(axis),)) for dim, axis in zip(array.dims, layout.axes, strict=True)]
    first = plan_shards(layout, bundle.config.sample.shard_samples, [max(lengths) for lengths in dask])[0]
    shape = []
    for axis, length, block, lengths in zip(
        layout.axes, chunk_shape(layout, first.stop), layout.block_shape, dask, strict=True
    ):
        asked = chunks.get(axis.name)
        length = min(asked, len(axis)) if asked is not None else _within_dask(axis.name, length, block, lengths)
        if not shows_source_order(axis, length):
            raise ConfigError(
                f"the labels of {axis.name!r} are not in the order of an archive, which chunks of {length} of them "
                f"cannot keep: sort the dataset by {axis.name!r}"
            )
        shape.append(length)
    shard_of_chunk(layout, (0,) * len(shape), tuple(shape))  # raises where they would cut samples in two
    return tuple(shape)


def _within_dask(name: str, length: int, block: int, lengths: tuple[int, ...]) -> int:
    """The largest length of whole samples, up to that one, of which no chunk lies in two chunks of Dask."""
    if len(lengths) == 1:
        return length
    common = gcd(*lengths[:-1])
    fitting = [n for n in range(block, length + 1, block) if common % n == 0]
    if not fitting:
        raise ConfigError(
            f"Dask has chunks of {lengths[0]} labels along {name!r}, a sample {block}: rechunk the dataset, "
            f"for example by ds.chunk({{{name!r}: {-1 if length == block else block}}})"
        )
    return fitting[-1]
