"""Two restores to one place, and restores stopped at the worst moment: nobody loses data, nobody opens half a store."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import xarray

from pipelines import decompress as driver
from pipelines import output_place, restore_moves
from pipelines.decompress import decompress
from pipelines.output_place import locked_folder
from pipelines.restore_progress import DecompressProgress
from tests.pipelines.test_restore import LAYOUTS, contents, small_pieces, stop_after, write_archive
from tests.servers.object_store import ObjectStore
from vcinr_batch.archive.archive import Archive
from vcinr_batch.errors import ArchiveExistsError, SourceError
from vcinr_batch.storage import join_url, write_bytes

__all__ = ["small_pieces"]
pytestmark = pytest.mark.usefixtures("small_pieces")
Progress = Callable[[DecompressProgress], None]
EARLY = {"time": "2019-03-22T01"}


@pytest.fixture
def archive(tmp_path: Path) -> str:
    """Restored in 24 regions of a chunk."""
    return write_archive(tmp_path / "archive", LAYOUTS["tiles"])


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A place without locks and renames."""
    return f"memory:/{tmp_path}/out.zarr"


def files_at(url: str) -> dict[str, bytes]:
    """All files of a store in memory by path within it."""
    fs, path = fsspec.core.url_to_fs(url)
    return {name.removeprefix(f"{path}/"): fs.cat_file(name) for name in sorted(fs.find(path))}


def after(regions: int, action: Callable[[], Any]) -> Progress:
    """A progress function that does something once, when so many regions are done."""
    calls = []

    def progress(now: DecompressProgress) -> None:
        calls.append(now)
        if len(calls) == regions + 1:  # the first call comes before the first region
            action()

    return progress


def interrupt(monkeypatch: pytest.MonkeyPatch, archive: str, output: str, **options: Any) -> None:
    """Run the command and interrupt it before its first region."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(driver, "_run", stop)
        with pytest.raises(KeyboardInterrupt):
            decompress(archive, output, **options)


@pytest.mark.parametrize("regions", [1, 3, 24])
def test_a_run_that_another_one_of_the_same_restore_overtakes_ends_well(
    archive: str, store: str, tmp_path: Path, regions: int
) -> None:
    expected = decompress(archive, str(tmp_path / "expected.zarr"))
    report = decompress(archive, store, progress=after(regions, lambda: decompress(archive, store)))
    assert files_at(store) == contents(tmp_path / "expected.zarr")
    assert report.output_bytes == expected.output_bytes


def test_on_s3_all_of_three_runs_of_one_restore_leave_the_same_store(
    archive: str, s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, output = s3.storage_options, f"{s3.url}/out.zarr"
    decompress(archive, str(tmp_path / "expected.zarr"))
    fsspec.filesystem("s3", **options).put(archive, f"{s3.bucket}/archive", recursive=True)
    source = f"{s3.url}/archive"

    def others() -> None:
        interrupt(monkeypatch, source, output, storage_options=options)
        decompress(source, output, storage_options=options)

    decompress(source, output, storage_options=options, progress=after(3, others))
    fs, path = fsspec.core.url_to_fs(output, **options)
    fs.invalidate_cache()
    assert {name.removeprefix(f"{path}/"): fs.cat_file(name) for name in fs.find(path)} == contents(
        tmp_path / "expected.zarr"
    )


def test_a_run_that_is_overtaken_while_it_replaces_a_store_leaves_the_new_one(
    archive: str, store: str, tmp_path: Path
) -> None:
    decompress(archive, store, EARLY)
    decompress(archive, str(tmp_path / "expected.zarr"))
    second = after(3, lambda: decompress(archive, store, overwrite=True))
    with pytest.raises(ArchiveExistsError, match="another run has completed or taken over"):
        decompress(archive, store, overwrite=True, progress=second)
    assert files_at(store) == contents(tmp_path / "expected.zarr")


def test_a_second_run_that_is_interrupted_costs_the_first_nothing(
    archive: str, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decompress(archive, str(tmp_path / "expected.zarr"))
    decompress(archive, store, progress=after(5, lambda: interrupt(monkeypatch, archive, store)))
    assert files_at(store) == contents(tmp_path / "expected.zarr")


def test_chunks_that_are_removed_meanwhile_are_noticed_and_done_again(archive: str, store: str, tmp_path: Path) -> None:
    decompress(archive, str(tmp_path / "expected.zarr"))
    fs, path = fsspec.core.url_to_fs(store)
    with pytest.raises(SourceError, match=r"5 of its chunks were removed meanwhile, the first t2m/c/0/0/0: run"):
        decompress(archive, store, progress=after(5, lambda: fs.rm(f"{path}/t2m", recursive=True)))
    assert "zarr.json" not in files_at(store)
    decompress(archive, store)
    assert files_at(store) == contents(tmp_path / "expected.zarr")


@pytest.mark.parametrize(
    ("path", "what"), [("t2m/c/0/0/0", "chunks of .* bytes"), ("t2m/c/99/0/0", "t2m/c/99/0/0")], ids=["size", "name"]
)
def test_chunks_of_another_restore_are_noticed_and_never_taken_for_its_own(
    archive: str, store: str, tmp_path: Path, path: str, what: str
) -> None:
    decompress(archive, str(tmp_path / "expected.zarr"))
    with pytest.raises(ArchiveExistsError, match=rf"another run has written to it meanwhile \({what}"):
        decompress(archive, store, progress=after(5, lambda: write_bytes(join_url(store, path), b"of another")))
    assert "zarr.json" not in files_at(store)
    with pytest.raises(ArchiveExistsError, match="--overwrite"):
        decompress(archive, store)
    decompress(archive, store, overwrite=True)
    assert files_at(store) == contents(tmp_path / "expected.zarr")


def test_who_takes_an_unfinished_place_over_gets_it(archive: str, store: str, tmp_path: Path) -> None:
    decompress(archive, str(tmp_path / "expected.zarr"), EARLY)
    with pytest.raises(ArchiveExistsError, match="taken over"):
        decompress(archive, store, progress=after(5, lambda: decompress(archive, store, EARLY, overwrite=True)))
    assert files_at(store) == contents(tmp_path / "expected.zarr")


def test_who_loses_an_unfinished_place_stops_writing(archive: str, store: str, tmp_path: Path) -> None:
    decompress(archive, str(tmp_path / "expected.zarr"), EARLY)

    def take_over() -> None:
        with pytest.raises(KeyboardInterrupt):
            decompress(archive, store, EARLY, overwrite=True, progress=stop_after(1, KeyboardInterrupt()))

    with pytest.raises(ArchiveExistsError, match="taken over"):
        decompress(archive, store, progress=after(5, take_over))
    decompress(archive, store, EARLY)
    assert files_at(store) == contents(tmp_path / "expected.zarr")


def test_a_store_that_somebody_made_there_meanwhile_stays(archive: str, store: str) -> None:
    def make() -> None:
        write_bytes(join_url(store, "zarr.json"), b"{}")
        write_bytes(join_url(store, "foreign.bin"), b"precious")

    with pytest.raises(ArchiveExistsError, match=r"zarr\.json appeared meanwhile; pass --overwrite"):
        decompress(archive, store, progress=after(5, make))
    found = files_at(store)
    assert (found["zarr.json"], found["foreign.bin"]) == (b"{}", b"precious")


@pytest.mark.parametrize("base", ["{}", "memory:/{}"], ids=["local", "store"])
def test_what_was_done_outlives_a_second_interruption(
    archive: str, tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = join_url(base.format(tmp_path), "out.zarr")
    with pytest.raises(KeyboardInterrupt):
        decompress(archive, output, progress=stop_after(5, KeyboardInterrupt()))
    fs, folder = fsspec.core.url_to_fs(base.format(tmp_path))
    chunks = [name for name in fs.find(folder) if "/t2m/c/" in name]
    interrupt(monkeypatch, archive, output)
    assert [name for name in fs.find(folder) if "/t2m/c/" in name] == chunks
    assert len(chunks) == 5


def test_a_failed_restore_on_an_object_store_is_no_store_and_is_completed_later(
    archive: str, store: str, tmp_path: Path
) -> None:
    (part,) = Path(archive, "parts").glob("p-00000002-*")
    aside = part.rename(tmp_path / "aside")
    with pytest.raises(SourceError, match="p-00000002"):
        decompress(archive, store)
    assert "zarr.json" not in files_at(store)
    aside.rename(part)
    decompress(archive, store)
    with xarray.open_zarr(store, consolidated=False) as found:
        xarray.testing.assert_identical(found.load(), Archive.open(archive).to_xarray())


@pytest.fixture
def half_replaced(archive: str, tmp_path: Path) -> Path:
    """What a run leaves that is killed between its two renames; the old store has one time."""
    output = tmp_path / "out.zarr"
    decompress(archive, str(output), EARLY)
    with pytest.raises(KeyboardInterrupt):
        decompress(archive, str(output), overwrite=True, progress=stop_after(24, KeyboardInterrupt()))
    (folder,) = tmp_path.glob(".vcinr-*")
    output.rename(folder / "replaced")
    return output


def times(output: Path) -> int:
    with xarray.open_zarr(output, consolidated=False) as found:
        return int(found.sizes["time"])


def test_an_old_store_that_was_aside_comes_back(
    archive: str, half_replaced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, archive, str(half_replaced), overwrite=True)
    assert times(half_replaced) == 1
    decompress(archive, str(half_replaced), overwrite=True)
    assert times(half_replaced) == 7
    assert not list(half_replaced.parent.glob(".vcinr-*"))


def test_an_old_store_that_was_aside_is_replaced_only_when_asked(archive: str, half_replaced: Path) -> None:
    with pytest.raises(ArchiveExistsError, match="--overwrite"):
        decompress(archive, str(half_replaced))
    assert times(half_replaced) == 1


def test_a_run_that_was_killed_after_its_renames_is_no_obstacle(archive: str, half_replaced: Path) -> None:
    (folder,) = half_replaced.parent.glob(".vcinr-*")
    shutil.copytree(folder / "replaced", half_replaced)
    decompress(archive, str(half_replaced), overwrite=True)
    assert times(half_replaced) == 7


def test_an_interruption_between_the_renames_is_undone(
    archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rename = tmp_path / "out.zarr", os.rename
    decompress(archive, str(output), EARLY)

    def stop(old: Path, new: Path) -> None:
        if old.name == "output":
            raise KeyboardInterrupt
        rename(old, new)

    monkeypatch.setattr(restore_moves.os, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        decompress(archive, str(output), overwrite=True)
    assert times(output) == 1


def test_a_lock_whose_folder_its_owner_removes_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, waits = fcntl.flock, []

    def removed_just_before(file: Any, operation: int) -> None:
        if not waits:
            waits.append(1)
            shutil.rmtree(Path(file.name).parent)
        flock(file, operation)

    monkeypatch.setattr(output_place.fcntl, "flock", removed_just_before)
    with locked_folder(tmp_path / "out.zarr", "0" * 64) as folder:
        assert (folder / "lock").exists()
        with pytest.raises(ArchiveExistsError), locked_folder(tmp_path / "out.zarr", "0" * 64):
            pass


def test_what_a_killed_worker_left_does_not_get_into_the_store(archive: str, tmp_path: Path) -> None:
    decompress(archive, str(tmp_path / "expected.zarr"))

    def die() -> None:
        (folder,) = tmp_path.glob(".vcinr-*")
        (folder / "output" / "t2m" / "c" / ".0.12345678.tmp").write_bytes(b"half a chunk")

    decompress(archive, str(tmp_path / "out.zarr"), progress=after(5, die))
    assert contents(tmp_path / "out.zarr") == contents(tmp_path / "expected.zarr")
