"""From a source to an archive: completeness, restarts, and bytes that do not depend on how the work was shared out."""

import errno
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from pipelines import compress as compress_module
from pipelines import shard_engine, shard_work, shard_worker
from pipelines.archive_output import remove_replaced
from pipelines.compress import CompressJob, CompressProgress, compress
from pipelines.compress_plan import plan_compression
from pipelines.shard_work import compress_shard
from vcinr_batch.archive.archive import Archive
from vcinr_batch.bundle import load_bundle
from vcinr_batch.compression import QualityRequest
from vcinr_batch.config import SourceConfig
from vcinr_batch.data.shards import Shard
from vcinr_batch.errors import (
    ArchiveExistsError,
    BundleMismatchError,
    ConfigError,
    DamagedSourceError,
    SourceError,
)
from vcinr_batch.verification import verify_archive

Files = dict[str, bytes]


@pytest.fixture
def job(source_path: Path, bundle_path: Path, tmp_path: Path) -> CompressJob:
    request = QualityRequest(level=2)
    return CompressJob((str(source_path),), str(bundle_path), str(tmp_path / "archive"), request, shard_samples=10)


@pytest.fixture
def spoilt_source(fields: xarray.Dataset, tmp_path: Path) -> Path:
    """Hour 3 holds an infinite value, hour 25 none at all."""
    spoilt = fields.copy(deep=True)
    spoilt.t2m[3, 2, 5] = np.inf
    spoilt.t2m[25] = np.nan
    path = tmp_path / "spoilt.nc"
    spoilt.to_netcdf(path)
    return path


def files_below(folder: str | Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_an_archive_decodes_within_the_errors_that_its_rows_record(job: CompressJob, fields: xarray.Dataset) -> None:
    compress(job)
    archive = Archive.open(job.output)
    decoded = archive.to_xarray()
    error = np.abs(decoded.t2m.values.astype(np.float64) - fields.t2m.values).max(axis=(1, 2))
    recorded = np.array([row.max_error for row in archive.rows()])
    assert len(recorded) == 40
    assert np.all(error <= recorded)
    assert np.all(error > 0.9 * recorded)
    xarray.testing.assert_equal(decoded.time, fields.time)


def test_the_report_counts_every_byte_and_the_errors_of_the_decoded_values(
    job: CompressJob, fields: xarray.Dataset
) -> None:
    report = compress(job)
    rate, files = report.summary.rate, files_below(job.output)
    model = sum(len(data) for name, data in files.items() if name.startswith("models/"))
    assert (rate.archive_bytes, rate.bundle_bytes) == (sum(map(len, files.values())) - model, model)
    assert (rate.samples, rate.values, rate.source_bits) == (40, 40 * 8 * 12, 32)
    error = Archive.open(job.output).to_xarray().t2m.values.astype(np.float64) - fields.t2m.values
    value_range = float(fields.t2m.max() - fields.t2m.min())
    psnr = 20 * np.log10(value_range / np.sqrt((error**2).mean(axis=(1, 2)))).mean()
    # Recorded errors are rounded up to 8 significant bits: at most 0.8 %, 0.07 dB.
    assert rate.rmse == pytest.approx(np.sqrt((error**2).mean()), rel=0.008)
    assert rate.max_error == pytest.approx(np.abs(error).max(), rel=0.008)
    assert rate.mean_psnr_db == pytest.approx(psnr, abs=0.07)
    assert report.summary.figures.quality_counts == {2: 40}
    assert report.source_bytes == fields.t2m.nbytes


def test_a_target_psnr_is_reached_by_every_sample_with_the_coarsest_level(job: CompressJob, tmp_path: Path) -> None:
    value_range = load_bundle(job.bundle).normalizer.value_range.item()

    def psnr_by_key(request: QualityRequest) -> dict[str, tuple[int, float]]:
        output = str(tmp_path / str(request))
        compress(replace(job, request=request, output=output))
        rows = Archive.open(output).rows()
        return {str(row.key): (row.quality, 20 * np.log10(value_range / row.rmse)) for row in rows}

    fixed = [psnr_by_key(QualityRequest(level=level)) for level in range(4)]
    target = float(np.median([psnr for _, psnr in fixed[1].values()]))
    chosen = psnr_by_key(QualityRequest(target_psnr_db=target))
    assert {level for level, _ in chosen.values()} == {1, 2}
    for key, (level, psnr) in chosen.items():
        assert psnr >= target - 0.07  # recorded errors are rounded up by at most 0.8 %
        assert fixed[level - 1][key][1] < target


def test_samples_that_cannot_be_compressed_are_named_and_the_others_are_there(
    job: CompressJob, spoilt_source: Path
) -> None:
    report = compress(replace(job, sources=(str(spoilt_source),)))
    expected = {"t2m[time=2019-03-01T03:00:00]": "1 infinite value", "t2m[time=2019-03-02T01:00:00]": "no value at all"}
    assert {str(sample.key): sample.reason for sample in report.rejected_examples} == expected
    archive = Archive.open(job.output)
    assert {str(sample.key): sample.reason for sample in archive.rejected()} == expected
    assert report.summary.rejected == 2
    assert len(list(archive.keys())) == report.summary.rate.samples == 38


def test_a_source_without_any_usable_sample_gives_an_error_and_no_archive(
    job: CompressJob, fields: xarray.Dataset, tmp_path: Path
) -> None:
    dataset = fields.copy()
    dataset["t2m"] = fields.t2m.copy(data=np.full(fields.t2m.shape, np.nan, np.float32))
    dataset.to_netcdf(tmp_path / "nothing.nc")
    with pytest.raises(SourceError, match=r"all 40 samples were rejected.*no value at all"):
        compress(replace(job, sources=(str(tmp_path / "nothing.nc"),)))
    assert "manifest.json.gz" not in files_below(job.output)


def test_the_order_of_the_shards_does_not_change_a_byte(job: CompressJob, archive_path: Path) -> None:
    compress(job)
    expected = files_below(job.output)
    shutil.rmtree(Path(job.output) / "parts")
    plan, shards = plan_compression(job, load_bundle(job.bundle))
    results = [compress_shard(plan, shard) for shard in reversed(shards)]
    assert files_below(job.output) == expected == files_below(archive_path)
    assert [result.index for result in results] == [3, 2, 1, 0]


def test_two_ray_workers_write_the_bytes_of_a_serial_run(job: CompressJob, spoilt_source: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    serial = replace(job, sources=(str(spoilt_source),), output=str(tmp_path / "serial"))
    parallel = replace(serial, output=str(tmp_path / "parallel"), workers=2)
    seen: list[CompressProgress] = []
    compress(serial)
    report = compress(parallel, seen.append)
    assert files_below(parallel.output) == files_below(serial.output)
    assert report.summary.rejected == 2
    assert (seen[-1].samples, seen[-1].total_samples, seen[-1].rejected) == (40, 40, 2)
    assert not ray.is_initialized()


def test_an_archive_that_exists_is_refused_and_left_alone(job: CompressJob) -> None:
    compress(job)
    before = files_below(job.output)
    with pytest.raises(ArchiveExistsError, match="--overwrite"):
        compress(replace(job, request=QualityRequest(level=0)))
    assert files_below(job.output) == before


def test_overwriting_leaves_nothing_of_the_old_archive(job: CompressJob, tmp_path: Path) -> None:
    fresh = replace(job, output=str(tmp_path / "fresh"), shard_samples=20, request=QualityRequest(level=0))
    compress(job)
    compress(fresh)
    compress(replace(fresh, output=job.output, overwrite=True))
    assert files_below(job.output) == files_below(fresh.output)


def test_overwriting_with_wrong_input_keeps_the_old_archive(job: CompressJob) -> None:
    compress(job)
    before = files_below(job.output)
    with pytest.raises(SourceError):
        compress(replace(job, sources=("no-such-file.nc",), overwrite=True))
    assert files_below(job.output) == before


def test_overwriting_without_ray_where_it_is_needed_keeps_the_old_archive(
    job: CompressJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress(job)
    before = files_below(job.output)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"vcinr-batch\[ray\].*--workers 0"):
        compress(replace(job, workers=2, overwrite=True))
    assert files_below(job.output) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SourceError("the store went away")], ids=["ctrl-c", "store"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwriting"])
def test_a_run_that_ends_early_leaves_what_was_there_and_the_next_one_completes_it(
    job: CompressJob, archive_path: Path, error: BaseException, overwrite: bool
) -> None:
    if overwrite:
        compress(replace(job, shard_samples=7))
    before = files_below(job.output) if overwrite else {}

    def stop(progress: CompressProgress) -> None:
        if progress.samples == 20:
            raise error

    with pytest.raises(type(error)):
        compress(replace(job, overwrite=overwrite), stop)
    left = files_below(job.output)
    assert ("manifest.json.gz" in left) == overwrite
    assert {name: left[name] for name in before} == before
    compress(replace(job, overwrite=overwrite))
    assert files_below(job.output) == files_below(archive_path)


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwriting"])
def test_files_of_others_at_the_output_are_left_alone(job: CompressJob, overwrite: bool) -> None:
    if overwrite:
        compress(replace(job, shard_samples=7))
    names = ("README", "parts/notes.txt", "parts/sales-20240101.parquet", f"models/{'0' * 64}.safetensors")
    for name in names:
        path = Path(job.output) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    compress(replace(job, overwrite=overwrite))
    assert [name for name in names if not (Path(job.output) / name).exists()] == []


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"?")])
def test_without_an_old_manifest_that_reads_nothing_is_removed(
    job: CompressJob, damage: Callable[[Path], object]
) -> None:
    compress(replace(job, shard_samples=7))
    damage(Path(job.output) / "manifest.json.gz")
    before = {name for name in files_below(job.output) if name.startswith("parts/")}
    compress(replace(job, overwrite=True))
    assert before < files_below(job.output).keys()


def test_a_replaced_archive_leaves_its_bundle_but_not_its_parts(job: CompressJob) -> None:
    """With `--output .` the archive's `models/` is the folder that bundles were trained into."""
    compress(job)
    for name in ("parts/old.parquet", "models/old.safetensors"):
        (Path(job.output) / name).write_text("x")
    remove_replaced(job.output, frozenset({"parts/old.parquet", "models/old.safetensors"}), {})
    left = files_below(job.output)
    assert "models/old.safetensors" in left
    assert "parts/old.parquet" not in left


def _while_it_runs(other: CompressJob) -> Callable[[CompressProgress], None]:
    """Another run from start to end, after half of the samples."""

    def progress(now: CompressProgress) -> None:
        if now.samples == 20:
            compress(other)

    return progress


def test_of_two_runs_at_once_the_first_to_finish_is_kept_whole(job: CompressJob, tmp_path: Path) -> None:
    other = replace(job, request=QualityRequest(level=0))
    with pytest.raises(ArchiveExistsError):
        compress(job, _while_it_runs(other))
    alone = replace(other, output=str(tmp_path / "alone"))
    compress(alone)
    written, expected = files_below(job.output), files_below(alone.output)
    assert {name: written[name] for name in expected} == expected


def test_of_two_runs_of_the_same_job_at_once_both_end_well(job: CompressJob, archive_path: Path) -> None:
    report = compress(job, _while_it_runs(job))
    assert report.summary.figures.samples == 40
    assert files_below(job.output) == files_below(archive_path)


@pytest.mark.parametrize("same_as_old", ["this", "other"])
def test_two_overwriting_runs_at_once_leave_a_whole_archive(job: CompressJob, same_as_old: str) -> None:
    compress(job)
    new = replace(job, request=QualityRequest(level=0), overwrite=True)
    again = replace(job, overwrite=True)
    if same_as_old == "this":
        # The other run removes the old archive, which holds the very parts that this one has written.
        with pytest.raises(SourceError, match="another run removed parts/"):
            compress(again, _while_it_runs(new))
    else:
        compress(new, _while_it_runs(again))
    assert verify_archive(job.output).problems == ()
    assert Archive.open(job.output).rows()[0].quality == 0


@pytest.mark.parametrize(("limit", "is_too_many"), [("1", True), ("4.9%", True), ("2", False), ("5%", False)])
def test_with_more_rejected_samples_than_allowed_there_is_no_archive(
    job: CompressJob, spoilt_source: Path, limit: str, is_too_many: bool
) -> None:
    """Two of 40 samples are rejected."""
    limited = replace(job, sources=(str(spoilt_source),), max_rejected=limit)
    if is_too_many:
        with pytest.raises(
            SourceError, match=r"2 samples were rejected, and --max-rejected allows 1 of 40; one is t2m"
        ):
            compress(limited)
    else:
        compress(limited)
    assert ("manifest.json.gz" in files_below(job.output)) != is_too_many


@pytest.mark.parametrize("limit", ["", "-1", "many", "101%", "1e3", "٣", "٣%", "5 %", "9" * 5000])
def test_a_limit_of_rejected_samples_that_makes_no_sense_is_refused(job: CompressJob, limit: str) -> None:
    with pytest.raises(ConfigError, match="max_rejected must be a number or a percentage"):
        replace(job, max_rejected=limit)


def _killed_after_commit(job: CompressJob, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The driver dies before it tidies up; the folder of the run's objects."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(compress_module, "_tidy_up", die)
        with pytest.raises(KeyboardInterrupt):
            compress(job)
    (folder,) = (Path(job.output) / "status").iterdir()
    return folder


@pytest.mark.parametrize("is_left", [lambda _: True, lambda name: name == "run.json"], ids=["all", "the run's own"])
def test_what_a_driver_had_no_time_to_tidy_up_the_same_command_tidies_up(
    job: CompressJob, archive_path: Path, is_left: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in _killed_after_commit(job, monkeypatch).iterdir():
        if not is_left(path.name):
            path.unlink()
    report = compress(job)
    assert (report.last.samples, report.summary.figures.samples) == (40, 40)
    assert files_below(job.output) == files_below(archive_path)
    assert not (Path(job.output) / "status").exists()
    with pytest.raises(ArchiveExistsError):
        compress(job)


def test_a_limit_of_rejected_samples_that_comes_too_late_says_that_the_archive_stays(
    job: CompressJob, spoilt_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = replace(job, sources=(str(spoilt_source),))
    _killed_after_commit(spoilt, monkeypatch)
    with pytest.raises(SourceError, match=r"allows 1 of 40; one is t2m.*; an earlier run has written the archive"):
        compress(replace(spoilt, max_rejected="1"))
    assert verify_archive(job.output).is_good
    assert not (Path(job.output) / "status").exists()


def test_an_archive_that_was_damaged_before_it_was_tidied_up_is_a_case_for_repair(
    job: CompressJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    _killed_after_commit(job, monkeypatch)
    min((Path(job.output) / "parts").iterdir()).unlink()
    with pytest.raises(SourceError, match=r"is damaged: .*parts/t2m-00000000.*vcinr repair"):
        compress(job)
    assert (Path(job.output) / "status").exists()


def test_the_status_of_other_shards_does_not_make_an_archive_this_run_s(job: CompressJob) -> None:
    compress(job)

    def stop(_: CompressProgress) -> None:
        raise KeyboardInterrupt

    other = replace(job, shard_samples=20)
    with pytest.raises(KeyboardInterrupt):
        compress(replace(other, overwrite=True), stop)
    with pytest.raises(ArchiveExistsError):
        compress(other)


def test_an_overwriting_run_that_was_killed_after_replacing_removes_the_old_parts_next_time(
    job: CompressJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = replace(job, request=QualityRequest(level=0), overwrite=True)
    compress(replace(new, output=str(tmp_path / "alone")))
    for again in (new, replace(new, overwrite=False)):
        shutil.rmtree(job.output, ignore_errors=True)
        compress(job)
        _killed_after_commit(new, monkeypatch)
        assert len(list((Path(job.output) / "parts").iterdir())) == 8
        compress(again)
        assert files_below(job.output) == files_below(tmp_path / "alone")


def test_an_archive_that_is_written_counts_though_tidying_up_fails(
    job: CompressJob, archive_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise SourceError("cannot remove status: 403")

    with monkeypatch.context() as refusing:
        refusing.setattr(compress_module, "remove_statuses", refuse)
        assert compress(job).summary.figures.samples == 40
    assert "cannot remove status: 403" in caplog.text
    compress(job)
    assert files_below(job.output) == files_below(archive_path)


def test_a_directory_among_the_status_objects_is_left_and_is_no_failure(
    job: CompressJob, archive_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def interfere(_: CompressProgress) -> None:
        (folder,) = (Path(job.output) / "status").iterdir()
        (folder / "zz.json").mkdir(exist_ok=True)

    compress(job, lambda progress: interfere(progress) if progress.samples else None)
    assert files_below(job.output) == files_below(archive_path)
    assert caplog.text == ""


def test_a_ray_that_does_not_start_leaves_no_status(job: CompressJob, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")

    def refuse(*_: object) -> None:
        raise ConfigError("no Ray at local")

    monkeypatch.setattr(shard_engine, "ray_session", refuse)
    with pytest.raises(ConfigError, match="no Ray"):
        compress(replace(job, workers=2))
    assert not (Path(job.output) / "status").exists()


@pytest.fixture
def chunked(fields: xarray.Dataset, tmp_path: Path) -> tuple[Path, Path]:
    """A Zarr store and the file of its last chunk, the hours from 32 on."""
    source = tmp_path / "chunked.zarr"
    fields.to_zarr(source, zarr_format=3, consolidated=True, encoding={"t2m": {"chunks": (16, 8, 12)}})
    return source, source / "t2m" / "c" / "2" / "0" / "0"


def cut_off(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 200)


def test_of_a_source_that_was_cut_off_no_sample_is_lost_silently(job: CompressJob, chunked: tuple[Path, Path]) -> None:
    source, last_chunk = chunked
    cut_off(last_chunk)
    report = compress(replace(job, sources=(str(source),)))
    archive = Archive.open(job.output)
    assert report.summary.rejected == 8
    assert [row.block[0] for row in archive.rows()] == list(range(32))
    assert [sample.block[0] for sample in archive.rejected()] == list(range(32, 40))
    assert all(sample.reason.startswith("cannot be read: ") for sample in archive.rejected())


@pytest.mark.parametrize("change", [cut_off, Path.unlink], ids=["cut off", "gone"])
def test_a_source_that_changes_while_it_is_read_gives_no_archive_of_two_sources(
    job: CompressJob, chunked: tuple[Path, Path], change: Callable[[Path], None], tmp_path: Path
) -> None:
    source, last_chunk = chunked
    whole = replace(job, sources=(str(source),), output=str(tmp_path / "whole"))
    compress(whole)
    kept = last_chunk.read_bytes()

    def interfere(progress: CompressProgress) -> None:
        if progress.samples == 20:
            change(last_chunk)

    changing = replace(whole, output=job.output)
    with pytest.raises(SourceError, match=r"chunked\.zarr was changed or removed"):
        compress(changing, interfere)
    assert "manifest.json.gz" not in files_below(job.output)
    last_chunk.write_bytes(kept)
    compress(changing)
    written = {name: data for name, data in files_below(job.output).items() if name in files_below(whole.output)}
    assert written == files_below(whole.output)


def test_samples_around_damage_are_read_one_by_one_and_keep_their_order(
    job: CompressJob, monkeypatch: pytest.MonkeyPatch, archive_path: Path
) -> None:
    damaged, iter_samples = {3, 4, 17}, shard_work.iter_samples

    def damaged_samples(source: Any, layout: Any, grid: Any, shard: Shard) -> Any:
        if damaged & set(range(shard.start[0], shard.stop[0])):
            raise DamagedSourceError("fields.nc: damaged")
        return iter_samples(source, layout, grid, shard)

    monkeypatch.setattr(shard_work, "iter_samples", damaged_samples)
    compress(job)
    archive = Archive.open(job.output)
    assert [sample.block[0] for sample in archive.rejected()] == sorted(damaged)
    assert {sample.reason for sample in archive.rejected()} == {"cannot be read: fields.nc: damaged"}
    expected = [row for row in Archive.open(str(archive_path)).rows() if row.block[0] not in damaged]
    assert [(row.block, row.payload) for row in archive.rows()] == [(row.block, row.payload) for row in expected]


def test_a_disk_that_is_full_is_named_and_the_same_command_goes_on_when_there_is_room(
    job: CompressJob, archive_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_worker, "RETRY_SECONDS", 0.0)
    written, fsync = 0, os.fsync

    def full(file: int) -> None:
        nonlocal written
        written += 1
        if written > 6:  # the bundle, the run, two parts with their status
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as filling:
        filling.setattr(os, "fsync", full)
        with pytest.raises(SourceError, match=r"2 of 4 shards failed, the first is t2m-00000002: .*No space left"):
            compress(job)
    left = files_below(job.output)
    assert "manifest.json.gz" not in left
    assert [name for name in left if name.endswith(".tmp")] == []
    assert compress(job).last.resumed_samples == 20
    assert files_below(job.output) == files_below(archive_path)


def test_torch_keeps_the_caller_s_threads(job: CompressJob, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    seen = []
    compress_samples = shard_work.compress_samples

    def watched(*args: object) -> object:
        seen.append(torch.get_num_threads())
        return compress_samples(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shard_work, "compress_samples", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        compress(job)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_the_size_of_a_batch_does_not_change_what_is_decoded_or_counted(
    job: CompressJob, archive_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_work, "BATCH_VALUES", 3 * 8 * 12)
    compress(job)
    payloads = [row.payload for row in Archive.open(job.output).rows()]
    assert payloads == [row.payload for row in Archive.open(str(archive_path)).rows()]


def _other_unit(fields: xarray.Dataset) -> xarray.Dataset:
    return fields.assign(t2m=fields.t2m.assign_attrs(units="degC"))


def _other_grid(fields: xarray.Dataset) -> xarray.Dataset:
    return fields.assign_coords(latitude=fields.latitude + 0.25)


def _smaller(fields: xarray.Dataset) -> xarray.Dataset:
    return fields.isel(longitude=slice(0, 11))


@pytest.mark.parametrize(
    ("change", "message"),
    [(_other_unit, "unit 'K'.*'degC'"), (_other_grid, "latitude"), (_smaller, "longitude")],
    ids=["unit", "latitude", "extent"],
)
def test_a_source_that_the_bundle_was_not_made_for_is_refused(
    job: CompressJob,
    fields: xarray.Dataset,
    tmp_path: Path,
    change: Callable[[xarray.Dataset], xarray.Dataset],
    message: str,
) -> None:
    change(fields).to_netcdf(tmp_path / "other.nc")
    with pytest.raises(BundleMismatchError, match=message):
        compress(replace(job, sources=(str(tmp_path / "other.nc"),)))
    assert files_below(job.output) == {}


@pytest.mark.parametrize("level", [-1, 4])
def test_a_quality_level_that_the_bundle_lacks_is_refused(job: CompressJob, level: int) -> None:
    with pytest.raises(ConfigError, match="levels 0 to 3"):
        compress(replace(job, request=QualityRequest(level=level)))


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"shard_samples": 0}])
def test_a_job_that_makes_no_sense_is_refused(job: CompressJob, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        replace(job, **wrong)  # type: ignore[arg-type]


def test_a_selection_is_all_that_the_archive_covers(job: CompressJob) -> None:
    compress(replace(job, source=SourceConfig(select={"time": "2019-03-02"})))
    layout = Archive.open(job.output).layout
    assert layout.shape == (16, 8, 12)


def test_archives_are_written_to_any_file_system(job: CompressJob, archive_path: Path) -> None:
    import fsspec

    compress(replace(job, output="memory://compress-test/archive"))
    memory = fsspec.filesystem("memory")
    names = memory.find("/compress-test/archive")
    written = {name.removeprefix("/compress-test/archive/"): memory.cat_file(name) for name in names}
    assert written == files_below(archive_path)
