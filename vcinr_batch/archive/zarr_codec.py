"""The Zarr codec `vcinr.part`: a chunk is a part of an archive, of which a read decodes the samples that it touches.

Zarr finds it by the entry point `zarr.codecs`. An archive is made as a whole, and is not written through it; an array
whose configuration has a layout (`vcinr_batch.encoding` makes it) is written chunk by chunk.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import (
    ArrayBytesCodec,
    ArrayBytesCodecPartialDecodeMixin,
    ArrayBytesCodecPartialEncodeMixin,
)
from zarr.storage import StorePath

from vcinr_batch.archive.chunk_grid import parse_chunk_key, source_places
from vcinr_batch.archive.chunk_selection import Box, Points, parse_selection
from vcinr_batch.archive.manifest import ArchivePart, check_path
from vcinr_batch.archive.written_array import (
    WRITTEN_KEYS,
    WrittenArray,
    chunk_path,
    parse_record,
    record_path,
    shard_of_chunk,
    written_from_json,
    written_to_json,
)
from vcinr_batch.archive.zarr_reading import Contents, StoredArchive, archive_of, get_bytes
from vcinr_batch.archive.zarr_writing import ChunkWrite, write_chunk
from vcinr_batch.data.axis_json import checked_object
from vcinr_batch.data.layout import Axis, Layout
from vcinr_batch.errors import (
    BundleMismatchError,
    ConfigError,
    CorruptBitstreamError,
    SourceError,
    StoreUnavailableError,
    UnsupportedFormatError,
)
from vcinr_batch.quality_request import bound_from_json

CODEC_NAME = "vcinr.part"
ARCHIVE_VERSION = 1
"""Of the configuration: an array of an archive, of which the manifest tells the rest."""
WRITTEN_VERSION = 2
"""Of the configuration: an array that is written chunk by chunk, which has its layout with it."""

_KEYS = {"version", "bundle", "bundle_path", "quality", "source_order"}
_READ_ONLY = (
    "an archive is not written through Zarr: make one with `vcinr compress`, "
    "turn one of Parquet files into Zarr with `vcinr convert`; a dataset read from one is saved uncompressed by "
    "ds.drop_encoding().to_zarr(...)"
)


@dataclass(frozen=True)
class PartCodec(ArrayBytesCodec, ArrayBytesCodecPartialDecodeMixin, ArrayBytesCodecPartialEncodeMixin):
    """Decodes chunks that are parts of an archive."""

    bundle_sha256: str
    bundle_path: str
    """Where the bundle is, relative to the archive."""
    quality: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What was asked for; every row has its own level."""
    source_order: tuple[str, ...] = ()
    """Dimensions whose labels the array shows in the source's order and not in the archive's."""
    written: WrittenArray | None = field(default=None, compare=False)
    """Of an array that is written chunk by chunk."""
    bundle_data: bytes | None = field(default=None, compare=False, repr=False)
    """The bundle's file, for whoever writes; no part of the configuration."""
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: Any) -> "PartCodec":
        """Mirror of `to_dict`, for metadata that anyone may have written.

        Raises:
            UnsupportedFormatError: of a later version.
            CorruptBitstreamError: not the configuration of this codec.
        """
        configuration = data.get("configuration") if isinstance(data, Mapping) else None
        version = configuration.get("version") if isinstance(configuration, Mapping) else None
        if version not in (ARCHIVE_VERSION, WRITTEN_VERSION) or isinstance(version, bool):
            raise UnsupportedFormatError(
                f"codec {CODEC_NAME} of version {str(version)[:40]}; "
                f"this package reads versions {ARCHIVE_VERSION} and {WRITTEN_VERSION}"
            )
        keys = _KEYS | (WRITTEN_KEYS if version == WRITTEN_VERSION else set())
        fields = checked_object(configuration, f"the configuration of {CODEC_NAME}", keys)
        bundle, path, order, quality = (fields[key] for key in ("bundle", "bundle_path", "source_order", "quality"))
        texts = isinstance(bundle, str) and isinstance(path, str) and isinstance(quality, Mapping)
        if not texts or not isinstance(order, list | tuple) or not all(isinstance(dim, str) for dim in order):
            raise CorruptBitstreamError(f"the configuration of {CODEC_NAME} is damaged: {str(dict(fields))[:200]}")
        try:
            check_path(path)
        except ConfigError as error:
            raise CorruptBitstreamError(f"the configuration of {CODEC_NAME}: {error}") from error
        written = written_from_json(fields) if version == WRITTEN_VERSION else None
        return cls(bundle, path, dict(quality), tuple(order), written)

    def to_dict(self) -> dict[str, Any]:
        """As in the array's metadata."""
        configuration = {
            "version": ARCHIVE_VERSION if self.written is None else WRITTEN_VERSION,
            "bundle": self.bundle_sha256,
            "bundle_path": self.bundle_path,
            "quality": dict(self.quality),
            "source_order": list(self.source_order),
        } | ({} if self.written is None else written_to_json(self.written))
        return {"name": CODEC_NAME, "configuration": configuration}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, **_: Any) -> None:
        """Called by Zarr wherever it makes, opens or resizes an array.

        Raises:
            ConfigError: an array that is written has another shape than its layout, or holds no float32.
        """
        if self.written is None:
            return
        layout = self.written.layout
        if tuple(shape) != layout.shape:
            raise ConfigError(
                f"{layout.variable}: an array of {tuple(shape)} labels, but encoding() was given a dataset of "
                f"{layout.shape}; an array is not made longer or shorter: call encoding() for what is to be written, "
                "or ds.drop_encoding()"
            )
        native = dtype.to_native_dtype() if hasattr(dtype, "to_native_dtype") else dtype  # Zarr before 3.1
        if native != np.float32:
            raise ConfigError(f"{layout.variable}: an array of {native}; codec {CODEC_NAME} holds float32")

    def compute_encoded_size(self, _input_byte_length: int, _chunk_spec: Any) -> int:
        """Not known; for such codecs Zarr's interface asks for this very error. Called only where sizes are fixed."""
        raise NotImplementedError

    async def _decode_partial_single(self, byte_getter: Any, selection: Any, chunk_spec: Any) -> Any:
        if not isinstance(byte_getter, StorePath):
            raise ConfigError(_not_alone())
        root, variable, index = _placed_key(byte_getter, chunk_spec)
        archive = archive_of(byte_getter.store, root.path)
        contents = await self._contents(archive, root, variable, chunk_spec.shape)
        part = await self._part(root, variable, contents, index)
        wanted = self._placed(parse_selection(selection, chunk_spec.shape), contents, index, chunk_spec.shape)
        opened = await archive.bundle(root, self.bundle_path, self.bundle_sha256)
        decoded = await archive.decode(root, part, wanted, opened, self.bundle_sha256, contents.layout, contents.bound)
        values = wanted.result(decoded)
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(values)

    async def _decode_single(self, _chunk_data: Any, _chunk_spec: Any) -> Any:
        raise ConfigError(_not_alone())

    async def _encode_single(self, _chunk_data: Any, _chunk_spec: Any) -> Any:
        raise ConfigError(_READ_ONLY)

    # Without this, Zarr would remove a chunk that is overwritten with the fill value before any codec is asked.
    async def _encode_partial_single(self, byte_setter: Any, chunk_array: Any, selection: Any, chunk_spec: Any) -> None:
        if self.written is None:
            raise ConfigError(_READ_ONLY)
        if not isinstance(byte_setter, StorePath):
            raise ConfigError(_not_alone())
        root, variable, index = _placed_key(byte_setter, chunk_spec)
        layout = self._own_layout(variable)
        chunk = ChunkWrite(
            layout=layout,
            index=index,
            chunk_shape=tuple(chunk_spec.shape),
            selection=selection,
            values=np.asarray(chunk_array.as_numpy_array()),
            bundle_path=self.bundle_path,
            bundle_sha256=self.bundle_sha256,
            quality=self.quality,
            bundle_data=self.bundle_data,
        )
        await write_chunk(root, chunk)

    async def _contents(
        self, archive: StoredArchive, root: StorePath, variable: str, chunk_shape: tuple[int, ...]
    ) -> Contents:
        """What the manifest says, or, of an array that is written, its configuration."""
        if self.written is not None:
            layout = self._own_layout(variable)
            orders = {axis.name: source_places(axis) for axis in layout.axes if axis.source_values is not None}
            bound = bound_from_json(self.quality)
            return Contents(layout, self.bundle_sha256, None, bound, tuple(chunk_shape), orders)
        contents = await archive.contents(root)
        if contents.bundle_sha256 != self.bundle_sha256:
            raise BundleMismatchError(
                f"array {variable!r} names the bundle {self.bundle_sha256}, "
                f"the archive's manifest {contents.bundle_sha256}"
            )
        return contents

    async def _part(self, root: StorePath, variable: str, contents: Contents, index: tuple[int, ...]) -> ArchivePart:
        """A chunk's part, from the manifest or the chunk's own record."""
        path = chunk_path(variable, index)
        if contents.parts is not None:
            if path not in contents.parts:
                raise SourceError(f"{root / path}: the archive's manifest has no such part")
            return contents.parts[path]
        shard, place = shard_of_chunk(contents.layout, index, contents.chunk_shape), root / record_path(variable, index)
        try:
            data = await get_bytes(place)
        except StoreUnavailableError:
            raise
        except SourceError as error:
            raise SourceError(f"{root / path} was not written, or not to its end: {error}") from error
        return parse_record(data, str(place), path, shard)

    def _own_layout(self, variable: str) -> Layout:
        assert self.written is not None
        layout = self.written.layout
        if layout.variable != variable:
            raise ConfigError(f"an array {variable!r} with the encoding of {layout.variable!r}; make one for each")
        return layout

    def _placed(
        self, wanted: Box | Points, contents: Contents, index: tuple[int, ...], shape: tuple[int, ...]
    ) -> Box | Points:
        """Positions within a chunk as positions on the archive's axes."""
        if shape != contents.chunk_shape:
            raise CorruptBitstreamError(
                f"the array's chunks have {shape} labels, those of the archive {contents.chunk_shape}"
            )
        axes = contents.layout.axes
        shown = [along + i * n for along, i, n in zip(wanted.places, index, shape, strict=True)]
        return wanted.at([self._canonical(axis, along, contents) for axis, along in zip(axes, shown, strict=True)])

    def _canonical(self, axis: Axis, shown: NDArray[np.int64], contents: Contents) -> NDArray[np.int64]:
        """Positions as the array shows them, as those on the archive's axis; -1 behind its end."""
        places = shown
        if axis.name in self.source_order and axis.name in contents.from_source:
            places = contents.from_source[axis.name][np.minimum(shown, len(axis) - 1)]
        return np.where(shown < len(axis), places, -1)


def _placed_key(place: StorePath, chunk_spec: Any) -> tuple[StorePath, str, tuple[int, ...]]:
    """The group of a chunk, its array and its index there."""
    array_path, index = parse_chunk_key(place.path, len(chunk_spec.shape))
    root_path, _, variable = array_path.rpartition("/")
    return StorePath(place.store, root_path), variable, index


def _not_alone() -> str:
    return f"codec {CODEC_NAME} has to be the only one of its array: it fetches from the store just what it needs"
