"""Training as a job: alone, on Ray Train, on an object store, and what is left of it when something is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from pipelines import train as driver_module
from pipelines.ray_session import ray_session
from pipelines.train import TrainWorkers, train
from pipelines.train_worker import run_identity
from tests.servers.object_store import ObjectStore
from vcinr_batch import cli
from vcinr_batch.config import RunConfig, load_config
from vcinr_batch.data.sources import open_fields
from vcinr_batch.errors import ConfigError, SourceError
from vcinr_batch.storage import list_urls, read_bytes, write_bytes

STEPS = 40
CONFIG = f"""
source: {{variable: t2m}}
network: {{latent_dim: 4, hidden_dim: 8, hidden_layers: 1, rank: 2, hyper_dim: 8, linear_term: eof}}
meta_learning: {{steps: {STEPS}, validate_every: 2, batch_size: 8, fit_points: 24, loss_points: 12}}
codec: {{steps: 10, quality_psnr_db: [20, 30, 40]}}
"""


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def config(config_file: Path) -> RunConfig:
    return load_config(str(config_file))


@pytest.fixture(scope="module")
def alone(config: RunConfig, source_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run in one thread of this process."""
    output = tmp_path_factory.mktemp("alone")
    with one_thread():
        train(config, [str(source_path)], str(output))
    return output


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a Ray of two CPUs that this process is connected to."""
    environment = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    with ray_session("local", 2) as ray:
        yield ray.get_runtime_context().gcs_address
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def metrics(output: str | Path, options: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    (url,) = list_urls(f"{output}/training/*/metrics.jsonl", storage_options=options)
    data = read_bytes(url, storage_options=options)
    return [json.loads(line) for line in data.decode().splitlines()]


def losses(output: str | Path, options: dict[str, Any] | None = None) -> list[float]:
    """Of every second step, each once and in order."""
    lines = [line for line in metrics(output, options) if line["stage"] == "meta-learning"]
    assert [line["step"] for line in lines] == list(range(2, STEPS + 1, 2))
    return [line["loss"] for line in lines]


def bundles(output: Path) -> list[str]:
    return [path.name for path in output.glob("*.safetensors")]


def checkpoints(output: Path) -> list[Path]:
    return list(output.glob("checkpoint-*.safetensors"))


def worker_processes() -> list[psutil.Process]:
    """Ray Train's workers among this process's descendants."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_training_alone_leaves_the_bundle_and_the_log(alone: Path) -> None:
    assert len(bundles(alone)) == 1  # and no checkpoint
    assert len(losses(alone)) == STEPS // 2
    assert metrics(alone)[0].keys() == {"time", "stage", "step", "steps", "loss", "validation_psnr_db", "best_psnr_db"}
    assert len(list(alone.glob("training/*/tensorboard/*"))) == 1


def test_another_training_in_the_same_output_at_the_same_time_changes_nothing(
    config: RunConfig, config_file: Path, source_path: Path, alone: Path, tmp_path: Path
) -> None:
    """Begun and ended while the first is under way; each has its own checkpoint and log."""
    other = load_config(str(config_file), ["meta_learning.seed=1"])
    logs, found = [], []

    def meanwhile(stage: str, step: int, _steps: int, _figures: dict[str, float]) -> None:
        if (stage, step) == ("meta-learning", 8):
            before = checkpoints(tmp_path)
            logs.append(train(other, [str(source_path)], str(tmp_path)).log_url)
            found.extend([before, checkpoints(tmp_path)])

    with one_thread():
        report = train(config, [str(source_path)], str(tmp_path), progress=meanwhile)
    assert (len(found[0]), found[0]) == (1, found[1])
    assert checkpoints(tmp_path) == []
    assert set(bundles(alone)) < set(bundles(tmp_path))
    assert len(bundles(tmp_path)) == 2
    assert {report.log_url, *logs} == {str(path) for path in (tmp_path / "training").iterdir()}
    assert read_bytes(f"{report.log_url}/metrics.jsonl").count(b"meta-learning") == STEPS // 2


def test_the_same_training_twice_at_the_same_time_ends_well_twice(
    config: RunConfig, source_path: Path, alone: Path, tmp_path: Path
) -> None:
    def meanwhile(stage: str, step: int, _steps: int, _figures: dict[str, float]) -> None:
        if (stage, step) == ("meta-learning", 8):
            train(config, [str(source_path)], str(tmp_path))

    with one_thread():
        train(config, [str(source_path)], str(tmp_path), progress=meanwhile)
    assert bundles(tmp_path) == bundles(alone)
    assert losses(tmp_path) == losses(alone)


def test_a_training_is_known_by_its_configuration_and_its_files_wherever_it_is_called(
    config: RunConfig, config_file: Path, source_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.nc"
    copy.write_bytes(source_path.read_bytes())
    identity = run_identity(config, open_fields([str(copy)], config.source))
    monkeypatch.chdir(tmp_path)
    assert run_identity(config, open_fields(["copy.nc"], config.source)) == identity
    other = load_config(str(config_file), ["codec.steps=11"])
    assert run_identity(other, open_fields([str(copy)], other.source)) != identity
    os.utime(copy, ns=(0, 0))
    assert run_identity(config, open_fields([str(copy)], config.source)) != identity


@pytest.mark.usefixtures("cluster")
def test_one_worker_gives_the_bundle_of_none(config: RunConfig, source_path: Path, alone: Path, tmp_path: Path) -> None:
    train(config, [str(source_path)], str(tmp_path), workers=TrainWorkers(1))
    assert bundles(tmp_path) == bundles(alone)
    assert losses(tmp_path) == losses(alone)


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_is_replaced_and_the_losses_are_those_of_an_undisturbed_run(
    config: RunConfig, source_path: Path, alone: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_one(stage: str, step: int, _steps: int, _figures: dict[str, float]) -> None:
        # Progress is asked for now and then: any one step may not be seen.
        if stage == "meta-learning" and step >= 4 and not killed and (workers := worker_processes()):
            workers[-1].send_signal(signal.SIGKILL)
            killed.append(step)

    report = train(config, [str(source_path)], str(tmp_path), progress=kill_one, workers=TrainWorkers(2))
    assert killed
    assert bundles(tmp_path) == [f"{report.bundle_sha256}.safetensors"]
    np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=1e-4)


@pytest.mark.usefixtures("cluster")
def test_everything_on_an_object_store(config: RunConfig, source_path: Path, alone: Path, s3: ObjectStore) -> None:
    """Source, checkpoint, bundle and log; the log and all else hold no credentials."""
    options = s3.storage_options
    write_bytes(f"{s3.url}/in/fields.nc", source_path.read_bytes(), storage_options=options)
    report = train(
        config,
        [f"{s3.url}/in/fields.nc"],
        f"{s3.url}/out",
        f"{s3.url}/state/checkpoint",
        storage_options=options,
        workers=TrainWorkers(2),
    )
    events, *others = list_urls(f"{report.log_url}/tensorboard", storage_options=options)
    lines = f"{report.log_url}/metrics.jsonl".removeprefix(f"{s3.url}/")
    names = {f"out/{report.bundle_sha256}.safetensors", lines, "in/fields.nc"}
    assert set(s3.keys()) == names | {events.split("/", 3)[-1]}
    assert others == []
    np.testing.assert_allclose(losses(f"{s3.url}/out", options), losses(alone), rtol=1e-4)
    assert s3.secret not in json.dumps(metrics(f"{s3.url}/out", options))


@pytest.mark.usefixtures("cluster")
def test_an_error_of_ours_comes_out_as_itself(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no-such\.nc") as caught:
        train(config, [str(tmp_path / "no-such.nc")], str(tmp_path / "out"), workers=TrainWorkers(2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_says_what_it_waits_for(
    as_json: bool, config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wait(*arguments: Any) -> None:
        arguments[-1]("waiting for 1 GPU: the cluster has 0")
        raise KeyboardInterrupt

    monkeypatch.setattr(driver_module, "train", wait)
    command = ["train", str(config_file), "a.nc", "--output", "models", *(["--json"] if as_json else [])]
    assert cli.run(command) == 130
    event = '{"event":"waiting","message":"waiting for 1 GPU: the cluster has 0"}\n'
    lines = (
        ("vcinr: interrupted\n", event)
        if as_json
        else ("vcinr: waiting for 1 GPU: the cluster has 0\nvcinr: interrupted\n", "")
    )
    assert capsys.readouterr() == lines[::-1]


@pytest.fixture
def start_vcinr(
    cluster: str, config_file: Path, source_path: Path, tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `vcinr train` as a driver of its own on the cluster; killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(*more: str) -> subprocess.Popen[str]:
        # Whoever started the tests in the background may have had them ignore Ctrl-C.
        heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        program = f"{heeding}; from vcinr_batch.cli import main; main()"
        command = [sys.executable, "-c", program, "train", str(config_file)]
        options = ["--output", str(tmp_path / "out"), "--num-workers", "2", "--address", cluster, "--json", *more]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen([*command, str(source_path), *options], stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_until_gone(processes: Callable[[], list[psutil.Process]]) -> None:
    """The workers of a driver that has ended are Ray's to stop."""
    deadline = time.monotonic() + 120
    while processes():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_a_killed_driver_is_resumed_by_the_same_command(
    start_vcinr: Callable[..., subprocess.Popen[str]], alone: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    driver = start_vcinr()
    wait_for(lambda: checkpoints(output) != [], driver)
    driver.kill()
    driver.wait()
    wait_until_gone(worker_processes)
    if checkpoints(output):  # else the workers were faster than Ray
        again = start_vcinr()
        stdout, stderr = again.communicate()
        assert (again.returncode, stderr) == (0, "")
        assert json.loads(stdout.splitlines()[-1])["event"] == "done"
    assert len(bundles(output)) == 1
    np.testing.assert_allclose(losses(output), losses(alone), rtol=1e-4)


def test_ctrl_c_stops_the_workers_and_leaves_a_checkpoint(
    start_vcinr: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    driver = start_vcinr()
    wait_for(lambda: checkpoints(tmp_path / "out") != [], driver)
    driver.send_signal(signal.SIGINT)
    _, stderr = driver.communicate()
    assert (driver.returncode, stderr) == (130, "vcinr: interrupted\n")
    wait_until_gone(worker_processes)


def test_ctrl_c_ends_a_training_that_waits_for_room(
    start_vcinr: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    driver = start_vcinr("--cpus-per-worker", "64")
    assert driver.stdout
    notice = json.loads(driver.stdout.readline())
    assert notice == {"event": "waiting", "message": "waiting for 128 CPUs: the cluster has 2"}
    driver.send_signal(signal.SIGINT)
    _, stderr = driver.communicate()
    assert (driver.returncode, stderr) == (130, "vcinr: interrupted\n")
    assert checkpoints(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ({"count": -1}, "0 or more workers"),
        ({"count": 2, "cpus": 0}, "1 or more CPUs"),
        ({"use_gpu": True}, "give --num-workers 1 or more"),
        ({"address": "auto"}, "give --num-workers 1 or more"),
    ],
)
def test_workers_that_cannot_be_are_refused(workers: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainWorkers(**workers)
