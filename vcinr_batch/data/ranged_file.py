"""A file on a store as HDF5 wants it: read only, many small reads of metadata, few large ones of chunks.

fsspec's own file objects read ahead, s3fs by 50 MiB at a time. Here a small read fetches the blocks that it touches and
keeps the last ones; a large one, a chunk, fetches exactly its bytes. Two of 48 hours of a global half-degree field,
counted at a proxy in front of the store (bytes and requests of reading, opening left out):

    chunks of                        needed    64 KiB blocks      256 KiB          1 MiB       fsspec's
    1 hour, deflated (660 kB)        1.3 MB    1.3 MB,  2    1.3 MB,  2    3.2 MB, 3    32 MB, 2
    6 hours x 31 x 60 (33 kB)        4.1 MB    4.5 MB, 68    5.0 MB, 19    6.3 MB, 6    33 MB, 2
    contiguous                       2.1 MB    2.1 MB,  1    2.1 MB,  1    2.1 MB, 1    50 MB, 2
"""

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from vcinr_batch.storage import read_bytes, size_bytes

BLOCK_BYTES = 256 << 10
_KEPT_BLOCKS = 16


class RangedFile(io.RawIOBase):
    """Bytes of a URL, fetched by ranges when they are read; each fetch is retried by itself.

    Raises:
        StoreUnavailableError: from every read, where the store does not answer.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        super().__init__()
        self._url = url
        self._storage_options = dict(storage_options)
        self._size = size_bytes(url, storage_options=storage_options)
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.RLock()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        with self._lock:
            start = self._position
            stop = max(start, min(start + len(view), self._size))
            data = self._small(start, stop) if stop - start < BLOCK_BYTES else self._fetch(start, stop)
            self._position = start + len(data)
        view[: len(data)] = data
        return len(data)

    def _small(self, start: int, stop: int) -> bytes:
        first = start // BLOCK_BYTES
        blocks = b"".join(self._block(i) for i in range(first, -(-stop // BLOCK_BYTES)))
        return blocks[start - first * BLOCK_BYTES : stop - first * BLOCK_BYTES]

    def _block(self, index: int) -> bytes:
        if index not in self._blocks:
            start = index * BLOCK_BYTES
            self._blocks[index] = self._fetch(start, min(start + BLOCK_BYTES, self._size))
        self._blocks.move_to_end(index)
        while len(self._blocks) > _KEPT_BLOCKS:
            self._blocks.popitem(last=False)
        return self._blocks[index]

    def _fetch(self, start: int, stop: int) -> bytes:
        return read_bytes(self._url, start, stop, storage_options=self._storage_options)
