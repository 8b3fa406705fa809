"""Commands as jobs on a Ray cluster, through the dashboard's job API: submit, follow, ask, stop, delete.

The command runs on the cluster's head node as it would here, with `--address auto`; its workers run all over the
cluster. Whoever reaches the dashboard reads the entrypoints, so none that holds credentials is ever submitted.
"""

import asyncio
import getpass
import re
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.job_client import last_line, translated_errors
from pipelines.job_secrets import refuse_credentials
from vcinr_batch.errors import ConfigError, VcinrError

POLL_SECONDS = 0.5
"""Between two questions whether a job has ended."""
RECONNECTIONS, RECONNECTION_SECONDS = 20, 3.0
"""How often, and after how long each time, a broken log stream is opened again before following is given up."""
STOP_SECONDS = 60.0
"""For a job to end; Ray kills it some seconds after it was told to stop."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")

_EXIT_CODES_OF_FAILURES = (1, 2, 70, 130)
_EXIT_FAILED, _EXIT_STOPPED = 2, 130


@dataclass(frozen=True)
class JobReport:
    """What the cluster knows of a job; `exit_code` is None until it is known, times are ISO 8601 in UTC."""

    submission_id: str
    status: str
    command: str
    message: str
    started: str | None
    ended: str | None
    exit_code: int | None

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED


def submit(client: Any, arguments: Sequence[str], config: str | None = None) -> str:
    """Submit `vcinr ARGUMENTS...` and return the job's submission id, `vcinr-COMMAND-USER-RANDOM`.

    Args:
        client: from `job_client.connect`.
        arguments: the command line that the cluster is to run, without `vcinr`.
        config: a local file among the arguments; it is sent along, and is known by its base name there.

    Raises:
        ConfigError: an argument holds credentials.
        VcinrError: the cluster did not take the job.
    """
    refuse_credentials(arguments)
    user = _user_name()
    submission_id = f"vcinr-{arguments[0]}-{user}-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as folder, translated_errors(client.get_address(), submission_id):
        runtime_env: dict[str, Any] = {}
        if config is not None:
            name = Path(shutil.copy(config, folder)).name
            arguments = [name if argument == config else argument for argument in arguments]
            runtime_env["working_dir"] = folder
        entrypoint = shlex.join(["vcinr", *arguments])
        client.submit_job(
            entrypoint=entrypoint,
            submission_id=submission_id,
            runtime_env=runtime_env,
            metadata={"command": entrypoint, "user": user},
        )
    return submission_id


def follow(client: Any, submission_id: str, write: Callable[[str], None]) -> JobReport:
    """Pass on what a job prints, from its beginning, until it has ended.

    A stream that breaks (a proxy that closes idle connections, a port forward) is opened again; nothing is lost or
    written twice.

    Raises:
        ConfigError: there is no such job.
        VcinrError: the connection broke and did not come back; the job itself goes on.
    """
    job_report(client, submission_id)
    log, failures = _Log(write), 0
    while True:
        try:
            asyncio.run(log.pass_on(client, submission_id))
            failures = 0
        except (RuntimeError, OSError) as error:
            failures += 1
            if failures > RECONNECTIONS:
                raise VcinrError(
                    f"lost the connection to job {submission_id}, which goes on ({last_line(error)})"
                ) from error
        report = _report_or_none(client, submission_id)
        if report is not None and report.has_ended:
            with suppress(VcinrError):  # without a driver there was no log, and a lost node took it along
                log.write_rest(job_log(client, submission_id))
            return report
        time.sleep(RECONNECTION_SECONDS if failures else POLL_SECONDS)


def job_reports(client: Any) -> list[JobReport]:
    """All jobs that were submitted to the cluster, the oldest first."""
    with translated_errors(client.get_address()):
        details = client.list_jobs()
    reports = [_report(detail) for detail in details if detail.submission_id]
    return sorted(reports, key=lambda report: (report.started or "", report.submission_id))


def job_report(client: Any, submission_id: str) -> JobReport:
    """One job; ConfigError where there is no such job."""
    with translated_errors(client.get_address(), submission_id):
        return _report(client.get_job_info(submission_id))


def job_log(client: Any, submission_id: str) -> str:
    """What a job has printed so far; ConfigError where there is no such job."""
    with translated_errors(client.get_address(), submission_id):
        return str(client.get_job_logs(submission_id))


def stop_job(client: Any, submission_id: str) -> JobReport:
    """Stop a job and wait until it has ended; one that has ended already stays as it is.

    Raises:
        ConfigError: there is no such job.
        VcinrError: it has not ended after `STOP_SECONDS`, or the dashboard does not answer.
    """
    with translated_errors(client.get_address(), submission_id):
        client.stop_job(submission_id)
    deadline = time.monotonic() + STOP_SECONDS
    while not (report := job_report(client, submission_id)).has_ended:
        if time.monotonic() > deadline:
            raise VcinrError(
                f"job {submission_id} is still {report.status} {STOP_SECONDS:.0f} s after it was told to stop; "
                "see vcinr jobs status"
            )
        time.sleep(POLL_SECONDS)
    return report


def delete_job(client: Any, submission_id: str) -> JobReport:
    """Make the cluster forget a job, and return what it knew; ConfigError for one that has not ended."""
    report = job_report(client, submission_id)
    if not report.has_ended:
        raise ConfigError(f"job {submission_id} is {report.status}: stop it before it is deleted")
    with translated_errors(client.get_address(), submission_id):
        client.delete_job(submission_id)
    return report


def exit_code(report: JobReport) -> int:
    """For this process after a job: the command's own exit code; 130 stopped; 2 where anything else went wrong."""
    if report.status == "SUCCEEDED":
        return 0
    if report.status == "STOPPED":
        return _EXIT_STOPPED
    return report.exit_code if report.exit_code in _EXIT_CODES_OF_FAILURES else _EXIT_FAILED


class _Log:
    """Writes a log once, though each connection sends it from the beginning."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written = 0

    async def pass_on(self, client: Any, submission_id: str) -> None:
        received = 0
        async for text in client.tail_job_logs(submission_id):
            received += len(text)
            if received > self._written:
                self._write(text[self._written - received :])
                self._written = received

    def write_rest(self, whole: str) -> None:
        if rest := whole[self._written :]:
            self._write(rest)
            self._written = len(whole)


def _report_or_none(client: Any, submission_id: str) -> JobReport | None:
    try:
        return job_report(client, submission_id)
    except ConfigError:  # forgotten: the cluster has begun anew
        raise
    except VcinrError:
        return None


def _report(detail: Any) -> JobReport:
    return JobReport(
        submission_id=str(detail.submission_id),
        status=str(getattr(detail.status, "value", detail.status)),
        command=str(detail.entrypoint),
        message=" ".join((detail.message or "").split()),
        started=_time_text(detail.start_time),
        ended=_time_text(detail.end_time),
        exit_code=detail.driver_exit_code,
    )


def _time_text(milliseconds: int | None) -> str | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds") if milliseconds else None


def _user_name() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        name = ""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "user"
