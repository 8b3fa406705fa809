"""How far a restore has come, in numbers and in words."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.restore_regions import OpenSelection, Region
from vcinr_batch.console import size_text


@dataclass(frozen=True)
class DecompressProgress:
    """How far a restore has come."""

    samples: int
    """Restored, the rejected ones included; those of unfinished regions by their share."""
    total_samples: int
    rejected: int
    """Of all the selection."""
    value_bytes: int
    """Of the values restored, as float32."""
    seconds: float


Progress = Callable[[DecompressProgress], None]


def progress_of(
    opened: OpenSelection, stored: int, rejected: int, progress: Progress | None
) -> Callable[[Region | None], None]:
    """A function to call with every region that is done, and with None at the start.

    Args:
        opened: the selection.
        stored: its samples that the archive holds.
        rejected: those that it does not hold.
        progress: gets the sums.
    """
    started, values, total = time.monotonic(), 0, math.prod(opened.selection.shape)

    def report(region: Region | None) -> None:
        nonlocal values
        values += math.prod(region.shape) if region else 0
        if progress:
            samples = (stored + rejected) * values // total
            progress(DecompressProgress(samples, stored + rejected, rejected, 4 * values, time.monotonic() - started))

    return report


def progress_figures(progress: DecompressProgress) -> dict[str, float]:
    """For machines: value_bytes, value_bytes_per_second, eta_seconds (not finite at the start), rejected, seconds."""
    speed = progress.value_bytes / progress.seconds if progress.seconds > 0 else 0.0
    left = progress.total_samples - progress.samples
    eta = progress.seconds * left / progress.samples if progress.samples else math.inf
    return {
        "value_bytes": progress.value_bytes,
        "value_bytes_per_second": speed,
        "eta_seconds": eta,
        "rejected": progress.rejected,
        "seconds": progress.seconds,
    }


def progress_text(progress: DecompressProgress) -> str:
    """For people: `12.3 MB/s, 40 s left, 2 rejected`."""
    figures = progress_figures(progress)
    words = [f"{size_text(figures['value_bytes_per_second'])}/s"]
    if math.isfinite(figures["eta_seconds"]):
        words.append(f"{figures['eta_seconds']:.0f} s left")
    return ", ".join([*words, *([f"{progress.rejected:,} rejected"] if progress.rejected else [])])
