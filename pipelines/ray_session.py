"""A Ray to work on: the one of this process, one at an address, or one of our own for as long as a job takes."""

import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from vcinr_batch.errors import ConfigError

OBJECT_STORE_BYTES = 128 << 20
"""Ray's shared memory; only plans and results pass through it, and the default is a third of the machine."""
CONNECT_SECONDS = 10.0
"""For the head of a cluster to answer at all."""

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
        ConfigError: Ray is not installed, or there is no cluster at the address.
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


def _connect(ray: ModuleType, address: str, cpus: int) -> None:
    # A library does not phone home unasked, and does not talk to the terminal of those who call it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    local = {"num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    options = local if address == "local" else {}
    _send_to_log(ray)
    _check_reachable(address)
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
