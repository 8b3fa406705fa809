"""Drivers on a cluster that wants a token: found where Ray documents it, named where it is missing or another one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cluster_token import cluster_token
from pipelines.ray_session import ray_session
from tests.servers.ray_head import RayHead, running_ray_head
from vcinr_batch.errors import ConfigError

ray = pytest.importorskip("ray")
DRIVER = """
import sys
from pipelines.ray_session import ray_session
with ray_session(sys.argv[1], 1) as ray:
    print(ray.get(ray.remote(lambda: "computed there").remote()))
"""


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with running_ray_head(1) as head:
        yield head


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, and no word of Ray in the environment."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def put_token(home: Path, token: str) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(f"{token}\n")


def test_a_driver_finds_the_token_in_its_home_though_nothing_says_that_it_is_wanted(head: RayHead, home: Path) -> None:
    put_token(home, head.token)
    command = [sys.executable, "-c", DRIVER, head.address]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "computed there\n"), ended.stderr
    assert "Unauthenticated" not in ended.stderr


@pytest.mark.usefixtures("home")
def test_without_a_token_the_error_says_where_to_put_one(head: RayHead) -> None:
    expected = rf"^the Ray at {head.address} wants the cluster's token: .*RAY_AUTH_TOKEN.*~/\.ray/auth_token$"
    with pytest.raises(ConfigError, match=expected), ray_session(head.address, 1):
        pass
    assert not ray.is_initialized()


def test_another_token_is_named_as_such_and_not_shown(head: RayHead, home: Path) -> None:
    put_token(home, "canary")
    with pytest.raises(ConfigError, match="does not accept the token") as error, ray_session(head.address, 1):
        pass
    assert "canary" not in str(error.value)


def test_a_mode_that_was_asked_for_stays(head: RayHead, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_token(home, head.token)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE is disabled"), ray_session(head.address, 1):
        pass


def test_the_places_of_a_token_in_their_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster_token() == ""
    put_token(home, "home")
    assert cluster_token() == "home"
    (home / "other").write_text("path")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "other"))
    assert cluster_token() == "path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "variable")
    assert cluster_token() == "variable"
