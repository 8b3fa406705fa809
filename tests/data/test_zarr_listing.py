"""A Zarr store that is not the one it was is noticed: chunks replaced, gone or new, on disk and on an object store."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import xarray

from tests.servers.object_store import ObjectStore
from vcinr_batch.config import SourceConfig
from vcinr_batch.data import zarr_listing
from vcinr_batch.data.sources import FieldSource, check_source_unchanged, open_fields
from vcinr_batch.errors import SourceError


def write(url: str, options: dict[str, Any] | None, offset: float = 0.0) -> None:
    values = np.arange(4 * 3 * 5, dtype=np.float32).reshape(4, 3, 5) + offset
    axes = {"time": np.arange(4), "y": np.arange(3), "x": np.arange(5)}
    dataset = xarray.Dataset({"t": (("time", "y", "x"), values, {"units": "K"})}, axes)
    dataset.to_zarr(url, mode="w", encoding={"t": {"chunks": (1, 3, 5)}}, consolidated=False, storage_options=options)


def replace_chunk(fs: Any, chunk: str) -> None:
    data = bytearray(fs.cat_file(chunk))
    data[-1] ^= 1
    fs.pipe_file(chunk, bytes(data))


CHANGES: dict[str, Callable[[Any, str], None]] = {
    "replaced by one of the same size": replace_chunk,
    "gone": lambda fs, chunk: fs.rm_file(chunk),
    "new": lambda fs, chunk: fs.pipe_file(f"{chunk}9", b"x"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("place", ["disk", "object store"])
def test_a_chunk_that_changes_is_noticed(
    change: Callable[[Any, str], None], place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url, options = str(tmp_path / "t.zarr"), None
    if place == "object store":
        s3: ObjectStore = request.getfixturevalue("s3")
        url, options = f"{s3.url}/t.zarr", s3.storage_options
    write(url, options)
    source = open_fields(url, SourceConfig(variable="t"), options)
    check_source_unchanged(source)
    assert open_fields(url, SourceConfig(variable="t"), options).files == source.files
    fs, path = fsspec.core.url_to_fs(url, **(options or {}))
    fs.invalidate_cache()
    change(fs, f"{path}/t/c/2/0/0")
    assert open_fields(url, SourceConfig(variable="t"), options).files != source.files
    with pytest.raises(SourceError, match=r"t\.zarr was changed or removed"):
        check_source_unchanged(source)


@pytest.fixture
def local(tmp_path: Path) -> FieldSource:
    write(str(tmp_path / "t.zarr"), None)
    return open_fields(str(tmp_path / "t.zarr"), SourceConfig(variable="t"))


def test_what_else_lies_in_the_store_is_not_looked_at(local: FieldSource) -> None:
    folder = Path(local.urls[0]) / "archive" / "parts"
    folder.mkdir(parents=True)
    (folder / "x.parquet").write_bytes(b"x")
    check_source_unchanged(local)


def test_of_a_very_large_store_only_the_metadata_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_listing, "MAX_LISTED", 3)
    path = tmp_path / "t.zarr"
    write(str(path), None)
    source = open_fields(str(path), SourceConfig(variable="t"))
    os.utime(path / "t" / "c" / "2" / "0" / "0", (1, 1))
    check_source_unchanged(source)
    (path / "zarr.json").write_text((path / "zarr.json").read_text() + " ")
    with pytest.raises(SourceError):
        check_source_unchanged(source)
