"""Archives under dask's schedulers: whoever computes, and in whatever order, the bits are those without dask."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray

dask = pytest.importorskip("dask")

SCHEDULERS = {
    "synchronous": {"scheduler": "synchronous"},
    "threads": {"scheduler": "threads", "num_workers": 4},
    "processes": {"scheduler": "processes", "num_workers": 2},
}
PROGRAM = """
import pickle, sys
import dask, xarray
with dask.config.set(scheduler="threads"):
    dataset = pickle.load(open(sys.argv[1], "rb"))
    pickle.dump(dataset.astype("float64").mean("time").load(), open(sys.argv[2], "wb"))
"""


def opened(archive: Path, **options: object) -> xarray.Dataset:
    return xarray.open_dataset(archive, engine="vcinr", **options)  # type: ignore[arg-type]


def mean(dataset: xarray.Dataset) -> xarray.Dataset:
    """Sums of a few float32 are exact in float64: their order does not matter."""
    return dataset.astype("float64").mean("time")


@pytest.fixture(scope="module")
def expected(archive_path: Path) -> xarray.Dataset:
    """Without dask."""
    return mean(opened(archive_path).load())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_mean_over_time_is_the_same_to_the_last_bit(
    archive_path: Path, expected: xarray.Dataset, scheduler: str
) -> None:
    dataset = opened(archive_path, chunks={})
    assert len(dataset.t2m.chunks[0]) == 4  # parts: there is something to spread
    with dask.config.set(**SCHEDULERS[scheduler]):
        xarray.testing.assert_identical(mean(dataset).compute(), expected)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_chunks_across_parts_and_blocks_read_the_same_values(archive_path: Path, scheduler: str) -> None:
    dataset = opened(archive_path, chunks={"time": 7, "latitude": 5, "longitude": -1}, sample_info=True)
    with dask.config.set(**SCHEDULERS[scheduler]):
        found = dataset.isel(time=slice(None, None, -1)).compute()
    values = opened(archive_path, sample_info=True).isel(time=slice(None, None, -1)).load()
    assert set(found.coords) > {"time", "latitude", "longitude"}
    xarray.testing.assert_identical(found, values)
    np.testing.assert_array_equal(found.t2m_max_error, values.t2m_max_error)


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_a_pickled_dataset_computes_in_another_process(
    archive_path: Path, expected: xarray.Dataset, tmp_path: Path, chunks: dict[str, int] | None
) -> None:
    sent, back = tmp_path / "sent.pickle", tmp_path / "back.pickle"
    sent.write_bytes(pickle.dumps(opened(archive_path, chunks=chunks)))
    subprocess.run([sys.executable, "-c", PROGRAM, str(sent), str(back)], check=True)
    xarray.testing.assert_identical(pickle.loads(back.read_bytes()), expected)
