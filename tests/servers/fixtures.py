"""The S3 servers of the tests: one of each per session, an empty bucket per test. `tests/conftest.py` imports them."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.servers.ceph_processes import ceph_gateway, ceph_is_required, missing_programs
from tests.servers.faulty_proxy import Faults, FaultyProxy, faulty_proxy
from tests.servers.moto_process import moto_server
from tests.servers.object_store import ObjectStore


@dataclass(frozen=True)
class FaultyStore(ObjectStore):
    """A bucket behind a proxy that fails on demand."""

    proxy: FaultyProxy = None  # type: ignore[assignment]

    @property
    def faults(self) -> Faults:
        """What goes wrong from now on."""
        return self.proxy.faults


@pytest.fixture(scope="session")
def s3_server() -> Iterator[ObjectStore]:
    """moto's server in a process of its own; `.with_new_bucket()` for fixtures that live longer than a test."""
    with moto_server() as endpoint_url:
        yield ObjectStore(endpoint_url, "moto-key-canary", "moto-secret-canary")


@pytest.fixture
def s3(s3_server: ObjectStore) -> ObjectStore:
    """An empty bucket on moto's server: `.url`, `.storage_options`, `.environment`, `.keys()`."""
    return s3_server.with_new_bucket()


@pytest.fixture(scope="session")
def faulty_proxy_server(s3_server: ObjectStore) -> Iterator[FaultyProxy]:
    """The proxy in front of moto's server."""
    with faulty_proxy(s3_server.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def faulty_s3(s3: ObjectStore, faulty_proxy_server: FaultyProxy) -> Iterator[FaultyStore]:
    """The same bucket as `s3`, behind the proxy: nothing fails until `.faults` says so. `.proxy` counts."""
    faulty_proxy_server.reset()
    yield FaultyStore(faulty_proxy_server.endpoint_url, s3.key, s3.secret, s3.bucket, faulty_proxy_server)
    faulty_proxy_server.reset()


@pytest.fixture(scope="session")
def ceph_server() -> Iterator[ObjectStore]:
    """Ceph's gateway; skips where its programs are not installed, unless VCINR_REQUIRE_CEPH=1."""
    if missing := missing_programs():
        reason = f"Ceph is not installed: {', '.join(missing)} missing"
        if ceph_is_required():
            pytest.fail(f"{reason}, but VCINR_REQUIRE_CEPH is set")
        pytest.skip(f"{reason}; apt-get install radosgw ceph-mon ceph-osd ceph-mgr")
    with tempfile.TemporaryDirectory(prefix="ceph-") as folder, ceph_gateway(Path(folder)) as store:
        yield store


@pytest.fixture
def ceph(ceph_server: ObjectStore) -> ObjectStore:
    """An empty bucket on Ceph's gateway, which checks signatures and conditions. Mark the test `ceph`."""
    return ceph_server.with_new_bucket()


def wrong_secret(store: ObjectStore) -> ObjectStore:
    """The same bucket with a secret that the server does not accept."""
    return replace(store, secret="not-the-secret-canary")
