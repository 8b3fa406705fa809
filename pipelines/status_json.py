"""A shard's status as a JSON object, and back from bytes that anyone may have written."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vcinr_batch.archive.manifest import ArchivePart, part_from_json, part_to_json
from vcinr_batch.data.axis_json import checked_int, checked_object
from vcinr_batch.data.layout import Layout, sample_key
from vcinr_batch.data.samples import RejectedSample
from vcinr_batch.errors import CorruptBitstreamError, VcinrError
from vcinr_batch.inspection import LOSSLESS_LEVEL, RowFigures
from vcinr_batch.storage import StorageOptions, public_url

STATUS_FORMAT = "vcinr-shard-status"
STATUS_VERSION = 1
MAX_STATUS_BYTES = 1 << 20

State = Literal["running", "done", "failed"]

_STATES = ("running", "done", "failed")
_MAX_ERRORS = 16
_MAX_TEXT = 500
_MAX_EXAMPLES = 64
_PART_PATH = re.compile(r"([a-z]+)/(.+)-([0-9a-f]{12})\.parquet")
_LEVELS = {str(level) for level in range(LOSSLESS_LEVEL, 256)}
_ROUNDED_UP = 1.05
"""Recorded errors are rounded up by up to 0.8 %, each for itself."""
_LARGEST_DB = 1e4
"""Of a sample; the quotient of any two float32 values is far below."""
_SECRET_NAME = re.compile(r"key|secret|token|password|credential|user", re.IGNORECASE)


@dataclass(frozen=True)
class ShardStatus:
    """What became of one shard so far."""

    shard: str
    """Its name (`shard_name`)."""
    state: State
    attempts: int = 1
    """Tries begun, those that a lost node or a preempted worker ended not counted."""
    errors: tuple[str, ...] = ()
    """Why the earlier tries failed, one line each; the last 16 are kept."""
    part: ArchivePart | None = None
    """Where it is done."""
    figures: RowFigures | None = None
    """Where it is done."""
    rejected_examples: tuple[RejectedSample, ...] = ()
    seconds: float = 0.0
    """Of the last try."""


def status_to_json(status: ShardStatus, storage_options: StorageOptions) -> dict[str, Any]:
    """The status as plain JSON values; no text in it holds a credential of the store."""
    secrets = _secrets(storage_options or {})
    content: dict[str, Any] = {
        "format": STATUS_FORMAT,
        "version": STATUS_VERSION,
        "shard": status.shard,
        "state": status.state,
        "attempts": status.attempts,
        "errors": [_public(error, secrets) for error in status.errors[-_MAX_ERRORS:]],
        "rejected_examples": [
            {"block": list(sample.block), "reason": _public(sample.reason, secrets)}
            for sample in status.rejected_examples[:_MAX_EXAMPLES]
        ],
        "seconds": round(status.seconds, 3),
    }
    if status.part is not None and status.figures is not None:
        content |= {"part": part_to_json(status.part), "figures": _figures_to_json(status.figures)}
    return content


def status_from_json(data: bytes, shard: str, layout: Layout) -> ShardStatus | None:
    """Mirror of `status_to_json`; None for anything that is not the status of that shard.

    Args:
        data: untrusted bytes.
        shard: the shard that the object's name says.
        layout: of the archive to be.
    """
    if len(data) > MAX_STATUS_BYTES:
        return None
    try:
        status = _parse(json.loads(data), layout)
    except (VcinrError, ValueError, OverflowError, RecursionError):
        return None
    return status if status.shard == shard else None


def _parse(content: Any, layout: Layout) -> ShardStatus:
    required = {"format", "version", "shard", "state", "attempts", "errors", "rejected_examples", "seconds"}
    fields = checked_object(content, "a shard status", required, {"part", "figures"})
    if fields["format"] != STATUS_FORMAT or fields["version"] != STATUS_VERSION or isinstance(fields["version"], bool):
        raise CorruptBitstreamError("another format")
    state, shard = fields["state"], fields["shard"]
    if state not in _STATES or not isinstance(shard, str):
        raise CorruptBitstreamError("no such state")
    if (state == "done") != ("part" in fields) or ("part" in fields) != ("figures" in fields):
        raise CorruptBitstreamError("a part belongs to a shard that is done")
    part = part_from_json(fields["part"], len(layout.axes)) if "part" in fields else None
    figures = _figures_from_json(fields["figures"]) if "figures" in fields else None
    examples = tuple(_example(item, layout, part) for item in _list(fields["rejected_examples"], _MAX_EXAMPLES))
    if part is not None:
        _check_part(part, shard, layout)
        if figures is None or figures.samples != part.rows or len(examples) > part.rejected:
            raise CorruptBitstreamError("the figures are not the part's")
        _check_figures(figures, layout)
    return ShardStatus(
        shard=shard,
        state=state,
        attempts=checked_int(fields["attempts"], "attempts", 0, 2**31),
        errors=tuple(_text(error) for error in _list(fields["errors"], _MAX_ERRORS)),
        part=part,
        figures=figures,
        rejected_examples=examples,
        seconds=_number(fields["seconds"]),
    )


def _check_part(part: ArchivePart, shard: str, layout: Layout) -> None:
    boxes = zip(part.start, part.stop, layout.block_counts, strict=True)
    if not all(0 <= start < stop <= count for start, stop, count in boxes):
        raise CorruptBitstreamError("the part is not within the layout")
    tables = [("parts", part.path, part.sha256)]
    if part.rejected_path is not None:
        tables.append(("rejected", part.rejected_path, part.rejected_sha256 or ""))
    for folder, path, sha256 in tables:
        found = _PART_PATH.fullmatch(path)
        if found is None or found.groups() != (folder, shard, sha256[:12]):
            raise CorruptBitstreamError(f"{path[:120]!r} is no file of {shard[:80]!r}, or of another content")


def _check_figures(figures: RowFigures, layout: Layout) -> None:
    """Whether these can be the sums over any rows of that layout; only reading the rows would tell more."""
    samples, values, worst = figures.samples, figures.values, figures.max_error
    adds_up = samples <= values <= samples * layout.points_per_sample * layout.channels
    # Neither may overflow: both are numbers that anyone may have written.
    fits = worst <= _ROUNDED_UP * math.sqrt(figures.squared_error)
    fits = fits and math.sqrt(figures.squared_error) <= _ROUNDED_UP * math.sqrt(values) * worst
    lowest, total = figures.lowest_psnr_db * samples if samples else 0.0, figures.psnr_db
    is_sum = total >= lowest - 1e-6 * abs(lowest) if math.isfinite(lowest) else total == lowest
    if not adds_up or not fits or not is_sum or (math.isfinite(total) and abs(total) > _LARGEST_DB * samples):
        raise CorruptBitstreamError("the figures contradict each other")


def _example(content: Any, layout: Layout, part: ArchivePart | None) -> RejectedSample:
    fields = checked_object(content, "a rejected sample", {"block", "reason"})
    low = (0,) * len(layout.axes) if part is None else part.start
    high = layout.block_counts if part is None else part.stop
    indices = _list(fields["block"], len(low))
    block = tuple(checked_int(i, "block", a, b - 1) for i, a, b in zip(indices, low, high, strict=True))
    return RejectedSample(sample_key(layout, block), block, _text(fields["reason"]))


def _figures_to_json(figures: RowFigures) -> dict[str, Any]:
    return {
        "samples": figures.samples,
        "values": figures.values,
        "squared_error": _finite(figures.squared_error),
        "max_error": _finite(figures.max_error),
        "psnr_db": _finite(figures.psnr_db),
        "lowest_psnr_db": _finite(figures.lowest_psnr_db),
        "quality_counts": {str(level): count for level, count in figures.quality_counts.items()},
    }


def _figures_from_json(content: Any) -> RowFigures:
    names = ("squared_error", "max_error", "psnr_db", "lowest_psnr_db")
    fields = checked_object(content, "figures", {"samples", "values", "quality_counts", *names})
    counts = checked_object(fields["quality_counts"], "quality counts", set(), _LEVELS)
    samples = checked_int(fields["samples"], "samples", 0, 2**31)
    quality = {int(level): checked_int(count, "samples of a level", 1, samples) for level, count in counts.items()}
    if sum(quality.values()) != samples:
        raise CorruptBitstreamError("the levels do not add up to the samples")
    return RowFigures(
        samples=samples,
        values=checked_int(fields["values"], "values", 0, 2**62),
        **{name: _number(fields[name], infinite=name.endswith("psnr_db")) for name in names},
        quality_counts=dict(sorted(quality.items())),
    )


def _finite(number: float) -> float | str:
    """JSON has no infinity, which is the PSNR of a sample without any error."""
    return float(number) if math.isfinite(number) else str(float(number))


def _number(content: Any, infinite: bool = False) -> float:
    if infinite and content in ("inf", "-inf"):
        return float(content)
    if type(content) not in (int, float) or not math.isfinite(content) or (content < 0 and not infinite):
        raise CorruptBitstreamError(f"not a number: {str(content)[:40]!r}")
    return float(content)


def _text(content: Any) -> str:
    if not isinstance(content, str) or len(content) > _MAX_TEXT:
        raise CorruptBitstreamError("expected a short text")
    return content


def _list(content: Any, longest: int) -> list[Any]:
    if not isinstance(content, list) or len(content) > longest:
        raise CorruptBitstreamError(f"expected a list of at most {longest}")
    return content


def _secrets(options: Mapping[str, Any]) -> list[str]:
    """Values of a file system's options that may be credentials."""
    found: list[str] = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            found += _secrets(value)
        elif isinstance(value, str) and len(value) >= 4 and _SECRET_NAME.search(name):
            found.append(value)
    return sorted(found, key=len, reverse=True)


def _public(text: str, secrets: list[str]) -> str:
    line = public_url(" ".join(text.split()))
    for secret in secrets:
        line = line.replace(secret, "...")
    return line[:_MAX_TEXT]
