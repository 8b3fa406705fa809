"""The codecs that ours is compared with: bytes that decode, bounds that hold, and searches that find."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.baseline_codecs import FieldCodec, library_codecs
from pipelines.eof_baseline import eof_codec
from pipelines.heldout_samples import HeldOut, fill_smoothly
from pipelines.operating_points import bounded_point, measure, point_of, search_psnr
from vcinr_batch.errors import ConfigError
from vcinr_batch.training.training_samples import TrainingSamples

RANGE = 20.0
NAMES = ("SPERR", "SZ3", "ZFP", "JPEG2000", "quantise + pcodec")


def make_held_out(shape: tuple[int, ...], count: int = 3, seed: int = 0) -> HeldOut:
    """Rough fields around 280, which differ from sample to sample."""
    rng = np.random.default_rng(seed)
    waves = np.sin(np.arange(np.prod(shape)).reshape(shape) / 9.0)
    values = 280 + waves * rng.uniform(2, 9, (count, *[1] * len(shape))) + 0.3 * rng.standard_normal((count, *shape))
    background = np.broadcast_to(280 + waves, (count, *shape))
    return HeldOut(
        blocks=tuple((i,) for i in range(count)),
        values=values.astype(np.float32),
        masks=np.ones((count, *shape), bool),
        anomalies=(values - background).astype(np.float32),
        background=background.astype(np.float32),
        scale=np.full(count, 2.0, np.float32),
        value_range=np.full(count, RANGE),
    )


def all_codecs() -> list[FieldCodec]:
    return [codec for make in library_codecs(RANGE).values() for codec in make()]


def make_training(count: int, points: int, seed: int = 1) -> TrainingSamples:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((points, points)) / np.arange(1, points + 1)
    normalized = (rng.standard_normal((count, points)) @ mixing.T).astype(np.float32)[..., None]
    validation = np.arange(count) >= count - max(count // 5, 1)
    return TrainingSamples(normalized, np.ones(points, bool), validation, RANGE / 2)


@pytest.mark.parametrize("shape", [(17, 23), (5, 17, 23)], ids=["plane", "block of hours"])
@pytest.mark.parametrize("share", [0.05, 0.001])
def test_every_codec_keeps_an_error_bound_by_itself_or_by_bisection(shape: tuple[int, ...], share: float) -> None:
    held_out = make_held_out(shape)
    for codec in all_codecs():
        point = bounded_point(codec, held_out, share)
        assert point.beyond_bound == 0, codec.name
        assert point.max_error <= share * RANGE, codec.name
        wasted = 16 if codec.name == "ZFP" else 3  # ZFP keeps far below its tolerance
        assert point.max_error > share * RANGE / wasted, codec.name


def test_every_codec_codes_a_field_that_does_not_vary() -> None:
    varied = make_held_out((17, 23))
    held_out = replace(varied, values=np.full_like(varied.values, 280.0), anomalies=280 - varied.background)
    for codec in all_codecs():
        assert bounded_point(codec, held_out, 0.01).beyond_bound == 0, codec.name


def test_a_search_comes_close_to_every_target_psnr() -> None:
    held_out = make_held_out((33, 49))
    for codec in all_codecs():
        points = search_psnr(lambda p, codec=codec: point_of(codec, held_out, p), (35.0, 50.0), codec.ends, False)
        for target in (35.0, 50.0):
            nearest = min(abs(point.psnr_db - target) for point in points)
            assert nearest < (4.0 if codec.name == "ZFP" else 0.5), f"{codec.name} at {target}"
            assert points[0].psnr_db <= target <= points[-1].psnr_db, codec.name


def test_a_search_over_levels_finds_the_two_neighbours_of_a_target() -> None:
    made: list[float] = []

    def point_at(level: float) -> Any:
        made.append(level)
        codec = all_codecs()[0]
        return replace(point_of(codec, make_held_out((8, 8)), 2.0), parameter=level, psnr_db=20.0 + 1.7 * level)

    points = search_psnr(point_at, (35.0,), (0.0, 40.0), True)
    levels = [point.parameter for point in points]
    assert {8.0, 9.0} <= set(levels)  # 33.6 and 35.3 dB
    assert len(made) == len(set(made)) < 12


def test_values_outside_the_mask_do_not_count() -> None:
    held_out = make_held_out((6, 7))
    masks = held_out.masks.copy()
    masks[:, 2, 3] = False
    held_out = replace(held_out, masks=masks)
    decoded = held_out.values + np.float32(0.5)
    decoded[:, 2, 3] = np.nan
    found = measure(held_out, decoded, 0.01)
    assert found["values"] == 3 * 41
    assert found["rmse"] == pytest.approx(0.5, rel=1e-4)
    assert found["psnr_db"] == pytest.approx(20 * np.log10(RANGE / 0.5), abs=1e-3)
    assert found["beyond_bound"] == 3 * 41
    assert found["samples_beyond_bound"] == 3


def test_a_value_that_decodes_to_no_number_is_beyond_every_bound() -> None:
    held_out = make_held_out((6, 7))
    decoded = held_out.values.copy()
    decoded[1, 0, 0] = np.nan
    assert measure(held_out, decoded, 0.01)["beyond_bound"] == 1


def test_missing_values_are_filled_smoothly_and_others_stay() -> None:
    y, x = np.mgrid[0:20, 0:30]
    fields = np.stack([y + 0.5 * x, 3.0 * x]).astype(np.float32)
    masks = np.ones(fields.shape, bool)
    masks[:, 5:12, 8:20] = False
    filled = fill_smoothly(np.where(masks, fields, np.float32(1e6)), masks)
    assert np.array_equal(filled[masks], fields[masks])
    assert np.abs(filled - fields).max() < 4.0  # zeros would be off by 30
    assert np.abs(np.diff(filled, axis=2)).max() < 9.0


def test_a_plane_without_values_is_filled_with_the_mean_of_its_sample() -> None:
    fields = np.zeros((1, 2, 4, 5), np.float32)
    masks = np.zeros(fields.shape, bool)
    fields[0, 0], masks[0, 0] = 7.0, True
    assert np.all(fill_smoothly(fields, masks) == 7.0)


@pytest.mark.parametrize("count", [12, 200], ids=["fewer samples than points", "more samples than points"])
def test_eofs_reach_every_bound_and_their_bytes_alone_give_the_values_back(count: int) -> None:
    codec = eof_codec(make_training(count, 48))
    held_out = make_held_out((6, 8), count=4)
    point = bounded_point(codec, held_out, 0.001)
    assert point.beyond_bound == 0
    levels = np.array([3.0, 20.0, 20.0, 40.0])
    payloads = codec.encode(held_out, levels)
    assert [payload[0] for payload in payloads] == [3, 20, 20, 40]
    nothing = np.zeros_like(held_out.values)
    blank = replace(held_out, values=nothing, anomalies=nothing)
    error = np.abs(codec.decode(blank, payloads, levels) - held_out.values).reshape(4, -1).max(axis=1)
    assert error[3] < error[1] < error[0]


def test_a_finer_level_of_the_eofs_costs_more_and_loses_less() -> None:
    codec = eof_codec(make_training(200, 48))
    held_out = make_held_out((6, 8))
    coarse, fine = (point_of(codec, held_out, level) for level in (8.0, 30.0))
    assert coarse.total_bytes < fine.total_bytes
    assert coarse.psnr_db + 25 < fine.psnr_db


@pytest.mark.parametrize("name", NAMES)
def test_a_library_that_is_not_installed_is_an_error_that_names_the_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str) -> Any:
        raise ImportError(module)

    monkeypatch.setattr(importlib, "import_module", missing)
    make: Callable[[], Any] = library_codecs(RANGE)[name]
    with pytest.raises(ConfigError, match=r"is not installed: pip install 'vcinr-batch\[baselines\]'"):
        make()
