"""A Ray head with its dashboard in processes of its own, as on a cluster: with a token, on free ports, bounded."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 120.0
STOP_SECONDS = 20.0
PORTS = (20000, 32000)
OBJECT_STORE_BYTES = 100 << 20


@dataclass(frozen=True)
class RayHead:
    """A running head: the URL of its dashboard, the token that it wants, and where drivers connect."""

    dashboard: str
    token: str
    address: str


@contextmanager
def running_ray_head(cpus: int = 2) -> Iterator[RayHead]:
    """Start a head and, at the end, kill its process group: no other Ray on this machine is touched."""
    token, (port, dashboard_port, *others) = secrets.token_hex(16), _free_ports(5)
    # Sockets lie in there, and their paths may have 107 bytes only.
    folder = Path(tempfile.mkdtemp(prefix="vcinr-"))
    names = ("ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
        *(f"--port={port}", f"--dashboard-port={dashboard_port}", "--dashboard-host=127.0.0.1"),
        *(f"--{name}={number}" for name, number in zip(names, others, strict=True)),
        *("--min-worker-port=0", "--max-worker-port=0", "--include-dashboard=true", "--disable-usage-stats"),
        *(f"--num-cpus={cpus}", "--num-gpus=0", f"--object-store-memory={OBJECT_STORE_BYTES}"),
        f"--temp-dir={folder / 'ray'}",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    # The jobs' `vcinr` is the one of this environment.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    log = folder / "head.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True
        )
    try:
        _wait_for_port(process, dashboard_port, log)
        yield RayHead(f"http://127.0.0.1:{dashboard_port}", token, f"127.0.0.1:{port}")
    finally:
        if process.poll() is not None:
            print(f"the Ray head ended by itself ({process.returncode}):\n{log.read_text()[-4000:]}")
        _kill_group(process)
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Free ones below those that the system gives to outgoing connections while the head is starting."""
    found: list[int] = []
    while len(found) < count:
        port = secrets.choice(range(*PORTS))
        with socket.socket() as probe:
            if port not in found and probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
    return found


def _wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            # Ray says so itself once a node is there; the dashboard answers a little earlier.
            if "Ray runtime started" in log.read_text() and probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"no Ray head after {START_SECONDS:.0f} s:\n{log.read_text()[-4000:]}")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        process.poll()
        time.sleep(0.1)
