"""How long a classic NetCDF file must be. The NetCDF library reads zeros past the end of a truncated one, silently.

Format: "The NetCDF Classic Format Specification" (Unidata), versions 1, 2 and 5.
"""

import math
import os
import struct
from dataclasses import dataclass
from typing import IO

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}
_STREAMING = 0xFFFFFFFF


@dataclass
class _Header:
    """Reads the fields of a header one after the other."""

    stream: IO[bytes]
    version: int

    def take(self, count: int) -> bytes:
        data = self.stream.read(count)
        if len(data) != count:
            raise EOFError("the file ends within its header")
        return data

    def int4(self) -> int:
        return int(struct.unpack(">I", self.take(4))[0])

    def count(self) -> int:
        return int(struct.unpack(">Q", self.take(8))[0]) if self.version == 5 else self.int4()

    def offset(self) -> int:
        return self.int4() if self.version == 1 else int(struct.unpack(">Q", self.take(8))[0])

    def skip_name(self) -> None:
        self._skip(self.count())

    def skip_attributes(self) -> None:
        self.int4()
        for _ in range(self.count()):
            self.skip_name()
            value_bytes = _TYPE_BYTES[self.int4()]
            self._skip(self.count() * value_bytes)

    def _skip(self, count: int) -> None:
        # Not read: a corrupt length would take memory. Past the end, the next field is missing.
        self.stream.seek(_padded(count), os.SEEK_CUR)


def netcdf3_size_bytes(stream: IO[bytes]) -> int:
    """Where the last value that the header declares ends.

    Args:
        stream: the file from its start.

    Raises:
        EOFError: the file ends within its header.
        KeyError, IndexError, ValueError, OverflowError: not a classic NetCDF header.
    """
    magic = stream.read(4)
    if len(magic) < 4:
        raise EOFError("the file ends within its header")
    if magic[:3] != b"CDF" or magic[3] not in (1, 2, 5):
        raise ValueError("not a classic NetCDF file")
    header = _Header(stream, magic[3])
    records = header.count()
    header.int4()
    lengths = []
    for _ in range(header.count()):
        header.skip_name()
        lengths.append(header.count())
    header.skip_attributes()
    ends, record_parts = [stream.tell()], []
    header.int4()
    for _ in range(header.count()):
        is_record, size, begin = _variable(header, lengths)
        if is_record:
            record_parts.append((begin, size))
        else:
            ends.append(begin + size)
    if record_parts and 0 < records < _STREAMING:
        ends += _record_ends(record_parts, records)
    return max(ends)


def _variable(header: _Header, lengths: list[int]) -> tuple[bool, int, int]:
    """Whether it grows by records, its bytes (of one record) and where they begin."""
    header.skip_name()
    shape = [lengths[header.count()] for _ in range(header.count())]
    header.skip_attributes()
    value_bytes = _TYPE_BYTES[header.int4()]
    header.count()  # vsize: redundant, and wrong by design for large variables
    is_record = bool(shape) and shape[0] == 0
    return is_record, value_bytes * math.prod(shape[1:] if is_record else shape), header.offset()


def _record_ends(parts: list[tuple[int, int]], records: int) -> list[int]:
    """Ends of the last record; records interleave the variables, padded unless there is only one."""
    stride = parts[0][1] if len(parts) == 1 else sum(_padded(size) for _, size in parts)
    return [begin + (records - 1) * stride + size for begin, size in parts]


def _padded(count: int) -> int:
    return -(-count // 4) * 4
