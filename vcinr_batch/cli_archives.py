"""What the commands that read archives share: their options, and what to say where a job has not come to its end."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer

from vcinr_batch.errors import ConfigError, SourceError, VcinrError
from vcinr_batch.quality_request import QualityRequest, parse_max_error

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


def compress_request(
    quality: int | None, target_psnr: float | None, target_rmse: float | None, max_error: str | None
) -> QualityRequest | None:
    """What the options of `vcinr compress` ask for; None leaves it to the bundle's configuration.

    Raises:
        ConfigError: several of them, or a value out of range.
    """
    given = [value for value in (quality, target_psnr, target_rmse, max_error) if value is not None]
    if not given:
        return None
    if max_error is None:
        return QualityRequest(quality, target_psnr, target_rmse)
    if len(given) > 1:
        raise ConfigError("--max-error goes without --quality, --target-psnr and --target-rmse: it chooses the quality")
    return parse_max_error(max_error)


def parse_select(texts: Sequence[str] | None, option: str = "--select") -> dict[str, str]:
    """The selection of repeated options DIM=LABEL.

    Raises:
        ConfigError: not such a text, or a dimension given twice; names the option.
    """
    select: dict[str, str] = {}
    for text in texts or []:
        dim, separator, label = (part.strip() for part in text.partition("="))
        if not separator or not dim or not label:
            raise ConfigError(f"{option} {text!r}: expected DIM=LABEL or DIM=A..B, e.g. time=2019-03-22T06")
        if dim in select:
            raise ConfigError(f"{option} {text!r}: {dim} is selected twice; use a range A..B")
        select[dim] = label
    return select


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
