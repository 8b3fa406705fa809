"""`make demo` and `make bench`, on a network that is small enough for a test."""

import json
import sys
from pathlib import Path

import pytest
import xarray

from pipelines import benchmark, demo

TINY = """
source: {variable: t2m, select: {time: "2019-01-01..2019-01-20"}}
normalizer: {background: climatology, hours: 4, seasons: 1}
network: {modulation: none, linear_term: eof, latent_dim: 16}
meta_learning: {steps: 0}
codec: {steps: 5, quality_psnr_db: [10, 20, 30]}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


def test_the_demo_runs_the_main_job_and_draws_it(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "DAYS", 380)
    monkeypatch.setattr(demo, "ONE_FIELD", "2020-01-02T06")
    output = tmp_path / "demo"
    monkeypatch.setattr(sys, "argv", ["demo", "--config", config, "--output", str(output), "--workers", "0"])
    assert demo.main() == 0
    printed = capsys.readouterr().out
    assert "60 held-out fields of 2109 values" in printed  # 15 days of 4 fields, 37 x 57
    assert "verified against the source" in printed
    assert (output / "selection.png").read_bytes().startswith(b"\x89PNG")
    with xarray.open_dataset(output / "selection.nc") as field:
        assert field["t2m"].shape == (1, 37, 57)


def test_a_demo_without_its_configuration_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", "--config", str(tmp_path / "no.yaml"), "--output", str(tmp_path)])
    assert demo.main() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_benchmark_times_every_stage(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "REPEATS", 1)
    arguments = ["benchmark", "--config", config, "--output", str(tmp_path / "bench"), "--workers", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert benchmark.main() == 0
    timings = json.loads((tmp_path / "bench" / "benchmark.json").read_text())["timings"]
    assert [timing["samples"] for timing in timings] == [80, 80, 80, 80, 80, 1, 80]  # 10 days of 8 fields
    assert all(timing["seconds"] > 0 for timing in timings)
    assert capsys.readouterr().out.count("\n") == 2 + len(timings)
