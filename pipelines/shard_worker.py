"""A worker: holds the bundle open and takes shards through their three stages, so that one computes while another waits
for the store. Plain Python: Ray runs it as an actor, a run without Ray in a loop.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import replace

from pipelines.compress_plan import CompressPlan
from pipelines.shard_attempts import Attempt
from pipelines.shard_status import ShardStatus, write_status
from pipelines.shard_work import (
    ShardResult,
    compress_read,
    open_bundle_once,
    read_shard,
    write_shard,
)
from vcinr_batch.data.shards import shard_name

RETRY_SECONDS = 1.0
"""Pause before the second attempt, doubled with each further one; the store's own retries come on top."""
_THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "BLOSC_NTHREADS",
    "ZARR_THREADING__MAX_WORKERS",
)
ONE_THREAD: Mapping[str, str] = dict.fromkeys(_THREAD_COUNTS, "1")
"""Environment of a worker process: libraries that start a thread per core would fight with the other workers."""


class ShardWorker:
    """Safe to call from several threads: one reads, one computes and one writes at a time."""

    def __init__(self, plan: CompressPlan, identity: str | None) -> None:
        self._plan = plan
        self._identity = identity
        self._reading = threading.Lock()
        self._computing = threading.Lock()

    def prepare(self) -> None:
        """Open the bundle.

        Raises:
            SourceError, CorruptBitstreamError: it cannot be read, or is not the plan's.
        """
        open_bundle_once(self._plan)

    def run(self, attempt: Attempt) -> ShardResult:
        """Do a shard, then write its status, unless the run has no identity.

        Raises:
            SourceError: the source cannot be read, or the part or the status cannot be written.
        """
        if attempt.number > 1:
            time.sleep(RETRY_SECONDS * 2 ** (attempt.number - 2))
        started = time.monotonic()
        with self._reading:
            read = read_shard(self._plan, attempt.shard)
        with self._computing:
            compressed = compress_read(self._plan, read)
        del read  # its values are the largest thing here
        result = write_shard(self._plan, compressed)
        result = replace(result, attempts=attempt.number, seconds=time.monotonic() - started)
        if self._identity is not None:
            write_status(self._plan, self._identity, self._status(attempt, result))
        return result

    def _status(self, attempt: Attempt, result: ShardResult) -> ShardStatus:
        return ShardStatus(
            shard=shard_name(self._plan.layout, attempt.shard),
            state="done",
            attempts=attempt.number,
            errors=attempt.errors,
            part=result.part,
            figures=result.figures,
            rejected_examples=result.rejected_examples,
            seconds=result.seconds,
        )
