"""Where the time goes, in one run on one machine: `make bench`.

Trains a small bundle on synthetic fields, then times reading, fit, compression with measured errors, decompression of
many and of one, and the whole pipeline, on the same held-out samples and one thread. Prints a Markdown table and writes
JSON.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pipelines.compress import CompressJob, compress
from vcinr_batch.bundle import Bundle, save_bundle
from vcinr_batch.compression import (
    OpenBundle,
    QualityRequest,
    compress_samples,
    decompress_rows,
    one_thread,
    open_bundle,
)
from vcinr_batch.config import FitConfig, SourceConfig, load_config
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.samples import Sample
from vcinr_batch.data.shards import iter_samples, make_layout, plan_shards
from vcinr_batch.data.sources import FieldSource, open_fields
from vcinr_batch.data.synthetic import synthetic_reanalysis, write_synthetic
from vcinr_batch.errors import VcinrError
from vcinr_batch.network.fitting import fit_latents, make_solver
from vcinr_batch.training.bundle_training import train_bundle

REPEATS = 5
TRAINING, HELD_OUT = "2019-01-01..2019-02-09", "2019-02-10..2019-02-19"


@dataclass(frozen=True)
class Timing:
    """One row of the table."""

    name: str
    samples: int
    seconds: float
    """Median of the repeats."""
    values_per_sample: int

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds

    @property
    def megabytes_per_second(self) -> float:
        """Of float32 source."""
        return 4 * self.samples * self.values_per_sample / self.seconds / 1e6


def run_benchmark(config_url: str, directory: Path, workers: int) -> list[Timing]:
    """Train, then time every stage; files are left in `directory`.

    Raises:
        VcinrError: whatever a stage raises.
    """
    path = directory / "source.nc"
    write_synthetic(
        str(path), synthetic_reanalysis(50, 37, 57, seed=7, hours_per_step=3, region=(66.0, 30.0, -16.0, 40.0))
    )
    config = load_config(config_url)
    training = SourceConfig(variable="t2m", select={"time": TRAINING})
    bundle, data = train_bundle(open_fields(str(path), training), config)
    bundle_url = save_bundle(data, str(directory / "models"))
    source = open_fields(str(path), SourceConfig(variable="t2m", select={"time": HELD_OUT}))
    layout = make_layout(source, config.sample)
    with one_thread():
        timings = _time_stages(bundle, source, layout)
    return [*timings, _time_pipeline(path, bundle_url, directory, layout, workers)]


def _time_stages(bundle: Bundle, source: FieldSource, layout: Layout) -> list[Timing]:
    (shard,) = plan_shards(layout, layout.sample_count, source.chunk_shape)
    samples = list(iter_samples(source, layout, bundle.grid, shard))
    opened, request = open_bundle(bundle), QualityRequest(level=len(bundle.quality_psnr_db) // 2)
    rows, _ = compress_samples(samples, opened, layout, request)

    def timing(name: str, count: int, work: Callable[[], object]) -> Timing:
        return Timing(name, count, _median_seconds(work), layout.points_per_sample)

    return [
        timing("read a shard", len(samples), lambda: list(iter_samples(source, layout, bundle.grid, shard))),
        timing("fit, closed form", len(samples), _fit(opened, samples, bundle.config.fit)),
        timing("fit, 3 gradient steps", len(samples), _fit(opened, samples, FitConfig(method="gradient"))),
        timing("compress, errors measured", len(samples), lambda: compress_samples(samples, opened, layout, request)),
        timing("decompress", len(rows), lambda: decompress_rows(rows, opened, layout)),
        timing("decompress one sample", 1, lambda: decompress_rows(rows[:1], opened, layout)),
    ]


def _fit(opened: OpenBundle, samples: list[Sample], fit: FitConfig) -> Callable[[], object]:
    values = torch.stack([torch.from_numpy(sample.values) for sample in samples])
    values = (values - values.mean()) / values.std()  # what is fitted does not matter for the time
    with torch.no_grad():
        solver = make_solver(opened.network) if fit.method == "closed_form" else None
    return lambda: fit_latents(opened.network, values, fit, solver=solver)


def _time_pipeline(path: Path, bundle_url: str, directory: Path, layout: Layout, workers: int) -> Timing:
    started = time.monotonic()
    job = CompressJob(
        sources=(str(path),),
        bundle=bundle_url,
        output=str(directory / "archive"),
        request=QualityRequest(target_psnr_db=45.0),
        source=SourceConfig(select={"time": HELD_OUT}),
        workers=workers,
        overwrite=True,
    )
    report = compress(job)
    seconds = time.monotonic() - started
    return Timing(
        f"pipeline, {workers} Ray workers, cold", report.summary.rate.samples, seconds, layout.points_per_sample
    )


def _median_seconds(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _markdown(timings: list[Timing]) -> str:
    lines = ["| stage | samples | seconds | samples/s | MB/s of float32 |", "|---|---|---|---|---|"]
    lines += [
        f"| {t.name} | {t.samples} | {t.seconds:.4f} | {t.samples_per_second:.0f} | {t.megabytes_per_second:.2f} |"
        for t in timings
    ]
    return "\n".join(lines)


def main() -> int:
    """Command line of `make bench`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--output", type=Path, default=Path("bench"))
    parser.add_argument("--workers", type=int, default=2, help="Ray workers of the pipeline; 0 runs without Ray")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory() as directory:
            timings = run_benchmark(arguments.config, Path(directory), arguments.workers)
    except VcinrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    content = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "timings": [asdict(t) for t in timings],
    }
    (arguments.output / "benchmark.json").write_text(json.dumps(content, indent=2) + "\n")
    print(_markdown(timings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
