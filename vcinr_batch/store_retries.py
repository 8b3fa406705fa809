"""Asking a store again: which failures pass by themselves, how long we wait for that, and what is said afterwards.

A store that is busy, restarting or behind a bad line says nothing about the data. Such failures are tried again with
growing pauses for VCINR_STORE_RETRY_SECONDS seconds (120 where it is not set) and then become a
`StoreUnavailableError`. Everything else comes at once.
"""

import errno
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from vcinr_batch.errors import ConfigError, SourceError, StoreUnavailableError, VcinrError

Result = TypeVar("Result")

WINDOW_VARIABLE = "VCINR_STORE_RETRY_SECONDS"
_WINDOW_SECONDS = 120.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 10.0
_QUIET_SECONDS = 5.0
_CAUSE_CHARACTERS = 200
_log = logging.getLogger(__name__)

# By name: the libraries that define them come with extras and are slow to import.
_TRANSIENT_KINDS = {
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "botocore.parsers.ResponseParserError",
    "aiohttp.client_exceptions.ClientPayloadError",
    "aiohttp.client_exceptions.ClientConnectionError",
    "aiohttp.http_exceptions.HttpProcessingError",
    "http.client.IncompleteRead",
    "http.client.RemoteDisconnected",
    "urllib3.exceptions.ProtocolError",
    "socket.gaierror",
    "builtins.ConnectionError",
    "builtins.TimeoutError",
    "fsspec.exceptions.FSTimeoutError",
}
_CREDENTIAL_KINDS = {
    "botocore.exceptions.NoCredentialsError": "no credentials found in storage options, AWS_* variables or profile",
    "botocore.exceptions.PartialCredentialsError": "credentials are incomplete: a key without its secret",
    "botocore.exceptions.ProfileNotFound": "the profile that AWS_PROFILE or the storage options name does not exist",
    "botocore.exceptions.CredentialRetrievalError": "credentials cannot be fetched",
    "botocore.exceptions.SSOError": "credentials cannot be fetched: sign in again",
    "botocore.exceptions.TokenRetrievalError": "credentials cannot be fetched: sign in again",
}
_TRANSIENT_ERRNOS = {
    errno.EBUSY,  # what s3fs makes of 503 and of 409, a conflict of two conditional writes
    getattr(errno, "EREMOTEIO", errno.EIO),  # and of 500
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENETDOWN,
}
_TRANSIENT_STATUS = {408, 409, 425, 429, 500, 502, 503, 504, 509}
_TRANSIENT_CODES = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "InternalError", "BadDigest"}
_SECRET_WORDS = ("key", "secret", "token", "password", "username", "account", "connection_string", "credential", "sas")
_SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")


class ShortReadError(Exception):
    """Fewer bytes came than the range holds."""


def ask_store(
    call: Callable[[], Result],
    url: str,
    action: str,
    storage_options: Mapping[str, Any] | None = None,
    before_retry: Callable[[], None] = lambda: None,
) -> Result:
    """What a call to a store gives, called again while the store fails in ways that pass by themselves.

    Args:
        call: does the whole operation; may be called several times.
        url: of the file, for the message.
        action: a verb, for the message.
        storage_options: whose secrets must not be in the message.
        before_retry: called before each further attempt.

    Raises:
        StoreUnavailableError: the store still failed at the end of the window, or it refused the credentials.
        SourceError: missing file, wrong use or any other failure that another attempt would not change.
        ArchiveExistsError and others of ours: as `call` raises them.
    """
    pauses, started = _pauses(window_seconds()), time.monotonic()
    while True:
        try:
            return call()
        except (VcinrError, MemoryError):
            raise
        # Stores raise botocore's, aiohttp's and their own exceptions, not only OSError: this is the one place that
        # sees them, so it catches all and keeps the cause.
        except Exception as error:
            pause = next(pauses, None) if is_transient(error) else None
            if pause is None:
                raise store_error(error, url, action, storage_options) from error
            if time.monotonic() - started > _QUIET_SECONDS:
                _log.warning("%s; trying again", store_error(error, url, action, storage_options))
            time.sleep(pause)
            before_retry()


def window_seconds() -> float:
    """How long a failing store is asked again.

    Raises:
        ConfigError: the variable is not a number of seconds.
    """
    text = os.environ.get(WINDOW_VARIABLE, "").strip()
    try:
        seconds = float(text) if text else _WINDOW_SECONDS
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"{WINDOW_VARIABLE}: expected a number of seconds from 0 on, got {text!r}")
    return seconds


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later: no connection, timeout, throttling, 5xx, short read."""
    for link in _chain(error):
        if isinstance(link, ShortReadError) or _kinds(link) & _TRANSIENT_KINDS:
            return True
        status, code = _answer(link)
        if status is not None:
            return status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES
        if isinstance(link, OSError) and link.errno in _TRANSIENT_ERRNOS:
            return True
    return False


def is_taken(error: BaseException) -> bool:
    """Whether a create-if-absent was refused because the file is there."""
    return any(isinstance(link, FileExistsError) or _answer(link)[0] == 412 for link in _chain(error))


def store_error(
    error: Exception, url: str, action: str, storage_options: Mapping[str, Any] | None = None
) -> SourceError:
    """One line of ours for what a store raised, without credentials."""
    shown = f"cannot {action} {public_url(url)}"
    if refusal := _refusal(error):
        return StoreUnavailableError(f"{shown}: {refusal}")
    cause = _cause(error, url, storage_options)
    if is_transient(error):
        return StoreUnavailableError(f"{shown}: the store does not answer properly: {cause}")
    return SourceError(f"{shown}: {cause}")


def public_url(url: str) -> str:
    """The URL as it may be shown: without user, password and signed query."""
    without_user = re.sub(r"(://)[^/@]*@", r"\1", url)
    return re.sub(r"(https?://[^?]*)\?.*", r"\1", without_user)


def without_secrets(text: str, storage_options: Mapping[str, Any] | None = None) -> str:
    """A text without the values of secret storage options, of AWS variables and of signed queries."""
    secrets = {os.environ.get(name, "") for name in _SECRET_VARIABLES} | set(_secret_values(storage_options or {}))
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) > 3:
            text = text.replace(secret, "...")
    return re.sub(r"(?i)(X-Amz-[A-Za-z-]+|AWSAccessKeyId|Signature|sig|token)=[^&\s\"']+", r"\1=...", text)


def _pauses(window: float) -> Iterator[float]:
    """Seconds to wait before each further attempt, growing, jittered so that workers do not come back all at once."""
    end, longest = time.monotonic() + window, _FIRST_PAUSE_SECONDS
    while (left := end - time.monotonic()) > 0:
        yield min(random.uniform(0.5, 1.0) * longest, left)
        longest = min(2 * longest, _LONGEST_PAUSE_SECONDS)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from on purpose; what it merely followed says nothing about it."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__


def _kinds(error: BaseException) -> set[str]:
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}


def _answer(error: BaseException) -> tuple[int | None, str]:
    """HTTP status and S3's error code where the error has them."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore.exceptions.ClientError
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status, str(response.get("Error", {}).get("Code", ""))
    status = getattr(error, "status", None)  # aiohttp.ClientResponseError
    return (status, "") if isinstance(status, int) else (None, "")


def _refusal(error: Exception) -> str | None:
    """Why the credentials did not do, in words of ours: what the server says may repeat the key."""
    for link in _chain(error):
        for kind in _kinds(link):
            if kind in _CREDENTIAL_KINDS:
                return _CREDENTIAL_KINDS[kind]
        status, code = _answer(link)
        if status in (401, 403) and status is not None:
            return f"permission denied: the store refuses these credentials ({code or status})"
    return None


def _cause(error: Exception, url: str, storage_options: Mapping[str, Any] | None) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file" if _answer(error.__cause__ or error)[1] != "NoSuchBucket" else "no such bucket"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, IsADirectoryError):
        return "it is a directory"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    for credentials in re.findall(r"://([^/@]*)@", url):
        text = text.replace(credentials, "...")
    text = without_secrets(public_url(" ".join(text.split())), storage_options)
    return text[:_CAUSE_CHARACTERS] or type(error).__name__


def _secret_values(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secret_values(value)
        elif isinstance(value, str) and any(word in name.lower() for word in _SECRET_WORDS):
            yield value
