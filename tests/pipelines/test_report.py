"""Pictures of samples and the report's page, against figures made by hand; texts from files are hostile."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray

from pipelines.compress import CompressJob, compress
from pipelines.field_slices import coarsened, make_slice, slice_field
from pipelines.map_figures import drawing, error_colours, label_ticks, plain_text
from pipelines.report import ReportFile, write_report
from pipelines.report_comparison import compare_over_space
from pipelines.report_figures import MapPanel, maps_svg
from pipelines.report_statistics import MAX_BINS, Distribution, measure_archive
from pipelines.sample_picture import find_block, open_matching_source, plot_sample
from pipelines.train import train
from tests.conftest import TINY_CONFIG
from vcinr_batch import cli
from vcinr_batch.archive.archive import Archive
from vcinr_batch.compression import QualityRequest
from vcinr_batch.config import load_config
from vcinr_batch.data.axes import Axis
from vcinr_batch.data.layout import sample_key
from vcinr_batch.errors import ArchiveExistsError, ConfigError, SampleNotFoundError
from vcinr_batch.inspection import ArchiveSummary, inspect_archive

HOSTILE = {
    "units": "K</data><b>$\\frac{",
    "long_name": "\"><img src=x onerror=alert(1)> ' & <script>alert(2)</script>\x07",
}
TITLE = "--></style></svg><script src='http://example.org/x.js'></script>"
PNG = b"\x89PNG"
VOID = {"meta", "br", "img", "link", "hr", "input"}


@dataclass(frozen=True)
class Made:
    """An archive with two rejected samples and the source it was made of."""

    archive: Path
    source: Path
    fields: xarray.Dataset

    @property
    def summary(self) -> ArchiveSummary:
        return inspect_archive(str(self.archive))


def _make(folder: Path, fields: xarray.Dataset, config: str, name: str = "fields.nc", quality: int = 2) -> Made:
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / name
    fields.to_netcdf(source)
    (folder / "run.yaml").write_text(config)
    report = train(load_config(str(folder / "run.yaml")), [str(source)], str(folder / "bundle"))
    request = QualityRequest(level=quality)
    archive = folder / "archive"
    compress(CompressJob((str(source),), report.bundle_url, str(archive), request, shard_samples=10))
    return Made(archive, source, fields)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, fields: xarray.Dataset) -> Made:
    """Attributes and file names that try to leave their place on the page; hours 3 and 25 cannot be compressed."""
    spoilt = fields.assign_attrs(title=TITLE)
    spoilt["t2m"] = spoilt.t2m.copy(deep=True).assign_attrs(HOSTILE)
    spoilt.t2m[3, 2, 5] = -np.inf
    spoilt.t2m[25] = np.nan
    config = TINY_CONFIG.replace("{variable: t2m}", '{variable: t2m, select: {time: "2019-03-01T04..2019-03-01T20"}}')
    return _make(tmp_path_factory.mktemp("hostile"), spoilt, config, "a&<i>'.nc")


@dataclass(frozen=True)
class Written:
    """A report with the source."""

    text: str
    report: ReportFile
    progress: list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def written(hostile: Made, tmp_path_factory: pytest.TempPathFactory) -> Written:
    output = tmp_path_factory.mktemp("page") / "report.html"
    progress: list[tuple[str, int, int]] = []
    report = write_report(
        str(hostile.archive), str(output), [str(hostile.source)], progress=lambda *now: progress.append(now)
    )
    return Written(output.read_text(), report, progress)


@pytest.fixture(scope="module")
def page(written: Written) -> str:
    return written.text


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory, fields: xarray.Dataset) -> Made:
    """Tiles of 4 x 5 cells on a grid of 8 x 12: those in the east are padded."""
    config = TINY_CONFIG + "sample: {block: {time: 1, latitude: 4, longitude: 5}}\n"
    return _make(tmp_path_factory.mktemp("tiles"), fields.isel(time=slice(0, 12)), config)


class _Page(HTMLParser):
    """Checks that every element is closed in its place, and notes what the page would load."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.resources: list[str] = []
        self.data: dict[str, float] = {}
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        assert len(given) == len(attributes), f"an attribute twice in {tag}"
        assert not [name for name in given if name.startswith("on")]
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.resources += [given[name] for name in ("src", "href", "xlink:href", "srcset") if name in given]
        if tag == "data":
            self.data[given["class"]] = float(given["value"])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def _shown(page: str) -> str:
    return " ".join(" ".join(_Page(page).texts).split())


class TestPage:
    def test_it_is_whole_and_loads_nothing(self, page: str) -> None:
        parsed = _Page(page)
        assert page.startswith("<!DOCTYPE html>\n<html lang=")
        assert parsed.open == []
        assert parsed.resources  # images of maps
        assert [r[:40] for r in parsed.resources if not r.startswith(("data:image/png;base64,", "#"))] == []
        assert not re.search(r"@import|url\((?!#)|<\?xml|<!ENTITY", page)
        assert {"script", "link", "img", "iframe", "object", "b", "i", "metadata"}.isdisjoint(parsed.tags)

    def test_no_id_is_there_twice_and_every_reference_has_its_target(self, page: str) -> None:
        parsed = _Page(page)
        assert len(parsed.ids) == len(set(parsed.ids))
        referred = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page))
        assert {a or b for a, b in referred} <= set(parsed.ids)

    def test_texts_of_the_archive_are_shown_and_not_obeyed(self, page: str) -> None:
        shown = _shown(page)
        for text in (HOSTILE["units"], plain_text(HOSTILE["long_name"]).strip(), TITLE, "a&<i>'.nc"):
            assert text in shown
        assert "\x07" not in page
        assert "\\frac" in page

    def test_its_figures_are_those_of_inspect(self, page: str, hostile: Made) -> None:
        data, summary = _Page(page).data, hostile.summary
        rate = summary.rate
        expected = {name: getattr(rate, name) for name in vars(rate)}
        for name in ("bits_per_value", "bits_per_value_with_bundle", "ratio_to_source", "ratio_to_float32"):
            expected[name] = getattr(rate, name)
        expected |= {"rejected": 2, "lowest_psnr_db": summary.figures.lowest_psnr_db}
        assert {name: data[name] for name in expected} == expected
        assert data["measured_max_error"] <= data["max_error"]
        assert data["ratio_to_source_with_bundle"] == pytest.approx(
            rate.source_bits * rate.values / 8 / (rate.archive_bytes + rate.bundle_bytes)
        )

    def test_rejected_samples_are_listed_with_their_reasons(self, page: str) -> None:
        shown = _shown(page)
        assert "2 samples of the source; all of them below" in shown
        assert "t2m[time=2019-03-01T03:00:00] 1 infinite value" in shown
        assert "t2m[time=2019-03-02T01:00:00] no value at all" in shown

    def test_the_worst_samples_come_first(self, page: str, hostile: Made) -> None:
        errors = {str(row.key): row.max_error for row in Archive.open(str(hostile.archive)).rows()}
        worst = re.findall(r"<figcaption><code>([^<]*)</code>", page)
        assert len(set(worst)) == 4
        assert [errors[key] for key in worst] == sorted(errors.values(), reverse=True)[:4]

    def test_provenance_names_bundle_and_grid(self, page: str, hostile: Made) -> None:
        shown = _shown(page)
        assert hostile.summary.manifest.bundle_sha256 in shown
        assert "latitude 8: 60 to 56.5, blocks of 8" in shown
        assert "linear_term: eof" in shown
        assert "vcinr verify checks them all" in shown

    def test_without_a_source_it_says_that_nothing_was_compared(self, hostile: Made, tmp_path: Path) -> None:
        output = tmp_path / "report.html"
        report = write_report(str(hostile.archive), str(output))
        text = output.read_text()
        assert "Nothing was compared with a source" in text
        assert "Over space" not in text
        assert "decoded - source" not in text
        assert report.figures["measured_rmse"] is None
        assert report.output_bytes == len(text.encode())
        assert _Page(text).open == []

    def test_an_archive_of_a_single_sample_has_a_page(self, hostile: Made, tmp_path: Path) -> None:
        archive, output = tmp_path / "one", tmp_path / "report.html"
        (model,) = (hostile.archive / "models").iterdir()
        job = {"source": load_config(str(hostile.source.parent / "run.yaml")).source}
        job["source"] = job["source"].model_copy(update={"select": {"time": "2019-03-01T07"}})
        compress(CompressJob((str(hostile.source),), str(model), str(archive), QualityRequest(level=1), **job))
        write_report(str(archive), str(output), [str(hostile.source)])
        text = output.read_text()
        assert "Over time" not in text
        assert _Page(text).data["samples"] == 1

    def test_tiles_have_one_map_of_the_whole_grid(self, tiles: Made, tmp_path: Path) -> None:
        output = tmp_path / "report.html"
        write_report(str(tiles.archive), str(output), [str(tiles.source)])
        assert _Page(output.read_text()).data["values"] == tiles.fields.t2m.size
        assert "Over space" in output.read_text()


class TestFigures:
    def test_errors_over_space_are_those_of_the_decoded_values(self, tiles: Made) -> None:
        archive = Archive.open(str(tiles.archive))
        found = compare_over_space(archive, open_matching_source(archive, [str(tiles.source)]))
        error = archive.to_xarray()["t2m"].values.astype(np.float64) - tiles.fields.t2m.values
        np.testing.assert_allclose(found.rmse, np.sqrt((error**2).mean(axis=0)))
        np.testing.assert_allclose(found.bias, error.mean(axis=0), atol=1e-12)
        np.testing.assert_array_equal(found.max_error, np.abs(error).max(axis=0))
        assert (found.values, found.only_archive, found.unreadable) == (error.size, 0, 0)
        assert found.total_rmse == pytest.approx(np.sqrt((error**2).mean()))
        assert [axis.name for axis in found.axes] == ["latitude", "longitude"]

    def test_small_batches_give_the_same_errors(self, hostile: Made, monkeypatch: pytest.MonkeyPatch) -> None:
        archive = Archive.open(str(hostile.archive))
        source = open_matching_source(archive, [str(hostile.source)])
        whole = compare_over_space(archive, source)
        done: list[int] = []
        monkeypatch.setattr("pipelines.report_comparison.BATCH_VALUES", 3 * 96)
        pieces = compare_over_space(archive, source, lambda now, _: done.append(now))
        np.testing.assert_allclose(pieces.rmse, whole.rmse)
        assert pieces.values == whole.values == 38 * 96
        assert (done[-1], len(done) > 10) == (40, True)

    def test_statistics_are_those_of_the_rows(self, hostile: Made) -> None:
        archive = Archive.open(str(hostile.archive))
        rows = archive.rows()
        found = measure_archive(archive, hostile.summary.bundle.normalizer)
        sizes = np.unique([len(row.payload) for row in rows], return_counts=True)
        np.testing.assert_array_equal([found.payload_bytes.values, found.payload_bytes.counts], sizes)
        assert found.rmse.counts.sum() == found.max_error.counts.sum() == len(rows) == 38
        assert found.stored_payload_bytes == sum(len(row.payload) for row in rows)
        largest = sorted((row.max_error for row in rows), reverse=True)[:4]
        assert [worst.max_error for worst in found.worst] == largest
        course = found.course
        assert course is not None
        assert course.axis.name == "time"
        assert np.flatnonzero(course.samples == 0).tolist() == [3, 25]
        assert np.isnan(course.mean_rmse[[3, 25]]).all()
        by_hour = {row.block[0]: row for row in rows}
        assert [course.largest_error[hour] for hour in by_hour] == [row.max_error for row in by_hour.values()]
        assert course.bits_per_value[7] == 8 * len(by_hour[7].payload) / 96

    def test_bins_of_a_course_do_not_grow_with_the_archive(self, tiles: Made, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipelines.report_statistics.MAX_BINS", 5)
        archive = Archive.open(str(tiles.archive))
        course = measure_archive(archive, tiles.summary.bundle.normalizer).course
        assert course is not None
        assert course.samples.tolist() == [18, 12, 18, 12, 12]  # hours 0-2, 3-4, 5-7, 8-9, 10-11 of 6 tiles each
        assert course.positions.tolist() == [1.0, 3.5, 6.0, 8.5, 10.5]
        assert MAX_BINS < 1000

    @pytest.mark.parametrize(
        ("values", "step", "bins"),
        [([3.0], 1.0, 1), ([3.0, 7.0], 1.0, 5), ([0.0, 1000.0], 1.0, 48), ([1.0, 1.0078125], 2.0**-7, 2)],
    )
    def test_histograms_hold_every_sample_in_a_few_bins(self, values: list[float], step: float, bins: int) -> None:
        counts = np.arange(1, len(values) + 1)
        edges, found = Distribution(np.array(values), counts).histogram(step)
        assert found.sum() == counts.sum()
        assert len(found) == pytest.approx(bins, abs=1)
        assert edges[0] < values[0]
        assert edges[-1] > values[-1]

    def test_a_map_of_a_large_grid_stays_small_whatever_is_on_it(self) -> None:
        noise = np.random.default_rng(0).standard_normal((721, 1440))
        axes = [
            Axis("latitude", np.linspace(90, -90, 721), {"units": "degrees_north"}),
            Axis("longitude", np.linspace(0, 359.75, 1440), {"units": "degrees_east"}),
        ]
        panel = MapPanel(make_slice(noise, axes), "error", "K", error_colours(noise), True)
        assert len(maps_svg("noise", [panel])) < 250_000  # a page has 11 of them at most

    def test_a_coarser_map_keeps_the_largest_errors(self) -> None:
        values = np.zeros((40, 90))
        values[17, 33], values[2, 80], values[39, 89] = -5.0, 3.0, np.nan
        field = make_slice(values, [Axis("lat", np.linspace(39, 0, 40)), Axis("lon", np.arange(90.0))])
        found = coarsened(field, 30, "largest")
        assert found.values.shape == (30, 30)
        assert (found.values.min(), found.values.max()) == (-5.0, 3.0)
        assert (found.edges[1][0], found.edges[1][-1], len(found.edges[1])) == (-0.5, 89.5, 31)
        mean = coarsened(field, 30, "mean").values
        assert mean[0, 0] == 0.0
        assert np.isfinite(mean[-1, -1])

    def test_of_more_than_two_dimensions_the_first_labels_are_drawn_and_named(self) -> None:
        axes = [
            Axis("longitude", np.arange(5.0), {"units": "degrees_east"}),
            Axis("latitude", np.arange(4.0), {"units": "degrees_north"}),
            Axis("level", np.array([850, 500])),
        ]
        values = np.arange(40.0).reshape(5, 4, 2)
        found = slice_field(values, axes)
        np.testing.assert_array_equal(found.values, values[:, :, 0].T)
        assert [axis.name for axis in found.axes] == ["latitude", "longitude"]
        assert found.remark == "level 850, first of 2"

    def test_labels_of_times_leave_out_what_is_zero_everywhere(self) -> None:
        units = {"units": "hours since 2000-01-01", "calendar": "360_day"}
        assert label_ticks(Axis("time", np.array([0, 24 * 40]), units))[1] == ["2000-01-01", "2000-02-11"]
        assert label_ticks(Axis("time", np.array([0, 6]), units))[1] == ["2000-01-01T00", "2000-01-01T06"]


class TestPlot:
    def test_the_key_and_its_labels_draw_the_same_sample(self, hostile: Made, tmp_path: Path) -> None:
        url = str(hostile.archive)
        for i, key in enumerate(["t2m[time=2019-03-01T05:00:00]", "time=2019-03-01T05", "t2m[time=2019-03-01T05]"]):
            report = plot_sample(url, key, output=str(tmp_path / f"{i}.png"))
            assert report.key == "t2m[time=2019-03-01T05:00:00]"
            assert (report.measured_rmse, report.measured_max_error) == (None, None)
            assert (tmp_path / f"{i}.png").read_bytes().startswith(PNG)

    def test_with_a_source_the_errors_are_measured(self, hostile: Made, tmp_path: Path) -> None:
        output = tmp_path / "a.png"
        report = plot_sample(str(hostile.archive), "time=2019-03-01T05", [str(hostile.source)], str(output))
        archive = Archive.open(str(hostile.archive))
        decoded = archive.to_xarray({"time": "2019-03-01T05"})["t2m"].values[0].astype(np.float64)
        error = decoded - hostile.fields.t2m.values[5]
        assert report.measured_rmse == pytest.approx(np.sqrt((error**2).mean()))
        assert report.measured_max_error == pytest.approx(np.abs(error).max())
        assert report.measured_max_error is not None
        assert report.measured_max_error <= report.max_error
        alone = tmp_path / "b.png"
        plot_sample(str(hostile.archive), "time=2019-03-01T05", output=str(alone))
        assert output.stat().st_size > 1.3 * alone.stat().st_size  # two panels

    def test_a_tile_is_found_by_its_key_and_by_any_label_in_it(self, tiles: Made, tmp_path: Path) -> None:
        layout = Archive.open(str(tiles.archive)).layout
        key = str(sample_key(layout, (2, 1, 2)))
        assert key == "t2m[time=2019-03-01T02:00:00,latitude=58+4,longitude=0+5]"
        assert (
            find_block(layout, key) == find_block(layout, "time=2019-03-01T02,latitude=57,longitude=0.5") == (2, 1, 2)
        )
        report = plot_sample(str(tiles.archive), key, [str(tiles.source)], str(tmp_path / "tile.png"))
        assert report.bits_per_value == pytest.approx(8 * report.payload_bytes / (4 * 2))  # 3 of 5 columns are padding

    def test_without_an_output_it_is_named_after_the_sample(
        self, tiles: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        key = "t2m[time=2019-03-01T02:00:00,latitude=58+4,longitude=0+5]"
        plot_sample(str(tiles.archive), key)
        assert [path.name for path in tmp_path.iterdir()] == ["t2m-2019-03-01T02-00-00-58+4-0+5.png"]
        with pytest.raises(ArchiveExistsError, match="--overwrite"):
            plot_sample(str(tiles.archive), key)
        plot_sample(str(tiles.archive), key, overwrite=True)

    def test_a_sample_of_one_dimension_is_a_line(self, tmp_path: Path, fields: xarray.Dataset) -> None:
        config = TINY_CONFIG + "sample: {block: {time: 1, latitude: 1}}\n"
        made = _make(tmp_path, fields.isel(time=slice(0, 6)), config)
        report = plot_sample(
            str(made.archive), "time=2019-03-01T02,latitude=59", [str(made.source)], str(tmp_path / "a.png")
        )
        assert report.key == "t2m[time=2019-03-01T02:00:00,latitude=59]"
        write_report(str(made.archive), str(tmp_path / "report.html"), [str(made.source)])
        assert _Page((tmp_path / "report.html").read_text()).open == []


class TestErrors:
    @pytest.mark.parametrize(
        ("key", "error", "message"),
        [
            ("time=2020-01-01", SampleNotFoundError, "time holds 40 labels, 2019-03-01T00:00:00..2019-03-02T15:00:00"),
            ("sst[time=2019-03-01T05:00:00]", SampleNotFoundError, "the archive holds t2m, time 2019-03-01T00:00:00"),
            ("t2m[time=2019-03-01T03:00:00]", SampleNotFoundError, "was rejected when .*: 1 infinite value"),
            ("time=2019-03-01", ConfigError, "selects 24 samples"),
            ("t2m", ConfigError, "selects 40 samples"),
            ("level=850", ConfigError, "has no dimension 'level'"),
            ("time", SampleNotFoundError, "the archive holds t2m"),
            ("t2m[time]", ConfigError, "expected a sample key"),
            ("t2m[time=soon]", ConfigError, "not a time"),
        ],
    )
    def test_a_key_that_means_no_single_sample_is_explained(
        self, hostile: Made, tmp_path: Path, key: str, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message) as caught:
            plot_sample(str(hostile.archive), key, output=str(tmp_path / "a.png"))
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda f: f.assign_coords(latitude=f.latitude - 1), "latitude: the archive has 8 labels 60 to 56.5"),
            (lambda f: f.assign(t2m=f.t2m.assign_attrs(units="degC")), "the source in 'degC'"),
        ],
        ids=["elsewhere", "another unit"],
    )
    def test_another_source_is_refused_before_anything_is_drawn(
        self,
        archive_path: Path,
        fields: xarray.Dataset,
        tmp_path: Path,
        change: Callable[[xarray.Dataset], xarray.Dataset],
        message: str,
    ) -> None:
        other, output = tmp_path / "other.nc", tmp_path / "report.html"
        change(fields).to_netcdf(other)
        with pytest.raises(ConfigError, match=message):
            write_report(str(archive_path), str(output), [str(other)])
        with pytest.raises(ConfigError, match=message):
            plot_sample(str(archive_path), "time=2019-03-01T05", [str(other)], str(tmp_path / "a.png"))
        assert [path.name for path in tmp_path.iterdir()] == ["other.nc"]

    def test_without_matplotlib_it_says_what_to_install(
        self, archive_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        message = r"pip install 'vcinr-batch\[plot\]'"
        with pytest.raises(ConfigError, match=message):
            write_report(str(archive_path), str(tmp_path / "report.html"))
        with pytest.raises(ConfigError, match=message):
            plot_sample(str(archive_path), "time=2019-03-01T05", output=str(tmp_path / "a.png"))
        with pytest.raises(ConfigError, match=message), drawing():
            pass

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["inspect", "{archive}", "--plot", "time=2020"], "selects nothing"),
            (["inspect", "{archive}", "--against", "{source}"], "belong to --plot"),
            (["inspect", "{archive}", "{source}"], "unexpected argument"),
            (["inspect", "{archive}", "--plot", "time=2019-03-01T05", "--output", "a.jpg"], "ends with .png"),
            (["report", "{archive}", "--output", "page.txt"], "ends with .html"),
            (["report", "{archive}", "{source}", "--output", "a.html"], "unexpected argument"),
            (["report", "{folder}/none", "--output", "a.html"], "no archive at"),
            (["report", "{archive}", "--against", "{folder}/none.nc", "--output", "a.html"], "none.nc"),
            (["report", "{archive}", "--storage-options", "["], "--storage-options"),
        ],
    )
    def test_the_command_line_fails_in_one_line(
        self,
        archive_path: Path,
        source_path: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        arguments: list[str],
        message: str,
    ) -> None:
        monkeypatch.delenv(cli.TRACEBACK_VARIABLE, raising=False)
        monkeypatch.chdir(tmp_path)
        code = cli.run([a.format(archive=archive_path, source=source_path, folder=tmp_path) for a in arguments])
        printed = capsys.readouterr()
        assert (code, printed.out, printed.err.count("\n")) == (2, "", 1)
        assert message in printed.err
        assert list(tmp_path.iterdir()) == []


class TestCommands:
    def test_report_prints_where_the_page_is_and_does_not_replace_it(
        self, archive_path: Path, source_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = str(tmp_path / "report.html")
        assert cli.run(["report", str(archive_path), "--against", str(source_path), "--output", output]) == 0
        assert output in capsys.readouterr().out
        assert cli.run(["report", str(archive_path), "--output", output]) == 2
        assert "--overwrite" in capsys.readouterr().err
        assert cli.run(["report", str(archive_path), "--output", output, "--overwrite", "--json"]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (result["event"], result["samples"], result["measured_rmse"]) == ("done", 40, None)
        assert result["output_bytes"] == Path(output).stat().st_size

    def test_plot_prints_what_is_recorded_and_measured(
        self, archive_path: Path, source_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = str(tmp_path / "a.png")
        arguments = ["inspect", str(archive_path), "--plot", "time=2019-03-01T05", "--output", output]
        assert cli.run([*arguments, "--against", str(source_path)]) == 0
        printed = capsys.readouterr().out
        assert [line.split()[0] for line in printed.splitlines()] == ["picture", "sample", "recorded", "measured"]
        assert cli.run([*arguments, "--overwrite", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["key"], result["measured_rmse"]) == ("t2m[time=2019-03-01T05:00:00]", None)


def test_progress_names_its_stages_and_each_comes_to_its_end(written: Written) -> None:
    assert [stage for stage, done, total in written.progress if done == total] == ["read", "compare", "draw"]
    assert written.report.rejected == 2
