"""Summaries: numbers worked out by hand; whole archives and bundles are shown in test_cli.py."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from vcinr_batch.inspection import inspect_archive
from vcinr_batch.metrics import RateDistortion
from vcinr_batch.summary_text import archive_pairs, nested_lines, quality_text, rate_json, rate_pairs, request_text

# 1000 values of 16 bits in 250 bytes: 2 bits per value, with the bundle of 750 bytes 8.
RATE = RateDistortion(
    samples=10,
    values=1000,
    archive_bytes=250,
    bundle_bytes=750,
    rmse=0.5,
    max_error=2.0,
    mean_psnr_db=40.0,
    source_bits=16,
)


def test_the_rate_is_shown_with_and_without_the_bundle_and_against_both_sources() -> None:
    lines = dict(rate_pairs(RATE, "K", 38.5))
    assert lines["rate"] == "2 bits per value, 8 with the bundle"
    assert lines["ratio"] == "8 : 1 against the source (16 bits per value), 16 : 1 against float32"
    assert lines[""] == "with the bundle 2 : 1 and 4 : 1"
    assert lines["PSNR"].startswith("40.00 dB, mean over samples; lowest 38.50 dB")
    assert lines["error"] == "RMSE 0.5 K, at most 2 K"
    assert rate_json(RATE)["ratio_to_source"] == 8.0


def test_a_few_qualities_are_spelt_out() -> None:
    text = quality_text({0: 1, 1: 2, 9: 3}, [30.25, 40.0])
    assert text == "level 0 (about 30.2 dB): 1 sample, level 1 (about 40 dB): 2 samples, level 9 (unknown): 3 samples"


@pytest.mark.parametrize(
    ("request_", "lowest", "text"),
    [
        ({"quality": 7}, 30.0, "quality level 7"),
        ({"target_psnr": 40.0}, 39.95, "PSNR 40 dB"),
        ({"target_psnr": 40.0}, 39.5, "PSNR 40 dB; out of reach for some samples"),
        ({}, 30.0, "quality level unknown"),
    ],
)
def test_a_target_that_was_missed_is_said_so(request_: dict[str, float], lowest: float, text: str) -> None:
    assert request_text(request_, lowest) == text


def test_many_qualities_are_a_range() -> None:
    text = quality_text({2: 1, 3: 5, 4: 9, 6: 2, 7: 1}, [float(10 * level) for level in range(8)])
    assert text == "5 levels from 2 (about 20 dB) to 7 (about 70 dB), most often 4 (about 40 dB): 9 samples"


def test_a_nested_report_becomes_one_line_for_each_leaf() -> None:
    report = {
        "codec": {"dim": 5, "levels": [{"psnr": 33.512345, "step": 2}, {"psnr": 40.0}]},
        "samples": 40,
        "none": [],
    }
    assert nested_lines(report) == [
        "codec dim: 5",
        "codec levels 0: psnr 33.51, step 2",
        "codec levels 1: psnr 40",
        "samples: 40",
    ]


def test_a_name_that_is_no_text_is_shown_as_it_is(archive_path: Path) -> None:
    summary = inspect_archive(str(archive_path))
    manifest = dataclasses.replace(summary.manifest, attributes={"long_name": np.array([1, 2], np.int16)})
    pairs = dict(archive_pairs(dataclasses.replace(summary, manifest=manifest)))
    assert pairs["variable"] == "t2m [K] [1 2]"
