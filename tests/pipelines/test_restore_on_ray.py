"""Restores on Ray workers, from S3 to S3: the same bytes as in one process, whoever dies on the way."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import xarray

from pipelines import decompress as driver
from pipelines import restore_regions
from pipelines.decompress import decompress
from tests.servers.object_store import ObjectStore
from vcinr_batch.archive.archive import Archive
from vcinr_batch.errors import SourceError

ray = pytest.importorskip("ray")

SUFFIXES = [".nc", ".zarr"]
PROGRAM = """
import os, signal, sys
from pipelines import decompress as driver, restore_regions
restore_regions.CHUNK_VALUES, driver.ZARR_REGION_VALUES, driver.NETCDF_REGION_VALUES = 200, 400, 400
def progress(now):
    if now.samples > 10:
        os.kill(os.getpid(), signal.SIGKILL)
driver.decompress(sys.argv[1], sys.argv[2], workers=0, progress=progress)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray with two workers, for all tests of this file."""
    with driver.ray_session(None, 2):
        yield


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 chunks of 2 fields, 10 regions. The driver cuts, so that the workers need not know."""
    monkeypatch.setattr(restore_regions, "CHUNK_VALUES", 200)
    monkeypatch.setattr(driver, "ZARR_REGION_VALUES", 400)
    monkeypatch.setattr(driver, "NETCDF_REGION_VALUES", 400)


def contents(url: str, options: dict[str, Any] | None = None) -> dict[str, bytes]:
    """All files of an output by their path within it."""
    fs, path = fsspec.core.url_to_fs(url, **(options or {}))
    fs.invalidate_cache()
    return {name.removeprefix(path): fs.cat_file(name) for name in fs.find(path)}


@pytest.fixture(params=SUFFIXES)
def expected(request: pytest.FixtureRequest, archive_path: Path, tmp_path: Path) -> tuple[str, dict[str, bytes]]:
    """The ending, and what one process without Ray writes."""
    decompress(str(archive_path), str(tmp_path / f"one{request.param}"), workers=0)
    return request.param, contents(str(tmp_path / f"one{request.param}"))


@pytest.mark.usefixtures("cluster")
def test_from_s3_to_s3_on_two_workers(
    archive_path: Path, s3: ObjectStore, expected: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    suffix, files = expected
    fs = fsspec.filesystem("s3", **s3.storage_options)
    fs.put(str(archive_path), f"{s3.bucket}/archive", recursive=True)
    output = f"{s3.url}/restored/out{suffix}"
    report = decompress(f"{s3.url}/archive", output, storage_options=s3.storage_options, workers=2)
    assert contents(output, s3.storage_options) == files
    assert report.output_bytes == sum(map(len, files.values()))
    assert not s3.unfinished_uploads()
    assert not [key for key in s3.keys() if "vcinr-" in key]  # noqa: SIM118 (no mapping)
    fs.get(f"{s3.bucket}/restored/out{suffix}", str(tmp_path / f"copy{suffix}"), recursive=True)
    reader = xarray.open_dataset if suffix == ".nc" else xarray.open_zarr
    with reader(tmp_path / f"copy{suffix}") as found:
        xarray.testing.assert_allclose(found.load(), Archive.open(str(archive_path)).to_xarray(), rtol=1e-6)


def dies_once(function: Callable[[Any, Any], Any], marker: Path) -> Callable[[Any, Any], Any]:
    """The function, except that the first worker to call it is killed in the middle of the run."""

    def call(shared: Any, item: Any) -> Any:
        result = function(shared, item)
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_killed_costs_nothing(
    archive_path: Path, expected: tuple[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suffix, files = expected
    name = {".nc": "read_region", ".zarr": "write_region"}[suffix]
    monkeypatch.setattr(driver, name, dies_once(getattr(driver, name), tmp_path / "killed"))
    decompress(str(archive_path), str(tmp_path / f"out{suffix}"), workers=2)
    assert contents(str(tmp_path / f"out{suffix}")) == files
    assert (tmp_path / "killed").exists()


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_error_on_a_worker_comes_out_as_itself_and_leaves_nothing(
    archive_path: Path, tmp_path: Path, suffix: str
) -> None:
    archive = Path(shutil.copytree(archive_path, tmp_path / "archive"))
    (part,) = (archive / "parts").glob("t2m-00000002-*")
    part.unlink()
    with pytest.raises(SourceError, match="t2m-00000002"):
        decompress(str(archive), str(tmp_path / f"out{suffix}"), workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


@pytest.mark.usefixtures("cluster")
def test_what_workers_write_where_the_driver_does_not_see_it_is_an_error(archive_path: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="all machines share"):
        decompress(str(archive_path), f"memory://{tmp_path}/out.zarr", workers=2)


def test_a_run_that_was_killed_is_completed_by_the_same_command(
    archive_path: Path, expected: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    suffix, files = expected
    output = tmp_path / "killed" / f"out{suffix}"
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(archive_path), str(output)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not output.exists()
    decompress(str(archive_path), str(output), workers=0)
    assert contents(str(output)) == files
    assert [path.name for path in output.parent.iterdir()] == [output.name]
