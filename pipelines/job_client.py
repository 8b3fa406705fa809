"""The connection to a Ray dashboard's job API; every error of Ray's client becomes one line of ours, within seconds."""

import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException
from typing import Any

from pipelines.cluster_token import cluster_token
from pipelines.job_secrets import refuse_credentials
from vcinr_batch.errors import ConfigError, VcinrError

CONNECT_SECONDS = 5.0
"""Until a dashboard that does not answer counts as not there; Ray's own client waits for minutes."""
HEADERS_VARIABLE = "RAY_JOB_HEADERS"
"""For dashboards behind a login; the same variable as of Ray's own command."""

# Ray prefers these to the address that it is given; here what the caller names counts.
_OVERRIDING_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


def is_dashboard(address: str | None) -> bool:
    """Whether `--address` names a dashboard, to which a command is submitted, rather than a cluster to work on."""
    return address is not None and address.startswith(("http://", "https://"))


def connect(address: str) -> Any:
    """Ray's `JobSubmissionClient` of the dashboard at `address` (`http://HEAD:8265`).

    Raises:
        ConfigError: Ray is not installed, or the address is not one of HTTP or holds credentials.
        VcinrError: nothing answers there within seconds, it is no Ray dashboard, or it refuses us.
    """
    if not is_dashboard(address):
        raise ConfigError(f"--address {address!r}: expected the dashboard of a cluster, e.g. http://HEAD:8265")
    refuse_credentials([address])
    client_class = _client_class()
    headers = {**_token_headers(_answer_status(address)), **_custom_headers()}
    with translated_errors(address), _without(_OVERRIDING_VARIABLES):
        return client_class(address, headers=headers)


@contextmanager
def translated_errors(address: str, submission_id: str = "") -> Iterator[None]:
    """Turn what Ray's client raises into a ConfigError (no such job) or a VcinrError."""
    try:
        yield
    except VcinrError:
        raise
    except Exception as error:  # RuntimeError, Ray's own and those of its HTTP client
        if type(error).__name__ == "AuthenticationError":
            raise VcinrError(
                f"the Ray dashboard at {address} wants the cluster's token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            ) from error
        if submission_id and "status code 404" in str(error):
            raise ConfigError(f"no job {submission_id!r} at {address} (see vcinr jobs list)") from error
        raise VcinrError(f"the Ray dashboard at {address}: {last_line(error)}") from error


def last_line(error: BaseException) -> str:
    """What went wrong: a dashboard's answers are whole tracebacks, whose last line says it."""
    lines = str(error).strip(" .\n").splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def _client_class() -> Any:
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise ConfigError("Ray is not installed: pip install 'vcinr-batch[ray]' to submit jobs to a cluster") from error
    for handler in logging.getLogger("ray").handlers:  # its remarks on packages and sockets are not ours
        handler.setLevel(logging.ERROR)
    return JobSubmissionClient


def _answer_status(address: str) -> int:
    # Any answer will do: whether it is the right one is for Ray's client to say.
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=CONNECT_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise VcinrError(f"no Ray dashboard answers at {address}: {reason}") from error


def _token_headers(status: int) -> dict[str, str]:
    """Where the dashboard asks for it, the cluster's token.

    Ray's client finds it by itself only in processes that were started with RAY_AUTH_MODE=token.
    """
    if status not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return {}
    token = cluster_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _custom_headers() -> dict[str, str]:
    text = os.environ.get(HEADERS_VARIABLE)
    if not text:
        return {}
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{HEADERS_VARIABLE}: expected a JSON object of header names and values")
    return {str(name): str(value) for name, value in content.items()}


@contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
