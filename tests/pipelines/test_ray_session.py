"""How a job comes to a Ray: none installed, none at the address, and nothing printed between a command's results."""

import logging
import socket
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import ray_session as session
from pipelines.ray_session import ray_session, waits_told
from vcinr_batch.errors import ConfigError

ray = pytest.importorskip("ray")


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"vcinr-batch\[ray\].*--workers 0"), ray_session(None, 1):
        pass


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_answers_is_named_at_once(scheme: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but not listening
        address = f"{scheme}127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"^no Ray at {address}: .*refused"), ray_session(address, 1):
            pass
    assert not ray.is_initialized()


def test_what_ray_says_of_lost_workers_goes_to_the_log_and_not_to_the_results(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from ray._private import worker

    with pytest.raises(ConfigError), ray_session("127.0.0.1:1", 1):
        pass
    with caplog.at_level(logging.WARNING):
        worker.print_to_stdstream({"lines": ["a worker died"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert capsys.readouterr().out == ""
    assert "a worker died" in caplog.text


WAITS = {
    "no such thing": ({"CPU": 1, "GPU": 1}, {"CPU": 8}, {"CPU": 8}, "waiting for 1 GPU: the cluster has 0"),
    "too few": ({"CPU": 64}, {"CPU": 8}, {"CPU": 8}, "waiting for 64 CPUs: the cluster has 8"),
    "in use": ({"CPU": 4}, {"CPU": 8}, {"CPU": 2.5}, "waiting for 4 CPUs: 2.5 of the cluster's 8 are free"),
}


@pytest.mark.parametrize("case", WAITS)
def test_whoever_waits_for_room_on_a_cluster_is_told_what_is_missing(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, total, free, expected = WAITS[case]
    monkeypatch.setattr(session, "NOTICE_SECONDS", (0.0, 0.0, 300.0))
    cluster: Any = SimpleNamespace(
        exceptions=ray.exceptions, cluster_resources=lambda: total, available_resources=lambda: free
    )
    told: list[str] = []
    is_told = threading.Event()

    def notice(text: str) -> None:
        told.append(text)
        is_told.set()

    with waits_told(cluster, wanted, lambda: False, notice):
        assert is_told.wait(60)
    assert set(told) == {expected}


def test_nothing_is_said_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes take their time to start; and what is in use at first may be in use by this very work."""
    monkeypatch.setattr(session, "NOTICE_SECONDS", (0.0, 300.0))
    looked = threading.Event()

    def cluster_resources() -> dict[str, float]:
        looked.set()
        return {"CPU": 8}

    cluster: Any = SimpleNamespace(
        exceptions=ray.exceptions, cluster_resources=cluster_resources, available_resources=lambda: {"CPU": 0}
    )
    told: list[str] = []
    with waits_told(cluster, {"CPU": 8}, lambda: False, told.append):
        assert looked.wait(60)
    assert told == []


def test_nothing_is_said_of_work_that_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "NOTICE_SECONDS", (0.0, 0.0, 300.0))
    asked = threading.Event()

    def has_started() -> bool:
        asked.set()
        return True

    told: list[str] = []
    with waits_told(ray, {"CPU": 1}, has_started, told.append):
        assert asked.wait(60)
    assert told == []
