"""The JSON of a manifest as a gzip file, and back: as it is, or packed against a fixed text where that spares a tenth.

The manifest of a small archive is mostly what every manifest says. Deflate with a preset dictionary leaves a quarter of
it. That is no gzip, so it stands as base64 in the JSON of a gzip file, with format and version beside it. A manifest of
many parts stays what anyone reads with zcat.
"""

import base64
import json
import struct
import zlib
from typing import Any

from vcinr_batch.archive.manifest_dictionary import MANIFEST_DICTIONARY
from vcinr_batch.data.axis_json import checked_object
from vcinr_batch.errors import CorruptBitstreamError

PACKED_KEY = "packed"
MAX_BYTES = 64 << 20
"""Of a file and of what it inflates to."""

_DICTIONARY = MANIFEST_DICTIONARY.encode("ascii")
_GZIP_HEADER = bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 2, 255])  # deflate, no name, no time, best compression, no system


def pack_json(content: dict[str, Any]) -> bytes:
    """A gzip file of JSON with sorted keys; `content` has the keys `format` and `version`."""
    text = _json_bytes(content)
    head = {key: content[key] for key in ("format", "version")}
    head[PACKED_KEY] = base64.b64encode(_deflate(text, _DICTIONARY)).decode()
    plain, packed = _gzip(text), _gzip(_json_bytes(head))
    return packed if 10 * len(packed) <= 9 * len(plain) else plain


def unpack_json(data: bytes) -> Any:
    """What `json.loads` makes of a gzip file; its key `packed`, if any, is left for `unpack_content`.

    Raises:
        CorruptBitstreamError: no gzip file, damaged or too large.
        ValueError, RecursionError: not JSON.
    """
    return json.loads(_inflate(data, zlib.decompressobj(16 + zlib.MAX_WBITS), "gzip file"))


def unpack_content(head: dict[str, Any]) -> Any:
    """Mirror of `pack_json` for what `unpack_json` gave, where that has the key `packed`.

    Raises:
        CorruptBitstreamError: damaged or too large.
        ValueError, RecursionError: not JSON.
    """
    packed = checked_object(head, "a packed manifest", {"format", "version", PACKED_KEY})[PACKED_KEY]
    if not isinstance(packed, str):
        raise CorruptBitstreamError(f"{PACKED_KEY} must be a text, got {str(packed)[:40]!r}")
    data = base64.b64decode(packed, validate=True)
    return json.loads(_inflate(data, zlib.decompressobj(-zlib.MAX_WBITS, zdict=_DICTIONARY), "packed manifest"))


def _json_bytes(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _deflate(data: bytes, dictionary: bytes = b"") -> bytes:
    settings = (9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY)
    deflate = zlib.compressobj(*settings, dictionary) if dictionary else zlib.compressobj(*settings)
    return deflate.compress(data) + deflate.flush()


def _gzip(data: bytes) -> bytes:
    # gzip.compress writes the clock or, from Python 3.13 on, another system byte.
    return _GZIP_HEADER + _deflate(data) + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def _inflate(data: bytes, inflate: "zlib._Decompress", what: str) -> bytes:
    try:
        text = inflate.decompress(data, MAX_BYTES + 1)
    except zlib.error as error:
        raise CorruptBitstreamError(f"damaged {what}: {error}") from error
    if len(data) > MAX_BYTES or len(text) > MAX_BYTES:
        raise CorruptBitstreamError(f"more than {MAX_BYTES} bytes")
    if not inflate.eof:
        raise CorruptBitstreamError(f"{what} cut off after {len(data)} bytes")
    return text
