"""A few shards compressed in a fresh process that writes nothing: what one costs in bytes, seconds and memory.

The process does what a worker does, reading ahead included, so that its peak is the worker's. Run as a module it takes
a pickled `ProbeTask` on stdin and gives a pickled `Probe`, or the error, on stdout.
"""

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pipelines.compress_plan import CompressPlan
from pipelines.shard_engine import SHARDS_ABOARD
from pipelines.shard_work import ShardSamples, compress_read, read_shard
from pipelines.shard_worker import ONE_THREAD
from vcinr_batch.archive.parquet_part import encode_part, encode_rejected
from vcinr_batch.data.layout import BATCH_VALUES
from vcinr_batch.data.shards import Shard
from vcinr_batch.errors import VcinrError

PASSES = 2
"""Over the shards: which stages of two of them meet, and so the peak, is a matter of chance."""

_SAMPLING_SECONDS = 0.002
_COPIES = 14
"""Of a sample's values as float32 while it is fitted in closed form, encoded and measured: 15 were seen."""


@dataclass(frozen=True, eq=False)
class ProbeTask:
    """What the process is to do."""

    plan: CompressPlan
    """Its `bundle_url` is where the bundle is now, since a dry run copies nothing."""
    shards: tuple[Shard, ...]
    budget_seconds: float
    """Of computing; shards that would take longer are compressed in part. Reading comes on top."""
    on_ray: bool
    """Load what a Ray worker has loaded."""


@dataclass(frozen=True)
class Probe:
    """What it found."""

    samples: int
    """Compressed."""
    rejected: int
    part_bytes: int
    """Of their parts and rejected tables, without what a part has whatever is in it."""
    empty_part_bytes: int
    """Of a part without rows."""
    read_seconds: float
    """For each sample."""
    compress_seconds: float
    """For each sample."""
    start_seconds: float
    """Until the first sample was compressed, that is, imports and compilation."""
    peak_bytes: int
    """Resident memory of the process, made up for samples that were left out."""
    is_whole: bool
    """Nothing was left out."""


def run_probe(task: ProbeTask) -> Probe:
    """Compress the task's shards in a process of its own.

    Raises:
        VcinrError: whatever a worker would have raised, or the process was killed.
    """
    threads = ONE_THREAD if task.on_ray else {}
    environment = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.probe"],
        input=pickle.dumps(task),
        capture_output=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        killed = done.returncode < 0
        reason = f"was killed by signal {-done.returncode}" if killed else f"ended with: {lines[-1][:300]}"
        advice = "; a shard may not fit into memory: try a smaller --shard-samples" if killed else ""
        raise VcinrError(f"the process that tried a shard of {task.shards[0].sample_count} samples {reason}{advice}")
    outcome = pickle.loads(done.stdout)
    if isinstance(outcome, VcinrError):
        raise outcome
    assert isinstance(outcome, Probe)
    return outcome


def measure(task: ProbeTask) -> Probe:
    """What the fresh process does: shards through their stages as a worker takes them, but for writing."""
    started, plan = time.monotonic(), task.plan
    if task.on_ray:
        from pipelines.ray_session import import_ray

        import_ray()
    first = read_shard(plan, _first_sample(task.shards[0]))
    compress_read(plan, first)
    start_seconds = time.monotonic() - started
    again_seconds = _seconds(lambda: compress_read(plan, first))
    whole = task.shards[0].sample_count
    share = min(1.0, task.budget_seconds / (PASSES * len(task.shards) * whole * max(again_seconds, 1e-9)))
    worker = _ProbeWorker(plan, share)
    with ThreadPoolExecutor(SHARDS_ABOARD if task.on_ray else 1) as threads:
        done = list(threads.map(worker.run, PASSES * task.shards))[: len(task.shards)]
    samples = sum(shard.samples for shard in done)
    return Probe(
        samples=samples,
        rejected=sum(shard.rejected for shard in done),
        part_bytes=sum(shard.part_bytes for shard in done),
        empty_part_bytes=len(encode_part([], plan.layout)[0]),
        read_seconds=sum(shard.read_seconds for shard in done) / (whole * len(done)),
        compress_seconds=sum(shard.compress_seconds for shard in done) / samples,
        start_seconds=start_seconds,
        peak_bytes=peak_bytes() + (_missing_bytes(plan, share, task.shards[0]) if share < 1 else 0),
        is_whole=share == 1,
    )


@dataclass(frozen=True)
class _ProbedShard:
    samples: int
    rejected: int
    part_bytes: int
    read_seconds: float
    compress_seconds: float


class _ProbeWorker:
    """As `ShardWorker`, with as many shards aboard, each in a thread of its own: that decides the memory."""

    def __init__(self, plan: CompressPlan, share: float) -> None:
        self._plan = plan
        self._share = share
        self._reading = threading.Lock()
        self._computing = threading.Lock()
        self._empty_bytes = len(encode_part([], plan.layout)[0])

    def run(self, shard: Shard) -> _ProbedShard:
        with self._reading:
            started = time.monotonic()
            read = read_shard(self._plan, shard)
            read_seconds = time.monotonic() - started
        with self._computing:
            started = time.monotonic()
            compressed = compress_read(self._plan, _cut(read, self._share))
            compress_seconds = time.monotonic() - started
        del read
        part, _ = encode_part(list(compressed.rows), self._plan.layout, with_blocks=bool(compressed.rejected))
        size = len(part) - self._empty_bytes
        size += len(encode_rejected(compressed.rejected, self._plan.layout)) if compressed.rejected else 0
        rows, rejected = len(compressed.rows), len(compressed.rejected)
        return _ProbedShard(rows + rejected, rejected, size, read_seconds, compress_seconds)


def peak_bytes(process: str = "self") -> int:
    """Largest resident memory of a process so far."""
    try:
        with open(f"/proc/{process}/status", encoding="ascii", errors="replace") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # no /proc: macOS, where the number is in bytes
        import resource

        # Not the first choice: Linux lets a child start with the peak of the process that started it.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _seconds(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _cut(read: ShardSamples, share: float) -> ShardSamples:
    return replace(read, samples=read.samples[: max(1, round(share * len(read.samples)))])


def _first_sample(shard: Shard) -> Shard:
    return Shard(shard.index, shard.start, tuple(start + 1 for start in shard.start))


def _missing_bytes(plan: CompressPlan, share: float, shard: Shard) -> int:
    """Memory that the samples left out would have taken while they were compressed, by the slope between two sizes.

    Between small ones the allocator hides it: at least what a closed-form fit takes. Batches bound all of it.
    """
    kept = _cut(read_shard(plan, shard), share)
    some, batch = len(kept.samples), min(shard.sample_count, max(1, BATCH_VALUES // plan.layout.points_per_sample))
    if some >= batch:
        return 0
    few = some // 2
    with _watch() as small:
        if few:
            compress_read(plan, replace(kept, samples=kept.samples[:few]))
    with _watch() as large:
        compress_read(plan, kept)
    slope_bytes = max((large[0] - small[0]) / (some - few), 4 * _COPIES * plan.layout.points_per_sample)
    return int(slope_bytes * (batch - some))


@contextmanager
def _watch() -> Iterator[list[int]]:
    """The largest resident memory while the block runs, as the only item of a list."""
    found, stop = [_resident_bytes()], threading.Event()

    def look() -> None:
        while not stop.wait(_SAMPLING_SECONDS):
            found[0] = max(found[0], _resident_bytes())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_bytes()


def _main() -> None:
    # Libraries may print; the result has the descriptor to itself.
    result = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    task = pickle.loads(sys.stdin.buffer.read())
    try:
        outcome: Probe | VcinrError = measure(task)
    except VcinrError as error:
        outcome = error.with_traceback(None)
        outcome.__cause__ = outcome.__context__ = None
    with result:
        pickle.dump(outcome, result)


if __name__ == "__main__":
    # Under its own name, so that what it pickles is found by whoever started it.
    from pipelines import probe

    probe._main()
