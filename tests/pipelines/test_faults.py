"""Whatever dies while an archive is written, it ends up with the bytes of a serial run, or is not there at all.

The workers are on a cluster of several node processes; what kills them happens inside them, at a known moment.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from pipelines import ray_crew, ray_session, shard_engine
from pipelines.compress import CompressJob, CompressProgress, compress
from pipelines.shard_attempts import Attempt
from pipelines.shard_worker import ShardWorker
from tests.ray_cluster import NODES, RayCluster, ray_cluster
from vcinr_batch.archive.archive import Archive
from vcinr_batch.cli import run
from vcinr_batch.compression import QualityRequest
from vcinr_batch.errors import SourceError
from vcinr_batch.verification import verify_archive

pytest.importorskip("ray")

Files = dict[str, bytes]
MANIFEST = "manifest.json.gz"


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    import ray

    with ray_cluster() as running:
        ray.init(address=running.address, log_to_driver=False, logging_level="ERROR")
        yield running
        ray.shutdown()


@pytest.fixture
def job(cluster: RayCluster, source_path: Path, bundle_path: Path, tmp_path: Path) -> Iterator[CompressJob]:
    """Ten shards of four samples, for two workers on two nodes."""
    yield CompressJob(
        (str(source_path),),
        str(bundle_path),
        str(tmp_path / "archive"),
        QualityRequest(level=2),
        shard_samples=4,
        workers=2,
        address=cluster.address,
    )
    cluster.restore()


@pytest.fixture(scope="module")
def serial(source_path: Path, bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """What a run without Ray writes."""
    output = str(tmp_path_factory.mktemp("serial") / "archive")
    compress(CompressJob((str(source_path),), str(bundle_path), output, QualityRequest(level=2), shard_samples=4))
    return files_below(output)


@dataclass(frozen=True)
class Fault:
    """What happens to a worker when it has a certain shard."""

    happens: Callable[[], object]
    times: int = 1
    late: bool = False
    """When the part is written and nobody knows of it yet, rather than before the shard is read."""


@pytest.fixture
def arrange(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[dict[int, Fault]], Path]:
    """Makes the workers meet faults by index of the shard. In the folder that comes back, `<index>` gets a byte each
    time; without the folder nothing happens.
    """

    def arrange(faults: dict[int, Fault]) -> Path:
        marks = tmp_path / "marks"
        marks.mkdir()
        for index in faults:
            (marks / str(index)).touch()

        class FaultyWorker(ShardWorker):
            def run(self, attempt: Attempt) -> Any:
                self.meet(attempt, late=False)
                return super().run(attempt)

            def _status(self, attempt: Attempt, result: Any) -> Any:
                self.meet(attempt, late=True)
                return super()._status(attempt, result)

            def meet(self, attempt: Attempt, late: bool) -> None:
                fault, mark = faults.get(attempt.shard.index), marks / str(attempt.shard.index)
                if fault and fault.late == late and mark.exists() and mark.stat().st_size < fault.times:
                    with mark.open("ab") as file:
                        file.write(b"x")
                    fault.happens()

        for module in (shard_engine, ray_crew):
            monkeypatch.setattr(module, "ShardWorker", FaultyWorker)
        return marks

    return arrange


Arrange = Callable[[dict[int, Fault]], Path]


def sizes(marks: Path) -> dict[int, int]:
    return {int(mark.name): mark.stat().st_size for mark in marks.iterdir()}


def kill_worker() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_node() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)


def hang() -> None:
    time.sleep(600)


def raise_defect() -> None:
    raise ZeroDivisionError("made by a test")


def raise_store_error() -> None:
    raise SourceError("s3://bucket/source: made by a test")


def files_below(folder: str | Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def archive_files(folder: str | Path) -> Files:
    """Without what a writer that was killed leaves beside the place of its file."""
    return {name: data for name, data in files_below(folder).items() if not name.endswith(".tmp")}


def test_a_cluster_writes_the_bytes_of_a_serial_run(job: CompressJob, serial: Files) -> None:
    report = compress(replace(job, workers=None))
    assert files_below(job.output) == serial
    assert (report.last.samples, report.last.retried, report.last.resumed_samples) == (40, 0, 0)


def test_workers_that_die_and_shards_that_fail_once_are_tried_again(
    job: CompressJob, serial: Files, arrange: Arrange
) -> None:
    faults = {
        1: Fault(kill_worker),
        3: Fault(kill_worker, late=True),
        5: Fault(raise_store_error),
        7: Fault(raise_defect, late=True),
    }
    marks = arrange(faults)
    report = compress(job)
    assert sizes(marks) == dict.fromkeys(faults, 1)
    assert archive_files(job.output) == serial
    # Nobody knows which of the shards in a worker has killed it: the other one is tried again, too.
    assert 4 <= report.last.retried <= 6


def test_a_node_that_is_lost_is_no_failure_of_its_shards(
    job: CompressJob, serial: Files, arrange: Arrange, cluster: RayCluster
) -> None:
    marks = arrange({2: Fault(kill_node, times=2)})
    restored = False

    def restore(_: CompressProgress) -> None:
        nonlocal restored
        if sizes(marks) == {2: 1} and not restored:
            restored = True
            while len(cluster.raylets()) == NODES:  # the mark comes before the blow
                time.sleep(0.05)
            cluster.restore()

    report = compress(job, restore)
    assert sizes(marks) == {2: 2}
    assert archive_files(job.output) == serial
    assert report.last.retried == 0


def test_shards_that_fail_every_time_are_given_up_and_the_others_are_kept(
    job: CompressJob, serial: Files, arrange: Arrange
) -> None:
    faults = {index: Fault(happens, 100) for index, happens in {2: kill_worker, 5: hang, 7: raise_store_error}.items()}
    marks = arrange(faults)
    seen: list[CompressProgress] = []
    with pytest.raises(
        SourceError, match=r"3 of 10 shards failed, the first is t2m-00000002: its worker died: .*SYSTEM"
    ):
        compress(replace(job, shard_timeout_seconds=4.0), seen.append)
    left = files_below(job.output)
    assert MANIFEST not in left
    assert (seen[-1].samples, seen[-1].failed_shards) == (28, 3)
    assert sizes(marks) == dict.fromkeys(faults, 3)
    failed = [status for status in map(json.loads, status_texts(job.output)) if status["state"] == "failed"]
    assert [status["attempts"] for status in failed] == [3, 3, 3]
    assert [len(status["errors"]) for status in failed] == [3, 3, 3]
    shutil.rmtree(marks)
    report = compress(replace(job, workers=0, address=None))
    assert report.last.resumed_samples == 28
    assert archive_files(job.output) == serial


def test_when_one_shard_after_the_other_fails_the_run_ends(
    job: CompressJob, arrange: Arrange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_engine, "FAILURES_IN_A_ROW", 2)
    arrange({index: Fault(raise_store_error, 100) for index in range(10)})
    with pytest.raises(SourceError, match=r"2 shards in a row failed.*made by a test; the same command"):
        compress(replace(job, workers=0, address=None))
    assert MANIFEST not in files_below(job.output)


DRIVER = """
import sys, time
from pipelines import ray_crew
from pipelines.shard_worker import ShardWorker

class SlowWorker(ShardWorker):
    def run(self, attempt):
        time.sleep(0.5)
        return super().run(attempt)

ray_crew.ShardWorker = SlowWorker
from vcinr_batch.cli import run
sys.exit(run(sys.argv[1:]))
"""


def start_driver(job: CompressJob) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", DRIVER, *arguments(job)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def arguments(job: CompressJob) -> list[str]:
    options = {
        "--bundle": job.bundle,
        "--output": job.output,
        "--quality": str(job.request.level),
        "--shard-samples": str(job.shard_samples),
        "--workers": str(job.workers),
        "--address": str(job.address),
        "--storage-options": json.dumps(dict(job.storage_options)),
    }
    return ["compress", *job.sources, *[text for pair in options.items() for text in pair], "--json"]


def status_texts(output: str) -> list[str]:
    return [path.read_text() for path in sorted(Path(output).glob("status/*/t2m-*.json"))]


def wait_for_statuses(driver: subprocess.Popen[bytes], output: str, count: int) -> None:
    while len(status_texts(output)) < count:
        assert driver.poll() is None
        time.sleep(0.05)


def test_after_a_driver_was_killed_the_same_command_does_the_rest(
    job: CompressJob, serial: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = start_driver(job)
    wait_for_statuses(driver, job.output, 3)
    driver.kill()
    driver.communicate()
    assert MANIFEST not in files_below(job.output)
    assert run(arguments(job)) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["event"] == "done"
    assert 12 <= done["resumed"] < 40
    assert archive_files(job.output) == serial


def test_two_drivers_of_the_same_archive_both_end_well(job: CompressJob, serial: Files) -> None:
    one_worker = replace(job, workers=1)
    driver = start_driver(one_worker)
    wait_for_statuses(driver, job.output, 1)  # from here on both are at work: this one has no pauses
    report = compress(one_worker)
    _, error = driver.communicate()
    assert (driver.returncode, error) == (0, b"")
    assert report.summary.figures.samples == 40
    assert archive_files(job.output) == serial
    assert verify_archive(job.output).is_good


def test_an_archive_of_a_driver_that_died_before_it_had_tidied_up_is_tidied_up(
    job: CompressJob, serial: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as dying:
        dying.setattr("pipelines.compress.remove_statuses", lambda *_: None)
        compress(replace(job, workers=0, address=None))
    assert len(status_texts(job.output)) == 10
    report = compress(job)
    assert archive_files(job.output) == serial
    assert report.summary.figures.samples == 40
    assert len(Archive.open(job.output).rows()) == 40


def test_a_run_without_room_says_so_and_goes_on_when_a_node_joins(
    job: CompressJob, serial: Files, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "NOTICE_SECONDS", (0.0, 300.0))
    told: Queue[str] = Queue()
    with ThreadPoolExecutor() as aside:
        run = aside.submit(compress, replace(job, num_gpus=1.0), notice=told.put)
        assert told.get() == "waiting for 1 GPU: the cluster has 0"
        cluster.join(num_cpus=1, num_gpus=1)
        run.result()
    assert told.empty()
    assert archive_files(job.output) == serial
