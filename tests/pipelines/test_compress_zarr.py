"""A Zarr archive is written in one go: the same files as by way of Parquet, resumed like it, never over another."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xarray

from pipelines import dry_run, zarr_output
from pipelines.compress import CompressJob, CompressProgress, compress
from pipelines.compress_plan import plan_compression
from pipelines.convert import convert
from pipelines.dry_run import estimate
from pipelines.dry_run_text import dry_run_pairs
from pipelines.probe import Probe
from pipelines.repair import RepairJob, repair
from vcinr_batch import cli
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.parquet_container import write_part
from vcinr_batch.bundle import load_bundle
from vcinr_batch.compression import QualityRequest
from vcinr_batch.errors import ArchiveExistsError, ConfigError, SourceError, VcinrError
from vcinr_batch.verification import open_original, verify_archive


@pytest.fixture
def job(source_path: Path, bundle_path: Path, tmp_path: Path) -> CompressJob:
    request, output = QualityRequest(level=2), str(tmp_path / "archive")
    return CompressJob((str(source_path),), str(bundle_path), output, request, shard_samples=10, container="zarr")


@pytest.fixture
def spoilt_job(job: CompressJob, hours: xarray.Dataset, tmp_path: Path) -> CompressJob:
    """One of its samples is rejected."""
    hours.t2m[4, 0, 0] = float("inf")
    hours.to_netcdf(tmp_path / "spoilt.nc")
    return replace(job, sources=(str(tmp_path / "spoilt.nc"),))


def contents(folder: str | Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def converted(job: CompressJob, tmp_path: Path) -> dict[str, bytes]:
    """The files of the same job by way of a Parquet archive."""
    compress(replace(job, container="parquet", output=str(tmp_path / "parquet")))
    convert(str(tmp_path / "parquet"), str(tmp_path / "converted"), "zarr")
    return contents(tmp_path / "converted")


def stop_at(samples: int) -> Any:
    def stop(progress: CompressProgress) -> None:
        if progress.samples >= samples:
            raise KeyboardInterrupt

    return stop


def test_the_files_are_those_that_convert_makes(spoilt_job: CompressJob, tmp_path: Path) -> None:
    report = compress(spoilt_job)
    found = contents(spoilt_job.output)
    assert found == converted(spoilt_job, tmp_path)
    assert report.summary.rejected == 1
    assert report.summary.rate.archive_bytes + report.summary.rate.bundle_bytes == sum(map(len, found.values()))
    assert not Path(spoilt_job.output, "status").exists()


def test_it_opens_like_any_zarr_group_and_stands_up_to_its_source(job: CompressJob, archive_path: Path) -> None:
    compress(job)
    expected = Archive.open(str(archive_path)).to_xarray()
    xarray.testing.assert_identical(xarray.open_zarr(job.output).load(), expected)
    assert verify_archive(job.output, open_original(job.output, job.sources)).is_good


def test_the_same_command_completes_what_was_killed(spoilt_job: CompressJob, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compress(spoilt_job, stop_at(20))
    left = contents(spoilt_job.output)
    assert "t2m/c/0/0/0" in left
    assert "t2m/c/3/0/0" not in left
    assert not {"zarr.json", "manifest.json.gz"} & set(left)
    report = compress(spoilt_job)
    assert report.last.resumed_samples == 20
    assert contents(spoilt_job.output) == converted(spoilt_job, tmp_path)


def test_a_chunk_that_was_damaged_between_two_runs_is_done_again(job: CompressJob, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compress(job, stop_at(20))
    Path(job.output, "t2m/c/0/0/0").write_bytes(b"damaged")
    assert compress(job).last.resumed_samples == 10
    assert contents(job.output) == converted(job, tmp_path)


@pytest.mark.parametrize("name", ["claim", "metadata", "manifest", "clearing up"])
def test_a_run_killed_around_the_commit_is_completed(
    job: CompressJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from pipelines import compress as compressing

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    places = {
        "claim": (compressing, "start_archive"),
        "metadata": (compressing, "write_metadata"),
        "manifest": (compressing, "commit_manifest"),
        "clearing up": (compressing, "remove_statuses"),
    }
    with monkeypatch.context() as patched:
        patched.setattr(*places[name], kill)
        with pytest.raises(KeyboardInterrupt):
            compress(job)
    compress(job)
    assert contents(job.output) == converted(job, tmp_path)


def test_a_chunk_that_changes_before_the_commit_makes_no_archive(
    job: CompressJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver of the same run, on a machine that rounds differently."""

    def write(*arguments: Any) -> int:
        Path(job.output, "t2m/c/2/0/0").write_bytes(b"rounded differently")
        return zarr_output.write_metadata(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("pipelines.compress.write_metadata", write)
        with pytest.raises(SourceError, match=r"t2m/c/2/0/0 was changed .* run the same command again"):
            compress(job)
    assert not {"zarr.json", "manifest.json.gz"} & set(contents(job.output))
    assert compress(job).last.resumed_samples == 30
    assert contents(job.output) == converted(job, tmp_path)


def test_a_worker_that_is_late_does_not_change_an_archive(job: CompressJob) -> None:
    compress(job)
    before = contents(job.output)
    archive = Archive.open(job.output)
    part, rows = archive.manifest.parts[0], archive.rows()[:10]
    box: dict[str, Any] = {"start": part.start, "stop": part.stop, "path": part.path}
    assert write_part(rows, archive.manifest.layout, job.output, "t2m-00000000", **box) == part
    worse = [replace(rows[0], max_error=rows[0].max_error + 1), *rows[1:]]
    with pytest.raises(ArchiveExistsError, match=r"t2m/c/0/0/0: .* completed with other bytes"):
        write_part(worse, archive.manifest.layout, job.output, "t2m-00000000", **box)
    assert contents(job.output) == before


@pytest.mark.parametrize(
    "other", [{"request": QualityRequest(level=0)}, {"shard_samples": 5}, {"container": "parquet"}]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_another_run_does_not_write_where_one_is_unfinished(
    job: CompressJob, other: dict[str, Any], overwrite: bool
) -> None:
    with pytest.raises(KeyboardInterrupt):
        compress(job, stop_at(20))
    before = contents(job.output)
    with pytest.raises(ArchiveExistsError, match="another run with other settings"):
        compress(replace(job, **other, overwrite=overwrite))
    assert contents(job.output) == before
    compress(job)


def test_a_zarr_archive_is_not_begun_among_what_a_parquet_run_has_left(job: CompressJob) -> None:
    with pytest.raises(KeyboardInterrupt):
        compress(replace(job, container="parquet"), stop_at(20))
    with pytest.raises(ArchiveExistsError, match="another run with other settings"):
        compress(job)


@pytest.mark.parametrize("there", ["zarr", "parquet"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_archive_that_is_there_stays(job: CompressJob, there: str, overwrite: bool) -> None:
    compress(replace(job, container=there, request=QualityRequest(level=1)))
    before = contents(job.output)
    with pytest.raises(ArchiveExistsError, match="a Zarr archive is not written over another"):
        compress(replace(job, overwrite=overwrite))
    assert contents(job.output) == before


def test_overwrite_is_of_no_effect_where_nothing_is(job: CompressJob, tmp_path: Path) -> None:
    compress(replace(job, overwrite=True))
    assert contents(job.output) == converted(job, tmp_path)


def test_a_parquet_archive_is_not_written_over_a_zarr_archive(job: CompressJob) -> None:
    compress(job)
    with pytest.raises(ConfigError, match="is a Zarr archive"):
        compress(replace(job, container="parquet", overwrite=True))


def test_another_zarr_group_is_left_alone(job: CompressJob, fields: xarray.Dataset) -> None:
    fields.to_zarr(job.output, zarr_format=3)
    before = contents(job.output)
    with pytest.raises(ArchiveExistsError, match="another Zarr group"):
        compress(job)
    assert contents(job.output) == before


def test_a_name_that_zarr_refuses_is_told_before_any_work(
    job: CompressJob, hours: xarray.Dataset, tmp_path: Path
) -> None:
    hours = hours.assign_coords(parts=hours.latitude * 2)
    hours.to_netcdf(tmp_path / "named.nc")
    named = replace(job, sources=(str(tmp_path / "named.nc"),))
    with pytest.raises(ConfigError, match="'parts' cannot be the name"):
        compress(named)
    with pytest.raises(ConfigError, match="'parts' cannot be the name"):
        estimate(named)
    assert not Path(job.output).exists()


@pytest.mark.parametrize("shard_samples", [7, 16, 1000])
def test_the_shards_are_a_regular_grid_whatever_their_size(job: CompressJob, shard_samples: int) -> None:
    compress(replace(job, shard_samples=shard_samples))
    assert xarray.open_zarr(job.output).t2m.shape == (40, 8, 12)


def test_a_dry_run_counts_the_metadata_and_writes_nothing(job: CompressJob, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe(10, 0, 1000, 300, 0.1, 0.4, 5.0, 500_000_000, True)
    monkeypatch.setattr(dry_run, "run_probe", lambda _: probe)
    expected, parquet = estimate(job), estimate(replace(job, container="parquet"))
    assert not Path(job.output).exists()
    compress(job)
    metadata = {path: data for path, data in contents(job.output).items() if path.startswith(("t", "l", "z"))}
    metadata_bytes = sum(len(data) for path, data in metadata.items() if not path.startswith("t2m/c/"))
    # The manifest is compressed: with other paths it has another size, too.
    assert expected.archive_bytes - parquet.archive_bytes == pytest.approx(metadata_bytes, rel=0.05)
    assert "a Zarr archive needs another place" in dict(dry_run_pairs(estimate(job)))["output"]


def test_lost_chunks_are_done_again(spoilt_job: CompressJob) -> None:
    compress(spoilt_job)
    before = contents(spoilt_job.output)
    Path(spoilt_job.output, "t2m/c/1/0/0").unlink()
    Path(spoilt_job.output, "t2m/c/2/0/0").write_bytes(b"damaged")
    next(Path(spoilt_job.output, "rejected").iterdir()).unlink()
    report = repair(RepairJob(spoilt_job.output, spoilt_job.sources))
    assert (report.restored, len(report.damage), report.is_good) == (3, 3, True)
    assert contents(spoilt_job.output) == before


def test_a_chunk_that_comes_out_with_other_bytes_is_left_out(
    job: CompressJob, hours: xarray.Dataset, tmp_path: Path
) -> None:
    compress(job)
    Path(job.output, "t2m/c/1/0/0").unlink()
    before = contents(job.output)
    hours.t2m[12] += 1
    hours.to_netcdf(tmp_path / "changed.nc")
    report = repair(RepairJob(job.output, (str(tmp_path / "changed.nc"),)))
    assert (len(report.changed), report.is_good) == (1, False)
    assert contents(job.output) == before


def test_two_ray_workers_write_the_files_of_a_serial_run(spoilt_job: CompressJob, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    compress(spoilt_job)
    parallel = replace(spoilt_job, output=str(tmp_path / "parallel"), workers=2)
    assert compress(parallel).summary.rejected == 1
    assert contents(parallel.output) == contents(spoilt_job.output)


def test_the_plan_reaches_a_worker_whole(job: CompressJob) -> None:
    plan, shards = plan_compression(job, load_bundle(job.bundle))
    sent = pickle.loads(pickle.dumps(plan))
    assert [sent.chunk_path(shard.start) for shard in shards] == [f"t2m/c/{i}/0/0" for i in range(4)]


def test_object_stores_hold_the_same(job: CompressJob, s3: Any, archive_path: Path, tmp_path: Path) -> None:
    there = replace(job, output=f"{s3.url}/archive", storage_options=s3.storage_options)
    with pytest.raises(KeyboardInterrupt):
        compress(there, stop_at(20))
    with pytest.raises(VcinrError, match="another run with other settings"):
        compress(replace(there, request=QualityRequest(level=0)))
    assert compress(there).last.resumed_samples == 20
    objects = s3.client().list_objects_v2(Bucket=s3.bucket, Prefix="archive/")["Contents"]
    expected = converted(job, tmp_path)
    assert {entry["Key"].removeprefix("archive/") for entry in objects} == set(expected)
    dataset = xarray.open_zarr(there.output, storage_options=s3.storage_options)
    xarray.testing.assert_identical(dataset.load(), Archive.open(str(archive_path)).to_xarray())


def test_the_command_line_writes_one_and_says_in_one_line_what_it_does_not_do(
    job: CompressJob, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compress", *job.sources, "--bundle", job.bundle, "--output", job.output, "--quality", "2"]
    arguments += ["--workers", "0", "--shard-samples", "10"]
    assert cli.run([*arguments, "--container", "zarr"]) == 0
    digest = hashlib.sha256(Path(job.output, "manifest.json.gz").read_bytes()).hexdigest()
    capsys.readouterr()
    for more, words in (
        (["--container", "zarr", "--overwrite"], "not written over another"),
        (["--container", "netcdf"], "container 'netcdf': expected parquet or zarr"),
    ):
        assert cli.run([*arguments, *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert hashlib.sha256(Path(job.output, "manifest.json.gz").read_bytes()).hexdigest() == digest
