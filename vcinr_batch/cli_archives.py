"""What the commands that read archives share: their options, and what to say where a job has not come to its end."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer

from vcinr_batch.errors import ConfigError, SourceError, VcinrError

MemberPattern = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="One group, searched in each URL: files are stacked along `member`."),
]
StorageOptionsText = Annotated[
    str, typer.Option("--storage-options", metavar="JSON", help='For the file system, e.g. {"endpoint_url": "..."}.')
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines; the last one is the result.")]


def parse_storage_options(text: str) -> dict[str, Any]:
    """The options of `--storage-options`.

    Raises:
        ConfigError: not a JSON object. The text may hold credentials: no message repeats it.
    """
    try:
        options = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--storage-options: not JSON ({type(error).__name__})") from error
    if not isinstance(options, dict):
        raise ConfigError("--storage-options: expected a JSON object of names and values")
    return options


@contextmanager
def explaining_unfinished(url: str, storage_options: Mapping[str, Any]) -> Iterator[None]:
    """Where there is no archive because a job did not come to its end, say that instead."""
    try:
        yield
    except SourceError as error:
        from pipelines.shard_status import find_unfinished
        from vcinr_batch.archive.manifest import MANIFEST_NAME
        from vcinr_batch.storage import exists, join_url, public_url

        run = None
        with suppress(VcinrError):
            if not exists(join_url(url, MANIFEST_NAME), storage_options=storage_options):
                run = find_unfinished(url, storage_options)
        if run is None:
            raise
        raise SourceError(f"{public_url(url)}: {run}") from error
