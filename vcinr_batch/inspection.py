"""What an archive or a bundle holds and costs, from its metadata and small columns alone: numpy, no torch."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.manifest import MANIFEST_NAME, Manifest, read_manifest
from vcinr_batch.archive.parquet_container import PartIndex, read_index
from vcinr_batch.archive.rows import ArchiveRow, unpack_mask
from vcinr_batch.bundle import Bundle, find_bundle, load_bundle, parse_bundle
from vcinr_batch.data.layout import Layout, sample_key
from vcinr_batch.data.normalization import Normalizer, check_domain, expected_mask, range_at
from vcinr_batch.errors import BundleMismatchError, SourceError
from vcinr_batch.metrics import RateDistortion, psnr_db
from vcinr_batch.storage import StorageOptions, exists, join_url, public_url, read_bytes, size_bytes

Masks = Sequence[bytes | None]


LOSSLESS_LEVEL = -1
"""Where samples are counted by quality level: those that are stored losslessly."""

_LOSSLESS = 2  # of `CODINGS`


@dataclass(frozen=True)
class RowFigures:
    """Sums over rows; those of several shards add up."""

    samples: int = 0
    values: int = 0
    """Values inside the masks."""
    squared_error: float = 0.0
    """Sum over values, from the recorded errors, so a little too large rather than too small."""
    max_error: float = 0.0
    psnr_db: float = 0.0
    """Sum over samples, against the bundle's value range."""
    lowest_psnr_db: float = math.inf
    """Of the worst sample."""
    quality_counts: Mapping[int, int] = field(default_factory=dict)
    """Samples by quality level; those that are stored losslessly under `LOSSLESS_LEVEL`."""


@dataclass(frozen=True, eq=False)
class ArchiveSummary:
    """An archive at a glance."""

    url: str
    manifest: Manifest
    bundle: Bundle
    figures: RowFigures
    rate: RateDistortion
    first_rows: tuple[Mapping[str, Any], ...] = ()
    """Key, quality, payload_bytes, rmse and max_error of the first rows."""

    @property
    def rejected(self) -> int:
        return sum(part.rejected for part in self.manifest.parts)


@dataclass(frozen=True, eq=False)
class BundleSummary:
    """A bundle at a glance."""

    url: str
    bundle: Bundle
    file_bytes: int

    @property
    def array_bytes(self) -> dict[str, int]:
        """Bytes of the weights by their owner; `normalizer` is what is left of the file, its header included."""
        owners = {"network": self.bundle.network, "codec": self.bundle.codec}
        sizes = {owner: sum(array.nbytes for array in arrays.values()) for owner, arrays in owners.items()}
        return {**sizes, "normalizer": self.file_bytes - sum(sizes.values())}


def inspect_url(
    url: str, first_rows: int = 0, storage_options: StorageOptions = None
) -> ArchiveSummary | BundleSummary:
    """Summarise the archive, or else the bundle, at a URL.

    Raises:
        SourceError: neither an archive nor a bundle.
        BundleMismatchError, BitstreamError, UnsupportedFormatError: damaged, or of another version.
    """
    if url.endswith(".safetensors"):
        return inspect_bundle(url, storage_options)
    if exists(join_url(url, MANIFEST_NAME), storage_options=storage_options):
        return inspect_archive(url, first_rows, storage_options)
    try:
        return inspect_bundle(url, storage_options)
    except SourceError as error:
        raise SourceError(
            f"neither an archive ({MANIFEST_NAME}) nor one bundle (.safetensors) at {public_url(url)}"
        ) from error


def inspect_archive(url: str, first_rows: int = 0, storage_options: StorageOptions = None) -> ArchiveSummary:
    """Read an archive's manifest, bundle and part indexes, but no payload.

    Raises:
        SourceError, BitstreamError, UnsupportedFormatError: a file is missing, damaged or of another version.
        BundleMismatchError: the bundle is not for such an archive.
    """
    manifest = read_manifest(url, storage_options=storage_options)
    bundle_url = join_url(url, manifest.bundle_path)
    bundle_data = read_bytes(bundle_url, storage_options=storage_options)
    bundle = parse_bundle(bundle_data, manifest.bundle_sha256, bundle_url)
    _check_bundle_fits(bundle, manifest.layout)
    figures, rows = RowFigures(), list[Mapping[str, Any]]()
    for part in manifest.parts:
        index = read_index(url, part, manifest.layout, storage_options=storage_options)
        figures = add_figures([figures, measure_index(index, bundle.normalizer, manifest.layout)])
        rows += _row_lines(index, manifest.layout, first_rows - len(rows))
    archive_bytes, _ = Archive(url, manifest, storage_options).size_bytes()
    beside_parts = archive_bytes - sum(part.bytes + part.rejected_bytes for part in manifest.parts)
    rate = rate_distortion(figures, manifest, beside_parts, len(bundle_data))
    return ArchiveSummary(public_url(url), manifest, bundle, figures, rate, tuple(rows))


def inspect_bundle(url: str, storage_options: StorageOptions = None) -> BundleSummary:
    """Read a bundle file, or the only one in a directory.

    Raises:
        SourceError, CorruptBitstreamError, UnsupportedFormatError: as `load_bundle`.
    """
    found = find_bundle(url, storage_options)
    bundle = load_bundle(found, storage_options)
    return BundleSummary(public_url(found), bundle, size_bytes(found, storage_options=storage_options))


def measure_rows(rows: Sequence[ArchiveRow], normalizer: Normalizer, layout: Layout) -> RowFigures:
    """Figures of rows in memory."""
    blocks = np.array([row.block for row in rows], np.int64).reshape(len(rows), len(layout.axes))
    quality = _levels(np.array([row.quality for row in rows]), np.array([row.coding for row in rows]))
    rmse, max_error = (np.array(errors, np.float32) for errors in ([r.rmse for r in rows], [r.max_error for r in rows]))
    return _measure(blocks, quality, rmse, max_error, [row.mask for row in rows], normalizer, layout)


def measure_index(index: PartIndex, normalizer: Normalizer, layout: Layout) -> RowFigures:
    """Figures of a part; the same as `measure_rows` of its rows."""
    quality = _levels(index.quality, index.coding)
    return _measure(index.blocks, quality, index.rmse, index.max_error, index.masks, normalizer, layout)


def value_counts(
    blocks: NDArray[np.int64], masks: Sequence[bytes | None], normalizer: Normalizer, layout: Layout
) -> NDArray[np.int64]:
    """Values inside the mask of each of N samples, int64 [N], from their blocks [N, axes] and packed masks."""
    # The expected mask depends on the place in space and on padding, not on the hour: few different ones.
    last = np.array(layout.block_counts) - 1
    kinds = np.where([axis.is_time for axis in layout.axes], blocks == last, blocks)
    _, first, kind = np.unique(kinds, axis=0, return_index=True, return_inverse=True)
    expected = np.array([expected_mask(normalizer, layout, tuple(blocks[i].tolist())).sum() for i in first])
    counts: NDArray[np.int64] = expected[kind.ravel()].astype(np.int64)
    for i, mask in enumerate(masks):
        if mask is not None:
            counts[i] = unpack_mask(mask, layout.points_per_sample).sum()
    return counts * layout.channels


def add_figures(several: Iterable[RowFigures]) -> RowFigures:
    """Figures of all these rows together."""
    several = list(several)
    counts: Counter[int] = Counter()
    for figures in several:
        counts.update(figures.quality_counts)
    return RowFigures(
        samples=sum(f.samples for f in several),
        values=sum(f.values for f in several),
        squared_error=sum(f.squared_error for f in several),
        max_error=max((f.max_error for f in several), default=0.0),
        psnr_db=sum(f.psnr_db for f in several),
        lowest_psnr_db=min((f.lowest_psnr_db for f in several), default=math.inf),
        quality_counts=dict(sorted(counts.items())),
    )


def rate_distortion(figures: RowFigures, manifest: Manifest, manifest_bytes: int, bundle_bytes: int) -> RateDistortion:
    """Rate and distortion of a whole archive, every byte of it counted.

    Args:
        figures: of all its rows.
        manifest: names its parts and their sizes.
        manifest_bytes: of the manifest, and of Zarr's metadata and coordinates where it is in that container.
        bundle_bytes: of its bundle.

    Raises:
        ConfigError: the archive holds no sample.
    """
    part_bytes = sum(part.bytes + part.rejected_bytes for part in manifest.parts)
    return RateDistortion(
        samples=figures.samples,
        values=figures.values,
        archive_bytes=manifest_bytes + part_bytes,
        bundle_bytes=bundle_bytes,
        rmse=float(np.sqrt(figures.squared_error / max(figures.values, 1))),
        max_error=figures.max_error,
        mean_psnr_db=figures.psnr_db / max(figures.samples, 1),
        source_bits=manifest.source_bits,
    )


def _levels(quality: NDArray[np.integer[Any]], coding: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    return np.where(coding == _LOSSLESS, LOSSLESS_LEVEL, quality.astype(np.int64))


def _measure(
    blocks: NDArray[np.int64],
    quality: NDArray[np.integer[Any]],
    rmse: NDArray[np.float32],
    max_error: NDArray[np.float32],
    masks: Masks,
    normalizer: Normalizer,
    layout: Layout,
) -> RowFigures:
    if len(blocks) == 0:
        return RowFigures()
    counts = value_counts(blocks, masks, normalizer, layout)
    ranges = range_at(normalizer, layout, [tuple(block) for block in blocks.tolist()])
    psnr = psnr_db(rmse, ranges)
    levels, level_counts = np.unique(quality, return_counts=True)
    return RowFigures(
        samples=len(blocks),
        values=int(counts.sum()),
        squared_error=float((counts * np.square(rmse, dtype=np.float64)).sum()),
        max_error=float(max_error.max()),
        psnr_db=float(psnr.sum()),
        lowest_psnr_db=float(psnr.min()),
        quality_counts=dict(zip(levels.tolist(), level_counts.tolist(), strict=True)),
    )


def _check_bundle_fits(bundle: Bundle, layout: Layout) -> None:
    check_domain(bundle.normalizer, layout)
    if bundle.grid.point_count != layout.points_per_sample:
        raise BundleMismatchError(
            f"the bundle is for samples of {bundle.grid.point_count} points, the archive has {layout.points_per_sample}"
        )


def _row_lines(index: PartIndex, layout: Layout, count: int) -> list[Mapping[str, Any]]:
    return [
        {
            "key": str(sample_key(layout, tuple(index.blocks[i].tolist()))),
            "quality": int(index.quality[i]),
            "payload_bytes": int(index.payload_bytes[i]),
            "rmse": float(index.rmse[i]),
            "max_error": float(index.max_error[i]),
        }
        for i in range(max(0, min(count, len(index))))
    ]
