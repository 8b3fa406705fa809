"""Finds what may be credentials in a command line that others would be able to read.

Names and forms of secrets are without number, those of harmless settings are few: in `--storage-options`, in the user
part of a URL and in its query, only what is known to be harmless passes.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from vcinr_batch.errors import ConfigError

_STORAGE_OPTIONS = "--storage-options"
# Of s3fs, botocore, gcsfs, adlfs and fsspec itself: where and how, never who. Lower case.
_HARMLESS_TEXT = """
anon endpoint_url region_name region use_ssl verify profile requester_pays version_aware cache_regions project
default_block_size default_cache_type default_fill_cache block_size max_concurrency fixed_upload_size asynchronous
use_listings_cache listings_expiry_time skip_instance_cache account_name host port timeout
client_kwargs api_version trust_env
config_kwargs s3 signature_version addressing_style payload_signing_enabled use_accelerate_endpoint
use_dualstack_endpoint connect_timeout read_timeout max_pool_connections retries max_attempts total_max_attempts mode
tcp_keepalive request_checksum_calculation response_checksum_validation parameter_validation
s3_additional_kwargs acl storageclass serversideencryption ssekmskeyid
"""
_HARMLESS_NAMES = frozenset(_HARMLESS_TEXT.split())
# Says that there is none, or (gcsfs) where a token comes from.
_NO_SECRETS = {"token": ("anon", "cloud", "google_default")}
# The user of these is a name or a container; a password would follow a colon.
_USER_SCHEMES = ("sftp", "ssh", "hdfs", "abfs", "abfss", "wasb", "wasbs")
_HARMLESS_QUERY_NAMES = ("version", "versionid", "generation", "format", "download")

_URL = re.compile(r"\b([a-z][a-z0-9+.-]*)://(?=([^/?#\s]*)([^\s]*))", re.IGNORECASE)
_PORT_OR_NONE = re.compile(r"[^:]*(:\d{0,5})?|\[[0-9a-f:.%]*\](:\d{0,5})?|arn:aws.*", re.IGNORECASE)
_SECRET_TEXTS = {
    "an access key": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[\w-]{20}|\b(gh[pousr]|github_pat|hf)_\w{16}"),
    "a connection string": re.compile(r"(Account|SharedAccess)(Key|Signature)=", re.IGNORECASE),
}


def refuse_credentials(arguments: Sequence[str]) -> None:
    """Raise where an argument of a command holds credentials, or storage options that are not known to hold none.

    Raises:
        ConfigError: names the option or what was found, never its value.
    """
    for text in _storage_options(arguments):
        _check_json(text)
    found = next(_findings(arguments), None)
    if found is not None:
        raise ConfigError(
            f"{found} would be readable on the cluster's dashboard: leave it out and give the cluster its credentials "
            "in its environment, a profile or a role"
        )


def _storage_options(arguments: Sequence[str]) -> Iterator[str]:
    for i, argument in enumerate(arguments):
        name, separator, text = argument.partition("=")
        if name == _STORAGE_OPTIONS and separator:
            yield text
        elif argument == _STORAGE_OPTIONS and i + 1 < len(arguments):
            yield arguments[i + 1]


def _check_json(text: str) -> None:
    """What does not parse can neither be used nor looked through."""
    try:
        options = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{_STORAGE_OPTIONS}: not JSON ({type(error).__name__})") from None
    if not isinstance(options, dict):
        raise ConfigError(f"{_STORAGE_OPTIONS}: expected a JSON object of names and values")


def _findings(arguments: Sequence[str]) -> Iterator[str]:
    options = list(_storage_options(arguments))
    for text in options:
        # Pairs, since of a name that is there twice the dashboard shows both values.
        yield from _findings_in_options(json.loads(text, object_pairs_hook=_Pairs))
    for argument in arguments:
        if argument not in options and argument.partition("=")[2] not in options:
            yield from _findings_in_text(argument)


class _Pairs(list[tuple[str, Any]]):
    """The names and values of a JSON object."""


def _findings_in_options(content: Any, name: str = "") -> Iterator[str]:
    if isinstance(content, _Pairs):
        for inner, value in content:
            if inner.lower() not in _HARMLESS_NAMES and not _is_no_secret(inner, value):
                yield f"{_STORAGE_OPTIONS}: {inner!r}"
            yield from _findings_in_options(value, inner)
    elif isinstance(content, list):
        for item in content:
            yield from _findings_in_options(item, name)
    elif isinstance(content, str):
        for found in _findings_in_text(content):  # escapes are gone by now
            yield f"{_STORAGE_OPTIONS}: {name!r}: {found}"


def _is_no_secret(name: str, value: Any) -> bool:
    return value in (None, "") or isinstance(value, bool) or value in _NO_SECRETS.get(name.lower(), ())


def _findings_in_text(text: str) -> Iterator[str]:
    for what, pattern in _SECRET_TEXTS.items():
        if pattern.search(text):
            yield what
    for scheme, place, rest in _URL.findall(text):
        # `zip://inner.nc::s3://bucket/outer.zip`: each link of a chain is looked at by itself.
        place = place if place.startswith("[") else place.split("::")[0]
        user, at, host = place.rpartition("@")
        if (at and (":" in user or scheme.lower() not in _USER_SCHEMES)) or not _PORT_OR_NONE.fullmatch(host):
            yield "a user or password in a URL"
        if _has_unknown_query(scheme.lower(), rest.split("::")[0]):
            yield "the query of a URL"


def _has_unknown_query(scheme: str, rest: str) -> bool:
    """Whether there is more than a version in the query; other stores than HTTP have no query, but `?` as a pattern."""
    if scheme in ("http", "https"):
        pieces = re.split(r"[?&;#]", rest)[1:]
        return any(piece and piece.partition("=")[0].lower() not in _HARMLESS_QUERY_NAMES for piece in pieces)
    names = re.findall(r"[?&;#]([^?&;#=/]+)=", rest)
    return any(name.lower() not in _HARMLESS_QUERY_NAMES for name in names)
