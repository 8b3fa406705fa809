"""One sample stored: its payload, the error measured on it, and the checksum that ties both to key and bundle."""

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.data.samples import SampleKey
from vcinr_batch.errors import CorruptBitstreamError

MAX_QUALITY = 63
"""Largest quality level: it has six bits of a byte, whose upper two are the row's coding."""
CODINGS = (0, 1, 2)
"""What a payload holds: symbols of the base; base and bounded residual in one stream; the sample, stored losslessly."""


@dataclass(frozen=True)
class ArchiveRow:
    """One sample of an archive."""

    key: SampleKey
    block: tuple[int, ...]
    """Index of the block along each axis of the archive's layout."""
    payload: bytes
    """What the latent codec wrote."""
    quality: int
    """Index of the bundle's quality level, 0 to 63."""
    rmse: float
    """Measured on the decoded payload, in the variable's unit."""
    max_error: float
    """Largest absolute error, as `rmse`."""
    checksum: int
    """`row_checksum` of the rest; the errors stand in the part's index, which has a checksum of its own."""
    mask: bytes | None = None
    """`pack_mask` of this sample's mask; None where it is the one that the bundle expects."""
    coding: int = 0
    """One of `CODINGS`."""


def row_checksum(
    key: SampleKey, quality: int, payload: bytes, mask: bytes | None, bundle_sha256: str, coding: int = 0
) -> int:
    """CRC-32 over everything that decoding a row depends on, its key, quality, coding and bundle included.

    Returns:
        0 to 2^32 - 1.
    """
    name = str(key).encode()
    # The lengths in front keep a byte from moving between the fields unnoticed.
    head = struct.pack("<IIiB", len(name), len(payload), -1 if mask is None else len(mask), coding << 6 | quality)
    return zlib.crc32(b"".join((head, name, bytes.fromhex(bundle_sha256), mask or b"", payload)))


def check_row(row: ArchiveRow, bundle_sha256: str) -> None:
    """Raise unless the row is what was written.

    Raises:
        CorruptBitstreamError: names the key.
    """
    found = row_checksum(row.key, row.quality, row.payload, row.mask, bundle_sha256, row.coding)
    if found != row.checksum:
        raise CorruptBitstreamError(f"{row.key}: its checksum is {found:08x}, expected {row.checksum:08x}")


def pack_mask(mask: NDArray[np.bool_]) -> bytes:
    """A mask [P] as zlib-compressed bits."""
    return zlib.compress(np.packbits(mask).tobytes(), 9)


def unpack_mask(data: bytes, point_count: int) -> NDArray[np.bool_]:
    """Mirror of `pack_mask`; never inflates more than the `point_count` bits it was asked for.

    Returns:
        bool [P].

    Raises:
        CorruptBitstreamError: not such a mask, or of another size.
    """
    size = (point_count + 7) // 8
    inflater = zlib.decompressobj()
    try:
        packed = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise CorruptBitstreamError(f"mask of {len(data)} bytes does not inflate: {error}") from error
    if len(packed) != size or not inflater.eof or inflater.unused_data:
        raise CorruptBitstreamError(f"mask holds {len(packed)} bytes or more, expected exactly {size}")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    if bits[point_count:].any():
        raise CorruptBitstreamError(f"mask has bits set past its {point_count} points")
    return bits[:point_count].astype(bool)
