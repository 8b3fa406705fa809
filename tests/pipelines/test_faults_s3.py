"""The same promises with source, bundle and archive in an object store, and where the store itself has bad days."""

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines import ray_crew
from pipelines.compress import CompressJob, CompressProgress, compress
from pipelines.shard_attempts import Attempt
from pipelines.shard_worker import ShardWorker
from tests.servers.fixtures import FaultyStore
from tests.servers.object_store import ObjectStore
from vcinr_batch.cli import run
from vcinr_batch.compression import QualityRequest
from vcinr_batch.errors import SourceError
from vcinr_batch.verification import open_original, verify_archive

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def serial(source_path: Path, bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """What a run on local files writes."""
    output = tmp_path_factory.mktemp("serial") / "archive"
    compress(CompressJob((str(source_path),), str(bundle_path), str(output), QualityRequest(level=2), shard_samples=4))
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def upload(store: ObjectStore, source_path: Path, bundle_path: Path) -> CompressJob:
    """Ten shards of four samples, everything in the store."""
    for path, name in ((source_path, "data/fields.nc"), (bundle_path, f"models/{bundle_path.name}")):
        store.client().put_object(Bucket=store.bucket, Key=name, Body=path.read_bytes())
    return CompressJob(
        (f"{store.url}/data/fields.nc",),
        f"{store.url}/models",
        f"{store.url}/archive",
        QualityRequest(level=2),
        shard_samples=4,
        storage_options=store.storage_options,
    )


def stored_files(store: ObjectStore) -> Files:
    client, names = store.client(), [name for name in store.keys() if name.startswith("archive/")]  # noqa: SIM118
    read = (client.get_object(Bucket=store.bucket, Key=name)["Body"].read() for name in names)
    return dict(zip((name.removeprefix("archive/") for name in names), read, strict=True))


def test_a_worker_killed_on_an_object_store_leaves_nothing_and_changes_nothing(
    s3: ObjectStore,
    serial: Files,
    source_path: Path,
    bundle_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray")
    mark = tmp_path / "died"

    class DyingWorker(ShardWorker):
        def _status(self, attempt: Attempt, result: Any) -> Any:
            if attempt.shard.index == 3 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._status(attempt, result)

    monkeypatch.setattr(ray_crew, "ShardWorker", DyingWorker)
    job = replace(upload(s3, source_path, bundle_path), workers=2)
    report = compress(job)
    assert mark.exists()
    assert stored_files(s3) == serial
    assert 1 <= report.last.retried <= 2
    original = open_original(job.output, job.sources, None, job.storage_options)
    assert verify_archive(job.output, original, storage_options=job.storage_options).is_good


def test_a_store_that_is_busy_and_cuts_downloads_short_changes_nothing(
    faulty_s3: FaultyStore, serial: Files, source_path: Path, bundle_path: Path
) -> None:
    job = upload(faulty_s3, source_path, bundle_path)
    faulty_s3.faults.busy_share, faulty_s3.faults.cut_share, faulty_s3.faults.cut_above_bytes = 0.2, 0.2, 100
    compress(job)
    counts = faulty_s3.proxy.counts
    faulty_s3.proxy.reset()
    assert counts["busy"] > 5
    assert counts["cut"] > 1
    assert stored_files(faulty_s3) == serial


def test_a_store_that_is_away_for_half_a_minute_costs_half_a_minute(
    faulty_s3: FaultyStore, serial: Files, source_path: Path, bundle_path: Path
) -> None:
    def stop(progress: CompressProgress) -> None:
        if progress.samples == 20:
            faulty_s3.faults.down_for(30.0)

    compress(upload(faulty_s3, source_path, bundle_path), stop)
    assert faulty_s3.proxy.counts["down"] > 0
    assert stored_files(faulty_s3) == serial


def test_a_run_that_loses_the_store_goes_on_later(
    faulty_s3: FaultyStore,
    serial: Files,
    source_path: Path,
    bundle_path: Path,
) -> None:
    job = upload(faulty_s3, source_path, bundle_path)

    def stop(progress: CompressProgress) -> None:
        if progress.samples == 20:
            raise SourceError("the driver lost its store")

    with pytest.raises(SourceError, match="lost its store"):
        compress(job, stop)
    left = stored_files(faulty_s3)
    assert "manifest.json.gz" not in left
    assert compress(job).last.resumed_samples == 20
    assert stored_files(faulty_s3) == serial


def test_two_drivers_on_a_store_both_end_well(
    s3: ObjectStore, serial: Files, source_path: Path, bundle_path: Path
) -> None:
    job = upload(s3, source_path, bundle_path)
    meet = threading.Barrier(2, timeout=120)
    failures: list[BaseException] = []

    def drive() -> None:
        try:
            compress(job, lambda progress: meet.wait() if progress.samples in (0, 40) else None)
        except BaseException as error:  # whatever it is, the test has to fail
            failures.append(error)

    drivers = [threading.Thread(target=drive) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert failures == []
    assert stored_files(s3) == serial


def test_no_credential_is_in_what_a_run_leaves_or_prints(
    s3: ObjectStore, source_path: Path, bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = upload(s3, source_path, bundle_path)

    def stop(progress: CompressProgress) -> None:
        if progress.samples == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(job, stop)
    left = b"".join(stored_files(s3).values())
    options = ["--storage-options", json.dumps(dict(job.storage_options)), "--workers", "0", "--json"]
    assert (
        run(["compress", *job.sources, "--bundle", job.bundle, "--output", job.output, *options, "--quality", "2"]) == 0
    )
    printed = "".join(capsys.readouterr())
    left += b"".join(stored_files(s3).values()) + printed.encode()
    assert s3.secret.encode() not in left
    assert s3.key.encode() not in left
