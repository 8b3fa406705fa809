"""A Zarr store whose Blosc chunks are checked to be whole: Blosc itself reads on past the end of a buffer cut short."""

from typing import Any

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

_HEADER_BYTES, _LENGTH_AT = 16, 12


class CheckedChunks(WrapperStore[Store]):
    """Reads as the store it wraps, but refuses a chunk that is shorter or longer than its Blosc header says."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._blosc_arrays = _blosc_arrays(store)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The value of a key.

        Raises:
            ValueError: a Blosc chunk that is not whole.
        """
        buffer = await super().get(key, prototype, byte_range)
        if buffer is not None and byte_range is None and self._is_blosc_chunk(key):
            _check_length(key, buffer)
        return buffer

    def _is_blosc_chunk(self, key: str) -> bool:
        array, _, name = key.partition("/")
        return array in self._blosc_arrays and not (name.startswith(".z") or name == "zarr.json")


def _check_length(key: str, buffer: Buffer) -> None:
    header = buffer[:_HEADER_BYTES].to_bytes()
    expected = int.from_bytes(header[_LENGTH_AT:], "little") if len(header) == _HEADER_BYTES else _HEADER_BYTES
    if len(buffer) != expected:
        raise ValueError(f"chunk {key} is damaged: {len(buffer)} bytes, its header says {expected}")


def _blosc_arrays(store: Store) -> frozenset[str]:
    """Names of the arrays of the root group whose chunks end up as Blosc buffers."""
    try:
        arrays = list(zarr.open_group(store, mode="r").arrays())
    except (FileNotFoundError, ValueError):
        return frozenset()  # opening it as a dataset says what is wrong
    return frozenset(name for name, array in arrays if _last_codec(array.metadata) == "blosc")


def _last_codec(metadata: Any) -> str:
    if metadata.zarr_format == 2:
        return str(getattr(metadata.compressor, "codec_id", ""))
    content = metadata.codecs[-1].to_dict()
    return str(content.get("name", ""))
