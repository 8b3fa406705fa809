"""What a killed job leaves behind is used where it is right, and done again where anything about it is not."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from pipelines.compress import CompressJob
from pipelines.compress_plan import CompressPlan, plan_compression
from pipelines.shard_status import (
    ShardStatus,
    find_unfinished,
    finished_results,
    named_files,
    read_statuses,
    remove_statuses,
    run_identity,
    write_run,
    write_status,
)
from pipelines.shard_work import ShardResult, compress_shard
from pipelines.status_json import MAX_STATUS_BYTES
from tests.servers.object_store import ObjectStore
from vcinr_batch.bundle import load_bundle
from vcinr_batch.compression import QualityRequest
from vcinr_batch.config import SourceConfig
from vcinr_batch.data.shards import Shard, shard_name
from vcinr_batch.inspection import RowFigures


@dataclass(frozen=True)
class Run:
    """A job of four shards, the first two of which are done."""

    plan: CompressPlan
    shards: list[Shard]
    identity: str
    results: list[ShardResult]

    def write(self) -> None:
        write_run(self.plan, self.identity, self.shards)
        for result in self.results:
            name = shard_name(self.plan.layout, self.shards[result.index])
            status = ShardStatus(name, "done", 1, (), result.part, result.figures, result.rejected_examples, 1.5)
            write_status(self.plan, self.identity, status)


def start_run(job: CompressJob, bundle_path: Path) -> Run:
    plan, shards = plan_compression(job, load_bundle(str(bundle_path), {}))
    plan = replace(plan, bundle_url=str(bundle_path))
    identity = run_identity(plan, shards)
    # The options are the archive's; the bundle is local, and so it is opened without them.
    return Run(plan, shards, identity, [compress_shard(plan, shard) for shard in shards[:2]])


@pytest.fixture
def job(source_path: Path, bundle_path: Path, tmp_path: Path) -> CompressJob:
    request = QualityRequest(level=2)
    return CompressJob((str(source_path),), str(bundle_path), str(tmp_path / "archive"), request, shard_samples=10)


@pytest.fixture
def run(job: CompressJob, bundle_path: Path) -> Run:
    run = start_run(job, bundle_path)
    run.write()
    return run


def _status_path(run: Run, shard: int = 0) -> Path:
    name = shard_name(run.plan.layout, run.shards[shard])
    return Path(run.plan.output) / "status" / run.identity / f"{name}.json"


def test_what_was_done_comes_back_as_it_was(run: Run) -> None:
    assert finished_results(run.plan, run.identity, run.shards) == dict(enumerate(run.results))
    statuses = read_statuses(run.plan, run.identity)
    assert [(s.state, s.attempts, s.seconds, s.errors) for s in statuses.values()] == [("done", 1, 1.5, ())] * 2


def test_rejected_samples_and_perfect_ones_come_back(
    job: CompressJob, bundle_path: Path, fields: Any, tmp_path: Path
) -> None:
    spoilt = fields.copy(deep=True)
    spoilt.t2m[3] = float("nan")
    spoilt.to_netcdf(tmp_path / "spoilt.nc")
    run = start_run(replace(job, sources=(str(tmp_path / "spoilt.nc"),)), bundle_path)
    perfect = replace(run.results[1].figures, lowest_psnr_db=float("inf"), psnr_db=float("inf"))
    run.results[1] = replace(run.results[1], figures=perfect)
    run.write()
    assert run.results[0].rejected_examples[0].reason == "no value at all"
    assert finished_results(run.plan, run.identity, run.shards) == dict(enumerate(run.results))


def test_a_rejected_table_that_is_damaged_is_redone(
    job: CompressJob, bundle_path: Path, fields: Any, tmp_path: Path
) -> None:
    spoilt = fields.copy(deep=True)
    spoilt.t2m[3] = float("nan")
    spoilt.to_netcdf(tmp_path / "spoilt.nc")
    run = start_run(replace(job, sources=(str(tmp_path / "spoilt.nc"),)), bundle_path)
    run.write()
    (table,) = (Path(run.plan.output) / "rejected").iterdir()
    _flip(table)
    assert list(finished_results(run.plan, run.identity, run.shards)) == [1]


def test_all_files_that_status_objects_name_are_known(run: Run) -> None:
    (_status_path(run).parent / "run.json").write_text("[]")
    assert named_files(run.plan.output) == {result.part.path for result in run.results}


def test_a_shard_that_runs_or_failed_is_not_finished(run: Run) -> None:
    name = shard_name(run.plan.layout, run.shards[0])
    for status in (ShardStatus(name, "running"), ShardStatus(name, "failed", 3, ("a", "b", "c"))):
        write_status(run.plan, run.identity, status)
        assert read_statuses(run.plan, run.identity)[name] == status
        assert list(finished_results(run.plan, run.identity, run.shards)) == [1]


def test_of_an_archive_without_status_objects_nothing_is_finished(run: Run) -> None:
    remove_statuses(run.plan, run.identity, run.shards)
    assert read_statuses(run.plan, run.identity) == {}
    assert finished_results(run.plan, run.identity, run.shards) == {}
    remove_statuses(run.plan, run.identity, run.shards)


def test_removing_them_leaves_files_of_others_and_other_runs(run: Run) -> None:
    other, folder = "0" * 12, _status_path(run).parent
    write_run(run.plan, other, run.shards)
    for name in ("notes.txt", "config.json"):
        (folder / name).write_text("{}")
    (folder / "zz.json").mkdir()
    _status_path(run, shard=3).mkdir()
    remove_statuses(run.plan, run.identity, run.shards)
    left = {str(path.relative_to(run.plan.output)) for path in Path(run.plan.output).rglob("*") if path.is_file()}
    assert {name for name in left if name.startswith("status")} == {
        f"status/{run.identity}/config.json",
        f"status/{run.identity}/notes.txt",
        f"status/{other}/run.json",
    }


@pytest.mark.parametrize("level", ["status", "run"])
def test_a_folder_that_is_a_link_is_not_followed_to_remove(run: Run, tmp_path: Path, level: str) -> None:
    folder = _status_path(run).parent if level == "run" else _status_path(run).parent.parent
    precious = folder.rename(tmp_path / "precious")
    folder.symlink_to(precious)
    before = sorted(precious.rglob("*"))
    remove_statuses(run.plan, run.identity, run.shards)
    assert sorted(precious.rglob("*")) == before


def test_the_run_s_own_object_goes_last(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    remove_file = LocalFileSystem.rm_file

    def watched(fs: LocalFileSystem, path: str) -> None:
        removed.append(Path(path).name)
        remove_file(fs, path)

    monkeypatch.setattr(LocalFileSystem, "rm_file", watched)
    remove_statuses(run.plan, run.identity, run.shards)
    assert len(removed) == 3
    assert removed[-1] == "run.json"


def test_the_last_one_takes_the_folder_with_it(run: Run) -> None:
    remove_statuses(run.plan, run.identity, run.shards)
    assert not (Path(run.plan.output) / "status").exists()


def _change(*path: str, to: Any) -> Callable[[dict[str, Any]], object]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return change


DAMAGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "other format": _change("format", to="x"),
    "later version": _change("version", to=2),
    "version true": _change("version", to=True),
    "other shard": _change("shard", to="t2m-00000001"),
    "unknown state": _change("state", to="finished"),
    "unknown key": _change("more", to=1),
    "no attempts": lambda content: content.pop("attempts"),
    "running with a part": _change("state", to="running"),
    "done without a part": lambda content: [content.pop("part"), content.pop("figures")],
    "part outside": _change("part", "path", to="../x.parquet"),
    "part of another shard": _change("part", "path", to="parts/t2m-00000001-000000000000.parquet"),
    "box outside": _change("part", "stop", to=[10, 2, 1]),
    "negative box": _change("part", "start", to=[-1, 0, 0]),
    "other size": _change("part", "bytes", to=1),
    "another content": _change("part", "sha256", to="0" * 64),
    "huge error": _change("figures", "max_error", to=1e300),
    "huge errors": lambda content: content["figures"].update(max_error=1e300, squared_error=1e308),
    "error without squares": _change("figures", "squared_error", to=0.0),
    "negative error": _change("figures", "max_error", to=-1.0),
    "more values than points": _change("figures", "values", to=10 * 96 + 1),
    "no values": _change("figures", "values", to=0),
    "huge PSNR": _change("figures", "psnr_db", to=1e300),
    "PSNR below the lowest": _change("figures", "psnr_db", to=-1.0),
    "lowest PSNR infinite": _change("figures", "lowest_psnr_db", to="inf"),
    "rows that are not the figures'": _change("figures", "samples", to=9),
    "levels that do not add up": _change("figures", "quality_counts", to={"2": 9}),
    "error not a number": _change("figures", "squared_error", to="1"),
    "infinite error": _change("figures", "squared_error", to=float("inf")),
    "PSNR not a number": _change("figures", "psnr_db", to=float("nan")),
    "huge integer": _change("seconds", to=10**400),
    "examples that are not rejected": _change("rejected_examples", to=[{"block": [0, 0, 0], "reason": "x"}]),
    "long text": _change("errors", to=["x" * 501]),
    "many errors": _change("errors", to=["x"] * 17),
    "errors no list": _change("errors", to={"a": 1}),
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED)
def test_an_object_that_is_not_right_means_that_the_shard_is_redone(
    run: Run, change: Callable[[dict[str, Any]], object]
) -> None:
    path = _status_path(run)
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))
    assert list(finished_results(run.plan, run.identity, run.shards)) == [1]


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b" " * MAX_STATUS_BYTES + b"{}"],
    ids=["empty", "cut", "list", "null", "not UTF-8", "deep", "large"],
)
def test_bytes_that_are_no_status_mean_that_the_shard_is_redone(run: Run, data: bytes) -> None:
    _status_path(run).write_bytes(data)
    assert list(finished_results(run.plan, run.identity, run.shards)) == [1]


def _flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1]), _flip],
    ids=["missing", "cut", "one bit"],
)
def test_a_part_that_is_missing_or_damaged_is_redone(run: Run, damage: Callable[[Path], object]) -> None:
    damage(Path(run.plan.output) / run.results[0].part.path)
    assert list(finished_results(run.plan, run.identity, run.shards)) == [1]


def test_a_status_of_another_box_is_not_used(run: Run) -> None:
    first, *rest = run.shards
    moved = [replace(first, stop=(9, *first.stop[1:])), *rest]
    assert list(finished_results(run.plan, run.identity, moved)) == [1]


def test_the_identity_is_that_of_the_bytes_to_be(job: CompressJob, bundle_path: Path, tmp_path: Path) -> None:
    def identity(**changes: Any) -> str:
        return run_identity(*plan_compression(replace(job, **changes), load_bundle(str(bundle_path))))

    same = identity()
    assert identity(workers=2, output=str(tmp_path / "elsewhere"), overwrite=True) == same
    others = [
        identity(request=QualityRequest(level=1)),
        identity(request=QualityRequest(target_psnr_db=30.0)),
        identity(shard_samples=7),
        identity(source=SourceConfig(select={"time": "2019-03-01"})),
    ]
    source = Path(job.sources[0])
    changed = tmp_path / "source.nc"
    changed.write_bytes(source.read_bytes())
    before = identity(sources=(str(changed),))
    os.utime(changed, (time.time() + 60, time.time() + 60))
    others += [before, identity(sources=(str(changed),))]
    assert len({same, *others}) == 1 + len(others)


def test_no_credential_gets_into_a_status(run: Run) -> None:
    options = {"key": "canary-1", "client_kwargs": {"aws_secret_access_key": "canary-2"}}
    name = shard_name(run.plan.layout, run.shards[0])
    error = "denied canary-1 canary-2 at https://user:canary-3@host/x?X-Amz-Signature=canary-4 " + "x" * 1000
    write_status(replace(run.plan, storage_options=options), run.identity, ShardStatus(name, "failed", 1, (error,)))
    assert "canary" not in _status_path(run).read_text()
    assert read_statuses(run.plan, run.identity)[name].errors[0].startswith("denied ... ... at https://host/x")


def test_an_unfinished_run_says_how_far_it_came(run: Run) -> None:
    write_status(run.plan, run.identity, ShardStatus(shard_name(run.plan.layout, run.shards[2]), "failed", 3, ("x",)))
    write_run(run.plan, "0" * 12, run.shards)
    found = find_unfinished(run.plan.output)
    assert found is not None
    assert (found.identity, found.done, found.failed, found.shards) == (run.identity, 2, 1, 4)
    assert str(found) == "unfinished: 2 of 4 shards done, 1 failed; run the same command again"


@pytest.mark.parametrize("data", [b"", b"[]", b'{"shards":-1}', b'{"shards":"4"}'])
def test_an_unfinished_run_whose_own_object_does_not_read_still_counts(run: Run, data: bytes) -> None:
    (_status_path(run).parent / "run.json").write_bytes(data)
    assert str(find_unfinished(run.plan.output)) == "unfinished: 2 shards done; run the same command again"


def test_no_run_is_unfinished_where_there_is_none(tmp_path: Path, run: Run) -> None:
    assert find_unfinished(str(tmp_path / "nothing")) is None
    remove_statuses(run.plan, run.identity, run.shards)
    assert find_unfinished(run.plan.output) is None


def test_they_are_the_same_on_object_storage(run: Run, s3: ObjectStore) -> None:
    there = replace(run.plan, output=f"{s3.url}/a/archive", storage_options=s3.storage_options)
    on_s3 = Run(there, run.shards, run.identity, run.results)
    on_s3.write()
    assert finished_results(there, run.identity, run.shards) == {}  # the parts are not there
    client = s3.client()
    for result in run.results:
        data = (Path(run.plan.output) / result.part.path).read_bytes()
        client.put_object(Bucket=s3.bucket, Key=f"a/archive/{result.part.path}", Body=data)
    assert finished_results(there, run.identity, run.shards) == dict(enumerate(run.results))
    assert str(find_unfinished(there.output, s3.storage_options)).startswith("unfinished: 2 of 4")
    remove_statuses(there, run.identity, run.shards)
    assert s3.keys() == sorted(f"a/archive/{result.part.path}" for result in run.results)


def test_figures_add_up_to_the_same_bits(run: Run) -> None:
    odd = RowFigures(10, 960, 0.1 + 0.2, 1 / 3, 1e3 / 3, 2**0.5, {1: 4, 2: 6})
    name = shard_name(run.plan.layout, run.shards[0])
    write_status(run.plan, run.identity, ShardStatus(name, "done", 1, (), run.results[0].part, odd))
    assert read_statuses(run.plan, run.identity)[name].figures == odd
