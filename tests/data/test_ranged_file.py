"""A remote file reads like a local one, in ranges."""

import io
import os
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

from vcinr_batch import storage
from vcinr_batch.data import ranged_file
from vcinr_batch.data.ranged_file import RangedFile

DATA = os.urandom(10_000)
URL = "memory://ranged/file"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Ranges that were asked of the store, blocks being 1000 bytes and four of them kept."""
    ranges: list[tuple[int, int]] = []

    def read_bytes(url: str, start: int, stop: int, **options: Any) -> bytes:
        ranges.append((start, stop))
        return storage.read_bytes(url, start, stop, **options)

    monkeypatch.setattr(ranged_file, "read_bytes", read_bytes)
    monkeypatch.setattr(ranged_file, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(ranged_file, "_KEPT_BLOCKS", 4)
    storage.write_bytes(URL, DATA)
    yield ranges
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize(
    ("offset", "whence", "length"),
    [
        (0, os.SEEK_SET, 8),
        (999, os.SEEK_SET, 2),
        (1500, os.SEEK_SET, 999),
        (2500, os.SEEK_SET, 4321),
        (-5, os.SEEK_END, 50),
        (9_000, os.SEEK_SET, 5_000),
        (0, os.SEEK_END, 10),
        (20_000, os.SEEK_SET, 10),
        (3, os.SEEK_SET, 0),
        (0, os.SEEK_SET, -1),
    ],
)
def test_every_read_is_what_a_local_file_gives(
    fetched: list[tuple[int, int]], offset: int, whence: int, length: int
) -> None:
    local, remote = io.BytesIO(DATA), RangedFile(URL, {})
    assert remote.seek(offset, whence) == local.seek(offset, whence)
    assert remote.read(length) == local.read(length)
    assert remote.tell() == local.tell()
    assert len(fetched) <= 6


def test_a_small_read_fetches_blocks_once_and_a_large_one_exactly_its_bytes(fetched: list[tuple[int, int]]) -> None:
    file = RangedFile(URL, {})
    for offset, length in [(10, 20), (500, 100), (990, 20), (3500, 2500), (9990, 10)]:
        file.seek(offset)
        assert file.read(length) == DATA[offset : offset + length]
    assert fetched == [(0, 1000), (1000, 2000), (3500, 6000), (9000, 10000)]


def test_only_the_last_blocks_are_kept(fetched: list[tuple[int, int]]) -> None:
    file = RangedFile(URL, {})
    for block in (0, 1, 2, 3, 4, 0):
        file.seek(1000 * block)
        file.read(10)
    assert fetched.count((0, 1000)) == 2
