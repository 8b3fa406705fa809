"""`vcinr evaluate` on a tiny source: figures against archives made by hand, and inputs that make no sense."""

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from pipelines.compress import CompressJob, compress
from pipelines.evaluate import EvaluateJob, EvaluateReport, evaluate
from pipelines.evaluate_page import result_page
from pipelines.evaluate_results import OURS
from tests.conftest import TINY_HEIGHT, TINY_WIDTH, make_fields
from vcinr_batch import cli
from vcinr_batch.archive.archive import Archive
from vcinr_batch.bundle import load_bundle
from vcinr_batch.compression import QualityRequest
from vcinr_batch.errors import ArchiveExistsError, BundleMismatchError, ConfigError, SourceError

BASELINES = [
    "EOF",
    "localised EOF",
    "SPERR",
    "SPERR on anomalies",
    "SZ3",
    "ZFP",
    "JPEG2000",
    "quantise + pcodec",
]


@pytest.fixture(scope="module")
def held_out_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight hours that nothing was trained on; the third has no value at all."""
    fields = make_fields(8, "2019-03-05", seed=5)
    fields.t2m[2] = np.nan
    path = tmp_path_factory.mktemp("heldout") / "heldout.nc"
    fields.to_netcdf(path)
    return path


def make_job(
    held_out: Path, bundle: Path, output: Path, train_source: Path | None = None, **changes: Any
) -> EvaluateJob:
    sources = () if train_source is None else (str(train_source),)
    few: dict[str, Any] = {"targets_db": (40.0,), "bound_shares": (0.01,), **changes}
    return EvaluateJob((str(held_out),), str(bundle), str(output), train_sources=sources, **few)


@pytest.fixture(scope="module")
def evaluated(
    held_out_path: Path, bundle_path: Path, source_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> EvaluateReport:
    output = tmp_path_factory.mktemp("results") / "out"
    some: dict[str, Any] = {"targets_db": (35.0, 40.0), "bound_shares": (0.05, 0.005)}
    return evaluate(make_job(held_out_path, bundle_path, output, source_path, **some))


def content_of(report: EvaluateReport) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path(report.files[0]).read_text())
    return loaded


def test_all_codecs_are_measured_on_all_usable_samples(evaluated: EvaluateReport) -> None:
    content = content_of(evaluated)
    assert [codec["name"] for codec in content["codecs"]] == [OURS, *BASELINES]
    assert content["samples"]["count"] == 7
    assert content["samples"]["rejected"] == 1
    assert content["samples"]["values"] == 7 * TINY_HEIGHT * TINY_WIDTH
    assert content["samples"]["training"] == 40
    assert all(content["bits_at_psnr"]["40"][name] > 0 for name in [OURS, *BASELINES])
    assert [Path(name).name for name in evaluated.files] == ["results.json", "results.md", "psnr.png", "bounds.png"]


def test_our_figures_are_those_of_an_archive_that_compress_makes(
    evaluated: EvaluateReport, held_out_path: Path, bundle_path: Path, tmp_path: Path
) -> None:
    ours = content_of(evaluated)["codecs"][0]
    point = ours["points"][1]
    request = QualityRequest(level=int(point["parameter"]))
    job = CompressJob((str(held_out_path),), str(bundle_path), str(tmp_path / "a"), request)
    rate = compress(job).summary.rate
    assert point["total_bytes"] == rate.archive_bytes
    assert point["payload_bytes"] + point["row_bytes"] + point["manifest_bytes"] == rate.archive_bytes
    decoded = Archive.open(str(tmp_path / "a")).to_xarray().t2m
    error = (decoded - xarray.open_dataset(held_out_path).t2m).values.astype(np.float64)[[0, 1, 3, 4, 5, 6, 7]]
    assert point["max_error"] == pytest.approx(np.abs(error).max(), rel=1e-6)
    assert point["rmse"] == pytest.approx(np.sqrt(np.square(error).mean()), rel=1e-6)
    value_range = float(load_bundle(str(bundle_path)).normalizer.value_range.max())
    psnr = 20 * np.log10(value_range / np.sqrt(np.square(error).mean(axis=(1, 2))))
    assert point["psnr_db"] == pytest.approx(psnr.mean(), rel=1e-6)


def test_no_value_of_a_bounded_code_is_beyond_its_bound(evaluated: EvaluateReport) -> None:
    codecs = [codec for codec in content_of(evaluated)["codecs"] if codec["bounded"]]
    assert {codec["name"] for codec in codecs} >= set(BASELINES)
    for codec in codecs:
        assert [point["bound_share"] for point in codec["bounded"]] == [0.05, 0.005]
        assert all(point["beyond_bound"] == 0 for point in codec["bounded"]), codec["name"]


def test_ours_has_figures_at_every_bound(evaluated: EvaluateReport) -> None:
    content = content_of(evaluated)
    assert content["codecs"][0]["name"] == OURS
    assert len(content["codecs"][0]["bounded"]) == 2
    assert content["left_out"] == {}


def test_the_page_has_a_row_for_every_codec_in_every_table(evaluated: EvaluateReport) -> None:
    page = Path(evaluated.files[1]).read_text()
    assert all(page.count(f"\n| {name} |") == 4 for name in [OURS, *BASELINES])
    assert "7 held-out samples, each of 8 x 12 values" in page
    assert "1 samples were rejected" in page


def test_texts_of_a_file_are_no_markup_on_the_page(evaluated: EvaluateReport) -> None:
    evaluated.results.left_out["a codec"] = "<script>|alert(1)|</script>\n# heading"
    page = result_page(evaluated.results)
    del evaluated.results.left_out["a codec"]
    assert "- a codec: script alert(1) /script # heading\n" in page


def test_a_library_that_is_missing_leaves_its_codec_out_and_the_others_go_on(
    held_out_path: Path, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, notices = importlib.import_module, list[str]()

    def find(name: str, package: str | None = None) -> Any:
        if name == "pysz":
            raise ImportError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", find)
    report = evaluate(make_job(held_out_path, bundle_path, tmp_path / "out"), notice=notices.append)
    assert report.results.left_out["SZ3"] == "pysz is not installed: pip install 'vcinr-batch[baselines]'"
    assert report.results.left_out["EOF"] == "it learns: give --train-select or --train-source"
    assert "SZ3 is left out: pysz is not installed: pip install 'vcinr-batch[baselines]'" in notices
    assert report.results.codec("quantise + pcodec") is not None


def test_without_matplotlib_there_are_results_but_no_plots(
    evaluated: EvaluateReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import evaluate as module

    def refuse(_: object) -> dict[str, bytes]:
        raise ConfigError("drawing needs matplotlib: pip install 'vcinr-batch[plot]'")

    monkeypatch.setattr(module, "draw_figures", refuse)
    notices = list[str]()
    job = EvaluateJob(("a.nc",), "b", str(tmp_path / "out"))
    files = module._write(job, evaluated.results, notices.append)
    assert [Path(name).name for name in files] == ["results.json", "results.md"]
    assert notices == ["no plots: drawing needs matplotlib: pip install 'vcinr-batch[plot]'"]


def test_training_samples_that_are_evaluated_are_refused(source_path: Path, bundle_path: Path, tmp_path: Path) -> None:
    select = {"time": "2019-03-02T00..2019-03-02T05"}
    job = make_job(source_path, bundle_path, tmp_path / "out", select=select, train_select={"time": "2019-03"})
    with pytest.raises(
        ConfigError, match=r"^6 of the 6 samples .* t2m\[time=2019-03-02T00:00:00\], are among the train"
    ):
        evaluate(job)
    assert not (tmp_path / "out").exists()


def test_results_that_are_there_are_not_replaced_unless_asked(
    evaluated: EvaluateReport, held_out_path: Path, bundle_path: Path
) -> None:
    folder = Path(evaluated.files[0]).parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ArchiveExistsError, match=r"results\.json is there already; pass --overwrite"):
        evaluate(make_job(held_out_path, bundle_path, folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_bundle_for_another_grid_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    make_fields(4).isel(latitude=slice(0, 5)).to_netcdf(tmp_path / "other.nc")
    with pytest.raises(BundleMismatchError, match="the bundle is for latitude"):
        evaluate(make_job(tmp_path / "other.nc", bundle_path, tmp_path / "out"))


def test_a_source_without_one_usable_sample_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    fields = make_fields(3)
    fields.t2m[:] = np.nan
    fields.to_netcdf(tmp_path / "empty.nc")
    with pytest.raises(
        SourceError, match=r"t2m: all 3 samples would be rejected, the first is t2m\[.*: no value at all"
    ):
        evaluate(make_job(tmp_path / "empty.nc", bundle_path, tmp_path / "out"))


def test_training_data_without_a_usable_sample_is_refused(
    held_out_path: Path, bundle_path: Path, tmp_path: Path
) -> None:
    fields = make_fields(3)
    fields.t2m[:] = np.nan
    fields.to_netcdf(tmp_path / "empty.nc")
    with pytest.raises(SourceError, match="training needs at least 2 usable samples, found 0"):
        evaluate(make_job(held_out_path, bundle_path, tmp_path / "out", tmp_path / "empty.nc"))


def test_the_page_says_how_many_samples_were_taken_of_how_many(
    source_path: Path, bundle_path: Path, tmp_path: Path
) -> None:
    report = evaluate(make_job(source_path, bundle_path, tmp_path / "out", max_samples=4))
    assert report.results.samples == 4
    assert "4 held-out samples, evenly spread among 40, each" in result_page(report.results)


def test_the_command_prints_a_table_and_where_the_results_are(
    held_out_path: Path, bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(held_out_path), "--bundle", str(bundle_path), "--output", str(tmp_path / "out")]
    assert cli.run(arguments) == 0
    shown = capsys.readouterr()
    assert "SPERR on anomalies" in shown.out
    assert "results.json" in shown.out
    assert "vcinr: EOF is left out: it learns: give --train-select or --train-source\n" in shown.err


def test_the_last_line_for_machines_has_the_figures(
    evaluated: EvaluateReport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def done(_job: EvaluateJob, _progress: Any, notice: Callable[[str], None]) -> EvaluateReport:
        notice("SZ3 is left out")
        return evaluated

    monkeypatch.setattr("pipelines.evaluate.evaluate", done)
    assert cli.run(["evaluate", "a.nc", "--bundle", "b", "--output", "out", "--json"]) == 0
    first, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == {"event": "notice", "message": "SZ3 is left out"}
    assert last["event"] == "done"
    assert last["bits_at_psnr"]["40"][OURS] == content_of(evaluated)["bits_at_psnr"]["40"][OURS]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--train-select", "time"], "--train-select 'time': expected DIM=LABEL"),
        (["--select", "level=850"], "no dimension 'level'"),
        (["--max-samples", "0"], "Invalid value for .--max-samples.: "),
        (["--variable", "sst"], "sst"),
    ],
)
def test_options_that_make_no_sense_are_one_line_and_exit_code_two(
    changes: list[str],
    message: str,
    held_out_path: Path,
    bundle_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = cli.run(
        ["evaluate", str(held_out_path), "--bundle", str(bundle_path), "--output", str(tmp_path / "out"), *changes]
    )
    assert code == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
