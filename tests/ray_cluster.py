"""A Ray cluster of several node processes on this machine, whose nodes can be killed."""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NODES = 2
# A node is missed after 4 s instead of 15 s; and workers do not give way to whatever else this machine does.
_SYSTEM_CONFIG = {
    "worker_niceness": 0,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 4,
}


class RayCluster:
    """A head without CPUs and nodes of one CPU each: every worker is on a node of its own."""

    def __init__(self, temporary: str) -> None:
        from ray.cluster_utils import Cluster

        head = {
            "num_cpus": 0,
            "include_dashboard": False,
            "object_store_memory": 100 << 20,
            "temp_dir": temporary,
            "_system_config": _SYSTEM_CONFIG,
        }
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self._nodes: list[Any] = []
        self.restore()

    @property
    def address(self) -> str:
        """`host:port`, for `--address`."""
        return str(self._cluster.address)

    def raylets(self) -> list[int]:
        """Process ids of the nodes that are alive, the head's not among them."""
        return [node.all_processes["raylet"][0].process.pid for node in self._alive()]

    def kill_node(self, pid: int) -> None:
        """As when a machine loses its power."""
        os.kill(pid, signal.SIGKILL)

    def restore(self) -> None:
        """Start nodes in place of those that were killed."""
        alive = self._alive()
        for node in set(self._nodes) - set(alive):
            self._cluster.remove_node(node, allow_graceful=False)
        self._nodes = alive
        while len(self._nodes) < NODES:
            self._nodes.append(self._cluster.add_node(num_cpus=1, object_store_memory=100 << 20))

    def join(self, **resources: float) -> None:
        """One more node, as when an autoscaler has started it; stays until the cluster stops."""
        self._cluster.add_node(object_store_memory=100 << 20, **resources)

    def stop(self) -> None:
        """End all of its processes."""
        self._cluster.shutdown()

    def _alive(self) -> list[Any]:
        return [node for node in self._nodes if node.all_processes["raylet"][0].process.poll() is None]


@contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """A cluster for as long as the context is open; its folder has a short name, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="vr", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        cluster = RayCluster(temporary)
        try:
            yield cluster
        finally:
            cluster.stop()
