"""Outputs of many regions hold what the archive decodes to in memory, whatever is selected, killed or in the way."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest
import xarray
from numpy.typing import NDArray

from pipelines import decompress as driver
from pipelines import output_place, restore_regions, restore_zarr
from pipelines.decompress import decompress
from pipelines.output_place import locked_folder
from pipelines.restore_progress import DecompressProgress
from pipelines.restore_regions import decode_region, plan_regions
from tests.archive.conftest import make_layout, make_manifest, make_rows
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.manifest import commit_manifest
from vcinr_batch.archive.parquet_container import write_part
from vcinr_batch.archive.rows import ArchiveRow
from vcinr_batch.data.axes import Axis
from vcinr_batch.data.layout import Layout, block_extent
from vcinr_batch.data.samples import RejectedSample
from vcinr_batch.errors import ArchiveExistsError, SourceError
from vcinr_batch.storage import join_url, write_bytes

MEMBERS = Layout(
    "t",
    (
        Axis("member", np.array(["r1", "r2", "r3"])),
        Axis("level", np.array([500, 850], np.int64), {"units": "hPa"}),
        Axis("x", np.arange(5, dtype=np.float64)),
    ),
    (1, 1, 5),
)
LAYOUTS = {
    "fields": make_layout(),
    "hours together": make_layout(time=4),
    "tiles": make_layout(hours=7, latitudes=5, longitudes=6, time=2, latitude=2, longitude=4),
    "members and levels": MEMBERS,
    "no dimension": Layout("t2m", (), ()),
}
SELECTIONS: dict[str, list[dict[str, str]]] = {
    "fields": [{}, {"time": "2019-03-22T01..2019-03-22T04", "longitude": "-10..-9.75"}],
    "hours together": [{}, {"time": "2019-03-22T03..2019-03-22T04", "latitude": "50.5"}],
    "tiles": [{}, {"time": "2019-03-22T01..2019-03-22T05", "latitude": "51.5..50.5", "longitude": "-9.5..-8.75"}],
    "members and levels": [{}, {"member": "r2..r3", "level": "850"}],
    "no dimension": [{}],
}
CASES = [(name, select) for name, selects in SELECTIONS.items() for select in selects]
OPEN = {".nc": xarray.open_dataset, ".zarr": lambda path: xarray.open_zarr(path, consolidated=True)}


def decode(rows: Sequence[ArchiveRow], layout: Layout) -> NDArray[np.float32]:
    """Stands for a codec: a different value for every place, NaN at every seventh and in the padding."""
    source = np.arange(np.prod(layout.shape, dtype=int), dtype=np.float32).reshape(layout.shape)
    source = np.asarray(np.where(source % 7 == 3, np.float32(np.nan), source))
    decoded = np.full((len(rows), *layout.block_shape), np.nan, np.float32)
    for i, row in enumerate(rows):
        extent = block_extent(layout, row.block)
        decoded[(i, *(slice(0, part.stop - part.start) for part in extent))] = source[extent]
    return decoded.reshape(len(rows), -1, 1)


def write_archive(folder: Path, layout: Layout) -> str:
    """One part per block along the first axis, the last row rejected."""
    rows, parts = make_rows(layout), []
    last = RejectedSample(rows[-1].key, rows[-1].block, "3 infinite values")
    for first in range(layout.block_counts[0]) if layout.axes else [0]:
        start, stop = (first, *(0 for _ in layout.axes[1:])), (first + 1, *layout.block_counts[1:])
        inside = [row for row in rows[:-1] if row.block[0] == first] if layout.axes else rows
        refused = [last] if layout.axes and last.block[0] == first else []
        shard = (start, stop) if layout.axes else ((), ())
        parts.append(
            write_part(inside, layout, str(folder), f"p-{first:08d}", start=shard[0], stop=shard[1], rejected=refused)
        )
    manifest = make_manifest(layout, tuple(parts))
    write_bytes(join_url(str(folder), manifest.bundle_path), b"stands for a bundle")
    commit_manifest(manifest, str(folder))
    return str(folder)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few values and regions of a few chunks, decoded without a bundle."""
    monkeypatch.setattr(restore_regions, "CHUNK_VALUES", 12)
    monkeypatch.setattr(driver, "ZARR_REGION_VALUES", 24)
    monkeypatch.setattr(driver, "NETCDF_REGION_VALUES", 24)
    monkeypatch.setattr(Archive, "decoder", lambda _: decode)


def contents(store: Path) -> dict[str, bytes]:
    """All files of a store by path."""
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("name", "select"), CASES)
@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_the_output_is_what_the_archive_decodes_to(
    tmp_path: Path, name: str, select: dict[str, str], suffix: str
) -> None:
    archive = write_archive(tmp_path / "archive", LAYOUTS[name])
    report = decompress(archive, str(tmp_path / f"out{suffix}"), select)
    expected = Archive.open(archive).to_xarray(select)
    with OPEN[suffix](tmp_path / f"out{suffix}") as found:
        xarray.testing.assert_identical(found.load(), expected)
        assert found[LAYOUTS[name].variable].dtype == np.float32
    assert report.shape == dict(expected.sizes)
    opened = Archive.open(archive)
    assert report.samples == len(opened.rows(select))
    if not select:
        assert report.rejected == len(opened.rejected()) == opened.layout.sample_count - report.samples


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_store_is_the_one_that_xarray_writes(tmp_path: Path, name: str) -> None:
    archive = write_archive(tmp_path / "archive", LAYOUTS[name])
    decompress(archive, str(tmp_path / "out.zarr"))
    dataset = Archive.open(archive).to_xarray()
    variable = LAYOUTS[name].variable
    with xarray.open_zarr(tmp_path / "out.zarr", consolidated=False) as found:
        chunks = found[variable].encoding["chunks"]
    dataset.to_zarr(
        tmp_path / "expected.zarr",
        zarr_format=3,
        consolidated=True,
        encoding={variable: {"chunks": chunks, "write_empty_chunks": True}} if chunks else {},
    )
    assert contents(tmp_path / "out.zarr") == contents(tmp_path / "expected.zarr")


def stop_after(regions: int, error: BaseException) -> Callable[[DecompressProgress], None]:
    """A progress function that raises when so many regions are done."""
    calls = []

    def progress(now: DecompressProgress) -> None:
        calls.append(now)
        if len(calls) > regions:  # the first call comes before the first region
            raise error

    return progress


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("base", ["{}", "memory://{}"], ids=["local", "store"])
def test_an_interrupted_store_is_none_and_the_same_command_completes_it(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, output = write_archive(tmp_path / "archive", LAYOUTS["tiles"]), join_url(base.format(tmp_path), "out.zarr")
    with pytest.raises(KeyboardInterrupt):
        decompress(archive, output, progress=stop_after(3, KeyboardInterrupt()))
    with pytest.raises((FileNotFoundError, ValueError)):
        xarray.open_zarr(output, consolidated=False)
    decoded = []
    monkeypatch.setattr(
        restore_zarr, "decode_region", lambda source, region: decoded.append(region) or decode_region(source, region)
    )
    report = decompress(archive, output)
    with xarray.open_zarr(output, consolidated=False) as found:
        xarray.testing.assert_identical(found.load(), Archive.open(archive).to_xarray())
    fs, path = fsspec.core.url_to_fs(output)
    files = fs.find(path)
    assert report.output_bytes == sum(fs.size(name) for name in files)
    assert not [name for name in files if "vcinr" in name]
    regions = len(list(plan_regions(LAYOUTS["tiles"].shape, (2, 2, 4), 24)))
    assert len(decoded) == regions - 3


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_an_error_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    archive = write_archive(tmp_path / "archive", LAYOUTS["fields"])
    (part,) = Path(archive, "parts").glob("p-00000005-*")
    part.unlink()
    (part,) = Path(archive, "parts").glob("p-00000004-*")
    part.unlink()
    with pytest.raises(SourceError, match="p-00000004"):
        decompress(archive, str(tmp_path / f"out{suffix}"))
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", ["out.nc", "out.zarr"])
@pytest.mark.parametrize("base", ["{}", "memory://{}"], ids=["local", "store"])
def test_a_restore_that_fails_keeps_the_output_it_was_to_replace(tmp_path: Path, base: str, name: str) -> None:
    archive, output = write_archive(tmp_path / "archive", LAYOUTS["fields"]), join_url(base.format(tmp_path), name)
    decompress(archive, output, {"time": "2019-03-22T01"})
    fs, path = fsspec.core.url_to_fs(output)
    before = {file: fs.cat_file(file) for file in fs.find(path)}
    with pytest.raises(SourceError, match="lost"):
        decompress(archive, output, overwrite=True, progress=stop_after(2, SourceError("lost")))
    assert {file: fs.cat_file(file) for file in fs.find(path)} == before
    decompress(archive, output, overwrite=True)
    after = {file: fs.cat_file(file) for file in fs.find(path)}
    decompress(archive, output, overwrite=True)
    assert {file: fs.cat_file(file) for file in fs.find(path)} == after != before


@pytest.mark.parametrize("is_itself", [True, False])
def test_an_archive_is_never_replaced_by_its_values(tmp_path: Path, is_itself: bool) -> None:
    archive = write_archive(tmp_path / "archive.zarr", LAYOUTS["fields"])
    other = write_archive(tmp_path / "other.zarr", LAYOUTS["fields"])
    (tmp_path / "other.zarr" / "zarr.json").write_text("{}")  # as a Zarr archive has it
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.*")) if path.is_file()}
    with pytest.raises(ArchiveExistsError, match="is an archive, whose decoded values do not replace it"):
        decompress(other if is_itself else archive, other, overwrite=True)
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.*")) if path.is_file()} == before


@pytest.mark.usefixtures("small_pieces")
def test_an_unfinished_store_of_another_restore_is_replaced_only_when_asked(tmp_path: Path) -> None:
    archive, output = write_archive(tmp_path / "archive", LAYOUTS["fields"]), f"memory://{tmp_path}/out.zarr"
    with pytest.raises(KeyboardInterrupt):
        decompress(archive, output, progress=stop_after(2, KeyboardInterrupt()))
    with pytest.raises(ArchiveExistsError, match="unfinished restore of something else"):
        decompress(archive, output, {"time": "2019-03-22T01"})
    decompress(archive, output, {"time": "2019-03-22T01"}, overwrite=True)
    with xarray.open_zarr(output, consolidated=False) as found:
        assert found.sizes["time"] == 1


def test_of_two_runs_for_one_output_the_second_is_told(tmp_path: Path) -> None:
    target = tmp_path / "out.zarr"
    with (
        locked_folder(target, "0" * 64),
        pytest.raises(ArchiveExistsError, match=r"another run is writing .*out\.zarr"),
        locked_folder(target, "0" * 64),
    ):
        pass


def test_a_file_that_does_not_fit_is_refused_before_anything_is_decoded(
    archive_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_place.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(SourceError, match=r"out\.nc: No space left on device: it takes 15.36 kB, 1 kB are free"):
        decompress(str(archive_path), str(tmp_path / "out.nc"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(archive_path: Path, tmp_path: Path, suffix: str) -> None:
    # A process may write files of 6 kB at most: the values take 15 kB, compressed 12.
    program = (
        "import resource, sys; from vcinr_batch.cli import run;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)); sys.exit(run(sys.argv[1:]))"
    )
    output = tmp_path / f"out{suffix}"
    command = [sys.executable, "-c", program, "decompress", str(archive_path), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"cannot write {tmp_path}" in done.stderr
    assert list(tmp_path.iterdir()) == []
