"""Figures of archives and bundles, against sums made by hand from the rows and files."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray

from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.manifest import commit_manifest, read_manifest
from vcinr_batch.archive.rows import ArchiveRow, pack_mask
from vcinr_batch.bundle import load_bundle
from vcinr_batch.data.axes import Axis
from vcinr_batch.data.layout import Layout, sample_key
from vcinr_batch.data.normalization import Normalizer
from vcinr_batch.errors import BundleMismatchError, ConfigError, CorruptBitstreamError, SourceError
from vcinr_batch.inspection import (
    ArchiveSummary,
    BundleSummary,
    RowFigures,
    add_figures,
    inspect_url,
    measure_index,
    measure_rows,
    rate_distortion,
)

# 3 hours of a 4 x 5 grid in tiles of 3 x 3 (the last ones padded), one cell never has a value.
TILES = Layout(
    "sst",
    (
        Axis("time", np.arange(3), {"units": "days since 1970-01-01", "calendar": "proleptic_gregorian"}),
        Axis("lat", np.arange(4.0)),
        Axis("lon", np.arange(5.0)),
    ),
    (1, 3, 3),
)
LAND = np.ones((4, 5), bool)
LAND[0, 0] = False
NORMALIZER = Normalizer(
    variable="sst",
    unit="K",
    axes=TILES.axes[1:],
    background=np.zeros((1, 4, 5), np.float32),
    hours=1,
    seasons=1,
    offset=0.0,
    scale=np.ones((1, 1), np.float32),
    value_range=np.full((1, 1), 10.0, np.float32),
    mask=LAND,
)


def _row(
    block: tuple[int, ...], rmse: float, max_error: float, quality: int = 1, mask: bytes | None = None
) -> ArchiveRow:
    return ArchiveRow(sample_key(TILES, block), block, b"x", quality, rmse, max_error, 0, mask)


def test_only_values_inside_the_mask_count() -> None:
    rows = [
        _row((0, 0, 0), 1.0, 2.0),  # 9 points, 1 on land
        _row((2, 0, 1), 0.1, 5.0),  # 3 x 2 of it inside the grid
        _row((1, 1, 1), 0.5, 1.0, quality=3),  # the corner: 1 x 2
        _row((1, 0, 0), 2.0, 3.0, mask=pack_mask(np.arange(9) < 4)),
    ]
    figures = measure_rows(rows, NORMALIZER, TILES)
    assert (figures.samples, figures.values) == (4, 8 + 6 + 2 + 4)
    assert figures.squared_error == pytest.approx(8 * 1.0 + 6 * 0.01 + 2 * 0.25 + 4 * 4.0)
    assert figures.max_error == 5.0
    assert figures.psnr_db == pytest.approx(sum(20 * np.log10(10 / e) for e in (1.0, 0.1, 0.5, 2.0)))
    assert figures.lowest_psnr_db == pytest.approx(20 * np.log10(10 / 2.0))
    assert figures.quality_counts == {1: 3, 3: 1}


def test_figures_of_shards_add_up_to_those_of_the_whole() -> None:
    rows = [_row((hour, 0, 0), 1.0 + hour, 2.0 + hour, quality=hour) for hour in range(3)]
    parts = [measure_rows(rows[:1], NORMALIZER, TILES), measure_rows([], NORMALIZER, TILES)]
    parts.append(measure_rows(rows[1:], NORMALIZER, TILES))
    whole = measure_rows(rows, NORMALIZER, TILES)
    added = add_figures(parts)
    assert (
        (added.samples, added.values, added.max_error) == (whole.samples, whole.values, whole.max_error) == (3, 24, 4.0)
    )
    assert added.squared_error == pytest.approx(whole.squared_error)
    assert added.psnr_db == pytest.approx(whole.psnr_db)
    assert added.lowest_psnr_db == whole.lowest_psnr_db
    assert added.quality_counts == whole.quality_counts == {0: 1, 1: 1, 2: 1}
    assert add_figures([]) == RowFigures()


def test_the_index_of_a_part_gives_the_figures_of_its_rows(archive_path: Path, bundle_path: Path) -> None:
    archive, normalizer = Archive.open(str(archive_path)), load_bundle(str(bundle_path)).normalizer
    for part in archive.manifest.parts:
        rows = [row for row in archive.rows() if part.start[0] <= row.block[0] < part.stop[0]]
        found = measure_index(archive.index(part), normalizer, archive.layout)
        assert found == measure_rows(rows, normalizer, archive.layout)


def test_an_archive_without_rows_has_no_rate(archive_path: Path) -> None:
    with pytest.raises(ConfigError):
        rate_distortion(RowFigures(), Archive.open(str(archive_path)).manifest, 10, 20)


def test_an_archive_is_summarised_with_all_its_bytes(archive_path: Path, fields: xarray.Dataset) -> None:
    summary = inspect_url(str(archive_path), first_rows=12)
    assert isinstance(summary, ArchiveSummary)
    sizes = {path: path.stat().st_size for path in archive_path.rglob("*") if path.is_file()}
    model = sum(size for path, size in sizes.items() if path.parent.name == "models")
    assert (summary.rate.archive_bytes, summary.rate.bundle_bytes) == (sum(sizes.values()) - model, model)
    assert (summary.rate.values, summary.rejected) == (fields.t2m.size, 0)
    rows = Archive.open(str(archive_path)).rows()[:12]
    assert [row["key"] for row in summary.first_rows] == [str(row.key) for row in rows]
    assert [row["payload_bytes"] for row in summary.first_rows] == [len(row.payload) for row in rows]


@pytest.mark.parametrize("as_directory", [True, False])
def test_a_bundle_is_summarised_whether_named_or_in_a_directory(bundle_path: Path, as_directory: bool) -> None:
    summary = inspect_url(str(bundle_path.parent if as_directory else bundle_path))
    assert isinstance(summary, BundleSummary)
    assert summary.bundle.sha256 == bundle_path.stem
    assert sum(summary.array_bytes.values()) == summary.file_bytes == bundle_path.stat().st_size
    assert summary.array_bytes["network"] > 96 * 5  # at least a byte each for the basis: 8 x 12 points, latent of 5


def test_a_place_that_is_neither_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"neither an archive .* nor one bundle"):
        inspect_url(str(tmp_path))


def test_a_damaged_bundle_in_an_archive_is_named(archive_path: Path, copy_archive: Callable[[Path], Path]) -> None:
    archive = copy_archive(archive_path)
    (model,) = (archive / "models").iterdir()
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(CorruptBitstreamError, match="models/"):
        inspect_url(str(archive))


def _six_rows(layout: Layout) -> Layout:
    return dataclasses.replace(
        layout, block_shape=(1, 6, 12), axes=(layout.axes[0], _part(layout.axes[1], 6), layout.axes[2])
    )


def _part(axis: Axis, count: int) -> Axis:
    return Axis(axis.name, axis.values[:count], axis.attributes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_six_rows, "latitude"),
        (lambda layout: dataclasses.replace(layout, block_shape=(2, 8, 12)), "96 points, the archive has 192"),
    ],
    ids=["other grid", "other block"],
)
def test_a_bundle_that_does_not_fit_its_archive_is_named(
    archive_path: Path, copy_archive: Callable[[Path], Path], change: Callable[[Layout], Layout], message: str
) -> None:
    archive = copy_archive(archive_path)
    manifest = read_manifest(str(archive))
    layout = change(manifest.layout)
    counts = layout.block_counts
    part = dataclasses.replace(manifest.parts[0], start=(0, 0, 0), stop=counts, rows=layout.sample_count)
    commit_manifest(dataclasses.replace(manifest, layout=layout, parts=(part,)), str(archive), overwrite=True)
    with pytest.raises(BundleMismatchError, match=message):
        inspect_url(str(archive))
