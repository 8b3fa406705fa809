"""What becomes of shards that fail: tried again, given up, or the end of the run. Without Ray; with it: test_faults."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines import shard_engine, shard_worker
from pipelines.compress_plan import CompressJob, WorkerOptions, plan_compression
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
    ],
)
def test_workers_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        WorkerOptions(**wrong)


def test_the_status_of_a_shard_tells_its_attempts(
    source_path: Path, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = {1: 1, 2: ATTEMPTS}

    class FailingWorker(ShardWorker):
        def run(self, attempt: Attempt) -> ShardResult:
            if attempt.number <= fails.get(attempt.shard.index, 0):
                raise SourceError(f"attempt {attempt.number}")
            return super().run(attempt)

    monkeypatch.setattr(shard_engine, "ShardWorker", FailingWorker)
    bundle = load_bundle(str(bundle_path))
    output = str(tmp_path / "archive")
    job = CompressJob((str(source_path),), str(bundle_path), output, QualityRequest(level=2), shard_samples=10)
    plan, shards = plan_compression(job, bundle)
    plan = replace(plan, bundle_url=str(bundle_path))
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
