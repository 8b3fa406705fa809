"""A small archive to read, write and damage: hourly fields of 2 x 3 points, made up without any codec."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from vcinr_batch.archive.manifest import ArchivePart, Manifest, commit_manifest
from vcinr_batch.archive.parquet_container import write_part
from vcinr_batch.archive.rows import ArchiveRow, pack_mask, row_checksum
from vcinr_batch.data.axes import Axis, make_axis
from vcinr_batch.data.layout import Layout, sample_key
from vcinr_batch.data.samples import RejectedSample
from vcinr_batch.storage import join_url, sha256_hex, write_bytes

TIME_UNITS = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}
BUNDLE = b"stands for a bundle"
BUNDLE_SHA256 = sha256_hex(BUNDLE)


def make_layout(hours: int = 6, latitudes: int = 2, longitudes: int = 3, **block: int) -> Layout:
    """From 2019-03-22T00, latitudes south to north in the source, blocks of one hour unless `block` says otherwise."""
    axes = (
        Axis("time", 1553212800 + 3600 * np.arange(hours), TIME_UNITS),
        make_axis("latitude", 50 + 0.5 * np.arange(latitudes), {"units": "degrees_north"}),
        make_axis("longitude", -10 + 0.25 * np.arange(longitudes), {"units": "degrees_east"}),
    )
    lengths = {"time": 1, "latitude": latitudes, "longitude": longitudes, **block}
    return Layout("t2m", axes, tuple(lengths[axis.name] for axis in axes))


def make_row(layout: Layout, block: tuple[int, ...], **changed: Any) -> ArchiveRow:
    """A row whose payload and errors follow from its block."""
    seed = int(np.ravel_multi_index(block, layout.block_counts))
    payload = np.random.default_rng(seed).bytes(5 + seed % 7)
    fields = {
        "payload": payload,
        "quality": 9,
        "rmse": 0.25 + seed / 64,
        "max_error": 8.0 + seed / 8,
        "mask": None,
        "coding": 0,
    }
    fields |= changed
    key = sample_key(layout, block)
    covered = (fields["quality"], fields["payload"], fields["mask"], BUNDLE_SHA256, fields["coding"])
    checksum = row_checksum(key, *covered)
    return ArchiveRow(key=key, block=block, checksum=checksum, **fields)


def make_rows(layout: Layout, **changed: Any) -> list[ArchiveRow]:
    """All rows of a layout, in row-major order."""
    return [make_row(layout, block, **changed) for block in np.ndindex(*layout.block_counts)]


def make_manifest(layout: Layout, parts: tuple[ArchivePart, ...], **changed: Any) -> Manifest:
    fields: dict[str, Any] = {
        "unit": "K",
        "attributes": {"long_name": "2 metre temperature", "units": "K", "GRIB_paramId": 167},
        "dataset_attributes": {"Conventions": "CF-1.7"},
        "encoding": {"dtype": "int16", "scale_factor": 0.001, "add_offset": 273.15},
        "source_bits": 16,
        "source_names": ("a.nc",),
        "bundle_sha256": BUNDLE_SHA256,
        "quality": {"target_psnr": 40.0},
        "generator": "vcinr-batch 0.0.0",
    }
    return Manifest(layout=layout, parts=parts, **(fields | changed))


@dataclass(frozen=True)
class Written:
    """An archive as it was written."""

    url: str
    layout: Layout
    rows: list[ArchiveRow]
    rejected: list[RejectedSample]
    manifest: Manifest


def write_archive(url: str, layout: Layout | None = None, rejected_blocks: tuple[tuple[int, ...], ...] = ()) -> Written:
    """Two parts, the first and the second half of the hours; every third row has its own mask, two quality levels."""
    layout = layout or make_layout()
    mask = pack_mask(np.arange(layout.points_per_sample) % 2 == 0)
    rows, rejected = [], []
    for block in np.ndindex(*layout.block_counts):
        if block in rejected_blocks:
            rejected.append(RejectedSample(sample_key(layout, block), block, "3 infinite values"))
        else:
            rows.append(make_row(layout, block, quality=8 + block[0] % 2, mask=mask if block[0] % 3 == 0 else None))
    half = layout.block_counts[0] // 2
    parts = []
    for i, (first, last) in enumerate([(0, half), (half, layout.block_counts[0])]):
        parts.append(
            write_part(
                [row for row in rows if first <= row.block[0] < last],
                layout,
                url,
                f"t2m-{i:08d}",
                start=(first, 0, 0),
                stop=(last, *layout.block_counts[1:]),
                rejected=[sample for sample in rejected if first <= sample.block[0] < last],
            )
        )
    manifest = make_manifest(layout, tuple(parts))
    write_bytes(join_url(url, manifest.bundle_path), BUNDLE)
    commit_manifest(manifest, url)
    return Written(url, layout, rows, rejected, manifest)


@pytest.fixture
def layouts() -> Callable[..., Layout]:
    return make_layout


@pytest.fixture
def rows_of() -> Callable[..., list[ArchiveRow]]:
    return make_rows


@pytest.fixture
def row_of() -> Callable[..., ArchiveRow]:
    return make_row


@pytest.fixture
def manifest_of() -> Callable[..., Manifest]:
    return make_manifest


@pytest.fixture
def archive_at() -> Callable[..., Written]:
    return write_archive
