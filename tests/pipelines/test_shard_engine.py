"""What becomes of shards that fail: tried again, given up, or the end of the run. Without Ray; with it: test_faults."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines import ray_crew, shard_engine, shard_worker
from pipelines.compress_plan import CompressJob, CompressPlan, WorkerOptions, plan_compression
from pipelines.shard_attempts import ATTEMPTS, Attempt, ShardFailure, next_attempt
from pipelines.shard_engine import run_shards
from pipelines.shard_status import read_statuses, run_identity
from pipelines.shard_work import ShardResult
from pipelines.shard_worker import ShardWorker
from vcinr_batch.bundle import load_bundle
from vcinr_batch.compression import QualityRequest
from vcinr_batch.data.shards import Shard
from vcinr_batch.errors import (
    BundleMismatchError,
    ConfigError,
    CorruptBitstreamError,
    DamagedSourceError,
    FittingError,
    SourceError,
    StoreUnavailableError,
    VcinrError,
)

FIRST = Attempt(Shard(0, (0,), (4,)))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_worker, "RETRY_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SourceError("no such file"), "no such file"),
        (StoreUnavailableError("503"), "503"),
        (DamagedSourceError("cut"), "cut"),
        (FittingError("diverged"), "diverged"),
        (ZeroDivisionError("division\nby zero"), "unexpected ZeroDivisionError: division by zero"),
        ("its worker died", "its worker died"),
    ],
)
def test_a_shard_that_fails_is_tried_again_until_its_attempts_are_used_up(error: Exception | str, line: str) -> None:
    attempt = FIRST
    for number in range(2, ATTEMPTS + 1):
        following = next_attempt(attempt, error)
        assert following == replace(FIRST, number=number, errors=(line,) * (number - 1))
        attempt = following  # type: ignore[assignment]
    assert next_attempt(attempt, error) == ShardFailure(FIRST.shard, ATTEMPTS, (line,) * ATTEMPTS)


@pytest.mark.parametrize("kind", [ConfigError, BundleMismatchError, CorruptBitstreamError])
def test_an_error_that_is_not_the_shard_s_ends_the_run(kind: type[VcinrError]) -> None:
    with pytest.raises(kind, match="every shard would meet it"):
        next_attempt(FIRST, kind("every shard would meet it"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": -1},
        {"count": 0, "address": "auto"},
        {"count": 0, "num_gpus": 1.0},
        {"count": 2, "num_gpus": -1.0},
        {"count": 2, "num_gpus": float("nan")},
        {"shard_timeout_seconds": 0.0},
        {"shard_timeout_seconds": float("nan")},
        {"shard_timeout_seconds": float("inf")},
        {"shard_timeout_seconds": 1e300},
    ],
)
def test_workers_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        WorkerOptions(**wrong)


@pytest.fixture
def planned(source_path: Path, bundle_path: Path, tmp_path: Path) -> tuple[CompressPlan, list[Shard]]:
    output = str(tmp_path / "archive")
    job = CompressJob((str(source_path),), str(bundle_path), output, QualityRequest(level=2), shard_samples=10)
    plan, shards = plan_compression(job, load_bundle(str(bundle_path)))
    return replace(plan, bundle_url=str(bundle_path)), shards


def _fail_with(error: BaseException) -> type[ShardWorker]:
    """A worker to which this happens with the second shard."""

    class FailingWorker(ShardWorker):
        def run(self, attempt: Attempt) -> ShardResult:
            if attempt.shard.index == 1:
                raise error
            return super().run(attempt)

    return FailingWorker


@pytest.mark.parametrize(
    ("error", "line"),
    [(FittingError("singular"), "singular"), (ValueError("x"), "unexpected ValueError: x"), (SourceError("y"), "y")],
)
def test_without_ray_too_any_failure_is_one_shard_s(
    planned: tuple[CompressPlan, list[Shard]], error: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_engine, "ShardWorker", _fail_with(error))
    *done, failure = run_shards(*planned, WorkerOptions(), None)
    assert len(done) == 3
    assert failure == ShardFailure(planned[1][1], ATTEMPTS, (line,) * ATTEMPTS)


def test_an_interrupt_is_no_shard_s(planned: tuple[CompressPlan, list[Shard]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_engine, "ShardWorker", _fail_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        list(run_shards(*planned, WorkerOptions(), None))


def test_a_run_without_an_identity_writes_no_status(planned: tuple[CompressPlan, list[Shard]]) -> None:
    list(run_shards(*planned, WorkerOptions(), None))
    assert sorted(path.name for path in Path(planned[0].output).iterdir()) == ["parts"]


def test_more_workers_than_this_machine_can_have_are_refused_before_anything_starts(
    planned: tuple[CompressPlan, list[Shard]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(shard_engine, "ray_session", lambda *_: pytest.fail("a Ray was started"))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    started: list[bool] = []
    with pytest.raises(ConfigError, match="9 workers: this machine takes at most 8, 4 per CPU"):
        list(run_shards(*planned, WorkerOptions(9), "0" * 12, lambda: started.append(True)))
    assert started == []
    ray_crew.check_count(WorkerOptions(8))
    ray_crew.check_count(WorkerOptions(100_000, address="auto"))


def test_no_wait_of_the_crew_is_longer_than_an_hour(planned: tuple[CompressPlan, list[Shard]]) -> None:
    waits: list[float] = []

    class FakeRay:
        """As much of Ray as a crew without members needs."""

        def cluster_resources(self) -> dict[str, float]:
            return {"CPU": 2.0}

        def put(self, value: object) -> object:
            return value

        def remote(self, **_: object) -> Callable[[type], type]:
            return lambda actor_class: actor_class

        def wait(self, refs: list[object], *, timeout: float, **_: object) -> tuple[list[object], list[object]]:
            waits.append(timeout)
            return [], refs

    options = WorkerOptions(2, shard_timeout_seconds=30 * 86400.0)
    crew = ray_crew.RayCrew(FakeRay(), planned[0], planned[1], options, None)  # type: ignore[arg-type]
    assert list(crew.wait()) == []
    crew._members.append(ray_crew._Member(None, None, {"ref": Attempt(planned[1][0])}, time.monotonic()))
    assert list(crew.wait()) == []
    assert waits == [3600.0, 3600.0]


def test_the_status_of_a_shard_tells_its_attempts(
    planned: tuple[CompressPlan, list[Shard]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = {1: 1, 2: ATTEMPTS}

    class FailingWorker(ShardWorker):
        def run(self, attempt: Attempt) -> ShardResult:
            if attempt.number <= fails.get(attempt.shard.index, 0):
                raise SourceError(f"attempt {attempt.number}")
            return super().run(attempt)

    monkeypatch.setattr(shard_engine, "ShardWorker", FailingWorker)
    plan, shards = planned
    identity = run_identity(plan, shards)
    outcomes = list(run_shards(plan, shards, WorkerOptions(), identity))
    # Shards that failed come after those that did not.
    order = [outcome.shard.index if isinstance(outcome, ShardFailure) else outcome.index for outcome in outcomes]
    assert order == [0, 3, 1, 2]
    assert [outcome.attempts for outcome in outcomes] == [1, 1, 2, ATTEMPTS]
    found = read_statuses(plan, identity).values()
    assert sorted((status.shard[-1], status.state, status.attempts, len(status.errors)) for status in found) == [
        ("0", "done", 1, 0),
        ("1", "done", 2, 1),
        ("2", "failed", ATTEMPTS, ATTEMPTS),
        ("3", "done", 1, 0),
    ]
