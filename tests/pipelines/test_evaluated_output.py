"""Archives restored at points and on other grids: what the outputs hold, and which files and options are refused."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xarray

from pipelines.evaluated_output import decompress_grid, decompress_points, grid_labels
from vcinr_batch.archive.archive import Archive
from vcinr_batch.cli import run
from vcinr_batch.data.axes import make_axis
from vcinr_batch.errors import ArchiveExistsError, ConfigError, SourceError

STATIONS = "station,LAT,lon,height\nDe Bilt,58.1,-3.25,2.5\n007,60,360.5,\n De Bilt ,58.1,-3.25,2.5\n"
HOURS = {"time": "2019-03-01T05..2019-03-01T06"}


@pytest.fixture
def stations(tmp_path: Path) -> Path:
    path = tmp_path / "stations.csv"
    path.write_text(STATIONS, "utf-8-sig")
    return path


def expected_values(archive_path: Path) -> np.ndarray:
    points = {"latitude": [58.1, 60, 58.1], "longitude": [-3.25, 0.5, -3.25]}
    arrays = {name: xarray.DataArray(values, dims="p") for name, values in points.items()}
    return Archive.open(str(archive_path)).evaluate(HOURS, **arrays).values


def test_a_table_has_a_line_for_every_sample_and_point(archive_path: Path, stations: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    report = decompress_points(str(archive_path), str(output), str(stations), HOURS)
    header, *lines = csv.reader(output.open(newline=""))
    assert header == ["time", "station", "height", "LAT", "lon", "t2m"]
    assert [line[:5] for line in lines[:3]] == [
        ["2019-03-01T05:00:00", "De Bilt", "2.5", "58.1", "-3.25"],
        ["2019-03-01T05:00:00", "007", "", "60", "360.5"],
        ["2019-03-01T05:00:00", "De Bilt", "2.5", "58.1", "-3.25"],
    ]
    assert [line[0] for line in lines[3:]] == ["2019-03-01T06:00:00"] * 3
    found = np.array([line[5] for line in lines], np.float32).reshape(2, 3)
    np.testing.assert_array_equal(found, expected_values(archive_path))
    assert (report.samples, report.rejected, report.shape) == (2, 0, {"time": 2, "points": 3})
    assert report.output_bytes == output.stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "stations.csv"]


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_points_go_to_arrays_too(archive_path: Path, stations: Path, tmp_path: Path, suffix: str) -> None:
    output = str(tmp_path / f"out{suffix}")
    decompress_points(str(archive_path), output, str(stations), HOURS)
    with open_output(output) as found:
        assert found.t2m.dims == ("time", "points")
        np.testing.assert_array_equal(found.t2m.values, expected_values(archive_path))
        assert found.station.values.tolist() == ["De Bilt", "007", "De Bilt"]
        assert found.longitude.values.tolist() == [-3.25, 360.5, -3.25]
        assert found.t2m.attrs["units"] == "K"
        assert {"latitude", "longitude", "station", "height"} <= set(found.coords)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_grid_lies_at_multiples_of_its_spacing(archive_path: Path, tmp_path: Path, suffix: str) -> None:
    output = str(tmp_path / f"out{suffix}")
    report = decompress_grid(str(archive_path), output, 0.75, HOURS)
    with open_output(output) as found:
        assert found.latitude.values.tolist() == [60, 59.25, 58.5, 57.75, 57]
        assert found.longitude.values.tolist() == [-4.5, -3.75, -3, -2.25, -1.5, -0.75, 0]
        labels = {"latitude": found.latitude.values, "longitude": found.longitude.values}
        expected = Archive.open(str(archive_path)).evaluate(HOURS, **labels)
        np.testing.assert_array_equal(found.t2m.values, expected.values)
        assert found.attrs["title"] == "made by a test"
    assert report.shape == {"time": 2, "latitude": 5, "longitude": 7}


@pytest.mark.parametrize("suffix", [".csv", ".nc", ".zarr"])
def test_an_output_that_is_there_is_replaced_only_when_asked(
    archive_path: Path, stations: Path, tmp_path: Path, suffix: str
) -> None:
    arguments = str(archive_path), str(tmp_path / f"out{suffix}"), str(stations)
    decompress_points(*arguments, {"time": "2019-03-01T05"})
    with pytest.raises(ArchiveExistsError, match="--overwrite"):
        decompress_points(*arguments, HOURS)
    report = decompress_points(*arguments, HOURS, overwrite=True)
    assert report.shape["time"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"out{suffix}", "stations.csv"]


def test_a_directory_is_never_replaced_by_a_table(archive_path: Path, stations: Path, tmp_path: Path) -> None:
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(ArchiveExistsError, match="is a directory"):
        decompress_points(str(archive_path), str(tmp_path / "out.csv"), str(stations), HOURS, overwrite=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; expected a header with latitude and longitude"),
        ("\n , \n", "empty"),
        ("lat,lon\n", "no points after the header"),
        ("lat,name\n58,a\n", "expected one column longitude or lon in the header, got lat, name"),
        ("lat,Latitude,lon\n58,58,0\n", "expected one column latitude or lat in the header"),
        ("lat,lon,a,a\n58,0,1,2\n", "two columns of the name 'a'"),
        ("lat,lon\n58,0\n\n57,east\n", r"line 4: lon 'east' is not a number"),
        ("lat,lon\n58,0\n,0\n", r"line 3: lat '' is not a number"),
        ("lat,lon\n58,0\n57,nan\n", r"line 3: lon: expected finite numbers, got nan"),
        ("lat,lon\n58,0\n57\n", "line 3: 1 cells, the header has 2"),
        ("lat,lon\n58,0\n57,0\n61,0\n", "line 4: lat 61 is outside of the archive's grid, latitude 60 to 56.5"),
        ("lat,lon\n58,7\n", "line 2: lon 7 is outside of the archive's grid, longitude -5 to 0.5"),
        ("lat,lon,time\n58,0,1\n", "has a 'time' of its own: rename that column"),
        ('lat,lon\n58,"0\n', "not CSV"),
        (b"lat,lon\n\xff\xfe,0\n", "not a text file in UTF-8"),
    ],
)
def test_a_file_that_holds_no_points_is_refused(
    archive_path: Path, tmp_path: Path, text: str | bytes, message: str
) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message) as caught:
        decompress_points(str(archive_path), str(tmp_path / "out.csv"), str(path))
    assert "bad.csv" in str(caught.value)
    assert not (tmp_path / "out.csv").exists()


def test_a_file_that_is_not_there_is_named(archive_path: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.csv"):
        decompress_points(str(archive_path), str(tmp_path / "out.csv"), str(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("labels", "name", "spacing", "expected"),
    [
        (np.arange(0, 360, 30.0), "longitude", 90, [0, 90, 180, 270]),
        (np.arange(-180, 180, 30.0), "longitude", 90, [-180, -90, 0, 90]),
        (np.arange(1, 361, 30.0), "longitude", 120, [120, 240, 360]),
        (np.array([350.0, 355, 0, 5]), "longitude", 5, [-10, -5, 0, 5]),
        (np.array([-1.0, 0, 1]), "latitude", 0.1, np.round(np.arange(-10, 11) * 0.1, 9).tolist()),
        (np.array([1.0, 0, -1]), "latitude", 0.75, [0.75, 0, -0.75]),
    ],
)
def test_a_grid_keeps_to_the_source_s_direction_and_convention(
    labels: np.ndarray, name: str, spacing: float, expected: Sequence[float]
) -> None:
    assert grid_labels(make_axis(name, labels, {}), spacing).tolist() == list(expected)


@pytest.mark.parametrize("spacing", [0.0, -1.0, np.nan, np.inf, 1e-320, 1e-8])
def test_a_spacing_that_makes_no_grid_is_refused(spacing: float) -> None:
    with pytest.raises(ConfigError, match=r"spacing of more than 0|labels along latitude"):
        grid_labels(make_axis("latitude", np.array([50.5, 51.5]), {}), spacing)


def test_a_spacing_without_a_multiple_on_the_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="has 0 labels along latitude"):
        grid_labels(make_axis("latitude", np.array([50.5, 51.5]), {}), 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--points", "STATIONS", "--grid", "0.5", "--output", "o.nc"], "--points and --grid contradict"),
        (["--points", "STATIONS", "--workers", "2", "--output", "o.nc"], "--points is evaluated in this process"),
        (["--grid", "0.5", "--address", "auto", "--output", "o.nc"], "--grid is evaluated in this process"),
        (["--grid", "0.5", "--output", "o.csv"], ".csv is for --points"),
        (["--output", "o.csv"], "expected a name that ends with .nc or .zarr"),
        (["--grid", "0", "--output", "o.nc"], "spacing of more than 0 degrees"),
        (["--grid", "0.5", "--select", "latitude=58", "--output", "o.nc"], "latitude is given as coordinates and"),
        (["--points", "STATIONS", "--output", "o.txt"], "expected a name that ends with"),
    ],
)
def test_options_that_contradict_each_other_are_one_line(
    archive_path: Path,
    stations: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(stations.parent)
    assert run(["decompress", str(archive_path), *[str(stations) if o == "STATIONS" else o for o in options]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_command_line_writes_both(
    archive_path: Path, stations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, store = str(tmp_path / "o.csv"), str(tmp_path / "o.zarr")
    select = ["--select", "time=2019-03-01T05"]
    assert run(["decompress", str(archive_path), "--points", str(stations), "--output", table, *select]) == 0
    assert "t2m (time 1, points 3)" in capsys.readouterr().out
    assert run(["decompress", str(archive_path), "--grid", "1", "--output", store, *select]) == 0
    assert "t2m (time 1, latitude 4, longitude 6)" in capsys.readouterr().out


def open_output(output: str) -> xarray.Dataset:
    if output.endswith(".nc"):
        return xarray.open_dataset(output)
    return xarray.open_zarr(output, consolidated=False)
