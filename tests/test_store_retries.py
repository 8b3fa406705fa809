"""Which failures are tried again, for how long, and that no message holds a credential."""

import errno
import itertools
from typing import Any

import pytest

from vcinr_batch import store_retries
from vcinr_batch.errors import ArchiveExistsError, ConfigError, SourceError, StoreUnavailableError
from vcinr_batch.store_retries import ShortReadError, ask_store, is_transient, window_seconds, without_secrets

botocore_exceptions = pytest.importorskip("botocore.exceptions")


def answer(status: int, code: str = "") -> Exception:
    response = {"Error": {"Code": code, "Message": "said the server"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore_exceptions.ClientError(response, "GetObject")  # type: ignore[no-any-return]


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(), True),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (ShortReadError("half"), True),
        (OSError(errno.EBUSY, "SlowDown"), True),
        (botocore_exceptions.EndpointConnectionError(endpoint_url="http://x"), True),
        (botocore_exceptions.ReadTimeoutError(endpoint_url="http://x"), True),
        *((answer(status), True) for status in (429, 500, 502, 503, 504)),
        (answer(400, "RequestTimeout"), True),
        (answer(409, "ConditionalRequestConflict"), True),
        (caused(OSError(errno.EIO, "?"), answer(503)), True),
        (caused(FileNotFoundError("an http file system says so"), ConnectionResetError()), True),
        *((answer(status), False) for status in (400, 403, 404, 412, 416, 501)),
        (caused(FileNotFoundError("x"), answer(404, "NoSuchKey")), False),
        (FileNotFoundError(errno.ENOENT, "x"), False),
        (PermissionError("x"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (ValueError("x"), False),
        (botocore_exceptions.NoCredentialsError(), False),
    ],
    ids=str,
)
def test_only_what_may_pass_by_itself_is_tried_again(error: Exception, expected: bool) -> None:
    assert is_transient(error) is expected


def failing(*failures: Exception | None) -> Any:
    """A call that fails like this, one after the other, and then gives the number of its attempts."""
    attempts, left = itertools.count(1), iter(failures)

    def call() -> int:
        attempt = next(attempts)
        failure = next(left, None)
        if failure is not None:
            raise failure
        return attempt

    return call


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only the pauses move; the pauses are noted."""
    noted: list[float] = []
    monkeypatch.setattr(store_retries.time, "sleep", noted.append)
    monkeypatch.setattr(store_retries.time, "monotonic", lambda: sum(noted))
    return noted


def test_a_call_is_repeated_with_growing_pauses_until_it_succeeds(pauses: list[float]) -> None:
    assert ask_store(failing(*[TimeoutError()] * 6), "s3://b/x", "read") == 7
    # Each pause is between half of and the whole of 0.2 s times a power of two.
    assert all(0.1 * 2**i <= pause <= 0.2 * 2**i for i, pause in enumerate(pauses))


def test_the_window_bounds_the_sum_of_the_pauses(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCINR_STORE_RETRY_SECONDS", "30")
    with pytest.raises(StoreUnavailableError, match="cannot read s3://b/x: the store does not answer"):
        ask_store(failing(*[TimeoutError()] * 1000), "s3://b/x", "read")
    assert sum(pauses) == pytest.approx(30)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError(), SourceError),
        (caused(PermissionError(), answer(403, "AccessDenied")), StoreUnavailableError),
        (botocore_exceptions.NoCredentialsError(), StoreUnavailableError),
        (botocore_exceptions.ProfileNotFound(profile="x"), StoreUnavailableError),
        (ArchiveExistsError("ours"), ArchiveExistsError),
    ],
)
def test_everything_else_comes_at_once(pauses: list[float], error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        ask_store(failing(error), "s3://b/x", "read")
    assert type(caught.value) is kind
    assert pauses == []


def test_what_a_further_attempt_needs_is_done_before_it(pauses: list[float]) -> None:
    done: list[int] = []
    ask_store(failing(TimeoutError(), TimeoutError()), "x", "read", before_retry=lambda: done.append(len(pauses)))
    assert done == [1, 2]


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan"])
def test_a_window_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("VCINR_STORE_RETRY_SECONDS", text)
    with pytest.raises(ConfigError, match=f"VCINR_STORE_RETRY_SECONDS: .* got '{text}'"):
        window_seconds()


def test_secrets_are_cut_out_of_what_a_store_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-canary")
    options = {"key": "key-canary", "client_kwargs": {"aws_secret_access_key": "secret-canary"}}
    said = "key-canary token-canary secret-canary /x?X-Amz-Signature=query-canary&X-Amz-Security-Token=a&y=1"
    shown = without_secrets(said, options)
    assert "canary" not in shown
    assert "y=1" in shown
