"""The Zarr codec `vcinr.part`: a chunk is a part of an archive, of which a read decodes the samples that it touches.

Zarr finds it by the entry point `zarr.codecs`. Chunks cannot be written through it: an archive is made as a whole.
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

from vcinr_batch.archive.chunk_grid import CHUNK_FOLDER
from vcinr_batch.archive.chunk_selection import Box, Points, parse_selection
from vcinr_batch.archive.manifest import check_path
from vcinr_batch.archive.zarr_reading import Contents, archive_of
from vcinr_batch.data.axis_json import checked_object
from vcinr_batch.data.layout import Axis
from vcinr_batch.errors import (
    BundleMismatchError,
    ConfigError,
    CorruptBitstreamError,
    SourceError,
    UnsupportedFormatError,
)

CODEC_NAME = "vcinr.part"
CODEC_VERSION = 1

_KEYS = {"version", "bundle", "bundle_path", "quality", "source_order"}
_READ_ONLY = (
    "an archive is not written through Zarr: make one with `vcinr compress`, "
    "turn one of Parquet files into Zarr with `vcinr convert`"
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
        if version != CODEC_VERSION or isinstance(version, bool):
            raise UnsupportedFormatError(
                f"codec {CODEC_NAME} of version {str(version)[:40]}; this package reads version {CODEC_VERSION}"
            )
        fields = checked_object(configuration, f"the configuration of {CODEC_NAME}", _KEYS)
        bundle, path, order, quality = (fields[key] for key in ("bundle", "bundle_path", "source_order", "quality"))
        texts = isinstance(bundle, str) and isinstance(path, str) and isinstance(quality, Mapping)
        if not texts or not isinstance(order, list | tuple) or not all(isinstance(dim, str) for dim in order):
            raise CorruptBitstreamError(f"the configuration of {CODEC_NAME} is damaged: {str(dict(fields))[:200]}")
        try:
            check_path(path)
        except ConfigError as error:
            raise CorruptBitstreamError(f"the configuration of {CODEC_NAME}: {error}") from error
        return cls(bundle, path, dict(quality), tuple(order))

    def to_dict(self) -> dict[str, Any]:
        """As in the array's metadata."""
        configuration = {
            "version": CODEC_VERSION,
            "bundle": self.bundle_sha256,
            "bundle_path": self.bundle_path,
            "quality": dict(self.quality),
            "source_order": list(self.source_order),
        }
        return {"name": CODEC_NAME, "configuration": configuration}

    def compute_encoded_size(self, _input_byte_length: int, _chunk_spec: Any) -> int:
        """Not known; for such codecs Zarr's interface asks for this very error. Called only where sizes are fixed."""
        raise NotImplementedError

    async def _decode_partial_single(self, byte_getter: Any, selection: Any, chunk_spec: Any) -> Any:
        if not isinstance(byte_getter, StorePath):
            raise ConfigError(_not_alone())
        array_path, index = _split_key(byte_getter.path, len(chunk_spec.shape))
        root_path, _, variable = array_path.rpartition("/")
        root, archive = StorePath(byte_getter.store, root_path), archive_of(byte_getter.store, root_path)
        contents = await archive.contents(root)
        if contents.manifest.bundle_sha256 != self.bundle_sha256:
            raise BundleMismatchError(
                f"array {variable!r} names the bundle {self.bundle_sha256}, "
                f"the archive's manifest {contents.manifest.bundle_sha256}"
            )
        part = contents.parts.get("/".join((variable, CHUNK_FOLDER, *map(str, index))))
        if part is None:
            raise SourceError(f"{byte_getter}: the archive's manifest has no such part")
        wanted = self._placed(parse_selection(selection, chunk_spec.shape), contents, index, chunk_spec.shape)
        opened = await archive.bundle(root, self.bundle_path, self.bundle_sha256)
        values = wanted.result(await archive.decode(root, part, wanted, opened))
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(values)

    async def _decode_single(self, _chunk_data: Any, _chunk_spec: Any) -> Any:
        raise ConfigError(_not_alone())

    async def _encode_single(self, _chunk_data: Any, _chunk_spec: Any) -> Any:
        raise ConfigError(_READ_ONLY)

    # Without this, Zarr would remove a chunk that is overwritten with the fill value before any codec is asked.
    async def _encode_partial_single(
        self, _byte_setter: Any, _chunk_array: Any, _selection: Any, _chunk_spec: Any
    ) -> None:
        raise ConfigError(_READ_ONLY)

    def _placed(
        self, wanted: Box | Points, contents: Contents, index: tuple[int, ...], shape: tuple[int, ...]
    ) -> Box | Points:
        """Positions within a chunk as positions on the archive's axes."""
        if shape != contents.chunk_shape:
            raise CorruptBitstreamError(
                f"the array's chunks have {shape} labels, those of the archive {contents.chunk_shape}"
            )
        axes = contents.manifest.layout.axes
        shown = [along + i * n for along, i, n in zip(wanted.places, index, shape, strict=True)]
        return wanted.at([self._canonical(axis, along, contents) for axis, along in zip(axes, shown, strict=True)])

    def _canonical(self, axis: Axis, shown: NDArray[np.int64], contents: Contents) -> NDArray[np.int64]:
        """Positions as the array shows them, as those on the archive's axis; -1 behind its end."""
        places = shown
        if axis.name in self.source_order and axis.name in contents.from_source:
            places = contents.from_source[axis.name][np.minimum(shown, len(axis) - 1)]
        return np.where(shown < len(axis), places, -1)


def _split_key(key: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    """`a/t2m/c/0/3/0` is chunk (0, 3, 0) of the array `a/t2m`."""
    names = key.split("/")
    head, numbers = names[: len(names) - ndim], names[len(names) - ndim :]
    if len(head) < 2 or head[-1] != CHUNK_FOLDER or not all(number.isdecimal() for number in numbers):
        raise CorruptBitstreamError(f"{key}: not a chunk of an archive, expected <variable>/{CHUNK_FOLDER}/0/0/...")
    return "/".join(head[:-1]), tuple(map(int, numbers))


def _not_alone() -> str:
    return f"codec {CODEC_NAME} has to be the only one of its array: it fetches from the store just what it needs"
