"""Chunks cut short are an error and never values, whatever compressor made them."""

from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from numcodecs import Blosc as BloscV2
from zarr.codecs import BloscCodec

from vcinr_batch.config import SourceConfig
from vcinr_batch.data.sources import open_fields, read_extent
from vcinr_batch.errors import DamagedSourceError

COMPRESSORS = {2: BloscV2(cname="lz4", clevel=1), 3: BloscCodec(cname="zstd", typesize=4)}


@pytest.fixture(params=[2, 3], ids=["zarr 2", "zarr 3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, np.ndarray]:
    """One Blosc chunk per hour of noise, which does not compress."""
    values = np.random.default_rng(0).standard_normal((4, 40, 50)).astype(np.float32)
    axes = {"time": np.arange(4), "y": np.arange(40), "x": np.arange(50)}
    dataset = xarray.Dataset({"t": (("time", "y", "x"), values, {"units": "K"})}, axes)
    encoding = {"t": {"chunks": (1, 40, 50), "compressors": [COMPRESSORS[request.param]]}}
    path = tmp_path / "t.zarr"
    dataset.to_zarr(path, zarr_format=request.param, encoding=encoding, consolidated=request.param == 2)
    return path, values


def read(path: Path, hour: int) -> np.ndarray:
    source = open_fields(str(path), SourceConfig(variable="t"))
    return read_extent(source, (slice(hour, hour + 1), slice(None), slice(None)))[0]


def chunk_files(path: Path) -> list[Path]:
    return sorted(file for file in (path / "t").rglob("*") if file.is_file() and file.stat().st_size > 4000)


@pytest.mark.parametrize(
    "kept", [0, 10, 16, 4001, -1], ids=["nothing", "half a header", "header", "half", "all but one"]
)
def test_a_blosc_chunk_that_is_cut_short_is_damage(store: tuple[Path, np.ndarray], kept: int) -> None:
    path, values = store
    cut = chunk_files(path)[1]
    cut.write_bytes(cut.read_bytes()[:kept])
    np.testing.assert_array_equal(read(path, 0), values[0])
    with pytest.raises(DamagedSourceError, match=r"t\.zarr"):
        read(path, 1)


def test_whole_chunks_and_missing_ones_read_as_ever(store: tuple[Path, np.ndarray]) -> None:
    path, values = store
    chunk_files(path)[2].unlink()
    np.testing.assert_array_equal(read(path, 3), values[3])
    fill = zarr.open_group(path, mode="r")["t"].fill_value
    assert np.isnan(read(path, 2)).all() or (read(path, 2) == fill).all()
