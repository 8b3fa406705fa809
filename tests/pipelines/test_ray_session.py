"""How a job comes to a Ray: none installed, none at the address, and nothing printed between a command's results."""

import logging
import socket
import sys

import pytest

from pipelines.ray_session import ray_session
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
