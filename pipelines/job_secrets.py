"""Finds credentials in a command line that others would be able to read."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vcinr_batch.errors import ConfigError

_SECRET_NAME = re.compile(
    r"key|secret|token|pass(word|wd|phrase)?$|credential|auth|signature|^sas|cookie|header|connection_?string|cert",
    re.IGNORECASE,
)
_HARMLESS_NAMES = frozenset({"signature_version", "ssekmskeyid", "sse_kms_key_id", "tcp_keepalive"})
# What gcsfs takes instead of a token.
_HARMLESS_VALUES = (None, "", True, False, "anon", "cloud", "cache", "google_default")
_SECRET_TEXTS = {
    "a user and password in a URL": re.compile(r"://[^/\s@:\"]*:[^/\s@\"]+@"),
    "a signed URL": re.compile(
        r"[?&](x-(amz|goog)-(signature|credential|security-token)|signature|sig|(access_)?token|awsaccesskeyid)=",
        re.IGNORECASE,
    ),
    "an access key": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
}


def refuse_credentials(arguments: Sequence[str]) -> None:
    """Raise where an argument of a command holds credentials.

    Raises:
        ConfigError: names the option or what was found, never its value.
    """
    found = next(_findings(arguments), None)
    if found is not None:
        raise ConfigError(
            f"{found} would be readable on the cluster's dashboard: leave it out and give the cluster its credentials "
            "in its environment, a profile or a role"
        )


def _findings(arguments: Sequence[str]) -> Iterator[str]:
    for argument in arguments:
        for name in _secret_names(_json_object(argument.partition("=")[2] if argument[:2] == "--" else argument)):
            yield f"--storage-options: {name!r}"
        for what, pattern in _SECRET_TEXTS.items():
            if pattern.search(argument):
                yield what


def _json_object(text: str) -> Any:
    try:
        return json.loads(text) if text.lstrip()[:1] in "{[" else None
    except ValueError:
        return None


def _secret_names(content: Any) -> Iterator[str]:
    if isinstance(content, list):
        for item in content:
            yield from _secret_names(item)
    if isinstance(content, Mapping):
        for name, value in content.items():
            plain = isinstance(value, str | bool | None) and value in _HARMLESS_VALUES
            if _SECRET_NAME.search(name) and name.lower() not in _HARMLESS_NAMES and not plain:
                yield name
            yield from _secret_names(value)
