"""What an archive costs its reader in requests and bytes: `python -m pipelines.request_benchmark` prints a table.

Archives of a thousand, a hundred thousand and a million samples, in parts of the default size, through the code that
writes real ones; their rows are those of a small archive, over and over. A file system counts what would be a request
to an object store. The bundle, which every machine fetches once, is opened beforehand.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray

from pipelines.compress import CompressJob, compress
from pipelines.counted_files import Asked, count, counted_url
from pipelines.train import train
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.manifest import ArchivePart, Manifest, commit_manifest
from vcinr_batch.archive.parquet_container import write_part
from vcinr_batch.archive.rows import ArchiveRow, row_checksum
from vcinr_batch.archive.zarr_container import as_zarr, zarr_files
from vcinr_batch.compression import QualityRequest
from vcinr_batch.config import SampleConfig, load_config
from vcinr_batch.data.layout import Layout, sample_key
from vcinr_batch.data.shards import Shard, plan_shards, shard_blocks, shard_name
from vcinr_batch.storage import join_url, write_bytes

SIZES = (1_000, 100_000, 1_000_000)
_HOURS, _HEIGHT, _WIDTH = 400, 16, 24
_CONFIG = """
source: {variable: t2m}
normalizer: {background: mean}
network: {modulation: none, linear_term: eof, latent_dim: 192}
meta_learning: {steps: 0}
codec: {steps: 20, quality_psnr_db: [30, 45, 60]}
"""


@dataclass(frozen=True)
class Reading:
    """What one way of reading an archive cost."""

    opening: Sequence[Asked]
    first: Sequence[Asked]
    """For one sample, right after opening."""
    second: Sequence[Asked]
    """For another one of the same part."""
    payload_bytes: tuple[int, int]
    """Of the two samples."""
    opening_seconds: float


def make_archives(template: str, folder: str, samples: int, shard_samples: int) -> tuple[str, str]:
    """The same archive as Parquet and as Zarr: the first `samples` hours, with the rows of a template over and over.

    Args:
        template: an archive of hourly fields, one sample each.
        folder: for the two.
        samples: how many.
        shard_samples: about how many in a part.

    Returns:
        Their paths.
    """
    archive, parquet, as_group = Archive.open(template), f"{folder}/parquet", f"{folder}/zarr"
    time_axis = archive.layout.axes[0]
    axes = (replace(time_axis, values=time_axis.values[0] + 3600 * np.arange(samples)), *archive.layout.axes[1:])
    layout, rows = replace(archive.layout, axes=axes), archive.rows()
    shards = plan_shards(layout, shard_samples, (1, *layout.shape[1:]))
    parts = tuple(_write_part(parquet, layout, shard, rows, archive.manifest) for shard in shards)
    manifest = replace(archive.manifest, layout=layout, parts=parts)
    group = as_zarr(manifest)
    for url in (parquet, as_group):
        write_bytes(join_url(url, manifest.bundle_path), archive.bundle_bytes())
    for old, new in zip(manifest.parts, group.parts, strict=True):
        path = Path(as_group, new.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(Path(parquet, old.path), path)
    for name, data in zarr_files(group).items():
        write_bytes(join_url(as_group, name), data)
    commit_manifest(manifest, parquet)
    commit_manifest(group, as_group)
    return parquet, as_group


def open_api(path: str) -> Callable[[int], Any]:
    """`Archive.open`; what comes back reads the sample of an hour."""
    archive = Archive.open(counted_url(path))
    others = [np.arange(length) for length in archive.layout.shape[1:]]
    return lambda hour: archive.values([np.array([hour]), *others], archive.decoder())


def open_engine(path: str) -> Callable[[int], Any]:
    """`xarray.open_dataset(engine="vcinr")`, as `open_api`."""
    dataset = xarray.open_dataset(counted_url(path), engine="vcinr")
    return lambda hour: dataset["t2m"].isel(time=hour).values


def open_zarr(path: str) -> Callable[[int], Any]:
    """`xarray.open_zarr`, as `open_api`."""
    dataset = xarray.open_zarr(counted_url(path), chunks=None)
    return lambda hour: dataset["t2m"].isel(time=hour).values


def open_zarr_3(path: str) -> Callable[[int], Any]:
    """`xarray.open_zarr(zarr_format=3)`, as `open_api`."""
    dataset = xarray.open_zarr(counted_url(path), chunks=None, zarr_format=3)
    return lambda hour: dataset["t2m"].isel(time=hour).values


def measure(path: str, opens: Callable[[str], Callable[[int], Any]], repeats: int = 1) -> Reading:
    """Open an archive of `make_archives` in one way, and read two samples of the part in its middle."""
    archive = Archive.open(path)
    archive.opened_bundle()
    part = archive.manifest.parts[len(archive.manifest.parts) // 2]
    places = [part.rows // 3, part.rows - 1]
    hours = [part.start[0] + place for place in places]
    sizes = archive.index(part).payload_bytes[places].tolist()
    seconds = list[float]()
    for _ in range(repeats):
        started = time.perf_counter()
        opening, read = count(opens, path)
        seconds.append(time.perf_counter() - started)
    (first, one), (second, other) = (count(read, hour) for hour in hours)
    if not np.isfinite(one).all() or not np.isfinite(other).all():
        raise AssertionError(f"{path}: no values of hours {hours}")
    return Reading(opening, first, second, (sizes[0], sizes[1]), min(seconds))


def _write_part(
    url: str, layout: Layout, shard: Shard, template: Sequence[ArchiveRow], manifest: Manifest
) -> ArchivePart:
    rows = list(_rows(layout, shard, template, manifest.bundle_sha256))
    return write_part(rows, layout, url, shard_name(layout, shard), start=shard.start, stop=shard.stop)


def _rows(layout: Layout, shard: Shard, template: Sequence[ArchiveRow], bundle_sha256: str) -> Iterator[ArchiveRow]:
    for block in shard_blocks(shard):
        like, key = template[block[0] % len(template)], sample_key(layout, block)
        checksum = row_checksum(key, like.quality, like.payload, like.mask, bundle_sha256, like.coding)
        yield replace(like, key=key, block=block, checksum=checksum)


def _make_template(folder: str) -> str:
    """An archive of a bundle with much to code in each sample, so that its payloads are not the smallest."""
    random = np.random.default_rng(0)
    values = 280 + random.standard_normal((_HOURS, _HEIGHT, _WIDTH)).astype(np.float32)
    axes = {
        "time": np.datetime64("1900-01-01T00", "ns") + np.arange(_HOURS) * np.timedelta64(1, "h"),
        "latitude": 60 - np.arange(_HEIGHT) / 2,
        "longitude": np.arange(_WIDTH) / 2,
    }
    fields = xarray.Dataset({"t2m": (tuple(axes), values, {"units": "K"})}, axes)
    fields.to_zarr(f"{folder}/fields.zarr", mode="w", consolidated=False)
    Path(f"{folder}/config.yaml").write_text(_CONFIG)
    train(load_config(f"{folder}/config.yaml"), [f"{folder}/fields.zarr"], f"{folder}/bundle")
    job = CompressJob((f"{folder}/fields.zarr",), f"{folder}/bundle", f"{folder}/template", QualityRequest(level=2))
    compress(job)
    return f"{folder}/template"


def _table_row(samples: int, parts: int, name: str, cost: Reading) -> str:
    opened, first, second = (
        f"{len(asked)} | {sum(one.bytes for one in asked) - payload:,}"
        for asked, payload in zip((cost.opening, cost.first, cost.second), (0, *cost.payload_bytes), strict=True)
    )
    return f"| {samples:,} ({parts:,}) | {name} | {opened} | {1000 * cost.opening_seconds:.1f} | {first} | {second} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--shard-samples", type=int, default=SampleConfig().shard_samples)
    parser.add_argument("--requests", action="store_true", help="list every request as well")
    arguments = parser.parse_args()
    print(
        "| samples (parts) | opened by | requests | bytes | ms | first sample: requests | bytes beyond its payload "
        "| second: requests | bytes beyond its payload |\n|---|---|---|---|---|---|---|---|---|"
    )
    ways = (
        ("`Archive.open`", 0, open_api),
        ('`open_dataset(engine="vcinr")`', 0, open_engine),
        ("`open_zarr`", 1, open_zarr),
        ("`open_zarr(zarr_format=3)`", 1, open_zarr_3),
    )
    with tempfile.TemporaryDirectory() as folder:
        template = _make_template(folder)
        for samples in arguments.samples:
            paths = make_archives(template, f"{folder}/{samples}", samples, arguments.shard_samples)
            parts = len(Archive.open(paths[0]).manifest.parts)
            for name, container, opens in ways:
                cost = measure(paths[container], opens, repeats=3)
                print(_table_row(samples, parts, name, cost), flush=True)
                for asked in [*cost.opening, *cost.first, *cost.second] if arguments.requests else []:
                    print(f"{asked.kind} {asked.path.removeprefix(paths[container])}: {asked.bytes} bytes")


if __name__ == "__main__":
    main()
