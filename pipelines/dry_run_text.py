"""What a dry run expects, as aligned names and values for people and as JSON for machines."""

from collections.abc import Sequence
from typing import Any

from pipelines.dry_run import DryRunReport
from vcinr_batch.console import plural, size_text


def dry_run_pairs(report: DryRunReport) -> list[tuple[str, str]]:
    """For people: names and values."""
    what_to_do = "--overwrite replaces it" if report.container == "parquet" else "a Zarr archive needs another place"
    there = f" (there is an archive: {what_to_do})" if report.archive_exists else ""
    left = report.samples - report.finished_samples
    finished = f"{plural(report.finished_shards, 'shard')} of an unfinished run are kept, {plural(left, 'sample')} left"
    rejected = f", of which {report.probe_rejected:,} would be rejected" if report.probe_rejected else ""
    cut = "; shards were cut, so the memory is less certain" if report.is_extrapolated else ""
    return [
        ("output", f"{report.output}{there}"),
        ("variable", report.variable),
        ("samples", f"{plural(report.samples, 'sample')} in {plural(report.shards, 'shard')}"),
        *([("", finished)] if report.finished_shards else []),
        ("source", size_text(report.source_bytes)),
        ("archive", f"about {size_text(report.archive_bytes)} and a bundle of {size_text(report.bundle_bytes)}"),
        ("ratio", _ratio_text(report)),
        ("memory", f"{size_text(report.worker_bytes)} for each worker"),
        ("time", _time_text(report)),
        *left_out_pairs(report.left_out),
        ("measured", f"on {plural(report.probe_samples, 'sample')}{rejected}; nothing was written{cut}"),
    ]


def left_out_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """For people: the auxiliary variables of a source that an archive does not keep."""
    what = "auxiliary variables: larger than 1 MiB, or not the same in all files"
    return [("left out", f"{', '.join(names)} ({what})")] if names else []


def dry_run_json(report: DryRunReport) -> dict[str, Any]:
    """For machines."""
    return {"kind": "dry run", **vars(report)}


def _ratio_text(report: DryRunReport) -> str:
    with_bundle = report.archive_bytes + report.bundle_bytes
    alone = report.source_bytes / report.archive_bytes
    return f"about {alone:.4g} : 1 against the source, with the bundle {report.source_bytes / with_bundle:.4g} : 1"


def _time_text(report: DryRunReport) -> str:
    alone = f"{_duration_text(report.worker_seconds)} of one worker"
    if report.seconds is None:
        return f"about {alone}, shared by as many as the cluster has"
    workers = "without Ray" if report.workers == 0 else f"with {plural(report.workers or 0, 'worker')}"
    return f"about {_duration_text(report.seconds)} {workers} on machines like this one ({alone})"


def _duration_text(seconds: float) -> str:
    """`12 s`, `3 min 20 s`, `5 h 12 min`, `3 d 4 h`."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    for large, large_seconds, small, small_seconds in (("min", 60, "s", 1), ("h", 3600, "min", 60)):
        if seconds < 60 * large_seconds if large == "min" else seconds < 48 * large_seconds:
            count, rest = divmod(round(seconds / small_seconds) * small_seconds, large_seconds)
            return f"{count} {large} {rest // small_seconds} {small}"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"
