"""What the headers of a GRIB file tell before cfgrib makes fields of its messages."""

from collections.abc import Iterator, Mapping
from typing import Any

from vcinr_batch.data.stores import StoreFile, local_path, reading, require_extra

_BITS_SAMPLE = 64


def grib_variables(file: StoreFile, storage_options: Mapping[str, Any]) -> list[str]:
    """Names of the variables in a GRIB file, as cfgrib gives them, sorted.

    Raises:
        SourceError: unreadable or truncated.
    """
    import eccodes

    names = set()
    for message in _grib_messages(file, storage_options):
        name = eccodes.codes_get(message, "cfVarName")
        names.add(str(eccodes.codes_get(message, "shortName") if name in ("unknown", "undef") else name))
    return sorted(names)


def grib_bits_per_value(file: StoreFile, storage_options: Mapping[str, Any]) -> int:
    """Largest number of bits that the first messages of the variable spend on a value.

    Raises:
        SourceError: unreadable or truncated.
    """
    import eccodes

    bits: list[int] = []
    for message in _grib_messages(file, storage_options):
        if all(eccodes.codes_get(message, key) == value for key, value in file.grib_filter):
            bits.append(int(eccodes.codes_get(message, "bitsPerValue")))
        if len(bits) == _BITS_SAMPLE:
            break
    return max(bits, default=0)


def _grib_messages(file: StoreFile, storage_options: Mapping[str, Any]) -> Iterator[Any]:
    """Handles of one message after the other, each released when the next is asked for."""
    require_extra("eccodes", "grib")
    import eccodes

    with reading(file.url), open(local_path(file, storage_options), "rb") as stream:
        while (message := eccodes.codes_grib_new_from_file(stream)) is not None:
            try:
                yield message
            finally:
                eccodes.codes_release(message)
