"""The main job, start to end, on a seeded synthetic reanalysis: `make demo`.

Makes two years of data, trains on the first, compresses the second (never seen in training) through Ray, verifies every
error against the source, decompresses one field, draws it, and prints what everything cost.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from pipelines.compress import CompressJob, CompressReport, compress
from pipelines.decompress import decompress
from pipelines.field_slices import make_slice
from pipelines.map_figures import draw_slice, drawing, error_colours, value_colours
from pipelines.train import train
from vcinr_batch.compression import QualityRequest
from vcinr_batch.config import SourceConfig, load_config
from vcinr_batch.console import size_text
from vcinr_batch.data.layout import make_axis
from vcinr_batch.data.synthetic import synthetic_reanalysis, write_synthetic
from vcinr_batch.errors import VcinrError
from vcinr_batch.verification import open_original, verify_archive

DAYS = 2 * 365 + 1
HELD_OUT = "2020"
ONE_FIELD = "2020-03-22T06"
TARGET_PSNR_DB = 40.0


@dataclass(frozen=True)
class DemoReport:
    """What the demo made and how long each stage took."""

    compressed: CompressReport
    seconds: dict[str, float]
    picture: Path


def run_demo(config_url: str, output: Path, workers: int) -> DemoReport:
    """Run every stage; the output directory is overwritten.

    Raises:
        VcinrError: whatever a stage raises, and a verification that finds a problem.
    """
    output.mkdir(parents=True, exist_ok=True)
    source, archive, field = output / "source.nc", output / "archive", output / "selection.nc"
    models = output / "models"
    for old in models.glob("*.safetensors"):
        old.unlink()
    config = load_config(config_url)
    seconds: dict[str, float] = {}

    def stage(name: str, work: Callable[[], Any]) -> Any:
        print(f"{name} ...", file=sys.stderr, flush=True)
        started = time.monotonic()
        result = work()
        seconds[name] = time.monotonic() - started
        return result

    stage("make data", lambda: _make_source(source))
    stage("train", lambda: train(config, [str(source)], str(models)))
    job = CompressJob(
        sources=(str(source),),
        bundle=str(models),
        output=str(archive),
        request=QualityRequest(target_psnr_db=TARGET_PSNR_DB),
        source=SourceConfig(select={"time": HELD_OUT}),
        workers=workers,
        overwrite=True,
    )
    compressed: CompressReport = stage("compress", lambda: compress(job))
    verified = stage("verify", lambda: verify_archive(str(archive), open_original(str(archive), [str(source)])))
    if not verified.is_good:
        raise VcinrError(f"{archive}: {verified.problem_count} problems, the first: {verified.problems[0]}")
    stage("decompress", lambda: decompress(str(archive), str(field), {"time": ONE_FIELD}, overwrite=True))
    picture = output / "selection.png"
    stage("draw", lambda: draw_selection(source, field, picture))
    return DemoReport(compressed, seconds, picture)


def draw_selection(source: Path, field: Path, picture: Path) -> None:
    """Source, decoded field and their difference, side by side, as a PNG.

    Raises:
        ConfigError: matplotlib is not installed (extra `plot`).
    """
    with drawing() as figure_class, xr.open_dataset(field) as decoded_set, xr.open_dataset(source) as source_set:
        decoded = decoded_set["t2m"].isel(time=0)
        original = source_set["t2m"].sel(time=decoded["time"])
        difference = decoded.values.astype(np.float64) - original.values
        largest = float(np.abs(difference).max())
        rmse = float(np.sqrt(np.mean(difference**2)))
        colours = value_colours(original.values)
        panels = [
            ("source", original.values, colours),
            ("decoded", decoded.values, colours),
            (f"decoded - source: RMSE {rmse:.2f} K, max {largest:.2f} K", difference, error_colours(difference)),
        ]
        grid = [make_axis(name, original[name].values, original[name].attrs) for name in ("latitude", "longitude")]
        figure = figure_class(figsize=(15, 5), layout="compressed")
        for axes, (title, values, shown) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
            draw_slice(figure, axes, make_slice(values, grid), title, "K", shown)
        figure.suptitle(
            f"2 m temperature, {np.datetime_as_string(decoded['time'].values, unit='h')} UTC (synthetic, held out)"
        )
        figure.savefig(picture, dpi=110)


def _make_source(path: Path) -> None:
    dataset = synthetic_reanalysis(DAYS, 37, 57, seed=7, hours_per_step=6, region=(66.0, 30.0, -16.0, 40.0))
    write_synthetic(str(path), dataset)


def _print_report(report: DemoReport) -> None:
    rate = report.compressed.summary.rate
    console = Console()
    cost = Table(title=f"{rate.samples} held-out fields of {rate.values // rate.samples} values, each decodable alone")
    for heading in ("", "without the bundle", "with the bundle"):
        cost.add_column(heading, justify="left" if not heading else "right")
    both = rate.archive_bytes, rate.archive_bytes + rate.bundle_bytes
    cost.add_row("bytes", *(size_text(size) for size in both))
    cost.add_row("bits per value", *(f"{8 * size / rate.values:.3f}" for size in both))
    cost.add_row(
        f"ratio to the source ({rate.source_bits} bits)",
        *(f"{rate.source_bits * rate.values / 8 / size:.1f}" for size in both),
    )
    cost.add_row("ratio to float32", *(f"{4 * rate.values / size:.1f}" for size in both))
    console.print(cost)
    console.print(f"PSNR {rate.mean_psnr_db:.2f} dB (mean over fields, range of the training year)")
    console.print(f"RMSE {rate.rmse:.3f} K, max error {rate.max_error:.2f} K, verified against the source")
    stages = Table(title="seconds per stage")
    for name in report.seconds:
        stages.add_column(name, justify="right")
    stages.add_row(*(f"{value:.1f}" for value in report.seconds.values()))
    console.print(stages)
    console.print(f"picture: {report.picture}")


def main() -> int:
    """Command line of `make demo`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--output", type=Path, default=Path("demo"))
    parser.add_argument("--workers", type=int, default=2, help="Ray workers; 0 runs without Ray")
    arguments = parser.parse_args()
    try:
        _print_report(run_demo(arguments.config, arguments.output, arguments.workers))
    except VcinrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
