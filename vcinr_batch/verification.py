"""Proves an archive: every file, every row and every block of the layout, and with the source every recorded error."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.archive.manifest import Manifest, read_manifest
from vcinr_batch.bundle import parse_bundle
from vcinr_batch.compression import OpenBundle, check_layout, open_bundle
from vcinr_batch.config import SourceConfig
from vcinr_batch.data.layout import Axis, Layout, label_text, sample_key
from vcinr_batch.data.sources import FieldSource, open_fields
from vcinr_batch.data.times import axis_microseconds
from vcinr_batch.errors import BitstreamError
from vcinr_batch.part_verification import MAX_PROBLEMS, Findings, OpenArchive, verify_part
from vcinr_batch.storage import StorageOptions, join_url, public_url, read_bytes

MAX_SAMPLES = 1 << 28
"""Most samples that are verified; a manifest that claims more would take gigabytes before one part is read."""

Progress = Callable[[int, int, int], None]
"""Called with samples done, samples in all, and problems so far."""


@dataclass(frozen=True)
class VerificationReport:
    """What `verify_archive` found."""

    url: str
    parts: int
    rows: int
    """Rows whose checksum and payload were looked at."""
    rejected: int
    """Samples that the archive says it rejected."""
    compared: int
    """Samples compared with the source, the rejected ones included; 0 without a source."""
    problems: tuple[str, ...]
    """The first `MAX_PROBLEMS`, one line each."""
    problem_count: int

    @property
    def is_good(self) -> bool:
        return self.problem_count == 0


def verify_archive(
    url: str,
    source: FieldSource | None = None,
    progress: Progress | None = None,
    storage_options: StorageOptions = None,
) -> VerificationReport:
    """Check a whole archive; problems are collected, not raised.

    Checked: the manifest; the bundle against its digest and the layout; each part's and rejected table's size and
    SHA-256; each row's checksum and that it decodes; that each block of the layout is in exactly one row or rejected
    table. With a source besides: the axes and the unit are the same, each error measured anew on the decoded bytes is
    at most the recorded one, the masks are equal, and each rejected sample is rejected again.

    Args:
        url: of the archive.
        source: where it came from, with the archive's selection (`open_original`).
        progress: called at the start and after each part.
        storage_options: of the archive's file system.

    Raises:
        SourceError: there is no archive at `url`.
        UnsupportedFormatError: of a version that this package does not read.
    """
    found = Findings()
    manifest: Manifest | None = None
    with found.noted(BitstreamError):
        manifest = read_manifest(url, storage_options=storage_options)
    if manifest is not None and manifest.layout.sample_count > MAX_SAMPLES:
        found.add(f"the manifest claims {manifest.layout.sample_count} samples, at most {MAX_SAMPLES} are verified")
        manifest = None
    if manifest is None:
        return make_report(url, found, 0)
    opened = _open_bundle(url, manifest, found, storage_options)
    if source is not None:
        found.add_all(axis_differences(manifest.layout, source.axes))
        if source.unit != manifest.unit:
            found.add(f"unit: the archive has {manifest.unit!r}, the source {source.unit!r}")
    comparable = source if opened is not None and not found.count else None
    archive = OpenArchive(url, manifest, opened, comparable, storage_options)
    seen = np.zeros(manifest.layout.sample_count, np.uint16)
    done, total = 0, manifest.layout.sample_count
    if progress:
        progress(done, total, found.count)
    for part in manifest.parts:
        verify_part(archive, part, seen, found)
        done += part.sample_count
        if progress:
            progress(done, total, found.count)
    check_coverage(seen, manifest.layout, found)
    return make_report(url, found, len(manifest.parts))


def open_original(
    url: str,
    source_urls: Sequence[str],
    member_pattern: str | None = None,
    storage_options: StorageOptions = None,
) -> FieldSource:
    """Open the source of an archive, cut to the labels that the archive covers.

    Raises:
        SourceError, ConfigError, SampleNotFoundError: the archive or the source cannot be read, or holds nothing of it.
    """
    layout = read_manifest(url, storage_options=storage_options).layout
    config = SourceConfig(variable=layout.variable, member_pattern=member_pattern)
    source = open_fields(source_urls, config, storage_options)
    select = {
        axis.name: f"{label_text(axis, 0)}..{label_text(axis, len(axis) - 1)}"
        for axis, whole in zip(layout.axes, source.axes, strict=False)
        if axis.name == whole.name and not same_labels(axis, whole)
    }
    return open_fields(source_urls, config.model_copy(update={"select": select}), storage_options) if select else source


def axis_differences(layout: Layout, axes: Sequence[Axis]) -> list[str]:
    """In what a source's axes differ from those of an archive, one line each; none where they agree."""
    dims = tuple(axis.name for axis in axes)
    if dims != layout.dims:
        return [f"the archive has the dimensions {', '.join(layout.dims)}, the source {', '.join(dims)}"]
    return [
        f"{ours.name}: the archive has {_describe(ours)}, the source {_describe(theirs)}"
        for ours, theirs in zip(layout.axes, axes, strict=True)
        if not same_labels(ours, theirs)
    ]


def _open_bundle(url: str, manifest: Manifest, found: Findings, storage_options: StorageOptions) -> OpenBundle | None:
    with found.noted():
        data = read_bytes(join_url(url, manifest.bundle_path), storage_options=storage_options)
        bundle = parse_bundle(data, manifest.bundle_sha256, manifest.bundle_path)
        check_layout(bundle, manifest.layout, manifest.unit)
        return open_bundle(bundle)
    return None


def check_coverage(seen: NDArray[np.uint16], layout: Layout, found: Findings) -> None:
    """Note each block that was not seen exactly once; `seen` has a count for each sample of the layout."""
    for words, wrong in (("missing", seen == 0), ("there more than once", seen > 1)):
        flat = np.flatnonzero(wrong)
        for position in flat[:MAX_PROBLEMS]:
            block = tuple(int(i) for i in np.unravel_index(position, layout.block_counts))
            found.add(f"{sample_key(layout, block)}: {words}: neither in one row nor in one rejected table")
        found.count += max(0, len(flat) - MAX_PROBLEMS)


def same_labels(ours: Axis, theirs: Axis) -> bool:
    """Whether two axes have the same labels: times as instants of one calendar, numbers within a millionth."""
    if len(ours) != len(theirs) or ours.is_time != theirs.is_time:
        return False
    if ours.is_time:
        a, b = (
            axis_microseconds(axis.values, str(axis.attributes["units"]), _calendar(axis)) for axis in (ours, theirs)
        )
        return _calendar(ours) == _calendar(theirs) and np.array_equal(a, b)
    if "U" in (ours.values.dtype.kind, theirs.values.dtype.kind):
        return np.array_equal(ours.values, theirs.values)
    return bool(np.allclose(ours.values, theirs.values, rtol=1e-6, atol=1e-6))


def _calendar(axis: Axis) -> str:
    return str(axis.attributes.get("calendar", "standard"))


def _describe(axis: Axis) -> str:
    return f"{len(axis)} labels {label_text(axis, 0)} to {label_text(axis, len(axis) - 1)}"


def make_report(url: str, found: Findings, parts: int) -> VerificationReport:
    """What was found, for whoever asked."""
    return VerificationReport(
        url=public_url(url),
        parts=parts,
        rows=found.rows,
        rejected=found.rejected,
        compared=found.compared,
        problems=tuple(found.problems),
        problem_count=found.count,
    )
