"""Whether every sample of a source is in its archive, from labels and indexes alone."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray

from pipelines.compress import CompressJob, CompressProgress, compress
from tests.servers.object_store import ObjectStore
from vcinr_batch import completeness, part_verification
from vcinr_batch.cli import run
from vcinr_batch.completeness import verify_index
from vcinr_batch.compression import QualityRequest
from vcinr_batch.config import SourceConfig
from vcinr_batch.data import sources
from vcinr_batch.errors import SampleNotFoundError, SourceError, UnsupportedFormatError
from vcinr_batch.verification import VerificationReport, open_original, verify_archive

Change = Callable[[xarray.Dataset], xarray.Dataset]


@pytest.fixture(scope="module")
def gappy_source(fields: xarray.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hours 5 and 25 hold no value."""
    gappy = fields.copy(deep=True)
    gappy.t2m[[5, 25]] = np.nan
    path = tmp_path_factory.mktemp("gappy") / "fields.nc"
    gappy.to_netcdf(path)
    return path


@pytest.fixture(scope="module")
def gappy_archive(gappy_source: Path, bundle_path: Path) -> Path:
    output, request = gappy_source.parent / "archive", QualityRequest(level=1)
    compress(CompressJob((str(gappy_source),), str(bundle_path), str(output), request, shard_samples=10))
    return output


def check(archive: Path, source: Path) -> VerificationReport:
    return verify_index(str(archive), open_original(str(archive), [str(source)]))


def test_a_complete_archive_has_every_sample_in_a_row_or_a_rejected_table(
    gappy_archive: Path, gappy_source: Path
) -> None:
    seen: list[tuple[int, int, int]] = []
    source = open_original(str(gappy_archive), [str(gappy_source)])
    report = verify_index(str(gappy_archive), source, lambda *progress: seen.append(progress))
    assert (report.is_good, report.parts, report.rows, report.rejected, report.compared) == (True, 4, 38, 2, 0)
    assert seen == [(10, 40, 0), (20, 40, 0), (30, 40, 0), (40, 40, 0)]


def test_no_value_of_the_source_and_no_payload_is_read(
    gappy_archive: Path, gappy_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("read a value")

    for module, name in ((sources, "read_extent"), (sources, "_read_places"), (part_verification, "read_rows")):
        monkeypatch.setattr(module, name, refuse)
    assert check(gappy_archive, gappy_source).is_good


def _between(fields: xarray.Dataset) -> xarray.Dataset:
    """Two more hours, between those that the archive has."""
    more = fields.isel(time=[3, 7]).assign_coords(time=fields.time[[3, 7]] + np.timedelta64(30, "m"))
    return xarray.concat([fields, more], "time").sortby("time")


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (lambda fields: fields, []),
        (_between, ["time: 2 labels of the source not in the archive, the first is 2019-03-01T03:30:00"]),
        (
            lambda fields: fields.isel(time=[*range(8), *range(9, 40)]),
            ["time: 1 label of the archive not in the source, the first is 2019-03-01T08:00:00"],
        ),
        (
            lambda fields: fields.assign_coords(latitude=fields.latitude + 0.25),
            [
                # Of the eight, the one at 60.25 is not within the archive's 60 to 56.5.
                "latitude: 7 labels of the source not in the archive, the first is 59.75",
                "latitude: 8 labels of the archive not in the source, the first is 60",
            ],
        ),
        (lambda fields: fields.transpose("latitude", "time", "longitude"), ["the archive has the dimensions"]),
        (lambda fields: fields.assign(t2m=fields.t2m.assign_attrs(units="degC")), ["unit: the archive has 'K'"]),
    ],
    ids=["same", "more", "fewer", "elsewhere", "transposed", "other unit"],
)
def test_labels_that_only_one_side_has_are_counted_and_the_first_is_named(
    gappy_archive: Path, fields: xarray.Dataset, tmp_path: Path, change: Change, problems: list[str]
) -> None:
    change(fields).to_netcdf(tmp_path / "source.nc")
    found = check(gappy_archive, tmp_path / "source.nc").problems
    assert len(found) == len(problems)
    assert [line for line, start in zip(found, problems, strict=True) if not line.startswith(start)] == []


def test_labels_outside_the_archive_s_selection_do_not_matter(
    source_path: Path, bundle_path: Path, tmp_path: Path
) -> None:
    config = SourceConfig(select={"time": "2019-03-01T06..2019-03-01T17"})
    output = tmp_path / "archive"
    compress(CompressJob((str(source_path),), str(bundle_path), str(output), QualityRequest(level=1), config))
    report = check(output, source_path)
    assert (report.is_good, report.rows) == (True, 12)


@pytest.mark.parametrize("pattern", ["parts/t2m-00000001-*", "rejected/t2m-00000000-*"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-3])])
def test_a_file_that_does_not_read_is_named_with_what_is_lost(
    gappy_archive: Path,
    gappy_source: Path,
    copy_archive: Callable[[Path], Path],
    pattern: str,
    damage: Callable[[Path], object],
) -> None:
    archive = copy_archive(gappy_archive)
    (path,) = archive.glob(pattern)
    damage(path)
    report = check(archive, gappy_source)
    assert report.problem_count == 1
    assert path.name in report.problems[0]
    assert "10 samples are lost with it" in report.problems[0]


def test_a_sample_that_is_in_no_index_or_in_two_is_named(
    gappy_archive: Path, gappy_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_blocks = completeness._read_blocks

    def shifted(*arguments: object) -> object:
        (rows, rejected), problems = read_blocks(*arguments)  # type: ignore[arg-type, misc]
        rows = rows.copy()
        rows[rows[:, 0] == 12, 0] = 13
        return (rows, rejected), problems

    monkeypatch.setattr(completeness, "_read_blocks", shifted)
    report = check(gappy_archive, gappy_source)
    assert report.problem_count == 2
    assert "T12:00:00]: missing" in report.problems[0]
    assert "T13:00:00]: there more than once" in report.problems[1]


def test_a_manifest_that_claims_too_much_is_refused(
    gappy_archive: Path, gappy_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completeness, "MAX_SAMPLES", 39)
    with pytest.raises(UnsupportedFormatError, match="claims 40 samples"):
        check(gappy_archive, gappy_source)


def test_a_source_of_other_times_is_refused(gappy_archive: Path, fields: xarray.Dataset, tmp_path: Path) -> None:
    fields.assign_coords(time=fields.time + np.timedelta64(365, "D")).to_netcdf(tmp_path / "later.nc")
    with pytest.raises(SampleNotFoundError):
        check(gappy_archive, tmp_path / "later.nc")


def test_archives_and_sources_on_object_storage_are_verified_in_both_ways(
    gappy_archive: Path, gappy_source: Path, s3: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    client = s3.client()
    client.put_object(Bucket=s3.bucket, Key="source.nc", Body=gappy_source.read_bytes())
    for path in gappy_archive.rglob("*"):
        if path.is_file():
            key = f"archive/{path.relative_to(gappy_archive)}"
            client.put_object(Bucket=s3.bucket, Key=key, Body=path.read_bytes())
    options = s3.storage_options
    source = open_original(f"{s3.url}/archive", [f"{s3.url}/source.nc"], None, options)
    full = verify_archive(f"{s3.url}/archive", source, None, options)
    assert (full.problems, full.rows, full.compared) == ((), 38, 40)
    arguments = ("verify", f"{s3.url}/archive", "--against", f"{s3.url}/source.nc", "--index-only", "--json")
    assert run([*arguments, "--storage-options", json.dumps(options)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["is_good"], result["index_only"], result["rows"], result["rejected"]) == (True, True, 38, 2)


def test_the_command_line_says_that_only_labels_were_compared(
    gappy_archive: Path, gappy_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(gappy_archive), "--against", str(gappy_source), "--index-only"]) == 0
    assert "labels only; no value was read" in capsys.readouterr().out
    assert run(["verify", str(gappy_archive), "--index-only"]) == 2
    assert "--against" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "inspect", "repair"])
def test_an_unfinished_archive_is_told_from_none(
    source_path: Path, bundle_path: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "archive")
    assert run([command, output]) == 2
    assert "run the same command again" not in capsys.readouterr().err

    def stop(progress: CompressProgress) -> None:
        if progress.samples == 20:
            raise SourceError("the store went away")

    with pytest.raises(SourceError, match="went away"):
        compress(
            CompressJob((str(source_path),), str(bundle_path), output, QualityRequest(level=1), shard_samples=10), stop
        )
    assert run([command, output]) == 2
    assert "unfinished: 2 of 4 shards done; run the same command again" in capsys.readouterr().err
