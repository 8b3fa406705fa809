"""How far one driver goes: planning ERA5's largest variable, and a million samples through the workers.

`python -m pipelines.scale_benchmark --plan` and `--million` print Markdown rows. Every step is timed in a process of
its own, whose peak memory is that of a driver.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray
import zarr

from pipelines.compress import CompressJob, compress
from pipelines.compress_plan import CompressPlan, make_manifest, plan_compression
from pipelines.probe import peak_bytes
from pipelines.shard_status import ShardStatus, file_sizes, finished_results, run_identity, write_status
from pipelines.train import train
from vcinr_batch.archive.manifest import ArchivePart, Manifest, commit_manifest, read_manifest
from vcinr_batch.bundle import Bundle, load_bundle, make_bundle, save_bundle
from vcinr_batch.compression import QualityRequest
from vcinr_batch.config import load_config, parse_config
from vcinr_batch.data.coordinates import make_grid
from vcinr_batch.data.normalizer import Normalizer
from vcinr_batch.data.shards import Shard, make_layout, shard_name
from vcinr_batch.data.sources import open_fields
from vcinr_batch.inspection import RowFigures
from vcinr_batch.part_verification import mark_blocks
from vcinr_batch.storage import join_url, sha256_hex, write_bytes

HOURS, LEVELS, HEIGHT, WIDTH = 350_640, 37, 721, 1440
"""ERA5, hourly at 0.25 degrees, 40 years: 12,973,680 fields."""
PART_BYTES = 100
_MILLION = (100_000, 1_000_000)

_TINY = """
source: {variable: t}
normalizer: {background: mean}
network: {modulation: none, linear_term: eof, latent_dim: 4}
meta_learning: {steps: 0}
codec: {steps: 20, quality_psnr_db: [20, 30, 40]}
sample: {shard_samples: 4096}
"""


@dataclass(frozen=True)
class Step:
    """One row of the table."""

    name: str
    seconds: float
    peak_bytes: int
    """Of the process, since its start."""

    def __str__(self) -> str:
        return f"| {self.name} | {self.seconds:.1f} s | {self.peak_bytes / 1e6:.0f} MB |"


def make_era5_metadata(url: str, storage_options: Mapping[str, Any]) -> None:
    """A Zarr store with the shape, chunks and labels of ERA5 on pressure levels, and no values."""
    group = zarr.open_group(url, mode="w", storage_options=dict(storage_options) or None)
    dims = ("time", "level", "latitude", "longitude")
    values = group.create_array(
        "t", shape=(HOURS, LEVELS, HEIGHT, WIDTH), chunks=(1, LEVELS, HEIGHT, WIDTH), dtype="f4", dimension_names=dims
    )
    values.attrs.update({"units": "K", "long_name": "Temperature"})
    labels: dict[str, tuple[np.ndarray[Any, Any], dict[str, str]]] = {
        "time": (np.arange(HOURS), {"units": "hours since 1979-01-01", "calendar": "standard"}),
        "level": (np.linspace(1, 1000, LEVELS).astype(np.int64), {"units": "hPa"}),
        "latitude": (90 - 0.25 * np.arange(HEIGHT), {"units": "degrees_north"}),
        "longitude": (0.25 * np.arange(WIDTH), {"units": "degrees_east"}),
    }
    for name, (array, attributes) in labels.items():
        axis = group.create_array(
            name, shape=array.shape, chunks=array.shape, dtype=array.dtype, dimension_names=(name,)
        )
        axis[:] = array
        axis.attrs.update(attributes)


def make_era5_bundle(source_url: str, folder: str, storage_options: Mapping[str, Any]) -> str:
    """A bundle for that store with no network in it: enough to plan with."""
    config = parse_config({"source": {"variable": "t"}, "network": {"modulation": "shift"}})
    source = open_fields(source_url, config.source, storage_options)
    layout = make_layout(source, config.sample)
    ones = np.ones(LEVELS, np.float32)
    normalizer = Normalizer("t", "K", (layout.axis("level"),), None, 1, 1, 250.0, ones, ones, None)
    _, data = make_bundle(config, make_grid(layout, "auto"), normalizer, {}, {}, {})
    return save_bundle(data, folder, storage_options)


def measure_plan(source: str, bundle: str, output: str, statuses: int, options: Mapping[str, Any]) -> list[Step]:
    """Everything that a driver does beside handing out shards, in this process."""
    steps: list[Step] = []

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.monotonic()
        result = work()
        steps.append(Step(name, time.monotonic() - started, peak_bytes()))
        return result

    loaded: Bundle = load_bundle(bundle, options)
    job = CompressJob((source,), bundle, output, QualityRequest(level=3), storage_options=options)
    plan, shards = timed("plan", lambda: plan_compression(job, loaded))
    steps[-1] = Step(f"plan {plan.layout.sample_count:,} samples, {len(shards):,} shards", *_figures(steps[-1]))
    identity = timed("identity of the run", lambda: run_identity(plan, shards))
    parts = [_made_up_part(plan, shard) for shard in shards]
    _write_statuses(plan, identity, shards[:statuses], parts)
    finished = timed(f"find {statuses:,} finished shards", lambda: finished_results(plan, identity, shards))
    assert len(finished) == statuses
    manifest = timed("make the manifest", lambda: make_manifest(plan, parts))
    size = timed("commit it", lambda: commit_manifest(manifest, output, overwrite=True, storage_options=options))
    steps[-1] = Step(f"commit it ({size / 1e6:.1f} MB)", *_figures(steps[-1]))
    timed("read it", lambda: read_manifest(output, storage_options=options))
    timed("count every sample once", lambda: _count(manifest))
    return steps


def measure_million(folder: str, samples: int, workers: int) -> Step:
    """Compress that many samples of 4 x 4 in this process and its workers."""
    source = f"{folder}/{samples}.zarr"
    started = time.monotonic()
    job = CompressJob((source,), f"{folder}/bundle", f"{folder}/{samples}", QualityRequest(level=1), workers=workers)
    report = compress(job)
    seconds = time.monotonic() - started
    assert report.summary.figures.samples == samples
    name = f"{samples:,} samples of 4 x 4, {workers} workers, {samples / seconds:,.0f} samples/s"
    return Step(name, seconds, peak_bytes())


def _make_fields(url: str, samples: int) -> None:
    times = np.datetime64("1900-01-01T00", "ns") + np.arange(samples) * np.timedelta64(1, "h")
    phase = np.arange(samples)[:, None, None] / 9
    y, x = np.arange(4)[:, None], np.arange(4)
    values = (280 + np.sin(phase + x) + np.cos(1.3 * phase + y)).astype(np.float32)
    axes = {"time": times, "y": np.arange(4), "x": np.arange(4)}
    dataset = xarray.Dataset({"t": (("time", "y", "x"), values, {"units": "K"})}, axes)
    dataset.to_zarr(url, mode="w", encoding={"t": {"chunks": (4096, 4, 4)}}, consolidated=False)


def _figures(step: Step) -> tuple[float, int]:
    return step.seconds, step.peak_bytes


def _made_up_part(plan: CompressPlan, shard: Shard) -> ArchivePart:
    digest = sha256_hex(_made_up_bytes(shard))
    path = f"parts/{shard_name(plan.layout, shard)}-{digest[:12]}.parquet"
    spans = ((4, PART_BYTES),)
    return ArchivePart(path, shard.sample_count, PART_BYTES, digest, shard.index, spans, shard.start, shard.stop)


def _made_up_bytes(shard: Shard) -> bytes:
    return str(shard.index).encode().ljust(PART_BYTES)


def _write_statuses(plan: CompressPlan, identity: str, shards: list[Shard], parts: list[ArchivePart]) -> None:
    """As the workers would have; where the objects are there from an earlier run, those."""
    there = file_sizes(join_url(plan.output, "status", identity), plan.storage_options)
    if len(there) >= len(shards):
        return

    def write(shard: Shard) -> None:
        part = parts[shard.index]
        figures = RowFigures(part.rows, part.rows, 1.0, 1.0, part.rows, 1.0, {3: part.rows})
        status = ShardStatus(shard_name(plan.layout, shard), "done", 1, (), part, figures, (), 1.0)
        write_bytes(join_url(plan.output, part.path), _made_up_bytes(shard), storage_options=plan.storage_options)
        write_status(plan, identity, status)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(write, shards))


def _count(manifest: Manifest) -> None:
    """What `verify` keeps in memory, filled from all parts."""
    seen = np.zeros(manifest.layout.sample_count, np.uint16)
    for part in manifest.parts:
        axes = [np.arange(a, b) for a, b in zip(part.start, part.stop, strict=True)]
        blocks = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
        mark_blocks(seen, manifest.layout, blocks)
    assert (seen == 1).all()


def _in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _run_plan(folder: str, statuses: int, options: Mapping[str, Any]) -> None:
    source = f"{folder}/era5.zarr"
    make_era5_metadata(source, options)
    bundle = make_era5_bundle(source, f"{folder}/bundle", options)
    for step in _in_new_process(measure_plan, source, bundle, f"{folder}/archive", statuses, options):
        print(step, flush=True)


def _run_million(folder: str, workers: int) -> None:
    _make_fields(f"{folder}/training.zarr", 2000)
    Path(f"{folder}/tiny.yaml").write_text(_TINY)
    train(load_config(f"{folder}/tiny.yaml"), [f"{folder}/training.zarr"], f"{folder}/bundle")
    for samples in _MILLION:
        _make_fields(f"{folder}/{samples}.zarr", samples)
        print(_in_new_process(measure_million, folder, samples, workers), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", action="store_true", help="plan ERA5")
    parser.add_argument("--million", action="store_true", help="compress a million tiny samples")
    parser.add_argument("--url", help="folder on any store for --plan; a temporary one by default")
    parser.add_argument("--storage-options", default="{}", help="JSON, for the store")
    parser.add_argument("--statuses", type=int, default=26_972, help="status objects that an earlier run left")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    print("| step | time | peak memory of the driver |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.plan:
            _run_plan(arguments.url or folder, arguments.statuses, json.loads(arguments.storage_options))
        if arguments.million:
            _run_million(folder, arguments.workers)


if __name__ == "__main__":
    # Under its own name, so that the processes find what they are to call.
    from pipelines import scale_benchmark

    scale_benchmark.main()
