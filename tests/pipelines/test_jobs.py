"""Commands as jobs: with a real Ray head and its dashboard, and, for what those cannot be made to do, a stand-in."""

import itertools
import json
import os
import re
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import job_client, jobs
from tests.servers.ray_head import RayHead, running_ray_head
from vcinr_batch import cli
from vcinr_batch.errors import ConfigError, VcinrError

REPORT = jobs.JobReport("vcinr-x", "RUNNING", "vcinr x", "", None, None, None)


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]


Vcinr = Callable[..., Outcome]
Submitted = list[tuple[list[str], str | None]]
"""Command lines and the configurations that went along."""


@pytest.fixture
def vcinr(capsys: pytest.CaptureFixture[str]) -> Vcinr:
    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def ray_head() -> Iterator[RayHead]:
    with running_ray_head() as head:
        yield head


@pytest.fixture
def head(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch) -> str:
    """The dashboard's URL; this process has the cluster's token, and an address in its environment that is not used."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", ray_head.token)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    return ray_head.dashboard


class TestOnACluster:
    def test_compress_and_train_run_there_and_leave_the_same_as_here(
        self, vcinr: Vcinr, head: str, source_path: Path, bundle_path: Path, config_path: Path, tmp_path: Path
    ) -> None:
        # The configuration is sent along; `--no-wait` leaves at once.
        train = vcinr("train", config_path, source_path, "--output", tmp_path / "new", "--address", head, "--no-wait")
        training_id = train.stdout.strip()
        assert (train.code, bool(re.fullmatch(r"vcinr-train-[\w-]+-[0-9a-f]{8}", training_id))) == (0, True)

        output = tmp_path / "archive"
        options = ["--bundle", bundle_path, "--output", output, "--quality", 2, "--workers", 1, "--json"]
        outcome = vcinr("compress", source_path, *options, "--address", head)
        assert outcome.code == 0
        submitted, *progress, done = outcome.lines
        assert (submitted["event"], submitted["address"]) == ("submitted", head)
        assert ({line["event"] for line in progress}, done["event"], done["samples"]) == ({"progress"}, "done", 40)
        assert f"all machines of the cluster share: {source_path}" in outcome.stderr
        verified = vcinr("verify", output, "--against", source_path, "--json")
        assert (verified.code, verified.lines[-1]["compared"]) == (0, 40)

        trained = vcinr("jobs", "logs", training_id, "--follow", "--address", head)
        assert trained.code == 0
        assert [path.name for path in (tmp_path / "new").iterdir()] == [bundle_path.name]
        assert bundle_path.name in trained.stdout
        assert str(config_path) not in trained.stdout

        listed = vcinr("jobs", "list", "--json", "--address", head).lines
        found = {line["submission_id"]: line["status"] for line in listed if line["event"] == "job"}
        assert (found[training_id], found[submitted["submission_id"]]) == ("SUCCEEDED", "SUCCEEDED")
        assert listed[-1] == {"event": "done", "jobs": len(found)}
        assert vcinr("jobs", "logs", training_id, "--address", head).stdout == trained.stdout
        status = vcinr("jobs", "status", training_id, "--json", "--address", head).lines[-1]
        assert (status["exit_code"], status["command"].split()[:3]) == (0, ["vcinr", "train", config_path.name])
        assert vcinr("jobs", "delete", training_id, "--address", head).code == 0
        gone = vcinr("jobs", "status", training_id, "--address", head)
        assert (gone.code, gone.stderr.count("\n")) == (2, 1)
        assert f"no job '{training_id}'" in gone.stderr

    def test_a_failed_a_stopped_and_a_killed_job_end_with_their_exit_codes(self, vcinr: Vcinr, head: str) -> None:
        client = job_client.connect(head)
        rejecting = client.submit_job(entrypoint="echo two rejected; exit 1")
        killed = client.submit_job(entrypoint="kill -9 $$")
        endless = client.submit_job(entrypoint="echo on; sleep 600")
        one = vcinr("jobs", "logs", rejecting, "--follow", "--address", head)
        assert (one.code, "two rejected\n" in one.stdout, one.stderr) == (1, True, "")
        lost = vcinr("jobs", "logs", killed, "--follow", "--address", head)
        assert (lost.code, lost.stderr.count("\n")) == (2, 1)
        busy = vcinr("jobs", "delete", endless, "--address", head)
        assert (busy.code, "stop it before it is deleted" in busy.stderr) == (2, True)
        stopped = vcinr("jobs", "stop", endless, "--json", "--address", head)
        assert (stopped.code, stopped.lines[-1]["status"]) == (0, "STOPPED")
        followed = vcinr("jobs", "logs", endless, "--follow", "--address", head)
        assert (followed.code, followed.stderr) == (130, f"vcinr: job {endless}: stopped\nvcinr: interrupted\n")

    def test_without_the_token_it_says_where_to_put_one(
        self, vcinr: Vcinr, head: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_AUTH_TOKEN", "not-the-token-canary")
        outcome = vcinr("jobs", "list", "--address", head)
        assert (outcome.code, outcome.stderr.count("\n")) == (2, 1)
        assert "RAY_AUTH_TOKEN" in outcome.stderr
        assert "canary" not in outcome.stderr


class _NoDashboard(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def other_server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _NoDashboard) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def silent_server() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class TestUnreachable:
    def test_nothing_listens(self, vcinr: Vcinr) -> None:
        _assert_one_line(vcinr("jobs", "list", "--address", "http://127.0.0.1:9"), "no Ray dashboard answers at")

    def test_it_does_not_answer(self, vcinr: Vcinr, silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(job_client, "CONNECT_SECONDS", 0.2)
        _assert_one_line(vcinr("jobs", "status", "x", "--address", silent_server), "timed out")

    def test_it_is_something_else(self, vcinr: Vcinr, other_server: str) -> None:
        _assert_one_line(vcinr("jobs", "stop", "x", "--address", other_server), "404")

    def test_ray_is_missing(self, vcinr: Vcinr, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray.job_submission", None)
        _assert_one_line(vcinr("jobs", "list"), "pip install 'vcinr-batch[ray]'")

    @pytest.mark.parametrize("address", ["auto", "127.0.0.1:6379", "ray://127.0.0.1:10001", "http://", "http://[x:1"])
    def test_an_address_that_is_no_dashboard(self, vcinr: Vcinr, address: str) -> None:
        _assert_one_line(vcinr("jobs", "list", "--address", address), address)

    def test_headers_that_are_no_json(self, vcinr: Vcinr, other_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(job_client.HEADERS_VARIABLE, "canary")
        outcome = vcinr("jobs", "list", "--address", other_server)
        _assert_one_line(outcome, job_client.HEADERS_VARIABLE)
        assert "canary" not in outcome.stderr


def _assert_one_line(outcome: Outcome, text: str) -> None:
    assert (outcome.code, outcome.stdout, outcome.stderr.count("\n")) == (2, "", 1)
    assert text in outcome.stderr


class TestCommandLine:
    @pytest.fixture
    def submitted(self, monkeypatch: pytest.MonkeyPatch) -> Submitted:
        """What would have been submitted."""
        found: Submitted = []

        def submit(_: Any, arguments: list[str], config: str | None = None) -> str:
            found.append((arguments, config))
            return "vcinr-1"

        monkeypatch.setattr(job_client, "connect", lambda _: SimpleNamespace())
        monkeypatch.setattr(jobs, "submit", submit)
        return found

    def test_options_go_along_as_they_are_and_local_paths_become_absolute(
        self,
        vcinr: Vcinr,
        submitted: Submitted,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        outcome = vcinr(
            *("compress", "s3://b/a.zarr", "data/*.nc", "--bundle", "models", "--output", "s3://b/out", "--overwrite"),
            *(
                "--select",
                "time=2019-03 x",
                "--select",
                "level=500",
                "--target-psnr",
                "45.5",
                "--variable=-t'; rm /",
            ),
            *("--storage-options", '{"anon": true}', "--address", "http://head:8265", "--no-wait"),
        )
        assert (outcome.code, outcome.stdout) == (0, "vcinr-1\n")
        ((arguments, config),) = submitted
        assert config is None
        assert arguments[:3] == ["compress", "s3://b/a.zarr", str(tmp_path / "data/*.nc")]
        assert arguments[-2:] == ["--address", "auto"]
        pairs = list(itertools.pairwise(arguments))
        for pair in [
            ("--bundle", str(tmp_path / "models")),
            ("--output", "s3://b/out"),
            ("--select", "time=2019-03 x"),
            ("--select", "level=500"),
            ("--target-psnr", "45.5"),
            ("--storage-options", '{"anon": true}'),
        ]:
            assert pair in pairs
        assert {"--overwrite", "--variable=-t'; rm /"} <= set(arguments)
        assert not {"--no-wait", "http://head:8265", "--quality", "--json"} & set(arguments)

    def test_a_local_configuration_is_sent_and_one_that_is_not_there_is_not(
        self, vcinr: Vcinr, submitted: Submitted, config_path: Path
    ) -> None:
        options = ["s3://b/a.zarr", "--output", "s3://b/m", "--address", "http://head:8265", "--no-wait"]
        assert vcinr("train", config_path, *options).code == 0
        assert vcinr("train", "/cluster/run.yaml", *options).code == 0
        assert [config for _, config in submitted] == [str(config_path), None]

    @pytest.mark.parametrize("command", ["compress", "train", "decompress"])
    def test_credentials_are_not_submitted(self, vcinr: Vcinr, submitted: Submitted, command: str) -> None:
        arguments = {
            "compress": ["s3://b/a.zarr", "--bundle", "s3://b/m"],
            "train": ["s3://b/run.yaml", "s3://b/a.zarr"],
            "decompress": ["s3://b/archive"],
        }[command]
        options = ["--storage-options", '{"key": "a", "secret": "canary"}', "--address", "http://head:8265"]
        outcome = vcinr(command, *arguments, "--output", "s3://b/o.zarr", *options)
        _assert_one_line(outcome, "dashboard")
        assert ("canary" in outcome.stderr, submitted) == (False, [])

    def test_malformed_storage_options_are_not_submitted(self, vcinr: Vcinr, submitted: Submitted) -> None:
        options = ["--storage-options", "{'key': 'A', 'secret': 'canary'}", "--address", "http://head:8265"]
        outcome = vcinr("decompress", "s3://b/archive", "--output", "s3://b/o.zarr", *options)
        _assert_one_line(outcome, "--storage-options: not JSON")
        assert ("canary" in outcome.stderr, submitted) == (False, [])

    def test_no_wait_is_for_jobs_only(self, vcinr: Vcinr) -> None:
        outcome = vcinr("compress", "a.nc", "--bundle", "m", "--output", "o", "--no-wait")
        _assert_one_line(outcome, "--no-wait needs --address http://")

    def test_jobs_alone_prints_its_help(self, vcinr: Vcinr) -> None:
        outcome = vcinr("jobs")
        assert (outcome.code, outcome.stderr) == (0, "")
        assert all(name in outcome.stdout for name in ("list", "status", "logs", "stop", "delete"))

    def test_ctrl_c_says_that_the_job_goes_on(
        self, vcinr: Vcinr, submitted: Submitted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object) -> jobs.JobReport:
            raise KeyboardInterrupt

        monkeypatch.setattr(jobs, "follow", interrupt)
        outcome = vcinr("decompress", "s3://b/a", "--output", "s3://b/o.zarr", "--address", "http://head:8265")
        assert (outcome.code, len(submitted)) == (130, 1)
        assert "job vcinr-1 goes on; vcinr jobs stop vcinr-1 --address http://head:8265" in outcome.stderr

    @pytest.mark.usefixtures("submitted")
    def test_with_json_only_json_lines_are_on_stdout(self, vcinr: Vcinr, monkeypatch: pytest.MonkeyPatch) -> None:
        def follow(_: Any, __: str, write: Callable[[str], None]) -> jobs.JobReport:
            for text in ("Run", 'ning\n{"event":', '"done"}\nvcinr: rem', "ark"):
                write(text)
            return replace(REPORT, status="FAILED", exit_code=1)

        monkeypatch.setattr(jobs, "follow", follow)
        outcome = vcinr(
            "decompress", "s3://b/a", "--output", "s3://b/o.zarr", "--json", "--address", "http://head:8265"
        )
        assert (outcome.code, [line["event"] for line in outcome.lines]) == (1, ["submitted", "done"])
        assert outcome.stderr == "Running\nvcinr: remark\n"


EXIT_CODES = {
    "succeeded": ("SUCCEEDED", 0, 0),
    "rejected samples": ("FAILED", 1, 1),
    "wrong input": ("FAILED", 2, 2),
    "defect": ("FAILED", 70, 70),
    "interrupted on the cluster": ("FAILED", 130, 130),
    "not installed there": ("FAILED", 127, 2),
    "killed": ("FAILED", -9, 2),
    "its node died": ("FAILED", None, 2),
    "stopped": ("STOPPED", -15, 130),
}


@pytest.mark.parametrize("case", EXIT_CODES)
def test_exit_codes(case: str) -> None:
    status, code, expected = EXIT_CODES[case]
    assert jobs.exit_code(replace(REPORT, status=status, exit_code=code)) == expected


class _Client:
    """A dashboard whose log stream breaks after each of the given pieces, and whose job ends after the last."""

    def __init__(self, log: str, breaks: list[int], error: Exception | None) -> None:
        self._log, self._breaks, self._error = log, breaks, error

    def get_address(self) -> str:
        return "http://head:8265"

    def get_job_info(self, submission_id: str) -> Any:
        fields = {"submission_id": submission_id, "entrypoint": "vcinr x", "message": None, "start_time": None}
        status = "RUNNING" if self._breaks else "SUCCEEDED"
        return SimpleNamespace(**fields, status=status, end_time=None, driver_exit_code=None)

    def get_job_logs(self, _: str) -> str:
        return self._log

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        until = self._breaks.pop(0) if self._breaks else 0
        for start in range(0, until, 3):
            yield self._log[start : min(start + 3, until)]
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize("error", [None, RuntimeError("closed"), ConnectionResetError("reset")], ids=repr)
def test_a_stream_that_breaks_is_opened_again_and_nothing_is_lost_or_doubled(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "RECONNECTION_SECONDS", 0.0)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.0)
    written: list[str] = []
    log = "one\ntwo\nthree\nfour\n"
    report = jobs.follow(_Client(log, [5, 2, 13, 13], error), "vcinr-1", written.append)
    assert (report.status, "".join(written)) == ("SUCCEEDED", log)


def test_a_connection_that_does_not_come_back_is_given_up_and_the_job_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "RECONNECTION_SECONDS", 0.0)
    client = _Client("log", [1] * 1000, OSError("gone\n"))
    with pytest.raises(VcinrError, match=r"lost the connection to job vcinr-1, which goes on \(gone\)"):
        jobs.follow(client, "vcinr-1", lambda _: None)


def test_stopping_a_job_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "STOP_SECONDS", 0.0)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.0)
    client: Any = _Client("", [1], None)
    client.stop_job = lambda _: True
    with pytest.raises(VcinrError, match="job vcinr-1 is still RUNNING 0 s after it was told to stop"):
        jobs.stop_job(client, "vcinr-1")


def test_a_user_without_a_name_can_submit(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_name() -> str:
        raise KeyError("uid not found")

    requests: list[dict[str, Any]] = []
    monkeypatch.setattr(jobs.getpass, "getuser", no_name)
    client = SimpleNamespace(get_address=lambda: "http://head", submit_job=lambda **request: requests.append(request))
    submission_id = jobs.submit(client, ["compress", "s3://b/a b.nc"])
    assert submission_id.startswith("vcinr-compress-user-")
    assert requests[0]["entrypoint"] == "vcinr compress 's3://b/a b.nc'"
    assert requests[0]["metadata"] == {"command": requests[0]["entrypoint"], "user": "user"}


def test_what_a_dashboard_answers_becomes_one_line() -> None:
    def refuse(**_: object) -> str:
        raise RuntimeError("Request failed with status code 500: Traceback:\n  File x\nValueError: id is taken\n.")

    client = SimpleNamespace(get_address=lambda: "http://head", submit_job=refuse)
    with pytest.raises(VcinrError, match=r"^the Ray dashboard at http://head: ValueError: id is taken$"):
        jobs.submit(client, ["compress"])
    with pytest.raises(ConfigError, match="readable on the cluster's dashboard"):
        jobs.submit(client, ["compress", "--storage-options", '{"secret": "x"}'])


def test_the_environment_is_as_before_after_connecting(monkeypatch: pytest.MonkeyPatch, other_server: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    with pytest.raises(VcinrError):
        job_client.connect(other_server)
    assert os.environ["RAY_ADDRESS"] == "elsewhere:6379"
