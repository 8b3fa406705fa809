"""Calls a function for many items as Ray tasks: for work that needs no more than that."""

from collections.abc import Callable, Generator, Iterable
from types import ModuleType
from typing import Any, TypeVar

from pipelines.ray_session import ray_session
from vcinr_batch.errors import VcinrError

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")

TASKS_PER_WORKER = 2
"""Tasks in flight: one that runs and one that waits, so that no worker idles and results do not pile up."""
TASK_RETRIES = 3
"""How often a task starts again after its worker process died."""


def run_on_ray(
    function: Callable[[Shared, Item], Result],
    shared: Shared,
    items: Iterable[Item],
    workers: int,
    address: str | None = None,
) -> Generator[Result, None, None]:
    """Call `function(shared, item)` for every item on Ray workers.

    Args:
        function: importable by name on the workers.
        shared: pickled once, for all items.
        items: taken as workers become free.
        workers: at most that many items at a time; the CPUs of a Ray that is started here.
        address: of a cluster, as in `ray_session`.

    Yields:
        Results in the order in which they are done.

    Raises:
        VcinrError: the one that `function` raised, or a task whose worker died again and again.
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    with ray_session(address, workers) as ray:
        task = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(function)
        shared_ref = ray.put(shared)
        pending: list[Any] = []
        waiting = iter(items)
        try:
            while True:
                for item in waiting:
                    pending.append(task.remote(shared_ref, item))
                    if len(pending) >= TASKS_PER_WORKER * workers:
                        break
                if not pending:
                    return
                (done, *_), pending = ray.wait(pending, num_returns=1)
                yield _result(ray, done)
        finally:
            for ref in pending:
                ray.cancel(ref, force=True)


def _result(ray: ModuleType, ref: Any) -> Any:
    """A task's result; an error of ours comes out as itself, one that is not as Ray shows it."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, VcinrError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise VcinrError(
            f"a Ray worker was lost {TASK_RETRIES + 1} times ({lines[0]}); run the same command again"
        ) from error
