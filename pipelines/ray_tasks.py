"""Runs a function over many items as Ray tasks, on a local Ray started on demand. The only module that knows Ray."""

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

from vcinr_batch.errors import ConfigError, VcinrError

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")

TASKS_PER_WORKER = 2
"""Tasks in flight: one that runs and one that waits, so that no worker idles and results do not pile up."""
TASK_RETRIES = 3
"""How often a task starts again after its worker process died."""
OBJECT_STORE_BYTES = 128 << 20
"""Ray's shared memory; only plans and results pass through it, and the default is a third of the machine."""


def run_on_ray(
    function: Callable[[Shared, Item], Result], shared: Shared, items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Call `function(shared, item)` for every item on Ray workers.

    Args:
        function: importable by name on the workers.
        shared: pickled once, for all items.
        items: taken as workers become free.
        workers: of the local Ray, which is started here and stopped at the end. Where Ray runs already in this process,
            or RAY_ADDRESS names a cluster, that one is used and left running.

    Yields:
        Results in the order in which they are done.

    Raises:
        VcinrError: the one that `function` raised, or a task whose worker died again and again.
        ConfigError: Ray is not installed.
    """
    ray = import_ray()
    with _ray_runtime(ray, workers):
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


def import_ray() -> ModuleType:
    """Ray, or a ConfigError that says how to install it or how to do without."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "Ray is not installed: pip install 'vcinr-batch[ray]', or --workers 0 to run without it"
        ) from error
    return ray


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


@contextmanager
def _ray_runtime(ray: ModuleType, workers: int) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    # A library does not phone home unasked, and does not talk to the terminal of those who call it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS", "local")
    local = {"num_cpus": workers, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    ray.init(
        address=address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        **(local if address == "local" else {}),
    )
    try:
        yield
    finally:
        ray.shutdown()
