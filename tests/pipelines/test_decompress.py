"""From an archive to a file: what is in it, what happens to a file that is there, and that nobody sees half of one."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import xarray

from pipelines import restore_moves, restore_netcdf
from pipelines.compress import CompressJob, compress
from pipelines.decompress import decompress
from pipelines.restore_progress import DecompressProgress
from vcinr_batch.archive import archive as archive_module
from vcinr_batch.archive.archive import Archive
from vcinr_batch.compression import QualityRequest
from vcinr_batch.errors import ArchiveExistsError, ConfigError, SampleNotFoundError, SourceError
from vcinr_batch.storage import join_url, read_bytes, write_bytes

open_output: dict[str, Callable[[str], xarray.Dataset]] = {
    ".nc": xarray.open_dataset,
    ".zarr": lambda url: xarray.open_zarr(url, consolidated=False),
}


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_selection_looks_like_the_source_s(
    archive_path: Path, fields: xarray.Dataset, tmp_path: Path, suffix: str
) -> None:
    select = {"time": "2019-03-01T06..2019-03-01T08", "latitude": "59..58"}
    report = decompress(str(archive_path), str(tmp_path / f"out{suffix}"), select)
    with open_output[suffix](str(tmp_path / f"out{suffix}")) as found:
        expected = fields.sel(time=slice("2019-03-01T06", "2019-03-01T08"), latitude=slice(59, 58))
        for name in ("time", "latitude", "longitude"):
            xarray.testing.assert_identical(found[name].variable, expected[name].variable)
        assert found.t2m.attrs == {"units": "K", "long_name": "2 m temperature"}
        assert found.attrs["title"] == "made by a test"
        np.testing.assert_allclose(found.t2m.values, expected.t2m.values, atol=_largest_error(archive_path))
    assert report.shape == {"time": 3, "latitude": 3, "longitude": 12}
    assert (report.samples, report.rejected) == (3, 0)
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]


def test_only_the_parts_of_the_selection_are_read(
    archive_path: Path, tmp_path: Path, copy_archive: Callable[[Path], Path]
) -> None:
    archive = copy_archive(archive_path)
    (part,) = (archive / "parts").glob("t2m-00000003-*")
    part.unlink()
    decompress(str(archive), str(tmp_path / "early.nc"), {"time": "2019-03-01"})
    with pytest.raises(SourceError, match="t2m-00000003"):
        decompress(str(archive), str(tmp_path / "late.nc"), {"time": "2019-03-02T15"})
    assert not (tmp_path / "late.nc").exists()


def test_a_rejected_sample_is_nan_and_counted(fields: xarray.Dataset, bundle_path: Path, tmp_path: Path) -> None:
    spoilt = fields.copy(deep=True)
    spoilt.t2m[5] = np.nan
    spoilt.to_netcdf(tmp_path / "spoilt.nc")
    job = CompressJob((str(tmp_path / "spoilt.nc"),), str(bundle_path), str(tmp_path / "a"), QualityRequest(level=1))
    compress(job)
    report = decompress(job.output, str(tmp_path / "out.nc"), {"time": "2019-03-01T04..2019-03-01T06"})
    assert (report.samples, report.rejected) == (2, 1)
    with xarray.open_dataset(tmp_path / "out.nc") as found:
        assert np.isnan(found.t2m.values).all(axis=(1, 2)).tolist() == [False, True, False]


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_an_output_that_is_there_is_replaced_only_when_asked(archive_path: Path, tmp_path: Path, suffix: str) -> None:
    output = str(tmp_path / f"out{suffix}")
    decompress(str(archive_path), output, {"time": "2019-03-01T06"})
    with pytest.raises(ArchiveExistsError, match="--overwrite"):
        decompress(str(archive_path), output, {"time": "2019-03-01T07"})
    decompress(str(archive_path), output, {"time": "2019-03-01T07"}, overwrite=True)
    with open_output[suffix](output) as found:
        assert found.time.values.tolist() == np.array(["2019-03-01T07"], "M8[ns]").tolist()
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]


def test_a_writer_that_fails_leaves_the_old_output(
    archive_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    output = tmp_path / "out.nc"
    output.write_bytes(b"old")
    monkeypatch.setattr(restore_netcdf, "_write_coordinates", fail)
    with pytest.raises(SourceError, match=r"cannot write .*out\.nc: No space left on device"):
        decompress(str(archive_path), str(output), {"time": "2019-03-01T06"}, overwrite=True)
    assert output.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.nc"]


def test_a_store_that_cannot_take_its_place_puts_the_old_one_back(
    archive_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.zarr"
    decompress(str(archive_path), str(output), {"time": "2019-03-01T06"})
    rename = os.rename

    def fail(old: Path, new: Path) -> None:
        if old.name == "output":
            raise OSError(5, "Input/output error")
        rename(old, new)

    monkeypatch.setattr(restore_moves.os, "rename", fail)
    with pytest.raises(SourceError, match=r"cannot write .*out\.zarr: Input/output error"):
        decompress(str(archive_path), str(output), {"time": "2019-03-01T07"}, overwrite=True)
    with xarray.open_zarr(output, consolidated=False) as found:
        assert found.time.values.tolist() == np.array(["2019-03-01T06"], "M8[ns]").tolist()


@pytest.mark.parametrize("base", ["{}", "memory://{}"], ids=["local", "store"])
@pytest.mark.parametrize(
    ("name", "is_directory", "what"),
    [
        ("out.nc", True, "a directory and not a file"),
        ("out.zarr", True, "no Zarr store"),
        ("out.zarr", False, "a file and not a Zarr store"),
    ],
)
def test_what_this_command_would_not_have_written_is_never_replaced(
    archive_path: Path, tmp_path: Path, base: str, name: str, is_directory: bool, what: str
) -> None:
    output = join_url(base.format(tmp_path), name)
    treasure = join_url(output, "thesis.tex") if is_directory else output
    write_bytes(treasure, b"years of work")
    with pytest.raises(ArchiveExistsError, match=what):
        decompress(str(archive_path), output, {"time": "2019-03-01T06"}, overwrite=True)
    assert read_bytes(treasure) == b"years of work"


def test_a_zarr_store_of_version_2_is_replaced_when_asked(archive_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    output.mkdir()
    (output / ".zgroup").write_text('{"zarr_format": 2}')
    decompress(str(archive_path), str(output), {"time": "2019-03-01T06"}, overwrite=True)
    assert not (output / ".zgroup").exists()


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_what_appeared_at_the_output_meanwhile_is_not_replaced(archive_path: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"out{suffix}"

    def meanwhile(progress: DecompressProgress) -> None:
        if progress.samples == 1:
            output.write_bytes(b"of another run")

    with pytest.raises(ArchiveExistsError):
        decompress(str(archive_path), str(output), {"time": "2019-03-01T06"}, progress=meanwhile)
    assert output.read_bytes() == b"of another run"
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.parametrize(
    ("units", "calendar", "first"),
    [("days since 1850-01-01", "standard", 61787.5), ("days since 2000-01-01", "360_day", 29.5)],
)
def test_times_keep_their_units_calendar_and_dtype(
    fields: xarray.Dataset, bundle_path: Path, tmp_path: Path, suffix: str, units: str, calendar: str, first: float
) -> None:
    labels = first + np.arange(4, dtype=np.float64)
    encoded = fields.isel(time=slice(0, 4)).assign_coords(time=("time", labels, {"units": units, "calendar": calendar}))
    encoded.to_netcdf(tmp_path / "days.nc")
    job = CompressJob((str(tmp_path / "days.nc"),), str(bundle_path), str(tmp_path / "a"), QualityRequest(level=1))
    compress(job)
    output = tmp_path / f"out{suffix}"
    decompress(job.output, str(output))
    options = {"consolidated": False, "engine": "zarr"} if suffix == ".zarr" else {}
    with xarray.open_dataset(output, decode_times=False, **options) as found:  # type: ignore[arg-type]
        assert found.time.values.tolist() == labels.tolist()
        assert found.time.dtype == np.float64
        assert (found.time.attrs["units"], found.time.attrs["calendar"]) == (units, calendar)
        if suffix == ".nc":
            assert "_FillValue" not in found.time.encoding | found.latitude.encoding


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_outputs_elsewhere_are_uploaded_whole(archive_path: Path, suffix: str) -> None:
    url = f"memory://decompress-test/out{suffix}"
    decompress(str(archive_path), url, {"time": "2019-03-02"})
    decompress(str(archive_path), url, {"time": "2019-03-01T06"}, overwrite=True)
    memory = fsspec.filesystem("memory")
    if suffix == ".zarr":
        with xarray.open_zarr(memory.get_mapper(url), consolidated=False) as found:
            assert found.t2m.shape == (1, 8, 12)
        assert sorted(memory.find("/decompress-test/out.zarr"), key=lambda n: memory.created(n))[-1].endswith(
            "out.zarr/zarr.json"
        )
    else:
        assert memory.cat_file("/decompress-test/out.nc")[1:4] == b"HDF"


@pytest.mark.parametrize(
    ("output", "select", "error", "message"),
    [
        ("out.tif", {}, ConfigError, r"\.nc or \.zarr"),
        ("out.nc", {"level": "850"}, ConfigError, "level"),
        ("out.nc", {"time": "2020-01-01"}, SampleNotFoundError, "2019-03-01"),
        ("file/out.nc", {}, SourceError, "cannot write"),
    ],
    ids=["ending", "dimension", "nothing selected", "not a folder"],
)
def test_what_cannot_be_done_is_one_error_and_no_output(
    archive_path: Path, tmp_path: Path, output: str, select: dict[str, str], error: type[Exception], message: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(error, match=message):
        decompress(str(archive_path), str(tmp_path / output), select)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_attributes_that_netcdf_cannot_hold_become_json(
    archive_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_manifest = archive_module.read_manifest
    odd = {"flag": True, "nested": {"a": 1}, "mixed": [1, "b"], "none": None, "numbers": [1, 2], "texts": ["a", "b"]}
    monkeypatch.setattr(
        archive_module,
        "read_manifest",
        lambda url, **options: replace(read_manifest(url, **options), dataset_attributes=odd),
    )
    decompress(str(archive_path), str(tmp_path / "out.nc"), {"time": "2019-03-01T06"})
    with xarray.open_dataset(tmp_path / "out.nc") as found:
        assert [found.attrs[name] for name in ("flag", "nested", "mixed", "none")] == [
            "true",
            '{"a": 1}',
            '[1, "b"]',
            "null",
        ]
        assert list(found.attrs["numbers"]) == [1, 2]
        assert list(found.attrs["texts"]) == ["a", "b"]


def test_without_a_netcdf_library_the_message_names_the_extra(
    archive_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_netcdf.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"vcinr-batch\[netcdf\]"):
        decompress(str(archive_path), str(tmp_path / "out.nc"), {"time": "2019-03-01T06"})


def _largest_error(archive_path: Path) -> float:
    return max(row.max_error for row in Archive.open(str(archive_path)).rows())
