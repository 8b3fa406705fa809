"""Proves from indexes alone that an archive has every sample of its source once: no value is read on either side."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.archive.manifest import ArchivePart, read_manifest
from vcinr_batch.archive.parquet_container import read_index, read_rejected
from vcinr_batch.data.layout import Axis, Layout, label_text
from vcinr_batch.data.sources import FieldSource
from vcinr_batch.data.times import axis_microseconds
from vcinr_batch.errors import UnsupportedFormatError
from vcinr_batch.part_verification import Findings, mark_blocks, mark_lost
from vcinr_batch.storage import StorageOptions
from vcinr_batch.verification import (
    MAX_SAMPLES,
    Progress,
    VerificationReport,
    axis_differences,
    check_coverage,
    make_report,
    same_labels,
)

READERS = 16
"""Part indexes read at a time."""

_Blocks = tuple[NDArray[np.int64], NDArray[np.int64]]  # of the rows [N, axes], of the rejected samples [M, axes]


def verify_index(
    url: str,
    source: FieldSource,
    progress: Progress | None = None,
    storage_options: StorageOptions = None,
) -> VerificationReport:
    """Check that each sample of the source is in exactly one row or rejected table, and that there is none besides.

    The source's labels are compared with the archive's, then the parts' indexes with the layout. What the samples hold
    is not looked at, so that an archive of terabytes takes a minute.

    Args:
        url: of the archive.
        source: where it came from, with the archive's selection (`open_original`).
        progress: called at the start and after each part.
        storage_options: of the archive's file system.

    Raises:
        SourceError: there is no archive at `url`.
        BitstreamError, UnsupportedFormatError: the manifest is damaged or of another version.
    """
    manifest, found = read_manifest(url, storage_options=storage_options), Findings()
    layout = manifest.layout
    if layout.sample_count > MAX_SAMPLES:
        raise UnsupportedFormatError(
            f"the manifest claims {layout.sample_count} samples, at most {MAX_SAMPLES} are verified"
        )
    found.add_all(_foreign_and_missing(layout, source.axes))
    if source.unit != manifest.unit:
        found.add(f"unit: the archive has {manifest.unit!r}, the source {source.unit!r}")
    seen, done = np.zeros(layout.sample_count, np.uint16), 0
    with ThreadPoolExecutor(READERS) as pool:
        reads = pool.map(lambda part: _read_blocks(url, part, layout, storage_options), manifest.parts)
        for part, (blocks, problems) in zip(manifest.parts, reads, strict=True):
            found.add_all(problems)
            if blocks is None:
                mark_lost(seen, layout, part)
            else:
                _mark(seen, layout, blocks, found)
            done += part.sample_count
            if progress:
                progress(done, layout.sample_count, found.count)
    check_coverage(seen, layout, found)
    return make_report(url, found, len(manifest.parts))


def _read_blocks(
    url: str, part: ArchivePart, layout: Layout, storage_options: StorageOptions
) -> tuple[_Blocks | None, list[str]]:
    """The blocks of a part, or None and why there are none."""
    found = Findings()
    with found.noted(consequence=f"; {part.sample_count} samples are lost with it"):
        index = read_index(url, part, layout, storage_options=storage_options)
        rejected = read_rejected(url, part, layout, storage_options=storage_options)
        blocks = np.array([sample.block for sample in rejected], np.int64).reshape(-1, len(layout.axes))
        return (index.blocks, blocks), []
    return None, found.problems


def _mark(seen: NDArray[np.uint16], layout: Layout, blocks: _Blocks, found: Findings) -> None:
    rows, rejected = blocks
    found.rows += len(rows)
    found.rejected += len(rejected)
    mark_blocks(seen, layout, rows)
    mark_blocks(seen, layout, rejected)


def _foreign_and_missing(layout: Layout, axes: Sequence[Axis]) -> list[str]:
    """What an archive's labels lack of the source's, and the other way round, a line each."""
    if tuple(axis.name for axis in axes) != layout.dims:
        return axis_differences(layout, axes)
    lines: list[str] = []
    for ours, theirs in zip(layout.axes, axes, strict=True):
        if same_labels(ours, theirs):
            continue
        a, b = _numbers(ours), _numbers(theirs)
        missing, foreign = np.flatnonzero(~np.isin(b, a)), np.flatnonzero(~np.isin(a, b))
        for positions, axis, words in (
            (missing, theirs, "of the source not in the archive"),
            (foreign, ours, "of the archive not in the source"),
        ):
            if positions.size:
                first = label_text(axis, int(positions[0]))
                count = "1 label" if positions.size == 1 else f"{positions.size:,} labels"
                lines.append(f"{ours.name}: {count} {words}, the first is {first}")
        if not missing.size and not foreign.size:
            lines.append(f"{ours.name}: the archive and the source have its labels in another order or calendar")
    return lines


def _numbers(axis: Axis) -> NDArray[np.generic]:
    """Labels that are equal where the axis' are: times as microseconds, numbers to six digits."""
    if axis.is_time:
        calendar = str(axis.attributes.get("calendar", "standard"))
        return axis_microseconds(axis.values, str(axis.attributes["units"]), calendar)
    return axis.values if axis.values.dtype.kind == "U" else np.round(axis.values.astype(np.float64), 6)
