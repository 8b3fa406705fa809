"""What a compression has come to while it runs: counts for people and machines, results for the manifest."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from pipelines.compress_plan import CompressPlan, source_bytes
from pipelines.shard_attempts import Outcome, ShardFailure
from pipelines.shard_work import REJECTED_EXAMPLES, ShardResult
from vcinr_batch.data.samples import RejectedSample
from vcinr_batch.data.shards import shard_name
from vcinr_batch.errors import SourceError


@dataclass(frozen=True)
class CompressProgress:
    """How far a run has come."""

    samples: int
    """Done, the rejected ones included."""
    total_samples: int
    rejected: int
    source_bytes: float
    """Of the samples done, as delivered."""
    archive_bytes: int
    seconds: float
    resumed_samples: int = 0
    """Of the samples done, those that an earlier run has done."""
    retried: int = 0
    """Attempts at shards that failed and were followed by another one; lost nodes not counted."""
    failed_shards: int = 0
    """Given up."""

    @property
    def source_bytes_per_second(self) -> float:
        """Of this run alone."""
        share = (self.samples - self.resumed_samples) / max(self.samples, 1)
        return self.source_bytes * share / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At this run's speed so far; None while there is none."""
        done = self.samples - self.resumed_samples
        return (self.total_samples - self.samples) * self.seconds / done if done else None


Progress = Callable[[CompressProgress], None]

_NO_ARCHIVE = "no archive was written"


class RunTally:
    """Counts the outcomes of a run's shards, tells the progress, and ends a run that rejects too much."""

    def __init__(self, plan: CompressPlan, max_rejected: float, progress: Progress | None) -> None:
        self.results: dict[int, ShardResult] = {}
        """By index of the shard."""
        self.failures: list[ShardFailure] = []
        self.rejected = 0
        self._examples: list[tuple[int, RejectedSample]] = []
        self._plan, self._max_rejected, self._progress = plan, max_rejected, progress
        self._started = time.monotonic()
        self._samples = self._archive_bytes = self._resumed = self._retried = 0

    @property
    def examples(self) -> tuple[RejectedSample, ...]:
        """The first of the rejected samples."""
        return tuple(example for _, example in self._examples)

    def resume(self, results: Mapping[int, ShardResult], is_committed: bool = False) -> None:
        """Take over what an earlier run has done.

        Args:
            results: by index of the shard.
            is_committed: they are an archive already.

        Raises:
            SourceError: more samples were rejected than may be.
        """
        for result in results.values():
            self._count(result)
        self._resumed = self._samples
        self._check_rejected("an earlier run has written the archive, and it stays" if is_committed else _NO_ARCHIVE)
        self.report()

    def add(self, outcome: Outcome) -> None:
        """Count what became of a shard.

        Raises:
            SourceError: more samples were rejected than may be.
        """
        self._retried += outcome.attempts - 1
        if isinstance(outcome, ShardFailure):
            self.failures.append(outcome)
        else:
            self._count(outcome)
            self._check_rejected(_NO_ARCHIVE)
        self.report()

    def report(self) -> None:
        """Tell the progress."""
        if self._progress is not None:
            self._progress(self.progress())

    def progress(self) -> CompressProgress:
        """How far the run has come."""
        return CompressProgress(
            samples=self._samples,
            total_samples=self._plan.layout.sample_count,
            rejected=self.rejected,
            source_bytes=source_bytes(self._plan, self._samples),
            archive_bytes=self._archive_bytes,
            seconds=time.monotonic() - self._started,
            resumed_samples=self._resumed,
            retried=self._retried,
            failed_shards=len(self.failures),
        )

    def check_complete(self) -> None:
        """Make sure that every shard is done.

        Raises:
            SourceError: some were given up.
        """
        if not self.failures:
            return
        first = min(self.failures, key=lambda failure: failure.shard.index)
        count, total = len(self.failures), len(self.failures) + len(self.results)
        raise SourceError(
            f"{count:,} of {total:,} shards failed, the first is {shard_name(self._plan.layout, first.shard)}: "
            f"{first.errors[-1]}; {_NO_ARCHIVE}; the same command does what is missing"
        )

    def _count(self, result: ShardResult) -> None:
        # The examples of all shards together would make the driver grow with the source.
        self.results[result.index] = replace(result, rejected_examples=())
        found = [*self._examples, *((result.index, example) for example in result.rejected_examples)]
        self._examples = sorted(found, key=lambda indexed: indexed[0])[:REJECTED_EXAMPLES]
        self._samples += result.part.sample_count
        self.rejected += result.part.rejected
        self._archive_bytes += result.part.bytes + result.part.rejected_bytes

    def _check_rejected(self, ending: str) -> None:
        if self.rejected > self._max_rejected:
            text = "".join(f"; one is {one.key}: {one.reason}" for one in self.examples[:1])
            raise SourceError(
                f"{self.rejected:,} samples were rejected, and --max-rejected allows {int(self._max_rejected):,} of "
                f"{self._plan.layout.sample_count:,}{text}; {ending}"
            )


def progress_figures(progress: CompressProgress) -> dict[str, float]:
    """For machines; `seconds_left` is NaN while nothing is known."""
    left = progress.seconds_left
    return {
        "rejected": progress.rejected,
        "source_bytes_per_second": progress.source_bytes_per_second,
        "ratio": progress.source_bytes / max(progress.archive_bytes, 1),
        "seconds_left": math.nan if left is None else left,
        "resumed": progress.resumed_samples,
        "retried": progress.retried,
        "failed_shards": progress.failed_shards,
    }


def progress_text(progress: CompressProgress) -> str:
    """For people: `12.3 MB/s, 45 : 1, 0 rejected, 3 retried`; what is left of the time only where it is known."""
    ratio = progress.source_bytes / max(progress.archive_bytes, 1)
    left = progress.seconds_left
    minutes, seconds = divmod(round(left or 0), 60)
    hours, minutes = divmod(minutes, 60)
    texts = [
        f"{progress.source_bytes_per_second / 1e6:.3g} MB/s",
        f"{ratio:.3g} : 1",
        f"{progress.rejected:,} rejected",
        f"{progress.retried:,} retried" if progress.retried else "",
        f"{progress.failed_shards:,} failed" if progress.failed_shards else "",
        f"{hours}:{minutes:02}:{seconds:02} left" if left is not None and left >= 1 else "",
    ]
    return ", ".join(text for text in texts if text)
