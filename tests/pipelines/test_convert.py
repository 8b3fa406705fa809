"""From Parquet to Zarr and back: nothing is lost or changed, nothing damaged goes through, nothing half is left."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

from pipelines import convert as converting
from pipelines.compress import CompressJob, compress
from pipelines.convert import convert
from pipelines.repair import RepairJob, repair
from vcinr_batch import cli
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.manifest import commit_manifest
from vcinr_batch.compression import QualityRequest
from vcinr_batch.data.auxiliary import Auxiliary
from vcinr_batch.errors import (
    ArchiveExistsError,
    ConfigError,
    CorruptBitstreamError,
    SourceError,
    TruncatedBitstreamError,
    VcinrError,
)
from vcinr_batch.verification import verify_archive


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def spoilt_archive(fields: xarray.Dataset, bundle_path: Path, tmp_path: Path) -> Path:
    """An archive with a rejected sample."""
    spoilt = fields.isel(time=slice(0, 20)).copy(deep=True)
    spoilt.t2m[4, 0, 0] = float("inf")
    spoilt.to_netcdf(tmp_path / "spoilt.nc")
    job = CompressJob((str(tmp_path / "spoilt.nc"),), str(bundle_path), str(tmp_path / "spoilt"), QualityRequest(1))
    compress(job)
    return tmp_path / "spoilt"


def test_a_round_trip_gives_the_same_files(spoilt_archive: Path, tmp_path: Path) -> None:
    there = convert(str(spoilt_archive), str(tmp_path / "zarr"), "zarr")
    assert (there.container, there.samples, there.rejected, there.kept) == ("zarr", 19, 1, 0)
    assert there.bytes == sum(map(len, contents(tmp_path / "zarr").values()))
    convert(str(tmp_path / "zarr"), str(tmp_path / "back"), "parquet")
    assert contents(tmp_path / "back") == contents(spoilt_archive)


def test_both_containers_hold_the_same(spoilt_archive: Path, tmp_path: Path) -> None:
    convert(str(spoilt_archive), str(tmp_path / "zarr"), "zarr")
    parquet, converted = Archive.open(str(spoilt_archive)), Archive.open(str(tmp_path / "zarr"))
    assert converted.rows() == parquet.rows()
    assert converted.rejected() == parquet.rejected()
    xarray.testing.assert_identical(converted.to_xarray(), parquet.to_xarray())
    xarray.testing.assert_identical(xarray.open_zarr(tmp_path / "zarr").load(), parquet.to_xarray())
    assert verify_archive(str(tmp_path / "zarr"), None).is_good


def test_what_lies_beside_the_axes_comes_along(archive_path: Path, copy_archive: Any, tmp_path: Path) -> None:
    url = str(copy_archive(archive_path))
    beside = (
        Auxiliary("height", (), np.array(2.0), {"units": "m"}),
        Auxiliary("area", ("latitude", "longitude"), np.arange(96.0).reshape(8, 12)),
        Auxiliary("band", ("latitude",), np.array(list("abcdefgh"))),
    )
    commit_manifest(replace(Archive.open(url).manifest, auxiliaries=beside), url, overwrite=True)
    report = convert(url, str(tmp_path / "zarr"), "zarr")
    dataset = xarray.open_zarr(tmp_path / "zarr", chunks=None)
    xarray.testing.assert_identical(dataset.load(), Archive.open(url).to_xarray())
    assert report.bytes == sum(Archive.open(str(tmp_path / "zarr")).size_bytes())


@pytest.mark.parametrize("container", ["zarr", "parquet"])
def test_it_goes_through_object_stores(container: str, archive_path: Path, s3: Any, tmp_path: Path) -> None:
    options = s3.storage_options
    convert(str(archive_path), f"{s3.url}/zarr", "zarr", storage_options=options)
    if container == "parquet":
        convert(f"{s3.url}/zarr", str(tmp_path / "back"), "parquet", storage_options=options)
        assert contents(tmp_path / "back") == contents(archive_path)
    else:
        dataset = xarray.open_zarr(f"{s3.url}/zarr", storage_options=options)
        xarray.testing.assert_identical(dataset.load(), Archive.open(str(archive_path)).to_xarray())


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda path: path.unlink(), SourceError),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), TruncatedBitstreamError),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), CorruptBitstreamError),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), CorruptBitstreamError),
    ],
)
@pytest.mark.parametrize("damaged", ["parts", "rejected"])
def test_a_damaged_file_is_named_and_no_archive_comes_of_it(
    damage: Any, error: type[VcinrError], damaged: str, spoilt_archive: Path, tmp_path: Path
) -> None:
    path = sorted((spoilt_archive / damaged).iterdir())[0]
    damage(path)
    with pytest.raises(error, match=f"{damaged}/{path.name}: "):
        convert(str(spoilt_archive), str(tmp_path / "zarr"), "zarr")
    left = contents(tmp_path / "zarr")
    assert "manifest.json.gz" not in left
    assert not [name for name in left if name.endswith("zarr.json")]


def test_the_same_command_completes_what_was_killed(
    archive_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "zarr"

    def killed(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(converting, "commit_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(str(archive_path), str(output), "zarr")
    with pytest.raises(SourceError, match="no archive at"):
        Archive.open(str(output))
    (output / "t2m" / "c" / "2" / "0" / "0").write_bytes(b"half")
    report = convert(str(archive_path), str(output), "zarr")
    assert (report.copied, report.kept) == (1, 3)
    convert(str(archive_path), str(tmp_path / "at_once"), "zarr")
    assert contents(output) == contents(tmp_path / "at_once")


def test_what_is_there_is_replaced_only_on_demand(archive_path: Path, spoilt_archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    convert(str(archive_path), str(output), "zarr")
    before = contents(output)
    with pytest.raises(ArchiveExistsError, match="pass --overwrite"):
        convert(str(spoilt_archive), str(output), "zarr")
    assert contents(output) == before
    convert(str(spoilt_archive), str(output), "zarr", overwrite=True)
    convert(str(spoilt_archive), str(tmp_path / "fresh"), "zarr")
    assert contents(output) == contents(tmp_path / "fresh")
    back = convert(str(output), str(spoilt_archive), "parquet", overwrite=True)
    assert (back.copied, back.kept) == (0, 2)


def test_a_zarr_archive_is_replaced_by_parquet_files_without_a_trace(
    archive_path: Path, spoilt_archive: Path, tmp_path: Path
) -> None:
    convert(str(archive_path), str(tmp_path / "first"), "zarr")
    convert(str(spoilt_archive), str(tmp_path / "second"), "zarr")
    convert(str(tmp_path / "second"), str(tmp_path / "first"), "parquet", overwrite=True)
    assert contents(tmp_path / "first") == contents(spoilt_archive)


def test_a_damaged_source_does_not_cost_the_archive_that_was_to_be_replaced(
    archive_path: Path, spoilt_archive: Path, tmp_path: Path
) -> None:
    convert(str(archive_path), str(tmp_path / "zarr"), "zarr")
    before = contents(tmp_path / "zarr")
    (part,) = (spoilt_archive / "parts").iterdir()
    part.write_bytes(b"damaged")
    with pytest.raises(TruncatedBitstreamError, match=part.name):
        convert(str(spoilt_archive), str(tmp_path / "zarr"), "zarr", overwrite=True)
    assert contents(tmp_path / "zarr") == before


def test_a_zarr_group_of_somebody_else_is_never_replaced(archive_path: Path, tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "zarr", attributes={"title": "mine"})
    before = contents(tmp_path / "zarr")
    for overwrite in (False, True):
        with pytest.raises(ArchiveExistsError, match="another Zarr group"):
            convert(str(archive_path), str(tmp_path / "zarr"), "zarr", overwrite=overwrite)
    assert contents(tmp_path / "zarr") == before


def test_a_zarr_archive_is_neither_repaired_nor_compressed_over(
    archive_path: Path, source_path: Path, bundle_path: Path, tmp_path: Path
) -> None:
    place = tmp_path / "zarr"
    convert(str(archive_path), str(place), "zarr")
    before = contents(place)
    with pytest.raises(ConfigError, match=r"zarr is a Zarr archive, .* very bytes"):
        repair(RepairJob(str(place), (str(source_path),), str(bundle_path), accept_changed=True))
    job = CompressJob((str(source_path),), str(bundle_path), str(place), QualityRequest(2), overwrite=True)
    with pytest.raises(ConfigError, match=r"zarr is a Zarr archive, .* vcinr convert"):
        compress(job)
    assert contents(place) == before


@pytest.mark.parametrize(
    ("output", "container", "expected"),
    [
        ("{archive}", "zarr", "the archive itself"),
        ("{archive}/", "zarr", "the archive itself"),
        ("", "zarr", "output: expected a path or URL"),
        ("elsewhere", "parquet", "is an archive in the container 'parquet' already"),
        ("elsewhere", "hdf5", "container 'hdf5': expected parquet or zarr"),
    ],
)
def test_a_wrong_request_is_refused(output: str, container: str, expected: str, archive_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected):
        convert(str(archive_path), output.format(archive=archive_path), container)


def test_the_command_says_what_it_did(
    archive_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], copy_archive: Callable[[Path], Path]
) -> None:
    output = tmp_path / "zarr"
    arguments = ["convert", str(archive_path), str(output), "--container", "zarr", "--json"]
    assert cli.run(arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-2]["stage"] == "convert"
    assert (lines[-1]["samples"], lines[-1]["parts"], lines[-1]["container"]) == (40, 4, "zarr")
    assert cli.run(arguments) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    shutil.rmtree(output)
    damaged = copy_archive(archive_path)
    part = sorted((damaged / "parts").iterdir())[0]
    part.write_bytes(part.read_bytes()[:-1])
    assert cli.run(["convert", str(damaged), str(output), "--container", "zarr"]) == 2
    assert capsys.readouterr().err.startswith(f"vcinr: parts/{part.name}: ")
