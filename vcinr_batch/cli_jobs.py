"""The part of the command line that talks to a cluster: `--address http://...`, `--no-wait` and `vcinr jobs`."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from vcinr_batch.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.jobs import JobReport

Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Ray cluster whose workers to use: auto, HOST:PORT or ray://...; or http://HEAD:8265, the dashboard to "
        "which the whole command is submitted as a job.",
    ),
]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="With --address http://...: print the job's id and do not wait for its end.")
]
Dashboard = Annotated[
    str, typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", metavar="URL", help="Dashboard of the cluster.")
]
SubmissionId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as submitting printed it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines; the last one is the result.")]

LOCAL_DASHBOARD = "http://127.0.0.1:8265"
"""Where `ray dashboard` and `kubectl port-forward` bring it."""
EXIT_REJECTED = 1

_NOT_SENT = ("address", "no_wait")
# The parameters of all commands that name files.
_PATHS = ("config", "sources", "bundle", "output", "checkpoint", "archive")

jobs_app = typer.Typer(help="Jobs on a Ray cluster: those of --address http://...")


def submit_elsewhere(context: typer.Context, address: str | None, no_wait: bool) -> None:
    """Where `address` is a dashboard, run this command there as a job and end with its exit code; else do nothing.

    Raises:
        ConfigError: `--no-wait` without a dashboard, or credentials in the command line.
        VcinrError: the dashboard does not answer.
    """
    from pipelines.job_client import connect, is_dashboard
    from pipelines.job_secrets import refuse_credentials
    from pipelines.jobs import submit

    if address is None or not is_dashboard(address):
        if no_wait:
            raise ConfigError("--no-wait needs --address http://HEAD:8265: only a submitted job goes on alone")
        return
    arguments = _arguments(context)
    refuse_credentials(arguments)
    client = connect(address)
    config = _local_config(context)
    submission_id = submit(client, arguments, config)
    as_json = bool(context.params.get("as_json"))
    _say_what_was_submitted(submission_id, address, [path for path in arguments if path != config], as_json, no_wait)
    if no_wait:
        raise typer.Exit(0)
    _follow(client, submission_id, address, as_json)


@jobs_app.callback(invoke_without_command=True)
def _jobs(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@jobs_app.command("list")
def list_command(address: Dashboard = LOCAL_DASHBOARD, as_json: AsJson = False) -> None:
    """All jobs, the oldest first."""
    from pipelines.job_client import connect
    from pipelines.jobs import job_reports
    from vcinr_batch.console import print_json

    reports = job_reports(connect(address))
    if as_json:
        for report in reports:
            print_json({"event": "job", **vars(report)})
        print_json({"event": "done", "jobs": len(reports)})
        return
    width = max((len(report.submission_id) for report in reports), default=0)
    for report in reports:
        print(f"{report.submission_id:<{width}}  {report.status:<9}  {report.started or '-':<25}  {report.command}")


@jobs_app.command()
def status(submission_id: SubmissionId, address: Dashboard = LOCAL_DASHBOARD, as_json: AsJson = False) -> None:
    """How one job is."""
    from pipelines.job_client import connect
    from pipelines.jobs import job_report

    _print_report(job_report(connect(address), submission_id), as_json)


@jobs_app.command()
def logs(
    submission_id: SubmissionId,
    address: Dashboard = LOCAL_DASHBOARD,
    keep_on: Annotated[bool, typer.Option("--follow", help="Until the job ends; then end with its exit code.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout, the rest on stderr.")] = False,
) -> None:
    """What one job has printed."""
    from pipelines.job_client import connect
    from pipelines.jobs import job_log

    client = connect(address)
    if keep_on:
        _follow(client, submission_id, address, as_json)
    output = _Output(as_json)
    output.write(job_log(client, submission_id))
    output.close()


@jobs_app.command()
def stop(submission_id: SubmissionId, address: Dashboard = LOCAL_DASHBOARD, as_json: AsJson = False) -> None:
    """Stop one job and wait for its end; the same command completes its work later."""
    from pipelines.job_client import connect
    from pipelines.jobs import stop_job

    _print_report(stop_job(connect(address), submission_id), as_json)


@jobs_app.command()
def delete(submission_id: SubmissionId, address: Dashboard = LOCAL_DASHBOARD, as_json: AsJson = False) -> None:
    """Make the cluster forget a job that has ended; what it has written stays."""
    from pipelines.job_client import connect
    from pipelines.jobs import delete_job

    _print_report(delete_job(connect(address), submission_id), as_json)


class _Output:
    """A job's output on stdout; with `--json` its JSON lines only, and what else it printed on stderr."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._line = ""

    def write(self, text: str) -> None:
        if not self._as_json:
            print(text, end="", flush=True)
            return
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            print(line, file=sys.stdout if line.startswith("{") else sys.stderr, flush=True)

    def close(self) -> None:
        if self._line:
            self.write("\n")


def _follow(client: Any, submission_id: str, address: str, as_json: bool) -> NoReturn:
    from pipelines.jobs import exit_code, follow

    output = _Output(as_json)
    try:
        report = follow(client, submission_id, output.write)
    except KeyboardInterrupt:
        _say(f"job {submission_id} goes on; vcinr jobs stop {submission_id} --address {address} ends it")
        raise
    finally:
        output.close()
    code = exit_code(report)
    if code not in (0, EXIT_REJECTED):
        _say(f"job {submission_id}: {_end_text(report)}")
    raise typer.Exit(code)


def _end_text(report: "JobReport") -> str:
    if report.status == "STOPPED":
        return "stopped"
    if report.exit_code == 127:
        return "vcinr was not found; is vcinr-batch installed on the cluster?"
    return f"failed with exit code {report.exit_code}" if report.exit_code else f"failed: {report.message[:300]}"


def _say_what_was_submitted(
    submission_id: str, address: str, arguments: Sequence[str], as_json: bool, no_wait: bool
) -> None:
    from vcinr_batch.console import print_json

    # What `_arguments` made absolute. Parts written to the disks of single machines would be no archive.
    if local := [argument for argument in arguments if os.path.isabs(argument)]:
        _say(f"local paths must be on a file system that all machines of the cluster share: {', '.join(local[:3])}")
    if as_json:
        print_json({"event": "submitted", "submission_id": submission_id, "address": address})
    elif no_wait:
        print(submission_id)
    else:
        _say(f"submitted job {submission_id}")


def _print_report(report: "JobReport", as_json: bool) -> None:
    from vcinr_batch.console import print_json, print_pairs

    if as_json:
        print_json({"event": "done", **vars(report)})
        return
    pairs = [(name.replace("_", " "), str(value)) for name, value in vars(report).items() if value not in (None, "")]
    print_pairs(pairs)


def _local_config(context: typer.Context) -> str | None:
    config = context.params.get("config")
    return _absolute(config) if isinstance(config, str) and os.path.isfile(config) else None


def _arguments(context: typer.Context) -> list[str]:
    """This command line as the cluster is to run it: parsed and put together again, local paths made absolute."""
    positional: list[str] = []
    options: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name in _NOT_SENT or source is None or source.name.startswith("DEFAULT"):
            continue
        value = context.params[name]
        values = value if isinstance(value, list | tuple) else [value]
        texts = [_absolute(str(item)) if name in _PATHS else str(item) for item in values]
        if parameter.param_type_name == "argument":
            positional += texts
        elif isinstance(value, bool):
            options.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            options += [piece for text in texts for piece in _option(parameter.opts[0], text)]
    # A command without workers runs in one process, on the head; an address would contradict it.
    alone = any(name in context.params and context.params[name] == 0 for name in ("workers", "num_workers"))
    return [context.info_name or "", *positional, *options, *([] if alone else ["--address", "auto"])]


def _option(name: str, text: str) -> list[str]:
    return [f"{name}={text}"] if text.startswith("-") else [name, text]


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _say(text: str) -> None:
    print(f"vcinr: {text}", file=sys.stderr, flush=True)
