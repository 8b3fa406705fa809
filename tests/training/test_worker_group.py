"""Several workers train like one: the same losses, the same samples, and nobody left waiting for another."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray

from vcinr_batch.config import FitConfig, MetaLearningConfig, NetworkConfig
from vcinr_batch.errors import ConfigError
from vcinr_batch.network.gated_siren import GatedSiren
from vcinr_batch.training.meta_learning import TrainingData, meta_learn
from vcinr_batch.training.worker_group import WorkerGroup, own_slice

PROCESS = Path(__file__).with_name("group_process.py")
KINDS = ["gate and localised basis", "gate, gradient", "sparse shift", "sparse shift, gradient", "some of the samples"]


def write_waves(path: Path) -> str:
    """40 hours of two travelling waves and a little noise on 6 x 8 points, one value missing."""
    hour, y, x = np.arange(40)[:, None, None], np.arange(6)[:, None], np.arange(8)
    values = 280 + y + 3 * np.sin(0.5 * x + 0.9 * hour) + 2 * np.cos(0.7 * y - 1.3 * hour)
    values = (values + 0.05 * np.random.default_rng(0).standard_normal(values.shape)).astype(np.float32)
    values[3, 2, 1] = np.nan
    axes = {
        "time": np.datetime64("2019-03-01", "ns") + np.arange(40) * np.timedelta64(1, "h"),
        "latitude": ("latitude", 60 - np.arange(6) * 0.5, {"units": "degrees_north"}),
        "longitude": ("longitude", np.arange(8) * 0.5, {"units": "degrees_east"}),
    }
    xarray.Dataset({"t2m": (("time", "latitude", "longitude"), values, {"units": "K"})}, axes).to_netcdf(path)
    return str(path)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], dict[str, Any]]:
    """What each worker saw, by (size of its group, rank)."""
    folder = tmp_path_factory.mktemp("groups")
    url = write_waves(folder / "t2m.nc")
    places = [(1, 0), (2, 0), (2, 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROCESS), url, str(folder / "meeting"), str(rank), str(size)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for size, rank in places
    ]
    found = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    return {place: json.loads(output) for place, output in zip(places, found, strict=True)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_of_twenty_steps_are_those_of_one_worker(
    reports: dict[tuple[int, int], dict[str, Any]], kind: str
) -> None:
    alone = reports[1, 0]["kinds"][kind]["losses"]
    together = reports[2, 0]["kinds"][kind]["losses"]
    assert len(alone) == 20
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    assert max(alone) > 1.01 * min(alone)  # they do change from step to step


@pytest.mark.parametrize("kind", KINDS)
def test_all_workers_end_with_the_same_weights_bit_for_bit(
    reports: dict[tuple[int, int], dict[str, Any]], kind: str
) -> None:
    assert reports[2, 0]["kinds"][kind]["weights"] == reports[2, 1]["kinds"][kind]["weights"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_does_not_depend_on_the_number_of_workers(
    reports: dict[tuple[int, int], dict[str, Any]], kind: str
) -> None:
    assert len({report["kinds"][kind]["samples"] for report in reports.values()}) == 1


@pytest.mark.parametrize(("count", "size"), [(7, 2), (7, 3), (3, 3), (0, 2)])
def test_every_thing_belongs_to_one_worker(count: int, size: int) -> None:
    parts = [list(range(count))[own_slice(WorkerGroup(rank, size), count)] for rank in range(size)]
    assert [thing for part in parts for thing in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_more_workers_than_samples_in_a_batch_are_refused() -> None:
    network = GatedSiren(NetworkConfig(latent_dim=2, hidden_dim=4), torch.zeros(4, 1), 1)
    data = TrainingData(torch.zeros(3, 4, 1), torch.zeros(1, 4, 1), torch.ones(4, dtype=torch.bool), 1.0)
    with pytest.raises(ConfigError, match="batch_size = 2, but there are 3 workers; take no more"):
        meta_learn(network, data, MetaLearningConfig(batch_size=2), FitConfig(), group=WorkerGroup(0, 3))


def test_what_the_first_worker_finds_all_have(reports: dict[tuple[int, int], dict[str, Any]]) -> None:
    assert {report["first"] for report in reports.values()} == {"from 0"}


def test_an_error_of_one_worker_is_everybodys(reports: dict[tuple[int, int], dict[str, Any]]) -> None:
    errors = {place: report["error"] for place, report in reports.items()}
    assert errors == {(size, rank): f"SourceError: worker {size - 1} cannot read" for size, rank in errors}
