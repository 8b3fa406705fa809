"""A damaged archive becomes what it was, byte for byte, and nothing else at its place changes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray

from pipelines import repair as repair_module
from pipelines import shard_worker
from pipelines.compress import CompressJob, CompressProgress, compress
from pipelines.compress_plan import WorkerOptions
from pipelines.repair import RepairJob, repair
from pipelines.train import train
from tests.servers.object_store import ObjectStore
from vcinr_batch.archive.manifest import read_manifest
from vcinr_batch.cli import run
from vcinr_batch.compression import QualityRequest
from vcinr_batch.config import load_config
from vcinr_batch.errors import ArchiveExistsError, BitstreamError, BundleMismatchError, SourceError
from vcinr_batch.verification import open_original, verify_archive

Damage = Callable[[Path], object]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _only(archive: Path, pattern: str) -> Path:
    (path,) = archive.glob(pattern)
    return path


def _edit(pattern: str, change: Callable[[bytes], bytes]) -> Damage:
    def damage(archive: Path) -> None:
        path = _only(archive, pattern)
        path.write_bytes(change(path.read_bytes()))

    return damage


def _remove(pattern: str) -> Damage:
    return lambda archive: _only(archive, pattern).unlink()


@pytest.fixture(scope="module")
def spoilt_source(fields: xarray.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hour 25 holds no value: the third part has a rejected table."""
    spoilt = fields.copy(deep=True)
    spoilt.t2m[25] = np.nan
    path = tmp_path_factory.mktemp("spoilt") / "fields.nc"
    spoilt.to_netcdf(path)
    return path


@pytest.fixture(scope="module")
def whole_archive(spoilt_source: Path, bundle_path: Path) -> Path:
    output = spoilt_source.parent / "archive"
    request = QualityRequest(target_psnr_db=35.0)
    compress(CompressJob((str(spoilt_source),), str(bundle_path), str(output), request, shard_samples=10))
    return output


@pytest.fixture
def archive(whole_archive: Path, copy_archive: Callable[[Path], Path]) -> Path:
    return copy_archive(whole_archive)


@pytest.fixture
def job(archive: Path, spoilt_source: Path) -> RepairJob:
    return RepairJob(str(archive), (str(spoilt_source),))


_PART = "parts/t2m-00000001-*"
_TABLE = "rejected/t2m-00000002-*"


@pytest.mark.parametrize(
    ("damages", "damaged_files", "restored"),
    [
        ([_remove(_PART)], 1, 1),
        ([_edit(_PART, lambda data: data[:-1])], 1, 1),
        ([_edit(_PART, lambda data: data + b"x")], 1, 1),
        ([_edit(_PART, lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:])], 1, 1),
        ([_remove(_TABLE)], 1, 1),
        ([_edit(_TABLE, lambda _: b"")], 1, 1),
        ([_remove(_PART), _remove("parts/t2m-00000002-*"), _remove(_TABLE)], 3, 2),
        ([lambda archive: shutil.rmtree(archive / "parts")], 4, 4),
    ],
    ids=["missing", "cut", "longer", "one bit", "no table", "empty table", "two shards", "all parts"],
)
def test_what_was_damaged_has_its_old_bytes_again(
    job: RepairJob, archive: Path, whole_archive: Path, damages: list[Damage], damaged_files: int, restored: int
) -> None:
    for damage in damages:
        damage(archive)
    report = repair(job)
    assert files_below(archive) == files_below(whole_archive)
    assert (len(report.damage), report.restored, report.changed, report.is_good) == (damaged_files, restored, (), True)
    assert verify_archive(str(archive)).is_good


def test_a_whole_archive_is_not_touched(job: RepairJob, archive: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in archive.rglob("*")}
    report = repair(replace(job, sources=()))
    assert (report.damage, report.restored, report.parts) == ((), 0, 4)
    assert {path: path.stat().st_mtime_ns for path in archive.rglob("*")} == before


def test_only_what_is_damaged_is_done_again(job: RepairJob, archive: Path) -> None:
    _remove(_PART)(archive)
    before = {path: path.stat().st_mtime_ns for path in archive.rglob("*") if path.is_file()}
    seen: list[tuple[str, int, int]] = []
    repair(job, lambda *progress: seen.append(progress))
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before
    assert seen == [("check", 1, 4), ("check", 2, 4), ("check", 3, 4), ("check", 4, 4), ("repair", 1, 1)]


def test_two_ray_workers_restore_the_same_bytes(job: RepairJob, archive: Path, whole_archive: Path) -> None:
    pytest.importorskip("ray")
    shutil.rmtree(archive / "parts")
    repair(replace(job, workers=WorkerOptions(2)))
    assert files_below(archive) == files_below(whole_archive)


def test_a_repair_that_was_killed_is_completed_by_the_same_call(
    job: RepairJob, archive: Path, whole_archive: Path
) -> None:
    shutil.rmtree(archive / "parts")

    def stop(stage: str, done: int, _: int) -> None:
        if (stage, done) == ("repair", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair(job, stop)
    assert len(list((archive / "parts").iterdir())) == 2
    assert not (archive / "status").exists()
    assert repair(job).restored == 2
    assert files_below(archive) == files_below(whole_archive)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"?")])
def test_a_lost_bundle_comes_from_a_copy(
    job: RepairJob, archive: Path, whole_archive: Path, bundle_path: Path, damage: Damage
) -> None:
    damage(_only(archive, "models/*"))
    with pytest.raises(SourceError, match=r"models/.*--bundle \(SHA-256 [0-9a-f]{64}\)"):
        repair(job)
    report = repair(replace(job, bundle=str(bundle_path)))
    assert (report.bundle_restored, report.restored) == (True, 0)
    assert files_below(archive) == files_below(whole_archive)


def test_another_bundle_is_refused(job: RepairJob, archive: Path, source_path: Path, config_path: Path) -> None:
    config = load_config(str(config_path), ["network.latent_dim=3"])
    other = train(config, [str(source_path)], str(archive.parent / "other")).bundle_url
    _remove("models/*")(archive)
    with pytest.raises(BundleMismatchError, match="the archive needs"):
        repair(replace(job, bundle=other))
    assert list((archive / "models").iterdir()) == []


def _other_times(fields: xarray.Dataset) -> xarray.Dataset:
    return fields.assign_coords(time=fields.time + np.timedelta64(30, "m"))


def _other_unit(fields: xarray.Dataset) -> xarray.Dataset:
    return fields.assign(t2m=fields.t2m.assign_attrs(units="degC"))


def _shorter(fields: xarray.Dataset) -> xarray.Dataset:
    return fields.isel(time=slice(0, 30))


@pytest.mark.parametrize(
    ("change", "message"),
    [(_other_times, "time"), (_other_unit, "unit"), (_shorter, "time")],
    ids=["other times", "other unit", "shorter"],
)
def test_a_foreign_source_is_refused(
    job: RepairJob,
    archive: Path,
    fields: xarray.Dataset,
    tmp_path: Path,
    change: Callable[[xarray.Dataset], xarray.Dataset],
    message: str,
) -> None:
    change(fields).to_netcdf(tmp_path / "other.nc")
    _remove(_PART)(archive)
    before = files_below(archive)
    with pytest.raises(SourceError, match=message):
        repair(replace(job, sources=(str(tmp_path / "other.nc"),)))
    assert files_below(archive) == before


def test_parts_without_a_source_are_an_error_that_says_so(job: RepairJob, archive: Path) -> None:
    _remove(_PART)(archive)
    with pytest.raises(SourceError, match="--source"):
        repair(replace(job, sources=()))


@pytest.fixture
def changed_source(fields: xarray.Dataset, tmp_path: Path) -> Path:
    """The values of the second part are not what they were."""
    changed = fields.copy(deep=True)
    changed.t2m[25] = np.nan
    changed.t2m[12] += 1.0
    path = tmp_path / "changed.nc"
    changed.to_netcdf(path)
    return path


def test_a_source_that_changed_is_told_and_leaves_the_archive_alone(
    job: RepairJob, archive: Path, changed_source: Path
) -> None:
    _remove(_PART)(archive)
    before = files_below(archive)
    report = repair(replace(job, sources=(str(changed_source),)))
    assert (report.is_good, report.restored, len(report.changed)) == (False, 0, 1)
    assert report.changed[0].startswith("t2m-00000001-")
    assert files_below(archive) == before


def test_a_changed_part_is_accepted_on_request_and_whole_with_its_source(
    job: RepairJob, archive: Path, changed_source: Path
) -> None:
    old = read_manifest(str(archive))
    _edit(_PART, lambda data: data[:-1])(archive)
    report = repair(replace(job, sources=(str(changed_source),), accept_changed=True))
    assert (report.is_good, report.accepted, len(report.changed)) == (True, True, 1)
    new = read_manifest(str(archive))
    assert [a == b for a, b in zip(old.parts, new.parts, strict=True)] == [True, False, True, True]
    source = open_original(str(archive), [str(changed_source)])
    assert verify_archive(str(archive), source).problems == ()
    assert len(list((archive / "parts").iterdir())) == 4


def test_a_repair_that_leaves_a_part_out_leaves_it_to_another_one_that_has_accepted_it(
    job: RepairJob, archive: Path, changed_source: Path
) -> None:
    _remove(_PART)(archive)
    job = replace(job, sources=(str(changed_source),))

    def interfere(stage: str, *_: int) -> None:
        if stage == "repair":
            assert repair(replace(job, accept_changed=True)).accepted

    assert len(repair(job, interfere).changed) == 1
    assert verify_archive(str(archive), open_original(str(archive), [str(changed_source)])).problems == ()


def test_a_part_that_an_unfinished_run_has_written_is_not_removed(
    job: RepairJob, archive: Path, changed_source: Path, bundle_path: Path
) -> None:
    _remove(_PART)(archive)
    request = QualityRequest(target_psnr_db=35.0)
    other = CompressJob((str(changed_source),), str(bundle_path), str(archive), request, shard_samples=10)

    def stop(progress: CompressProgress) -> None:
        if progress.samples == 20:
            raise KeyboardInterrupt

    def interfere(stage: str, *_: int) -> None:
        if stage == "repair":
            with pytest.raises(KeyboardInterrupt):
                compress(replace(other, overwrite=True), stop)

    repair(replace(job, sources=other.sources), interfere)
    assert len(list((archive / "parts").glob("t2m-00000001-*"))) == 1


def test_a_part_that_another_repair_removed_meanwhile_is_told_and_redone_by_the_same_call(
    job: RepairJob, archive: Path, changed_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _remove(_PART)(archive)
    accepting = replace(job, sources=(str(changed_source),), accept_changed=True)

    def interfere(*_: object) -> None:
        _remove(_PART)(archive)

    with monkeypatch.context() as racing:
        racing.setattr(repair_module, "remove_replaced", interfere)
        with pytest.raises(SourceError, match="run the same command again"):
            repair(accepting)
    assert repair(accepting).restored == 1
    assert verify_archive(str(archive)).is_good


def test_a_directory_in_a_part_s_place_is_told_and_the_others_are_redone(
    job: RepairJob, archive: Path, whole_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_worker, "RETRY_SECONDS", 0.0)
    path, other = _only(archive, _PART), _only(archive, "parts/t2m-00000002-*")
    for lost in (path, other):
        lost.unlink()
    path.mkdir()
    with pytest.raises(SourceError, match=r"1 of 2 damaged parts .*, the first is parts/t2m-00000001.*directory"):
        repair(job)
    assert other.read_bytes() == (whole_archive / "parts" / other.name).read_bytes()
    path.rmdir()
    assert repair(job).restored == 1
    assert files_below(archive) == files_below(whole_archive)


def test_a_run_that_replaces_the_archive_meanwhile_keeps_it(
    job: RepairJob, archive: Path, changed_source: Path, bundle_path: Path
) -> None:
    _remove(_PART)(archive)
    other = CompressJob(
        job.sources, str(bundle_path), str(archive), QualityRequest(level=0), shard_samples=10, overwrite=True
    )

    def interfere(stage: str, *_: int) -> None:
        if stage == "repair":
            compress(other)

    with pytest.raises(ArchiveExistsError, match="another run"):
        repair(replace(job, sources=(str(changed_source),), accept_changed=True), interfere)
    assert verify_archive(str(archive)).is_good
    assert read_manifest(str(archive)).quality == {"quality": 0}


def test_a_damaged_manifest_is_one_line_that_says_what_to_do(job: RepairJob, archive: Path) -> None:
    _edit("manifest.json.gz", lambda data: data[:-9])(archive)
    with pytest.raises(BitstreamError, match=r"put a copy of manifest.json.gz back, or .* --overwrite"):
        repair(job)


def test_a_store_that_does_not_answer_is_no_damage(
    job: RepairJob, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_bytes = repair_module.read_bytes

    def refuse(url: str, **options: object) -> bytes:
        if "/parts/" in url:
            raise SourceError(f"cannot read {url}: 503")
        return read_bytes(url, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(repair_module, "read_bytes", refuse)
    before = files_below(archive)
    with pytest.raises(SourceError, match="503"):
        repair(job)
    assert files_below(archive) == before


def test_an_archive_on_object_storage_is_repaired_there(
    whole_archive: Path, spoilt_source: Path, s3: ObjectStore
) -> None:
    client, files = s3.client(), files_below(whole_archive)
    for name, data in files.items():
        if not name.startswith("parts/t2m-00000002-"):
            client.put_object(Bucket=s3.bucket, Key=f"archive/{name}", Body=data)
    client.put_object(Bucket=s3.bucket, Key="source.nc", Body=spoilt_source.read_bytes())
    job = RepairJob(f"{s3.url}/archive", (f"{s3.url}/source.nc",), storage_options=s3.storage_options)
    assert repair(job).restored == 1
    there = {key: client.get_object(Bucket=s3.bucket, Key=key)["Body"].read() for key in list(s3.keys())}
    assert {key.removeprefix("archive/"): data for key, data in there.items() if key != "source.nc"} == files


def test_the_command_line_repairs_and_says_what_it_did(
    archive: Path, spoilt_source: Path, changed_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["repair", str(archive)]) == 0
    assert "nothing was touched" in capsys.readouterr().out
    _remove(_PART)(archive)
    assert run(["repair", str(archive)]) == 2
    assert "--source" in capsys.readouterr().err
    assert run(["repair", str(archive), "--source", str(changed_source)]) == 1
    assert "--accept-changed" in capsys.readouterr().out
    assert run(["repair", str(archive), "--source", str(spoilt_source), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["event"], result["is_good"], result["restored"]) == ("done", True, 1)
    assert result["damage"][0].startswith("parts/t2m-00000001-")
