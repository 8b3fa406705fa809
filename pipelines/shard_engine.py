"""Takes shards to workers until each is done or given up: in this process, or on Ray."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, suppress

from pipelines.compress_plan import CompressPlan, WorkerOptions
from pipelines.ray_crew import SHARDS_ABOARD, RayCrew, check_count
from pipelines.ray_session import Notice, ray_session, waits_told
from pipelines.shard_attempts import (
    ATTEMPTS,
    Attempt,
    Outcome,
    ShardFailure,
    next_attempt,
)
from pipelines.shard_status import ShardStatus, write_status
from pipelines.shard_worker import ShardWorker
from vcinr_batch.data.shards import Shard, shard_name
from vcinr_batch.errors import SourceError

__all__ = ["ATTEMPTS", "SHARDS_ABOARD", "Outcome", "ShardFailure", "run_shards"]

FAILURES_IN_A_ROW = 10
"""Shards given up without one done in between: the rest would not fare better."""


def run_shards(
    plan: CompressPlan,
    shards: Sequence[Shard],
    options: WorkerOptions,
    identity: str | None,
    on_start: Callable[[], object] = lambda: None,
    notice: Notice | None = None,
) -> Generator[Outcome, None, None]:
    """Do all shards, whatever becomes of single ones.

    Parts and status objects are written where the workers are; a shard that is given up gets its status here.

    Args:
        plan: sent to each worker once.
        shards: in the order in which they are begun.
        options: how many workers, and where.
        identity: of the run, for the status objects; None writes none.
        on_start: called once there are workers to be had, before the first shard is begun.
        notice: called with one line while no worker has room on the cluster, now and then; from another thread.

    Yields:
        What became of each shard, in the order in which they end. At most `SHARDS_ABOARD` of a worker are under way.

    Raises:
        SourceError: ten shards in a row were given up, or the workers cannot read the bundle.
        ConfigError: Ray is not installed, there is no cluster at the address, or these are too many workers for here.
        VcinrError: an error that is not a shard's: the bundle is damaged, for instance.
    """
    if options.count == 0:
        runner = _run_here(plan, shards, identity, on_start)
    else:
        runner = _run_on_ray(plan, shards, options, identity, on_start, notice)
    failures = list[ShardFailure]()
    with closing(runner):
        for outcome in runner:
            if isinstance(outcome, ShardFailure):
                failures.append(outcome)
                _write_failure(plan, identity, outcome)
            else:
                failures.clear()
            yield outcome
            if len(failures) == FAILURES_IN_A_ROW:
                name = shard_name(plan.layout, failures[0].shard)
                raise SourceError(
                    f"{FAILURES_IN_A_ROW} shards in a row failed, the first is {name}: {failures[0].errors[-1]}; "
                    "the same command goes on from here"
                )


def _run_here(
    plan: CompressPlan, shards: Iterable[Shard], identity: str | None, on_start: Callable[[], object]
) -> Generator[Outcome, None, None]:
    worker, queue = ShardWorker(plan, identity), deque(Attempt(shard) for shard in shards)
    on_start()
    while queue:
        following = _run_or_next(worker, queue.popleft())
        if isinstance(following, Attempt):
            queue.append(following)
        else:
            yield following


def _run_or_next(worker: ShardWorker, attempt: Attempt) -> Outcome | Attempt:
    try:
        return worker.run(attempt)
    except Exception as error:  # a defect met by one shard is that shard's, here as in a worker on Ray
        return next_attempt(attempt, error)


def _run_on_ray(
    plan: CompressPlan,
    shards: Sequence[Shard],
    options: WorkerOptions,
    identity: str | None,
    on_start: Callable[[], object],
    notice: Notice | None,
) -> Generator[Outcome, None, None]:
    check_count(options)
    with ray_session(options.address, max(1, min(options.count or 1, len(shards)))) as ray:
        crew = RayCrew(ray, plan, shards, options, identity)
        on_start()
        with waits_told(ray, crew.wanted, crew.has_started, notice):
            try:
                while crew.hand_out():
                    yield from crew.wait()
                    yield from crew.give_up_stuck()
            finally:
                crew.dismiss()


def _write_failure(plan: CompressPlan, identity: str | None, failure: ShardFailure) -> None:
    if identity is None:
        return
    status = ShardStatus(
        shard_name(plan.layout, failure.shard),
        "failed",
        failure.attempts,
        failure.errors,
    )
    with suppress(SourceError):  # where the store refuses parts it may refuse this, too; the failure is told anyway
        write_status(plan, identity, status)
