"""A Ray to work on: the one of this process, one at an address, or one of our own for as long as a job takes."""

import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, repeat
from types import ModuleType
from typing import Any

from pipelines.cluster_token import present_token
from vcinr_batch.errors import ConfigError

OBJECT_STORE_BYTES = 128 << 20
"""Ray's shared memory; only plans and results pass through it, and the default is a third of the machine."""
CONNECT_SECONDS = 10.0
"""For the head of a cluster to answer at all."""

NOTICE_SECONDS = (10.0, 50.0, 300.0)
"""Without a start: until the first line that says what is waited for, then until the second, then between lines."""

Notice = Callable[[str], None]
"""Takes one line for whoever waits."""

_log = logging.getLogger(__name__)


def import_ray() -> ModuleType:
    """Ray.

    Raises:
        ConfigError: it is not installed; says how to install it or how to do without.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "Ray is not installed: pip install 'vcinr-batch[ray]', or --workers 0 to run without it"
        ) from error
    return ray


@contextmanager
def ray_session(address: str | None, cpus: int) -> Iterator[ModuleType]:
    """Ray, connected while the context is open.

    A Ray that runs in this process already is used and left running, and so is a cluster. Without an address (nor
    RAY_ADDRESS) a Ray of `cpus` CPUs is started here and stopped at the end.

    Args:
        address: `auto`, `host:port` or `ray://host:port`.
        cpus: of a Ray started here; not looked at otherwise.

    Yields:
        The module `ray`.

    Raises:
        ConfigError: Ray is not installed, there is no cluster at the address, or it wants a token that is not here.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    _connect(ray, address or os.environ.get("RAY_ADDRESS") or "local", cpus)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def waits_told(
    ray: ModuleType, wanted: Mapping[str, float], has_started: Callable[[], bool], notice: Notice | None
) -> Iterator[None]:
    """While open, and until the work has started, say now and then what it waits for.

    Ray waits without end and without a word: more machines may be on their way, or there may never be any.

    Args:
        wanted: of the whole work, by Ray's names of resources, e.g. `{"CPU": 8, "GPU": 2}`.
        has_started: asked before each line.
        notice: called with a line, after `NOTICE_SECONDS`; from another thread.
    """
    ended = threading.Event()

    def watch() -> None:
        pauses = chain(NOTICE_SECONDS, repeat(NOTICE_SECONDS[-1]))
        with suppress(ray.exceptions.RayError, ConnectionError, RuntimeError):  # the work itself will say it
            for round_, pause in enumerate(pauses):
                if notice is None or ended.wait(pause) or has_started():
                    return
                # At first what is in use may be in use by this very work, whose processes are just starting.
                free = ray.available_resources() if round_ else wanted
                if text := _waiting_text(wanted, ray.cluster_resources(), free):
                    notice(text)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _waiting_text(wanted: Mapping[str, float], total: Mapping[str, float], free: Mapping[str, float]) -> str:
    """What is not there, or else what others have, cards before CPUs; empty where there is room."""
    for name, amount in sorted(wanted.items(), reverse=True):
        if total.get(name, 0) < amount:
            return f"waiting for {_amount(amount, name)}: the cluster has {total.get(name, 0):g}"
    for name, amount in sorted(wanted.items(), reverse=True):
        if free.get(name, 0) < amount:
            return (
                f"waiting for {_amount(amount, name)}: {free.get(name, 0):g} of the cluster's {total[name]:g} are free"
            )
    return ""


def _amount(amount: float, name: str) -> str:
    return f"{amount:g} {name}{'' if amount == 1 else 's'}"


def _connect(ray: ModuleType, address: str, cpus: int) -> None:
    # A library does not phone home unasked, and does not talk to the terminal of those who call it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    local = {"num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    options = local if address == "local" else {}
    _send_to_log(ray)
    _check_reachable(address)
    if address != "local":
        present_token(ray, address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"no Ray at {address}: {lines[0]}") from error


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if not found:
        return
    try:
        socket.create_connection((found[1], int(found[2])), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"no Ray at {address}: {error}") from error


def _send_to_log(ray: ModuleType) -> None:
    """Ray prints what it has to say about lost workers to stdout, between the lines that are our result."""
    worker = getattr(getattr(ray, "_private", None), "worker", None)
    if worker is None or not hasattr(worker, "print_to_stdstream"):
        return

    def to_log(data: Mapping[str, Any], **_: Any) -> None:
        for line in data.get("lines", ()):
            _log.warning("%s", line)

    worker.print_to_stdstream = to_log
