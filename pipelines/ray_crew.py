"""Workers as Ray actors: hires them, gives them shards, and decides what an ended call means for its shard.

Ray places the actors, starts nodes for those that wait where it has an autoscaler, and tells when one is gone. What is
left to do here is what Ray's own retries cannot: to know a lost node from a shard that kills its worker, to give up a
shard that is stuck, and to go on without one that fails.
"""

import math
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from pipelines.compress_plan import CompressPlan, WorkerOptions
from pipelines.ray_session import import_ray
from pipelines.shard_attempts import Attempt, Outcome, ShardFailure, next_attempt
from pipelines.shard_worker import ONE_THREAD, ShardWorker
from vcinr_batch.data.shards import Shard
from vcinr_batch.errors import ConfigError, VcinrError

LOST_ATTEMPTS = 50
"""Nodes that may be lost under a shard: that many are no accident."""
SHARDS_ABOARD = 2
"""In a worker at a time: one computes while the next is read, or the one before is written."""
START_FAILURES = 3
"""Workers that failed to start, without one that did in between."""
LONGEST_WAIT_SECONDS = 3600.0
WORKERS_PER_CPU = 4
"""On this machine: more are a slip, and every one is a process that loads torch."""


@dataclass(eq=False)
class _Member:
    """An actor."""

    actor: Any
    preparing: Any
    """Result of `prepare`; None once it is there."""
    aboard: dict[Any, Attempt] = field(default_factory=dict)
    """By the result that is awaited, the oldest first."""
    since: float = 0.0
    """When the oldest aboard became the oldest: the younger ones may have to wait for it."""


class RayCrew:
    """The actors and what is left to do."""

    def __init__(
        self,
        ray: ModuleType,
        plan: CompressPlan,
        shards: Iterable[Shard],
        options: WorkerOptions,
        identity: str | None,
    ) -> None:
        self._ray = ray
        self._queue = deque(Attempt(shard) for shard in shards)
        self._alone = deque[Attempt]()
        self._timeout = options.shard_timeout_seconds
        self._count = _worker_count(ray, options)
        self._num_gpus = options.num_gpus
        self._has_started = False
        self._start_failures = 0
        self._members: list[_Member] = []
        self._by_ref: dict[Any, _Member] = {}
        self._arguments = (ray.put(plan), identity)
        self._actor_class = ray.remote(
            num_cpus=1,
            num_gpus=options.num_gpus,
            max_concurrency=SHARDS_ABOARD,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": dict(ONE_THREAD)},
        )(ShardWorker)

    @property
    def wanted(self) -> dict[str, float]:
        """Resources of one worker, with which the work can begin, by Ray's names."""
        return {"CPU": 1.0} | ({"GPU": self._num_gpus} if self._num_gpus else {})

    def has_started(self) -> bool:
        """Whether there is, or was, a worker."""
        return self._has_started

    def hand_out(self) -> bool:
        """Give shards to members that have room, hire and release; False where nothing is left to do."""
        for room in range(SHARDS_ABOARD):  # one for everybody before anybody gets a second
            for member in self._members:
                if member.preparing is None and len(member.aboard) == room:
                    self._give_one(member)
        for member in self._idle():
            if not self._queue and not self._alone:
                self._remove(member)
        while len(self._members) < self._count and self._left() > len(self._idle()):
            self._hire()
        return bool(self._members)

    def wait(self) -> Iterator[Outcome]:
        """Wait until something ends or the next deadline, and see to it."""
        deadlines = [member.since + self._timeout for member in self._members if member.aboard]
        left = max(0.0, min(deadlines) - time.monotonic()) + 0.05 if deadlines else math.inf
        seconds = min(left, LONGEST_WAIT_SECONDS)  # the caller asks again; Ray does not take just any number
        done, _ = self._ray.wait(list(self._by_ref), num_returns=1, timeout=seconds)
        for ref in done:
            member = self._by_ref.pop(ref)
            yield from (self._started(member, ref) if ref == member.preparing else self._ended(member, ref))

    def give_up_stuck(self) -> Iterator[Outcome]:
        """Replace the workers whose oldest shard has taken too long."""
        for member in list(self._members):
            if not member.aboard or time.monotonic() - member.since < self._timeout:
                continue
            stuck, *others = member.aboard.values()
            self._remove(member)
            self._queue.extendleft(reversed(others))
            yield from self._again(stuck, f"no result within {self._timeout:g} s", alone=True)

    def dismiss(self) -> None:
        """End all actors."""
        for member in list(self._members):
            with suppress(Exception):  # an error on its way out is worth more than one about an actor that is gone
                self._remove(member)

    def _hire(self) -> None:
        actor = self._actor_class.remote(*self._arguments)
        member = _Member(actor, actor.prepare.remote())
        self._members.append(member)
        self._by_ref[member.preparing] = member

    def _give_one(self, member: _Member) -> None:
        if any(attempt.alone for attempt in member.aboard.values()):
            return
        if member.aboard and self._left() <= len(self._idle()):
            return  # there are others who have none yet
        if self._queue:
            attempt = self._queue.popleft()
        elif self._alone and not member.aboard:
            attempt = self._alone.popleft()
        else:
            return
        if not member.aboard:
            member.since = time.monotonic()
        ref = member.actor.run.remote(attempt)
        member.aboard[ref] = attempt
        self._by_ref[ref] = member

    def _started(self, member: _Member, ref: Any) -> Iterator[Outcome]:
        try:
            self._ray.get(ref)
            member.preparing = None
            self._has_started = True
            self._start_failures = 0
        except self._ray.exceptions.RayError as error:
            self._remove(member)
            if not self._is_lost_node(error):
                self._start_failures += 1
            if self._start_failures == START_FAILURES:
                cause = getattr(error, "cause", None)
                raise (cause if isinstance(cause, VcinrError) else _worker_error(error)) from None
        yield from ()

    def _ended(self, member: _Member, ref: Any) -> Iterator[Outcome]:
        if ref == next(iter(member.aboard)):
            member.since = time.monotonic()
        attempt = member.aboard.pop(ref)
        exceptions = self._ray.exceptions
        try:
            yield self._ray.get(ref)
        except exceptions.RayTaskError as error:
            yield from self._again(attempt, getattr(error, "cause", None) or error)
        except exceptions.RayError as error:
            lost = [attempt, *member.aboard.values()]
            self._remove(member)
            if self._is_lost_node(error):
                for one in [one for one in lost if one.lost < LOST_ATTEMPTS]:
                    (self._alone if one.alone else self._queue).appendleft(replace(one, lost=one.lost + 1))
                lost = [one for one in lost if one.lost >= LOST_ATTEMPTS]
            for one in lost:
                yield from self._again(one, f"its worker died: {_death(error)}", alone=True)

    def _again(self, attempt: Attempt, error: BaseException | str, alone: bool = False) -> Iterator[Outcome]:
        following = next_attempt(attempt, error)
        if isinstance(following, ShardFailure):
            yield following
        elif alone or following.alone:
            self._alone.append(replace(following, alone=True))
        else:
            self._queue.append(following)

    def _remove(self, member: _Member) -> None:
        self._members.remove(member)
        for ref in [member.preparing, *member.aboard]:
            self._by_ref.pop(ref, None)
        self._ray.kill(member.actor, no_restart=True)

    def _idle(self) -> list[_Member]:
        return [member for member in self._members if not member.aboard]

    def _left(self) -> int:
        return len(self._queue) + len(self._alone)

    def _is_lost_node(self, error: Any) -> bool:
        """Whether the worker is gone for a reason that has nothing to do with its shard."""
        exceptions = self._ray.exceptions
        if isinstance(error, exceptions.ActorUnavailableError | exceptions.NodeDiedError):
            return True
        return bool(getattr(error, "preempted", False)) or "node has died" in str(error)


def check_count(options: WorkerOptions) -> None:
    """Refuse more workers than this machine can have; a cluster may grow.

    Raises:
        ConfigError: more than four per CPU, and no cluster is named.
    """
    limit = WORKERS_PER_CPU * (os.cpu_count() or 1)
    if not options.count or options.count <= limit or options.address or os.environ.get("RAY_ADDRESS"):
        return
    if not import_ray().is_initialized():  # in this process: that may be a cluster
        raise ConfigError(f"{options.count:,} workers: this machine takes at most {limit}, {WORKERS_PER_CPU} per CPU")


def _worker_count(ray: ModuleType, options: WorkerOptions) -> int:
    """As many as asked for; else as many as fit on the cluster as it is now.

    Raises:
        ConfigError: GPUs are asked for on this machine, which has none; a cluster may start nodes that have some.
    """
    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0)
    if options.num_gpus > gpus and not options.address and not os.environ.get("RAY_ADDRESS"):
        raise ConfigError(f"num_gpus {options.num_gpus:g}: this machine has {gpus:g}")
    if options.count:
        return options.count
    count = int(resources.get("CPU", 1))
    return max(
        1,
        min(count, math.floor(gpus / options.num_gpus)) if options.num_gpus else count,
    )


def _death(error: BaseException) -> str:
    """The last line of what Ray says is the reason; those before name actors and processes, and then it guesses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1].split(" Some common causes")[0]


def _worker_error(error: BaseException) -> VcinrError:
    return VcinrError(f"{START_FAILURES} workers in a row failed to start, the last: {_death(error)}")
