"""One Ceph node with its S3 gateway on loopback: a monitor, a manager, one OSD in memory and the gateway.

Needs Debian's packages radosgw, ceph-mon, ceph-osd and ceph-mgr. The daemons stay in the foreground as children of
this process; where util-linux is there, the kernel ends them together with it.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.object_store import ObjectStore

PROGRAMS = ("ceph-mon", "ceph-mgr", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "ceph-authtool", "monmaptool")
KEY, SECRET = "cephkeyid", "ceph-secret-canary"
START_SECONDS, STOP_SECONDS = 120, 10
_MEMORY_BYTES = 2 << 30

_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon2},v1:127.0.0.1:{mon1}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail crit = 1
mon data avail warn = 2
mgr initial modules =
osd objectstore = memstore
memstore device bytes = {memory}
osd memory target = 939524096
run dir = {folder}
crash dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
pid file = {folder}/$name.pid
keyring = {folder}/keyring
mon data = {folder}/mon
osd data = {folder}/osd
mgr data = {folder}/mgr
[client.rgw]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{gateway}
rgw thread pool size = 32
"""


def missing_programs() -> list[str]:
    """Those of Ceph's programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextmanager
def ceph_gateway(folder: Path) -> Iterator[ObjectStore]:
    """A gateway with one user, stopped at the end.

    Args:
        folder: empty, with a short path (its sockets' names may have 107 characters).
    """
    mon2, mon1, gateway = _free_ports(3)
    configuration = folder / "ceph.conf"
    fsid = str(uuid.uuid4())
    configuration.write_text(
        _CONFIGURATION.format(fsid=fsid, mon1=mon1, mon2=mon2, gateway=gateway, folder=folder, memory=_MEMORY_BYTES)
    )
    for name in ("mon", "osd", "mgr", "rgw"):
        (folder / name).mkdir()
    endpoint_url = f"http://127.0.0.1:{gateway}"
    with contextlib.ExitStack() as daemons:
        _start(daemons, folder, fsid, mon1, mon2)
        _wait_for(endpoint_url)
        yield ObjectStore(endpoint_url, KEY, SECRET)


def _start(daemons: contextlib.ExitStack, folder: Path, fsid: str, mon1: int, mon2: int) -> None:
    keyring, configuration = str(folder / "keyring"), ["-c", str(folder / "ceph.conf")]
    monitor_map = str(folder / "monmap")
    _run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    for name in ("client.admin", "client.rgw", "osd.0", "mgr.x"):
        everything = [word for service in ("mon", "osd", "mgr") for word in ("--cap", service, "allow *")]
        _run("ceph-authtool", keyring, "--gen-key", "-n", name, *everything)
    addresses = f"[v2:127.0.0.1:{mon2},v1:127.0.0.1:{mon1}]"
    _run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", addresses, monitor_map)
    _run("ceph-mon", "--mkfs", "-i", "a", *configuration, "--monmap", monitor_map, "--keyring", keyring)
    _daemon(daemons, "ceph-mon", "-f", "-i", "a", *configuration)
    osd_id = str(uuid.uuid4())
    _run("ceph", *configuration, "--connect-timeout", str(START_SECONDS), "osd", "new", osd_id)
    _daemon(daemons, "ceph-mgr", "-f", "-i", "x", *configuration)
    _run("ceph-osd", "-i", "0", *configuration, "--mkfs", "--osd-uuid", osd_id)
    _daemon(daemons, "ceph-osd", "-f", "-i", "0", *configuration)
    _daemon(daemons, "radosgw", "-f", *configuration, "-n", "client.rgw")
    user = ["--uid=test", "--display-name=test", f"--access-key={KEY}", f"--secret-key={SECRET}"]
    _run("radosgw-admin", *configuration, "-n", "client.rgw", "user", "create", *user)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-500:]}")


def _daemon(daemons: contextlib.ExitStack, *command: str) -> None:
    with_us = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    process = subprocess.Popen([*with_us, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    daemons.callback(_stop, process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for(endpoint_url: str) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(endpoint_url, timeout=5):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as sockets:
        taken = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in taken]


def ceph_is_required() -> bool:
    """Whether missing programs are a failure (in CI, which installs them) and no reason to skip."""
    return os.environ.get("VCINR_REQUIRE_CEPH", "") not in ("", "0")
