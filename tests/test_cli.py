"""The command line end to end: what is printed, where, and with which exit code."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from vcinr_batch import cli, console

ALL_HEAVY = ("torch", "ray", "numpy", "xarray", "pyarrow", "zarr", "fsspec", "vcinr_batch.config")


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """The last JSON line."""
        content: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return content


@pytest.fixture
def vcinr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    monkeypatch.delenv(cli.TRACEBACK_VARIABLE, raising=False)

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


Vcinr = Callable[..., Outcome]


@dataclass(frozen=True)
class Files:
    """What a command line can name; `folder` is the test's own."""

    source: Path
    config: Path
    bundle: Path
    archive: Path
    folder: Path


@pytest.fixture
def files(source_path: Path, config_path: Path, bundle_path: Path, archive_path: Path, tmp_path: Path) -> Files:
    return Files(source_path, config_path, bundle_path, archive_path, tmp_path)


class TestTrain:
    def test_it_prints_where_the_same_bundle_as_ever_lies_and_removes_its_checkpoint(
        self, vcinr: Vcinr, files: Files
    ) -> None:
        outcome = vcinr("train", files.config, files.source, "--output", files.folder / "new")
        assert (outcome.code, outcome.stderr) == (0, "")
        (bundle,) = (files.folder / "new").iterdir()
        assert bundle.name == files.bundle.name
        assert str(bundle) in outcome.stdout
        assert [line.split()[0] for line in outcome.stdout.splitlines()] == ["bundle", "size", "PSNR", "time"]

    def test_json_ends_with_the_result_and_options_change_the_config(
        self, vcinr: Vcinr, files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(console, "JSON_SECONDS", 0.0)
        select = ["--select", "time=2019-03-01", "--select", "latitude=60..58", "--variable", "t2m"]
        config = _config(files, files.config.read_text().replace("steps: 0", "steps: 2, validate_every: 1"))
        outcome = vcinr("train", config, files.source, "--output", files.folder / "new", *select, "--json")
        result = outcome.result
        assert outcome.code == 0
        assert (result["event"], result["report"]["samples"]) == ("done", 24)
        assert Path(result["bundle_url"]).stat().st_size == result["bundle_bytes"]
        assert result["validation_psnr_db"] > 30
        progress = [json.loads(line) for line in outcome.stdout.splitlines()[:-1]]
        assert {line["event"] for line in progress} == {"progress"}
        assert [line["done"] for line in progress if line["stage"] == "meta-learning"] == [1, 2]


class TestCompress:
    def test_it_prints_rate_and_distortion(self, vcinr: Vcinr, files: Files) -> None:
        output = files.folder / "archive"
        options = ["--bundle", files.bundle, "--output", output, "--quality", 2, "--workers", 0]
        outcome = vcinr("compress", files.source, *options)
        assert (outcome.code, outcome.stderr) == (0, "")
        for text in ("40 samples in 1 part, 0 rejected", "bits per value", "against float32", "dB", "level 2 (about"):
            assert text in outcome.stdout

    def test_json_has_the_figures_of_inspect(self, vcinr: Vcinr, files: Files) -> None:
        output = files.folder / "archive"
        options = ["--bundle", files.bundle.parent, "--output", output, "--target-psnr", 35, "--workers", 0]
        outcome = vcinr("compress", files.source, *options, "--shard-samples", 7, "--json")
        assert outcome.code == 0
        inspected = vcinr("inspect", output, "--json").result
        assert {key: value for key, value in outcome.result.items() if key in inspected} == inspected
        assert inspected["parts"] == 6
        progress = [json.loads(line) for line in outcome.stdout.splitlines()[:-1]]
        assert (progress[-1]["event"], progress[-1]["done"], progress[-1]["total"]) == ("progress", 40, 40)

    def test_rejected_samples_are_named_and_give_exit_1(
        self, vcinr: Vcinr, files: Files, fields: xarray.Dataset
    ) -> None:
        spoilt = fields.copy(deep=True)
        spoilt.t2m[3, 2, 5] = -np.inf
        spoilt.t2m[25] = np.nan
        source = files.folder / "spoilt.nc"
        spoilt.to_netcdf(source)
        output = files.folder / "archive"
        outcome = vcinr(
            "compress", source, "--bundle", files.bundle, "--output", output, "--quality", 2, "--workers", 0
        )
        assert outcome.code == 1
        assert "38 samples in 1 part, 2 rejected" in outcome.stdout
        assert "t2m[time=2019-03-01T03:00:00]: 1 infinite value" in outcome.stdout
        assert "t2m[time=2019-03-02T01:00:00]: no value at all" in outcome.stdout
        verified = vcinr("verify", output, "--against", source, "--json")
        assert (verified.code, verified.result["rejected"], verified.result["compared"]) == (0, 2, 40)
        restored = vcinr(
            "decompress", output, "--select", "time=2019-03-01T02..2019-03-01T03", "--output", files.folder / "o.nc"
        )
        assert (restored.code, "1 sample decoded, 1 were rejected" in restored.stdout) == (1, True)
        complete = vcinr(
            "decompress", output, "--select", "time=2019-03-01T02", "--output", files.folder / "p.nc", "--json"
        )
        assert (complete.code, complete.result["rejected"]) == (0, 0)

    def test_ctrl_c_is_one_line_and_leaves_no_manifest(
        self, vcinr: Vcinr, files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pipelines import compress as pipeline

        monkeypatch.setattr(pipeline, "commit_manifest", _raise(KeyboardInterrupt()))
        output = files.folder / "archive"
        outcome = vcinr(
            "compress", files.source, "--bundle", files.bundle, "--output", output, "--quality", 1, "--workers", 0
        )
        assert (outcome.code, outcome.stdout, outcome.stderr) == (130, "", "vcinr: interrupted\n")
        assert not (output / "manifest.json.gz").exists()


class TestDecompress:
    @pytest.mark.parametrize("suffix", ["nc", "zarr"])
    def test_one_hour_comes_back_within_its_recorded_error(
        self, vcinr: Vcinr, files: Files, fields: xarray.Dataset, suffix: str
    ) -> None:
        output = files.folder / f"hour.{suffix}"
        outcome = vcinr("decompress", files.archive, "--select", "time=2019-03-02T06", "--output", output)
        assert (outcome.code, outcome.stderr) == (0, "")
        with xarray.open_dataset(output, engine="zarr" if suffix == "zarr" else None, **_zarr_options(suffix)) as found:
            error = np.abs(found.t2m.values - fields.t2m.sel(time="2019-03-02T06").values).max()
        recorded = vcinr("inspect", files.archive, "--rows", 40, "--json").result["rows"][30]
        assert recorded["key"] == "t2m[time=2019-03-02T06:00:00]"
        assert error <= recorded["max_error"]

    def test_json_has_the_shape(self, vcinr: Vcinr, files: Files) -> None:
        options = ["--select", "time=2019-03-02", "--output", files.folder / "o.nc", "--json"]
        result = vcinr("decompress", files.archive, *options).result
        assert (result["shape"], result["samples"]) == ({"time": 16, "latitude": 8, "longitude": 12}, 16)


def _zarr_options(suffix: str) -> Mapping[str, Any]:
    return {"consolidated": False} if suffix == "zarr" else {}


class TestInspect:
    def test_an_archive_shows_layout_rate_and_rows(self, vcinr: Vcinr, files: Files) -> None:
        outcome = vcinr("inspect", files.archive, "--rows", 2)
        assert (outcome.code, outcome.stderr) == (0, "")
        assert "time 40 (2019-03-01T00:00:00 to 2019-03-02T15:00:00, blocks of 1)" in outcome.stdout
        assert "t2m [K] 2 m temperature" in outcome.stdout
        assert outcome.stdout.count("\nrow ") == 2

    def test_a_bundle_shows_its_sizes_and_report(self, vcinr: Vcinr, files: Files) -> None:
        outcome = vcinr("inspect", files.bundle)
        assert outcome.code == 0
        for text in (
            files.bundle.stem,
            "t2m [K]",
            "latent of 5",
            "levels 0 to 3, about ",
            "samples: 40",
        ):
            assert text in outcome.stdout
        result = vcinr("inspect", files.bundle, "--json").result
        assert (result["kind"], result["config"]["network"]["latent_dim"]) == ("bundle", 5)
        assert sum(result["array_bytes"].values()) == files.bundle.stat().st_size

    @pytest.mark.parametrize("name", ["archive", "bundle"])
    def test_it_imports_neither_torch_nor_ray(self, files: Files, name: str) -> None:
        assert _imported("inspect", getattr(files, name), names=("torch", "ray")) == []


class TestVerify:
    def test_a_whole_archive_is_good(self, vcinr: Vcinr, files: Files) -> None:
        outcome = vcinr("verify", files.archive)
        assert (outcome.code, outcome.stderr) == (0, "")
        assert "40 rows in 4 parts, 0 rejected" in outcome.stdout
        assert "none" in outcome.stdout

    @pytest.mark.parametrize("spelling", [["--against", "{}"], ["--against={}"]])
    def test_against_its_source_it_is_compared(self, vcinr: Vcinr, files: Files, spelling: list[str]) -> None:
        outcome = vcinr("verify", files.archive, *(text.format(files.source) for text in spelling))
        assert outcome.code == 0
        assert "40 samples" in outcome.stdout

    def test_several_sources_may_follow_as_a_shell_expands_them(
        self, vcinr: Vcinr, files: Files, fields: xarray.Dataset
    ) -> None:
        halves = [files.folder / "a.nc", files.folder / "b.nc"]
        for path, hours in zip(halves, (slice(0, 15), slice(15, 40)), strict=True):
            fields.isel(time=hours).to_netcdf(path)
        outcome = vcinr("verify", files.archive, "--against", *halves, "--json")
        assert (outcome.code, outcome.result["compared"], outcome.result["is_good"]) == (0, 40, True)

    def test_damage_is_listed_with_exit_1(self, vcinr: Vcinr, files: Files) -> None:
        archive = shutil.copytree(files.archive, files.folder / "damaged")
        (part,) = (archive / "parts").glob("t2m-00000002-*")
        part.unlink()
        outcome = vcinr("verify", archive)
        assert (outcome.code, outcome.stderr) == (1, "")
        assert part.name in outcome.stdout
        result = vcinr("verify", archive, "--json").result
        assert (result["is_good"], result["problem_count"]) == (False, len(result["problems"]))


def _compress(files: Files, *more: object, source: object = None, bundle: object = None) -> list[object]:
    request = [] if {"--quality", "--target-psnr"} & set(more) else ["--quality", 1]
    output = [] if "--output" in more else ["--output", files.folder / "new"]
    target = ["--bundle", bundle or files.bundle, *output, "--workers", 0]
    return ["compress", source or files.source, *target, *request, *more]


def _damaged_bundle(files: Files, change: Callable[[bytes], bytes], name: str = "") -> Path:
    path = files.folder / (name or files.bundle.name)
    path.write_bytes(change(files.bundle.read_bytes()))
    return path


def _in_the_way(files: Files) -> Path:
    path = files.folder / "file"
    path.write_text("x")
    return path


def _changed_source(files: Files, change: Callable[[xarray.Dataset], xarray.Dataset]) -> Path:
    path = files.folder / "changed.nc"
    with xarray.open_dataset(files.source) as dataset:
        change(dataset.load()).to_netcdf(path)
    return path


def _config(files: Files, text: str) -> Path:
    path = files.folder / "config.yaml"
    path.write_text(text)
    return path


def _nothing(dataset: xarray.Dataset) -> xarray.Dataset:
    return dataset.assign(t2m=dataset.t2m.where(False))


BAD_INPUT: dict[str, tuple[Callable[[Files], list[object]], str]] = {
    "missing source": (lambda f: _compress(f, source=f.folder / "no.nc"), "no.nc"),
    "not a source": (lambda f: _compress(f, source=f.config), "not a NetCDF, Zarr or GRIB file"),
    "missing config": (lambda f: ["train", f.folder / "no.yaml", f.source, "--output", f.folder], "no.yaml"),
    "missing bundle": (lambda f: _compress(f, bundle=f.folder / "no.safetensors"), "no.safetensors"),
    "no bundle in the directory": (lambda f: _compress(f, bundle=f.folder), "found 0"),
    "missing archive to inspect": (lambda f: ["inspect", f.folder / "no"], "neither an archive"),
    "missing archive to verify": (lambda f: ["verify", f.folder / "no"], "no archive at"),
    "missing archive to decompress": (
        lambda f: ["decompress", f.folder / "no", "--output", f.folder / "o.nc"],
        "no archive",
    ),
    "unknown variable": (lambda f: _compress(f, "--variable", "sst"), "sst"),
    "unknown variable in training": (
        lambda f: ["train", f.config, f.source, "--output", f.folder, "--variable", "sst"],
        "sst",
    ),
    "unknown config key": (
        lambda f: ["train", _config(f, "network: {depth: 3}"), f.source, "--output", f.folder],
        "unknown key 'network.depth'",
    ),
    "config out of range": (
        lambda f: ["train", _config(f, "network: {latent_dim: 0}"), f.source, "--output", f.folder],
        "network.latent_dim = 0",
    ),
    "bundle for another variable": (
        lambda f: _compress(f, "--variable", "d2m", source=_changed_source(f, lambda d: d.rename(t2m="d2m"))),
        "variable 't2m'",
    ),
    "bundle for another unit": (
        lambda f: _compress(f, source=_changed_source(f, lambda d: d.assign(t2m=d.t2m.assign_attrs(units="degC")))),
        "unit 'K'",
    ),
    "bundle for another grid": (
        lambda f: _compress(f, source=_changed_source(f, lambda d: d.assign_coords(latitude=d.latitude - 5))),
        "latitude",
    ),
    "empty output of train": (lambda f: ["train", f.config, f.source, "--output", ""], "output: expected a path"),
    "empty output of compress": (lambda f: _compress(f, "--output", ""), "output: expected a path"),
    "blank output of compress": (lambda f: _compress(f, "--output", " "), "output: expected a path"),
    "empty output of decompress": (lambda f: ["decompress", f.archive, "--output", ""], "output: expected a path"),
    "empty bundle": (lambda f: [*_compress(f), "--bundle", ""], "bundle: expected a path"),
    "empty source of train": (lambda f: ["train", f.config, "", "--output", f.folder], "source: expected a path"),
    "empty source of compress": (lambda f: ["compress", "", *_compress(f)[2:]], "source: expected a path"),
    "empty archive to inspect": (lambda _: ["inspect", ""], "expected a path"),
    "empty archive to verify": (lambda _: ["verify", ""], "expected a path"),
    "empty archive to decompress": (
        lambda f: ["decompress", "", "--output", f.folder / "o.nc"],
        "archive: expected a path",
    ),
    "truncated bundle": (lambda f: _compress(f, bundle=_damaged_bundle(f, lambda data: data[:-10])), "truncated"),
    "edited bundle": (
        lambda f: _compress(f, bundle=_damaged_bundle(f, lambda data: data[:-1] + bytes([data[-1] ^ 1]))),
        "edited",
    ),
    "renamed bundle": (
        lambda f: _compress(f, bundle=_damaged_bundle(f, lambda data: data, "best.safetensors")),
        "renamed",
    ),
    "archive that exists": (lambda f: _compress(f, "--output", f.archive), "--overwrite"),
    "variable without any value": (
        lambda f: _compress(f, source=_changed_source(f, _nothing)),
        "all 40 samples were rejected",
    ),
    "training on a variable without any value": (
        lambda f: ["train", f.config, _changed_source(f, _nothing), "--output", f.folder],
        "no usable",
    ),
    "selection that selects nothing": (lambda f: _compress(f, "--select", "time=2020-01-01"), "2020-01-01"),
    "selection in training that selects nothing": (
        lambda f: ["train", f.config, f.source, "--output", f.folder, "--select", "time=2020"],
        "2020",
    ),
    "selection in decompress that selects nothing": (
        lambda f: ["decompress", f.archive, "--select", "time=2020", "--output", f.folder / "o.nc"],
        "2020",
    ),
    "selection of an unknown dimension": (lambda f: _compress(f, "--select", "level=850"), "level"),
    "selection without a label": (lambda f: _compress(f, "--select", "time"), "DIM=LABEL"),
    "selection with an empty label": (lambda f: _compress(f, "--select", "time="), "DIM=LABEL"),
    "selection that is no time": (lambda f: _compress(f, "--select", "time=soon"), "soon"),
    "dimension selected twice": (
        lambda f: _compress(f, "--select", "time=2019-03-01", "--select", "time=2019-03-02"),
        "selected twice",
    ),
    "unknown quality level": (lambda f: _compress(f, "--quality", 4), "levels 0 to 3"),
    "neither quality nor target": (lambda f: _compress(f)[:-2], "quality"),
    "quality and target": (lambda f: _compress(f, "--quality", 1, "--target-psnr", 40), "quality"),
    "workers below zero": (lambda f: _compress(f, "--workers", -3), "workers must be 0 or more, got -3\n"),
    "shards of nothing": (lambda f: _compress(f, "--shard-samples", 0), "shard_samples must be 1 or more, got 0\n"),
    "output that is no place for an archive": (
        lambda f: _compress(f, "--output", _in_the_way(f) / "archive"),
        "cannot write",
    ),
    "output that is no place for a bundle": (
        lambda f: ["train", f.config, f.source, "--output", _in_the_way(f) / "bundles"],
        "cannot write",
    ),
    "output that is no place for a file": (
        lambda f: ["decompress", f.archive, "--output", _in_the_way(f) / "o.nc"],
        "cannot write",
    ),
    "output of another kind": (lambda f: ["decompress", f.archive, "--output", f.folder / "o.tif"], ".nc or .zarr"),
    "output that is there": (
        lambda f: ["decompress", f.archive, "--output", f.source.with_suffix(".nc")],
        "--overwrite",
    ),
    "storage options that are no JSON": (lambda f: ["inspect", f.archive, "--storage-options", "{secret"], "not JSON"),
    "storage options that are no object": (lambda f: ["inspect", f.archive, "--storage-options", "[1]"], "JSON object"),
    "sources without --against": (lambda f: ["verify", f.archive, f.source], "--against"),
    "unknown command": (lambda _: ["shrink"], "shrink"),
    "unknown option": (lambda f: _compress(f, "--fast"), "--fast"),
    "missing option": (lambda f: ["compress", f.source], "--bundle"),
    "number that is none": (lambda f: _compress(f, "--quality", "best"), "--quality"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_clear_line_and_exit_2(vcinr: Vcinr, files: Files, case: str) -> None:
    arguments, expected = BAD_INPUT[case]
    outcome = vcinr(*arguments(files))
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("vcinr: ")
    assert outcome.stderr.count("\n") == 1
    assert expected in outcome.stderr
    assert "secret" not in outcome.stderr
    assert not (files.folder / "new" / "manifest.json.gz").exists()


def _raise(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_defect_is_one_line_that_tells_how_to_see_more(
    vcinr: Vcinr, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vcinr_batch import inspection

    monkeypatch.setattr(inspection, "inspect_url", _raise(ZeroDivisionError("by\nzero")))
    outcome = vcinr("inspect", files.archive)
    expected = "vcinr: unexpected ZeroDivisionError: by zero; set VCINR_TRACEBACK=1 for the traceback\n"
    assert (outcome.code, outcome.stdout, outcome.stderr) == (70, "", expected)


@pytest.mark.parametrize("arguments", [["inspect", "no-such-archive"], ["verify", "no-such-archive"]])
def test_the_traceback_is_there_for_those_who_ask(
    vcinr: Vcinr, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    from vcinr_batch.errors import SourceError

    monkeypatch.setenv(cli.TRACEBACK_VARIABLE, "1")
    with pytest.raises(SourceError):
        vcinr(*arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["compress", "--help"], []])
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    assert _imported(*arguments, names=ALL_HEAVY) == []


def test_the_version_is_the_package_s(vcinr: Vcinr) -> None:
    from vcinr_batch import __version__

    assert vcinr("--version") == Outcome(0, f"vcinr-batch {__version__}\n", "")


def test_the_installed_command_keeps_to_its_exit_code_and_one_line(files: Files) -> None:
    command = [sys.executable, "-c", "from vcinr_batch.cli import main; main()", "inspect", str(files.folder)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("vcinr: neither an archive")
    assert finished.stderr.count("\n") == 1


def _imported(*arguments: object, names: tuple[str, ...]) -> list[str]:
    """Which of these packages a command line imports, in a process of its own."""
    code = (
        "import json, sys\n"
        "from vcinr_batch.cli import run\n"
        f"assert run({[str(argument) for argument in arguments]!r}) == 0\n"
        f"print(json.dumps([name for name in {names!r} if name in sys.modules]), file=sys.stderr)\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(finished.stderr)
    return found
