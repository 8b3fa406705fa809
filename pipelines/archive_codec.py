"""Operating points of our own codec: whole archives made by `compress` and read back, every byte of them counted."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.compress import CompressJob, compress
from pipelines.heldout_samples import HeldOut
from pipelines.operating_points import OperatingPoint, measure
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.manifest import MANIFEST_NAME
from vcinr_batch.compression import QualityRequest
from vcinr_batch.errors import SourceError
from vcinr_batch.storage import join_url, size_bytes

BATCH_VALUES = 1 << 22


def archive_point(
    job: CompressJob, held_out: HeldOut, parameter: float, request: QualityRequest, bound_share: float | None = None
) -> OperatingPoint:
    """Make an archive, measure it against the source, and remove it.

    Args:
        job: source and bundle; its output is a folder of this machine.
        held_out: the same samples, in memory.
        parameter: what the point is to be known by.
        request: the quality.
        bound_share: the bound as a share of the range, if that was asked for.

    Raises:
        VcinrError: as `compress`.
        SourceError: `compress` rejected a sample that the other codecs have coded.
    """
    try:
        report = compress(replace(job, request=request))
        archive = Archive.open(job.output)
        started = time.monotonic()
        decoded, payload_bytes = _decode(archive, held_out)
        seconds = time.monotonic() - started
        total = report.summary.rate.archive_bytes
        manifest_bytes = size_bytes(join_url(job.output, MANIFEST_NAME))
    finally:
        shutil.rmtree(Path(job.output), ignore_errors=True)
    return OperatingPoint(
        parameter=parameter,
        payload_bytes=payload_bytes,
        total_bytes=total,
        encode_seconds=report.seconds,
        decode_seconds=seconds,
        extra={"manifest_bytes": manifest_bytes, "row_bytes": total - payload_bytes - manifest_bytes},
        **measure(held_out, decoded, bound_share),
    )


def _decode(archive: Archive, held_out: HeldOut) -> tuple[NDArray[np.float32], int]:
    """Values [N, *shape] in the order of the samples, from the archive's bytes; and the bytes of the payloads."""
    rows = {row.block: row for row in archive.rows()}
    missing = [block for block in held_out.blocks if block not in rows]
    if missing:
        reason = next((item for item in archive.rejected() if item.block == missing[0]), None)
        text = f"{reason.key}: {reason.reason}" if reason else str(missing[0])
        raise SourceError(f"{len(missing)} samples that other codecs take were rejected, the first is {text}")
    ordered = [rows[block] for block in held_out.blocks]
    step = max(1, BATCH_VALUES // archive.layout.points_per_sample)
    decode = archive.decoder()
    parts = [decode(ordered[i : i + step], archive.layout) for i in range(0, len(ordered), step)]
    decoded = np.concatenate(parts).reshape(held_out.values.shape)
    return decoded, sum(len(row.payload) for row in rows.values())
