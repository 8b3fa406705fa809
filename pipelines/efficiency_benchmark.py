"""What Ray and the store cost, and what a second worker brings: `python -m pipelines.efficiency_benchmark`.

The same shards go through a plain loop that only computes (samples in memory, nothing written), then through one worker
and through two, with reading, writing and status objects. One thread each; seconds per shard once the workers are warm.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from pipelines.archive_output import start_archive
from pipelines.compress_plan import CompressJob, CompressPlan, WorkerOptions, plan_compression
from pipelines.shard_engine import run_shards
from pipelines.shard_status import run_identity
from pipelines.shard_work import compress_read, read_shard
from pipelines.shard_worker import ONE_THREAD
from pipelines.train import train
from vcinr_batch.bundle import find_bundle, load_bundle
from vcinr_batch.compression import QualityRequest
from vcinr_batch.config import load_config
from vcinr_batch.data.shards import Shard
from vcinr_batch.data.synthetic import synthetic_reanalysis, write_synthetic
from vcinr_batch.storage import read_bytes

DAYS, SHARD_SAMPLES, REPEATS = 730, 64, 3


def seconds_in_a_loop(source: str, bundle: str, output: str) -> float:
    """Per shard, in this process: fit, code, measure every error."""
    plan, shards = _plan(source, bundle, output)
    reads = [read_shard(plan, shard) for shard in shards]
    compress_read(plan, reads[0])  # the first one opens the bundle and compiles
    started = time.monotonic()
    for read in reads:
        compress_read(plan, read)
    return (time.monotonic() - started) / len(reads)


def seconds_with_workers(source: str, bundle: str, output: str, workers: int) -> float:
    """Per shard, from the second one of each worker to the last round, in which some have nothing to do."""
    plan, shards = _plan(source, bundle, output)
    ends = list[float]()
    with closing(run_shards(plan, shards, WorkerOptions(workers), run_identity(plan, shards))) as outcomes:
        for _ in outcomes:
            ends.append(time.monotonic())
    first, last = 2 * workers - 1, len(ends) - workers
    return (ends[last] - ends[first]) / (last - first)


def _plan(source: str, bundle: str, output: str) -> tuple[CompressPlan, list[Shard]]:
    job = CompressJob((source,), bundle, output, QualityRequest(target_psnr_db=40.0), shard_samples=SHARD_SAMPLES)
    url = find_bundle(bundle)
    loaded = load_bundle(url)
    start_archive(output, loaded.file_name, read_bytes(url), None)
    return plan_compression(job, loaded)


def _in_new_process(function: Callable[..., float], *arguments: Any) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    arguments = parser.parse_args()
    os.environ.update(ONE_THREAD)  # also for the plain loop, which is a worker without Ray
    with tempfile.TemporaryDirectory() as folder:
        source, bundle = f"{folder}/source.nc", f"{folder}/models"
        dataset = synthetic_reanalysis(DAYS, 37, 57, seed=7, hours_per_step=6, region=(66.0, 30.0, -16.0, 40.0))
        write_synthetic(source, dataset)
        train(load_config(arguments.config), [source], bundle)
        times: dict[str, list[float]] = {"loop": [], "1": [], "2": []}
        for turn in range(arguments.repeats):
            times["loop"].append(_in_new_process(seconds_in_a_loop, source, bundle, f"{folder}/loop-{turn}"))
            for count in (1, 2):
                output = str(Path(folder, f"{count}-{turn}"))
                times[str(count)].append(_in_new_process(seconds_with_workers, source, bundle, output, count))
            print({name: round(values[-1], 3) for name, values in times.items()}, flush=True)
    loop, one, two = (statistics.median(times[name]) for name in ("loop", "1", "2"))
    print("| | seconds per shard | |\n|---|---|---|")
    print(f"| plain loop, computing only | {loop:.3f} | 1 |")
    print(f"| one worker, with Ray, reading and writing | {one:.3f} | {one / loop:.2f} times the time |")
    print(f"| two workers | {two:.3f} | {one / two:.2f} times as fast as one |")


if __name__ == "__main__":
    # Under its own name, so that the processes find what they are to call.
    from pipelines import efficiency_benchmark

    efficiency_benchmark.main()
