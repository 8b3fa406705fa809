"""Checks one part of an archive: its file, its rows, its rejected samples, and with the source every recorded error."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.archive.manifest import ArchivePart, Manifest
from vcinr_batch.archive.parquet_container import PartIndex, read_index, read_rejected, read_rows
from vcinr_batch.archive.rows import ArchiveRow, check_row
from vcinr_batch.compression import OpenBundle, QualityRequest, compress_samples, decompress_rows
from vcinr_batch.data.coordinates import Grid
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.samples import RejectedSample, Sample
from vcinr_batch.data.shards import Shard, halves, iter_samples
from vcinr_batch.data.sources import FieldSource
from vcinr_batch.errors import BitstreamError, CorruptBitstreamError, DamagedSourceError, VcinrError
from vcinr_batch.metrics import max_error, rmse
from vcinr_batch.quality_request import bound_from_json
from vcinr_batch.storage import StorageOptions, join_url, read_bytes, sha256_hex

MAX_PROBLEMS = 100
"""Problems that a report spells out; all are counted."""
BATCH_VALUES = 1 << 24
"""Values decoded at once: 64 MiB of float32, and a few times that while errors are measured."""

Samples = Mapping[tuple[int, ...], Sample]
"""By their block."""


@dataclass
class Findings:
    """What a verification has found so far."""

    problems: list[str] = field(default_factory=list)
    count: int = 0
    rows: int = 0
    rejected: int = 0
    compared: int = 0

    def add(self, problem: str) -> None:
        self.count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def add_all(self, problems: Sequence[str]) -> None:
        for problem in problems:
            self.add(problem)

    def noted(self, kind: type[VcinrError] = VcinrError, consequence: str = "") -> "_Noted":
        """A block in which an error becomes a problem instead of going on upwards."""
        return _Noted(self, kind, consequence)


@dataclass(frozen=True)
class _Noted:
    findings: Findings
    kind: type[VcinrError]
    consequence: str

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, self.kind):
            self.findings.add(f"{error}{self.consequence}")
        return isinstance(error, self.kind)


@dataclass(frozen=True, eq=False)
class OpenArchive:
    """An archive that is being verified."""

    url: str
    manifest: Manifest
    opened: OpenBundle | None
    """None where the bundle is unusable: rows are then checked, but not decoded."""
    source: FieldSource | None
    """With the archive's axes; None where there is nothing to compare with."""
    storage_options: StorageOptions

    @property
    def layout(self) -> Layout:
        return self.manifest.layout


def verify_part(archive: OpenArchive, part: ArchivePart, seen: NDArray[np.uint16], found: Findings) -> None:
    """Check a part and its rejected table; raises nothing of ours.

    Args:
        archive: whose part it is.
        part: from its manifest.
        seen: [samples of the layout], counts in how many rows and rejected tables each block is; added to.
        found: added to.
    """
    layout, options = archive.layout, {"storage_options": archive.storage_options}
    samples = _read_samples(archive, part, found)
    _check_file(archive, part.path, part.bytes, part.sha256, found)
    readable = False
    with found.noted(consequence=f"; {part.rows} samples are lost with it"):
        index = read_index(archive.url, part, layout, **options)
        mark_blocks(seen, layout, index.blocks)
        readable = True
        batch_rows = max(1, BATCH_VALUES // (layout.points_per_sample * layout.channels))
        for first in range(0, len(index), batch_rows):
            positions = np.arange(first, min(first + batch_rows, len(index)))
            rows = _read_whole(archive, part, index, positions, found)
            _verify_rows(archive, rows, samples, found)
    rejected: list[RejectedSample] | None = [] if part.rejected_path is None else None
    if part.rejected_path is not None and part.rejected_sha256 is not None:
        _check_file(archive, part.rejected_path, part.rejected_bytes, part.rejected_sha256, found)
        with found.noted():
            rejected = read_rejected(archive.url, part, layout, **options)
            mark_blocks(seen, layout, np.array([sample.block for sample in rejected], np.int64))
            found.rejected += len(rejected)
            _verify_rejected(archive, rejected, samples, found)
    if not readable or rejected is None:
        mark_lost(seen, layout, part)


def _read_whole(
    archive: OpenArchive, part: ArchivePart, index: PartIndex, positions: NDArray[np.int64], found: Findings
) -> list[ArchiveRow]:
    """Rows, but for those of spans whose checksum is wrong, which are one problem each."""
    sha256, options = archive.manifest.bundle_sha256, {"storage_options": archive.storage_options}
    try:
        return read_rows(archive.url, part, index, positions, archive.layout, sha256, **options)
    except CorruptBitstreamError as error:
        spans = np.unique(index.span_first[positions])
        if len(spans) == 1:
            found.rows += len(positions)
            found.add(str(error))
            return []
        halves = np.split(positions, [int(np.searchsorted(positions, spans[len(spans) // 2]))])
        return [row for half in halves for row in _read_whole(archive, part, index, half, found)]


def _check_file(archive: OpenArchive, path: str, size: int, sha256: str, found: Findings) -> None:
    with found.noted():
        data = read_bytes(join_url(archive.url, path), storage_options=archive.storage_options)
        if len(data) != size:
            found.add(f"{path}: {len(data)} bytes, the manifest says {size}")
        elif sha256_hex(data) != sha256:
            found.add(f"{path}: edited: its SHA-256 is {sha256_hex(data)[:16]}..., the manifest says {sha256[:16]}...")


def _read_samples(archive: OpenArchive, part: ArchivePart, found: Findings) -> Samples | None:
    """The source's samples of a part's shard; None where there is nothing to compare with."""
    if archive.source is None or archive.opened is None:
        return None
    shard, grid = Shard(0, part.start, part.stop), archive.opened.bundle.grid
    with found.noted(consequence=f"; {part.path} was not compared"):
        return {sample.block: sample for sample in _readable(archive.source, archive.layout, grid, shard)}
    return None


def _readable(source: FieldSource, layout: Layout, grid: Grid, shard: Shard) -> Iterator[Sample]:
    """The samples of a shard but for those whose bytes in the source are damaged."""
    try:
        yield from list(iter_samples(source, layout, grid, shard))
    except DamagedSourceError:
        if shard.sample_count > 1:
            for half in halves(shard):
                yield from _readable(source, layout, grid, half)


def _verify_rows(archive: OpenArchive, rows: Sequence[ArchiveRow], samples: Samples | None, found: Findings) -> None:
    found.rows += len(rows)
    whole = []
    for row in rows:
        with found.noted():
            check_row(row, archive.manifest.bundle_sha256)
            whole.append(row)
    if archive.opened is None or not whole:
        return
    for row, values in _decode(archive, archive.opened, whole, found):
        if np.isinf(values).any():
            found.add(f"{row.key}: decodes to infinite values")
        elif samples is not None and row.block in samples:
            found.compared += 1
            found.add_all(_compare(row, values, samples[row.block]))
        elif samples is not None:
            found.add(f"{row.key}: was not compared: the source's bytes for it are damaged")


def _decode(
    archive: OpenArchive, opened: OpenBundle, rows: Sequence[ArchiveRow], found: Findings
) -> Iterator[tuple[ArchiveRow, NDArray[np.float32]]]:
    """Rows with their values [P, C]; those that do not decode are noted and left out."""
    try:
        bound = bound_from_json(archive.manifest.quality)
        yield from zip(rows, decompress_rows(rows, opened, archive.layout, bound), strict=True)
    except BitstreamError as error:
        if len(rows) == 1:
            found.add(str(error))
            return
        for row in rows:
            yield from _decode(archive, opened, [row], found)


def _compare(row: ArchiveRow, decoded: NDArray[np.float32], sample: Sample) -> list[str]:
    """Problems of one sample, decoded values [P, C] against the source's."""
    mask = np.ones(len(decoded), bool) if sample.mask is None else sample.mask
    decoded_mask = ~np.isnan(decoded).any(axis=1)
    if not np.array_equal(mask, decoded_mask):
        return [f"{row.key}: the source has {mask.sum()} points with a value, the archive {decoded_mask.sum()}"]
    error = np.where(mask[:, None], decoded.astype(np.float64) - sample.values, 0.0)[None]
    measured = {
        "RMSE": (float(rmse(error, mask)[0]), row.rmse),
        "error": (float(max_error(error, mask)[0]), row.max_error),
    }
    return [
        f"{row.key}: {name} is {now:.6g}, more than the recorded {recorded:.6g}"
        for name, (now, recorded) in measured.items()
        if not now <= recorded
    ]


def _verify_rejected(
    archive: OpenArchive,
    rejected: Sequence[RejectedSample],
    samples: Samples | None,
    found: Findings,
) -> None:
    for item in rejected:
        if archive.opened is None or samples is None:
            continue
        found.compared += 1
        if item.block not in samples:
            continue  # its bytes in the source are still damaged
        request = _request(archive.manifest.quality)
        _, again = compress_samples([samples[item.block]], archive.opened, archive.layout, request)
        if not again:
            found.add(f"{item.key}: was rejected ({item.reason}), but the source's sample compresses")


def _request(quality: Mapping[str, Any]) -> QualityRequest:
    # What the manifest asks for is not checked here: whether a sample is rejected does not depend on it.
    level = quality.get("quality")
    return QualityRequest(level=level if isinstance(level, int) else 0)


def mark_blocks(seen: NDArray[np.uint16], layout: Layout, blocks: NDArray[np.int64]) -> None:
    """Count blocks [N, axes] as seen."""
    flat = np.ravel_multi_index(tuple(blocks.T), layout.block_counts)
    np.add.at(seen, flat, np.uint16(1))  # of its own type: 30 times as fast


def mark_lost(seen: NDArray[np.uint16], layout: Layout, part: ArchivePart) -> None:
    """The samples of a part that cannot be read are lost with it, which is one problem and not one for each."""
    box = tuple(slice(a, b) for a, b in zip(part.start, part.stop, strict=True))
    counts = seen.reshape(layout.block_counts)
    counts[box] = np.maximum(counts[box], 1)
