"""What an archive costs its reader, counted on a wrapped file system: the limits that the README states."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import request_benchmark
from pipelines.counted_files import Asked, CountedFileSystem, counted_url
from pipelines.request_benchmark import Reading, make_archives, measure
from tests.archive.made_up_values import decode
from vcinr_batch import compression
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.manifest import commit_manifest
from vcinr_batch.archive.parquet_container import write_part

MOST_TO_OPEN, MOST_TO_READ, MOST_BYTES_BESIDE = 4, 2, 64 << 10
"""Requests, requests, bytes."""
WAYS = {"api": request_benchmark.open_api, "engine": request_benchmark.open_engine}


def assert_cheap(cost: Reading) -> None:
    assert 1 <= len(cost.opening) <= MOST_TO_OPEN
    for asked, payload in zip((cost.first, cost.second), cost.payload_bytes, strict=True):
        assert 1 <= len(asked) <= MOST_TO_READ
        assert sum(one.bytes for one in asked) - payload <= MOST_BYTES_BESIDE


def names(asked: list[Asked]) -> list[str]:
    return sorted(f"{one.kind} {'/'.join(one.path.split('/zarr/')[1:])}" for one in asked)


@pytest.fixture
def unopened_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows decode without a bundle: it is fetched once per machine, and not counted here."""
    monkeypatch.setattr(compression, "decompress_rows", lambda rows, _opened, layout, _bound: decode(rows, layout))
    monkeypatch.setattr(Archive, "opened_bundle", lambda _: None)


@pytest.fixture
def large(tmp_path: Path, layouts: Any, row_of: Any, manifest_of: Any) -> Callable[[int, int], str]:
    """Writes a number of samples in parts of some: each with 300 bytes of payload, and errors that do not compress."""

    def write(samples: int, per_part: int) -> str:
        layout, random, parts = layouts(samples), np.random.default_rng(0), []
        for first in range(0, samples, per_part):
            stop = min(first + per_part, samples)
            rows = [
                row_of(layout, (i, 0, 0), payload=random.bytes(300), rmse=random.random(), max_error=random.random())
                for i in range(first, stop)
            ]
            name = f"t2m-{first:08d}"
            parts.append(write_part(rows, layout, str(tmp_path), name, start=(first, 0, 0), stop=(stop, 1, 1)))
        commit_manifest(manifest_of(layout, tuple(parts)), str(tmp_path))
        return str(tmp_path)

    return write


@pytest.fixture
def archives(archive_path: Path, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A thousand samples in eight parts, as Parquet and as Zarr, with a real bundle."""
    yield make_archives(str(archive_path), str(tmp_path), 1000, 128)
    CountedFileSystem.asked.clear()


@pytest.mark.parametrize("way", WAYS)
def test_a_sample_of_a_thousand_costs_no_more_than_promised(way: str, archives: tuple[str, str]) -> None:
    for path in archives:
        assert_cheap(measure(path, WAYS[way]))


@pytest.mark.usefixtures("unopened_bundle")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("samples", "per_part"), [(1000, 512), (1000, 100), (4096, 4096)])
def test_a_sample_of_large_parts_costs_no_more_than_promised(
    way: str, samples: int, per_part: int, large: Callable[[int, int], str]
) -> None:
    cost = measure(large(samples, per_part), WAYS[way])
    assert_cheap(cost)
    assert (len(cost.opening), len(cost.first), len(cost.second)) == (2, 2, 1)


def test_the_values_come_back(archives: tuple[str, str]) -> None:
    counted, plain = (Archive.open(url) for url in (counted_url(archives[0]), archives[0]))
    selection = {"time": "2019-03-12T05"}
    np.testing.assert_array_equal(counted.to_xarray(selection).t2m, plain.to_xarray(selection).t2m)


def test_open_zarr_asks_for_metadata_and_coordinates_and_a_small_part_whole(archives: tuple[str, str]) -> None:
    cost = measure(archives[1], request_benchmark.open_zarr_3)
    # xarray reads the first and the last time before all of them, each time the chunk.
    coordinates = ["get latitude/c/0", "get longitude/c/0", *3 * ["get time/c/0"]]
    assert names(list(cost.opening)) == [*coordinates, "get zarr.json"]
    assert names(list(cost.first)) == ["get manifest.json.gz", "get t2m/c/4/0/0"]
    assert len(cost.first) <= MOST_TO_READ
    assert sum(one.bytes for one in cost.first) - cost.payload_bytes[0] <= MOST_BYTES_BESIDE
    assert cost.second == []
    probes = measure(archives[1], request_benchmark.open_zarr).opening
    missing = {name for name in names(list(probes)) if name.startswith("get, nothing there")}
    assert missing == {f"get, nothing there {name}" for name in (".zattrs", ".zgroup", ".zmetadata")}
    assert len(probes) == len(cost.opening) + len(missing)


def test_a_long_axis_of_even_steps_costs_a_reader_of_zarr_little(archives: tuple[str, str]) -> None:
    # Measured: 305 to 330 bytes for 1000 hours; 1573 with Zarr's own choice of codecs.
    assert Path(archives[1], "time", "c", "0").stat().st_size < 512
