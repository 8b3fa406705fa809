"""Every kind of damage to an archive is found and named; a good archive has no problems."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray

from pipelines.compress import CompressJob, compress
from vcinr_batch import part_verification, verification
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.manifest import Manifest, commit_manifest, read_manifest
from vcinr_batch.archive.parquet_container import write_part
from vcinr_batch.compression import QualityRequest
from vcinr_batch.config import SourceConfig
from vcinr_batch.data.coordinates import Grid
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.samples import Sample
from vcinr_batch.data.shards import Shard
from vcinr_batch.data.sources import FieldSource
from vcinr_batch.errors import DamagedSourceError, SampleNotFoundError, SourceError, UnsupportedFormatError
from vcinr_batch.verification import open_original, verify_archive

Damage = Callable[[Path], None]


def _problems(archive: Path, source: xarray.Dataset | None = None) -> list[str]:
    """The problems of an archive, compared with a source that is written beside it."""
    if source is None:
        return list(verify_archive(str(archive)).problems)
    path = archive.parent / "against.nc"
    source.to_netcdf(path)
    return list(verify_archive(str(archive), open_original(str(archive), [str(path)])).problems)


def test_a_whole_archive_has_no_problems(archive_path: Path, source_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    source = open_original(str(archive_path), [str(source_path)])
    report = verify_archive(str(archive_path), source, lambda *progress: seen.append(progress))
    assert report.is_good
    assert (report.parts, report.rows, report.rejected, report.compared) == (4, 40, 0, 40)
    assert seen == [(0, 40, 0), (10, 40, 0), (20, 40, 0), (30, 40, 0), (40, 40, 0)]


def test_an_archive_alone_is_checked_without_comparing(archive_path: Path) -> None:
    report = verify_archive(str(archive_path))
    assert (report.is_good, report.rows, report.compared) == (True, 40, 0)


def _file(archive: Path, name: str) -> Path:
    """The only file whose path starts like this: the end of a part's name is its digest."""
    (path,) = archive.glob(f"{name}*")
    return path


def _edit(name: str, change: Callable[[bytearray], object]) -> Damage:
    def damage(archive: Path) -> None:
        path = _file(archive, name)
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)

    return damage


def _in_models(change: Callable[[Path], object]) -> Damage:
    return lambda archive: change(*(archive / "models").iterdir())  # type: ignore[arg-type]


_PART = "parts/t2m-00000001-"


@pytest.fixture
def first_payload(archive_path: Path) -> int:
    archive = Archive.open(str(archive_path))
    return int(archive.index(archive.manifest.parts[1]).payload_start[0])


def test_one_flipped_bit_names_the_file_and_the_sample(
    archive_path: Path, copy_archive: Callable[[Path], Path], first_payload: int
) -> None:
    archive = copy_archive(archive_path)
    _edit(_PART, lambda data: data.__setitem__(first_payload, data[first_payload] ^ 1))(archive)
    problems = _problems(archive)
    assert len(problems) == 2
    assert _PART in problems[0]
    assert "SHA-256" in problems[0]
    assert "t2m[time=2019-03-01T10:00:00]" in problems[1]
    assert "checksum" in problems[1]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_edit(_PART, lambda data: data.__delitem__(slice(-1, None))), [_PART, "10 samples are lost"]),
        (_edit(_PART, lambda data: data.extend(b"x")), [_PART, "bytes, the manifest says"]),
        (_edit(_PART, lambda data: data.__setitem__(slice(None), b"")), [_PART, "10 samples are lost"]),
        (lambda archive: _file(archive, _PART).unlink(), [_PART, "no such file", "10 samples are lost"]),
        (_in_models(lambda model: model.unlink()), ["models/", "no such file"]),
        (_in_models(lambda model: model.write_bytes(model.read_bytes()[:-9])), ["models/", "truncated"]),
        (_edit("manifest.json.gz", lambda data: data.__delitem__(slice(-9, None))), ["manifest"]),
        (_edit("manifest.json.gz", lambda data: data.__setitem__(40, data[40] ^ 255)), ["manifest"]),
    ],
    ids=["cut", "longer", "empty", "missing", "no bundle", "cut bundle", "cut manifest", "edited manifest"],
)
def test_damage_is_found_and_named(
    archive_path: Path, copy_archive: Callable[[Path], Path], damage: Damage, expected: list[str]
) -> None:
    archive = copy_archive(archive_path)
    damage(archive)
    report = verify_archive(str(archive))
    assert not report.is_good
    text = "\n".join(report.problems)
    assert [fragment for fragment in expected if fragment not in text] == []


def test_the_other_parts_are_still_checked(archive_path: Path, copy_archive: Callable[[Path], Path]) -> None:
    archive = copy_archive(archive_path)
    _file(archive, _PART).unlink()
    _edit("parts/t2m-00000003-", lambda data: data.append(0))(archive)
    report = verify_archive(str(archive))
    assert report.rows >= 20
    assert any("t2m-00000003" in problem for problem in report.problems)


def _with_manifest(archive: Path, change: Callable[[Manifest], Manifest]) -> None:
    commit_manifest(change(read_manifest(str(archive))), str(archive), overwrite=True)


def test_a_manifest_with_another_unit_than_its_bundle_is_noticed(
    archive_path: Path, copy_archive: Callable[[Path], Path]
) -> None:
    archive = copy_archive(archive_path)
    _with_manifest(archive, lambda manifest: dataclasses.replace(manifest, unit="degC"))
    (problem,) = _problems(archive)
    assert "unit 'K'" in problem


def test_blocks_that_are_missing_or_doubled_are_named(archive_path: Path, copy_archive: Callable[[Path], Path]) -> None:
    archive = copy_archive(archive_path)
    opened = Archive.open(str(archive))
    first, _, *rest = opened.manifest.parts
    rows = [row for row in opened.rows() if 5 <= row.block[0] < 15]
    shifted = write_part(rows, opened.layout, str(archive), "t2m-00000001", start=(5, 0, 0), stop=(15, 1, 1))
    _with_manifest(archive, lambda manifest: dataclasses.replace(manifest, parts=(first, shifted, *rest)))
    hours = {"there more than once": range(5, 10), "missing": range(15, 20)}
    expected = [(f"t2m[time=2019-03-01T{hour:02}:00:00]", what) for what in hours for hour in hours[what]]
    found = [(problem.split("]: ")[0] + "]", problem.split(": ")[1]) for problem in _problems(archive)]
    assert sorted(found) == sorted(expected)


def _rewrite_part(archive: Path, **change: object) -> None:
    """Write the second part again with its rows changed, and a manifest that agrees with it."""
    opened = Archive.open(str(archive))
    part = opened.manifest.parts[1]
    rows = [dataclasses.replace(row, **change) for row in opened.rows() if 10 <= row.block[0] < 20]  # type: ignore[arg-type]
    new = write_part(rows, opened.layout, str(archive), "t2m-00000001", start=part.start, stop=part.stop)
    parts = (opened.manifest.parts[0], new, *opened.manifest.parts[2:])
    _with_manifest(archive, lambda manifest: dataclasses.replace(manifest, parts=parts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rmse": 1e-4}, "RMSE is .*, more than the recorded"),
        ({"max_error": 1e-4}, "error is .*, more than the recorded"),
    ],
)
def test_an_error_that_was_recorded_too_small_is_found_with_the_source(
    archive_path: Path,
    fields: xarray.Dataset,
    copy_archive: Callable[[Path], Path],
    change: dict[str, object],
    message: str,
) -> None:
    archive = copy_archive(archive_path)
    _rewrite_part(archive, **change)
    assert _problems(archive) == []
    problems = _problems(archive, fields)
    assert len(problems) == 10
    assert all(re.search(message, problem) for problem in problems)


def test_payloads_with_a_right_checksum_that_do_not_decode_are_named_one_by_one(
    archive_path: Path, copy_archive: Callable[[Path], Path]
) -> None:
    from vcinr_batch.archive.rows import row_checksum

    archive = copy_archive(archive_path)
    opened = Archive.open(str(archive))
    part, sha256 = opened.manifest.parts[0], opened.manifest.bundle_sha256
    rows = [row for row in opened.rows() if row.block[0] < 10]
    for i in (2, 7):
        checksum = row_checksum(rows[i].key, 63, rows[i].payload, None, sha256)
        rows[i] = dataclasses.replace(rows[i], quality=63, checksum=checksum)
    new = write_part(rows, opened.layout, str(archive), "t2m-00000000", start=part.start, stop=part.stop)
    _with_manifest(archive, lambda manifest: dataclasses.replace(manifest, parts=(new, *manifest.parts[1:])))
    problems = _problems(archive)
    assert len(problems) == 2
    assert "t2m[time=2019-03-01T02:00:00]: quality 63" in problems[0]
    assert "t2m[time=2019-03-01T07:00:00]: quality 63" in problems[1]


def _changed(fields: xarray.Dataset, change: Callable[[xarray.DataArray], None]) -> xarray.Dataset:
    copy = fields.copy(deep=True)
    change(copy.t2m)
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t2m: t2m.__setitem__((12, 3, 4), t2m[12, 3, 4] + 5), "T12:00:00]: RMSE is"),
        (lambda t2m: t2m.__setitem__((12, 3, 4), np.nan), "has 95 points with a value, the archive 96"),
        (lambda t2m: t2m.__setitem__(12, np.nan), "has 0 points with a value, the archive 96"),
        (lambda t2m: t2m.__setitem__((12, 3, 4), np.inf), "T12:00:00]: RMSE is inf"),
    ],
    ids=["value", "gap", "nothing", "infinite"],
)
def test_a_source_that_differs_is_noticed(
    archive_path: Path,
    fields: xarray.Dataset,
    copy_archive: Callable[[Path], Path],
    change: Callable[[xarray.DataArray], None],
    message: str,
) -> None:
    problems = _problems(copy_archive(archive_path), _changed(fields, change))
    assert message in problems[0]
    assert all("T12:00:00" in problem for problem in problems)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.isel(time=slice(0, 39)), "time: the archive has 40 labels"),
        (lambda f: f.assign_coords(longitude=f.longitude + 0.1), "longitude: the archive has 12 labels -5 to 0.5"),
        (lambda f: f.transpose("latitude", "time", "longitude"), "dimensions time, latitude, longitude, the source"),
        (lambda f: f.assign(t2m=f.t2m.assign_attrs(units="degC")), "unit: the archive has 'K', the source 'degC'"),
    ],
    ids=["an hour short", "shifted", "other order", "other unit"],
)
def test_a_source_with_other_axes_or_another_unit_is_not_compared(
    archive_path: Path,
    fields: xarray.Dataset,
    copy_archive: Callable[[Path], Path],
    change: Callable[[xarray.Dataset], xarray.Dataset],
    message: str,
) -> None:
    problems = _problems(copy_archive(archive_path), change(fields))
    assert len(problems) == 1
    assert message in problems[0]


@pytest.fixture
def gappy_archive(fields: xarray.Dataset, bundle_path: Path, tmp_path: Path) -> Path:
    """Hour 5 is missing, hour 6 has a gap of its own, of a selection of the first day."""
    gappy = _changed(fields, lambda t2m: (t2m.__setitem__(5, np.nan), t2m.__setitem__((6, 0, 0), np.nan))[0])
    gappy.to_netcdf(tmp_path / "gappy.nc")
    source = SourceConfig(select={"time": "2019-03-01"})
    request = QualityRequest(level=1)
    compress(CompressJob((str(tmp_path / "gappy.nc"),), str(bundle_path), str(tmp_path / "gappy"), request, source))
    return tmp_path / "gappy"


def test_a_source_with_gaps_and_rejected_samples_agrees_with_its_archive(gappy_archive: Path) -> None:
    source = open_original(str(gappy_archive), [str(gappy_archive.with_suffix(".nc"))])
    report = verify_archive(str(gappy_archive), source)
    assert report.problems == ()
    assert (report.rows, report.rejected, report.compared) == (23, 1, 24)


def test_a_rejected_sample_that_the_source_holds_after_all_is_noticed(
    gappy_archive: Path, fields: xarray.Dataset
) -> None:
    whole = _changed(fields, lambda t2m: t2m.__setitem__((6, 0, 0), np.nan))
    problems = _problems(gappy_archive, whole)
    assert len(problems) == 1
    assert "T05:00:00]: was rejected (no value at all), but" in problems[0]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-3])])
def test_a_lost_rejected_table_is_noticed(gappy_archive: Path, damage: Callable[[Path], object]) -> None:
    (table,) = (gappy_archive / "rejected").iterdir()
    damage(table)
    text = "\n".join(_problems(gappy_archive))
    assert f"rejected/{table.name}" in text
    assert "missing" not in text.replace("no such file", "")


def test_problems_are_bounded_but_all_counted(
    archive_path: Path, fields: xarray.Dataset, copy_archive: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_verification, "MAX_PROBLEMS", 7)
    archive = copy_archive(archive_path)
    warmer = fields.assign(t2m=(fields.t2m + 1).assign_attrs(fields.t2m.attrs))
    warmer.to_netcdf(archive.parent / "warmer.nc")
    report = verify_archive(str(archive), open_original(str(archive), [str(archive.parent / "warmer.nc")]))
    assert len(report.problems) == 7
    assert report.problem_count == 80


def test_a_manifest_that_claims_too_much_is_a_problem_and_not_a_crash(
    archive_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "MAX_SAMPLES", 39)
    report = verify_archive(str(archive_path))
    assert report.problems == ("the manifest claims 40 samples, at most 39 are verified",)
    assert report.parts == 0


def test_where_there_is_no_archive_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no archive at"):
        verify_archive(str(tmp_path))


def test_a_later_version_is_refused(archive_path: Path, copy_archive: Callable[[Path], Path]) -> None:
    import gzip
    import json

    archive = copy_archive(archive_path)
    content = json.loads(gzip.decompress((archive / "manifest.json.gz").read_bytes()))
    (archive / "manifest.json.gz").write_bytes(gzip.compress(json.dumps({**content, "version": 99}).encode()))
    with pytest.raises(UnsupportedFormatError, match="99"):
        verify_archive(str(archive))


def test_a_source_without_the_archive_s_labels_is_named(
    archive_path: Path, fields: xarray.Dataset, tmp_path: Path
) -> None:
    fields.assign_coords(time=fields.time + np.timedelta64(365, "D")).to_netcdf(tmp_path / "later.nc")
    with pytest.raises(SampleNotFoundError, match="2020-02-29"):
        open_original(str(archive_path), [str(tmp_path / "later.nc")])


def test_samples_that_the_source_has_lost_are_told_and_those_rejected_for_it_are_fine(
    gappy_archive: Path, fields: xarray.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hour 5 was rejected; hour 7 is a row. Neither can be read any more."""
    fields.to_netcdf(tmp_path / "source.nc")
    iter_samples = part_verification.iter_samples

    def damaged(source: FieldSource, layout: Layout, grid: Grid, shard: Shard) -> Iterator[Sample]:
        if any(shard.start[0] <= hour < shard.stop[0] for hour in (5, 7)):
            raise DamagedSourceError("a bad chunk")
        return iter_samples(source, layout, grid, shard)

    monkeypatch.setattr(part_verification, "iter_samples", damaged)
    report = verify_archive(str(gappy_archive), open_original(str(gappy_archive), [str(tmp_path / "source.nc")]))
    lost = [problem for problem in report.problems if "damaged" in problem]
    assert len(lost) == 1
    assert "T07:00:00]: was not compared" in lost[0]
    assert "T05" not in "".join(report.problems)
