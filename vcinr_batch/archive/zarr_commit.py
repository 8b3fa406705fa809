"""Makes an archive of what `to_zarr` has compressed: the records of the chunks become a manifest, written when all is
there. Nothing is decoded or fitted, no chunk and no coordinate is written again.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from vcinr_batch import __version__
from vcinr_batch.archive.archive import Archive, checked_bundle_bytes
from vcinr_batch.archive.manifest import (
    MANIFEST_NAME,
    ArchivePart,
    Manifest,
    commit_manifest,
    manifest_to_json,
    read_manifest,
)
from vcinr_batch.archive.written_array import (
    chunk_path,
    parse_record,
    record_folder,
    record_path,
    shard_of_chunk,
)
from vcinr_batch.archive.zarr_codec import PartCodec
from vcinr_batch.archive.zarr_container import ROOT_METADATA, as_zarr
from vcinr_batch.config import SourceConfig
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.sources import FieldSource, open_fields
from vcinr_batch.data.stores import find_store, open_store
from vcinr_batch.errors import (
    ArchiveExistsError,
    ConfigError,
    CorruptBitstreamError,
    SourceError,
    StoreUnavailableError,
)
from vcinr_batch.storage import (
    StorageOptions,
    exists,
    join_url,
    list_urls,
    public_url,
    read_bytes,
    remove,
    sha256_hex,
    write_bytes,
)

_READERS = 8


@dataclass(frozen=True, eq=False)
class _Store:
    """What `to_zarr` has written."""

    url: str
    variable: str
    codec: PartCodec
    layout: Layout
    chunk_shape: tuple[int, ...]
    options: dict[str, Any] = field(repr=False)


def commit(url: str, *, storage_options: StorageOptions = None) -> Archive:
    """Complete a store that `to_zarr` wrote with `vcinr_batch.encoding`, so that it is an archive like any other.

    Call it when all writers have ended. Every chunk is read and checked against its record. The manifest is written
    when that is done; a commit that was killed is completed by another one. Afterwards the store reads as before and
    can be written no more; a dataset that was open before has to be opened again.

    Args:
        url: of the store, which has one data variable.
        storage_options: of the file system.

    Returns:
        The archive.

    Raises:
        ConfigError: the store has several data variables, one that was not compressed, coordinates that an archive does
            not keep, or other labels than `encoding` was given.
        SourceError: a chunk was not written, or the store cannot be read or written.
        ArchiveExistsError: another manifest is there.
        BitstreamError, UnsupportedFormatError, BundleMismatchError: a file is damaged, which it names.
    """
    options = dict(storage_options or {})
    variable, codec, chunk_shape = _written_variable(url, options)
    if codec.written is not None:
        _complete(_Store(url, variable, codec, codec.written.layout, chunk_shape, options))
    archive = Archive.open(url, options)
    for leftover in list_urls(join_url(url, record_folder(variable)), storage_options=options):
        remove(leftover, storage_options=options)
    return archive


def _written_variable(url: str, options: dict[str, Any]) -> tuple[str, PartCodec, tuple[int, ...]]:
    """The store's only data variable, its codec and the shape of its chunks."""
    dataset, name = open_store(find_store(url, options), options), public_url(url)
    if len(dataset.data_vars) != 1:
        there = ", ".join(sorted(map(str, dataset.data_vars))) or "none"
        raise ConfigError(f"{name}: an archive has one data variable, this store {there}; it reads as it is")
    (variable,) = dataset.data_vars
    encoding = dataset[variable].encoding
    codec = encoding.get("serializer")
    if not isinstance(codec, PartCodec):
        raise ConfigError(f"{name}: {variable} was not compressed with vcinr_batch.encoding(...)")
    return str(variable), codec, tuple(encoding["chunks"])


def _complete(store: _Store) -> None:
    """Write what makes it an archive, the manifest before the metadata that send readers there."""
    source = _source(store)
    bundle = checked_bundle_bytes(
        join_url(store.url, store.codec.bundle_path), store.codec.bundle_sha256, store.options
    )
    manifest = as_zarr(_manifest(store, source, _checked_parts(store)))
    write_bytes(join_url(store.url, manifest.bundle_path), bundle, storage_options=store.options)
    if not exists(join_url(store.url, MANIFEST_NAME), storage_options=store.options):
        commit_manifest(manifest, store.url, storage_options=store.options)
    elif manifest_to_json(read_manifest(store.url, storage_options=store.options)) != manifest_to_json(manifest):
        raise ArchiveExistsError(f"{public_url(store.url)}: there is the manifest of another archive")
    _rewrite_metadata(store, manifest)


def _source(store: _Store) -> FieldSource:
    """The store as a source, for all that a manifest says beside the parts."""
    source = open_fields([store.url], SourceConfig(variable=store.variable), store.options)
    if source.left_out:
        raise ConfigError(
            f"{public_url(store.url)}: an archive does not keep {', '.join(source.left_out)}; the store reads as it is"
        )
    for found, axis in zip(source.axes, store.layout.axes, strict=True):
        if found.name != axis.name or not np.array_equal(found.values, axis.values):
            raise ConfigError(
                f"{public_url(store.url)}: the labels of {found.name!r} are not those that encoding() was given"
            )
    return source


def _checked_parts(store: _Store) -> Sequence[ArchivePart]:
    """The parts of all chunks in row-major order, each read and checked."""
    counts = (-(-len(axis) // n) for axis, n in zip(store.layout.axes, store.chunk_shape, strict=True))
    indices = list(product(*map(range, counts)))
    with ThreadPoolExecutor(_READERS, thread_name_prefix="vcinr-commit") as pool:
        try:
            return list(pool.map(lambda index: _checked_part(store, index), indices))
        finally:
            pool.shutdown(cancel_futures=True)


def _checked_part(store: _Store, index: tuple[int, ...]) -> ArchivePart:
    path, record = chunk_path(store.variable, index), record_path(store.variable, index)
    try:
        data = read_bytes(join_url(store.url, record), storage_options=store.options)
        content = read_bytes(join_url(store.url, path), storage_options=store.options)
    except StoreUnavailableError:
        raise
    except SourceError as error:
        raise SourceError(f"chunk {path} was not written, or not to its end: {error}") from error
    part = parse_record(data, record, path, shard_of_chunk(store.layout, index, store.chunk_shape))
    if (len(content), sha256_hex(content)) != (part.bytes, part.sha256):
        raise CorruptBitstreamError(f"{path}: not the bytes that its record is of; write the chunk again")
    return part


def _manifest(store: _Store, source: FieldSource, parts: Sequence[ArchivePart]) -> Manifest:
    written = store.codec.written
    assert written is not None
    return Manifest(
        layout=store.layout,
        unit=source.unit,
        attributes=source.attributes,
        dataset_attributes=source.dataset_attributes,
        encoding=written.source_encoding,
        source_bits=written.source_bits,
        source_names=(),
        bundle_sha256=store.codec.bundle_sha256,
        quality=store.codec.quality,
        parts=tuple(parts),
        generator=f"vcinr-batch {__version__}",
        auxiliaries=source.auxiliaries,
    )


def _rewrite_metadata(store: _Store, manifest: Manifest) -> None:
    """Let the array's codec ask the manifest; the root's metadata, which may have a copy, last."""
    codec = replace(store.codec, written=None, bundle_data=None, bundle_path=manifest.bundle_path).to_dict()
    own = join_url(store.url, store.variable, ROOT_METADATA)
    content = json.loads(read_bytes(own, storage_options=store.options))
    _write_json(store, own, {**content, "codecs": [codec]})
    root = join_url(store.url, ROOT_METADATA)
    content = json.loads(read_bytes(root, storage_options=store.options))
    copies = (content.get("consolidated_metadata") or {}).get("metadata", {})
    if store.variable in copies:
        copies[store.variable]["codecs"] = [codec]
        _write_json(store, root, content)


def _write_json(store: _Store, url: str, content: Any) -> None:
    write_bytes(url, json.dumps(content, indent=2).encode(), storage_options=store.options)
