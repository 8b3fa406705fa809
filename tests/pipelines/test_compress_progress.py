"""What is told of a run while it goes on."""

import math

import pytest

from pipelines.compress_progress import CompressProgress, progress_figures, progress_text

HALF = CompressProgress(samples=50, total_samples=100, rejected=1, source_bytes=5e6, archive_bytes=50_000, seconds=2.0)
RESUMED = CompressProgress(50, 100, 0, 5e6, 50_000, 10.0, resumed_samples=40, retried=3, failed_shards=1)
NOTHING = CompressProgress(0, 100, 0, 0.0, 0, 0.0)


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (HALF, "2.5 MB/s, 100 : 1, 1 rejected, 0:00:02 left"),
        # Ten samples, 1 MB, in ten seconds: fifty more take fifty.
        (RESUMED, "0.1 MB/s, 100 : 1, 0 rejected, 3 retried, 1 failed, 0:00:50 left"),
        (NOTHING, "0 MB/s, 0 : 1, 0 rejected"),
    ],
    ids=["half way", "resumed", "nothing yet"],
)
def test_people_read_speed_ratio_rejected_and_time_left(progress: CompressProgress, text: str) -> None:
    assert progress_text(progress) == text


def test_machines_read_the_same() -> None:
    assert progress_figures(RESUMED) == {
        "rejected": 0,
        "source_bytes_per_second": pytest.approx(1e5),
        "ratio": 100.0,
        "seconds_left": 50.0,
        "resumed": 40,
        "retried": 3,
        "failed_shards": 1,
    }
    assert math.isnan(progress_figures(NOTHING)["seconds_left"])
