import json
import math
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vcinr_batch.codec.entropy_model import ideal_bits
from vcinr_batch.codec.latent_codec import LatentCodec
from vcinr_batch.config import CodecConfig
from vcinr_batch.errors import ConfigError, FittingError
from vcinr_batch.training.codec_training import quality_steps, train_codec

LEVELS = (20.0, 26.0, 32.0)


def correlated_gaussian(count: int, seed: int) -> NDArray[np.float32]:
    mixing = np.random.default_rng(99).normal(size=(6, 6)) * np.geomspace(3, 0.1, 6)[:, None]
    return (np.random.default_rng(seed).normal(size=(count, 6)) @ mixing + 1).astype(np.float32)


def curved(count: int, seed: int) -> NDArray[np.float32]:
    """Four latents on a curved surface of two dimensions, which no linear transform flattens."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, count))
    noise = 0.02 * rng.normal(size=(2, count))
    return np.stack([a, b, (a**2 - 1) / 2 + noise[0], a * b / 2 + noise[1]], 1).astype(np.float32)


def config(**changes: object) -> CodecConfig:
    return CodecConfig.model_validate({"quality_psnr_db": LEVELS, "steps": 150, "learning_rate": 5e-3} | changes)


def lagrangian(codec: LatentCodec, latents: NDArray[np.float32], quality: int) -> float:
    """Rate and error of latents under the unit metric, in bits."""
    symbols = codec.symbols(latents, quality)
    error = ((latents - codec.latents_of(symbols, quality)) ** 2).sum(1).mean()
    bits = ideal_bits(codec.tables, quality, symbols).mean()
    return float(bits + 6 / math.log(2) * error / codec.tables.steps[quality] ** 2)


@pytest.fixture(scope="module")
def trained() -> LatentCodec:
    train, validation = correlated_gaussian(600, 0), correlated_gaussian(150, 1)
    codec, _ = train_codec(train, validation, np.eye(6), 6, 4.0, config())
    return codec


def test_held_out_rate_is_close_to_the_entropy_of_the_source(trained: LatentCodec) -> None:
    # At high rate a Gaussian of covariance C, rotated by its KLT, costs sum of log2(sigma sqrt(2 pi e) / step) bits.
    mixing = np.random.default_rng(99).normal(size=(6, 6)) * np.geomspace(3, 0.1, 6)[:, None]
    step = float(trained.tables.steps[2])
    entropy = 0.5 * np.linalg.slogdet(mixing.T @ mixing)[1] / math.log(2)
    entropy += 6 * math.log2(math.sqrt(2 * math.pi * math.e) / step)
    latents = correlated_gaussian(2000, 2)
    bits = ideal_bits(trained.tables, 2, trained.symbols(latents, 2, rate_weight=0)).mean()
    assert step < 0.5
    # Two deviations are smaller than the step, hence cost more than the formula; the tables are learned from 750.
    assert entropy - 0.5 < bits < entropy + 2.5
    payload_bits = 8 * np.mean([len(p) for p in trained.encode(latents, 2, rate_weight=0)])
    assert payload_bits - bits < 8


def test_training_is_reproducible() -> None:
    train, validation = correlated_gaussian(100, 0), correlated_gaussian(30, 1)
    results = [
        train_codec(
            train, validation, np.eye(6), 6, 4.0, config(transform="residual_mlp", hidden_dim=4, steps=30), seed=3
        )
        for _ in range(2)
    ]
    first, second = (codec.to_arrays() for codec, _ in results)
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    assert results[0][1] == results[1][1]


def test_training_leaves_the_callers_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_codec(correlated_gaussian(40, 0), correlated_gaussian(10, 1), np.eye(6), 6, 4.0, config(steps=2))
    assert torch.equal(torch.rand(3), expected)


def test_the_report_is_json_and_improves_with_the_level() -> None:
    train, validation = correlated_gaussian(100, 0), correlated_gaussian(30, 1)
    _, report = train_codec(train, validation, np.eye(6), 6, 4.0, config(steps=30))
    restored = json.loads(json.dumps(report))
    assert restored["code_dim"] == 6
    assert [level["step"] for level in restored["levels"]] == pytest.approx(quality_steps(config(), 4.0).tolist())
    bits, psnr = ([level[key] for level in restored["levels"]] for key in ("bits_per_value", "psnr_db"))
    assert bits == sorted(bits)
    assert psnr == sorted(psnr)
    # Every dimension matters at the finest level, and the choice of symbols gives little of the nominal PSNR away.
    assert psnr[-1] == pytest.approx(LEVELS[-1], abs=1.5)


def test_steps_follow_from_the_nominal_psnr() -> None:
    # 20 dB: the error's deviation, step / sqrt(12), is a tenth of the range; 40 dB: a hundredth.
    steps = quality_steps(config(quality_psnr_db=(20.0, 40.0)), 3.0)
    np.testing.assert_allclose(steps, [0.3 * math.sqrt(12), 0.03 * math.sqrt(12)])


def test_correlations_of_many_samples_are_used(trained: LatentCodec) -> None:
    code = trained.transform.analysis(torch.from_numpy(correlated_gaussian(5000, 3))).numpy()
    correlation = np.corrcoef(code, rowvar=False)
    assert np.abs(correlation - np.eye(6)).max() < 0.15


@pytest.fixture(scope="module")
def linear() -> LatentCodec:
    codec, _ = train_codec(curved(1000, 0), curved(200, 1), np.eye(4), 5, 4.0, config())
    return codec


@pytest.mark.parametrize("distortion", ["latent", "reconstruction"])
def test_residual_mlps_beat_the_klt_on_a_curved_surface(distortion: str, linear: LatentCodec) -> None:
    train, validation, test = curved(1000, 0), curved(200, 1), curved(500, 2)
    decoder = torch.from_numpy(np.linalg.qr(np.random.default_rng(3).normal(size=(5, 4)))[0].T.astype(np.float32))

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return (latents @ decoder)[:, :, None]

    values = (decode(torch.from_numpy(train)), decode(torch.from_numpy(validation)))
    # A masked value: what the latents say there must not matter, nor make the loss NaN.
    values[0][:, 4], values[1][:, 4] = math.nan, math.nan
    settings = config(transform="residual_mlp", hidden_dim=24, distortion=distortion, steps=200, learning_rate=0.05)
    heard: list[int] = []
    codec, report = train_codec(
        train,
        validation,
        np.eye(4),
        5,
        4.0,
        settings,
        decode=decode,
        values=values,
        progress=lambda step, _: heard.append(step),
    )
    assert report["transform_step"] in heard
    # Their two dimensions and the curvature are worth about 15 %.
    for quality in (1, 2):
        assert lagrangian(codec, test, quality) < 0.95 * lagrangian(linear, test, quality)


def test_the_klt_stays_where_mlps_do_not_help() -> None:
    train, validation = correlated_gaussian(40, 0), correlated_gaussian(200, 1)
    settings = config(transform="residual_mlp", hidden_dim=32, learning_rate=0.3, steps=40)
    codec, report = train_codec(train, validation, np.eye(6), 6, 4.0, settings)
    assert report["transform_step"] == 0
    restored = codec.transform.synthesis(codec.transform.analysis(torch.from_numpy(validation)))
    np.testing.assert_allclose(restored.numpy(), validation, atol=1e-4)


@pytest.mark.parametrize(
    ("train", "validation", "changes", "message"),
    [
        (np.zeros((1, 3), np.float32), np.zeros((2, 3), np.float32), {}, "2 training samples"),
        (np.zeros((5, 3), np.float32), np.zeros((0, 3), np.float32), {}, "1 for validation"),
        (np.zeros((5, 3), np.float32), np.zeros((2, 4), np.float32), {}, "differ in length"),
        (
            np.zeros((5, 3), np.float32),
            np.zeros((2, 3), np.float32),
            {"transform": "residual_mlp", "distortion": "reconstruction"},
            "needs the decoder",
        ),
    ],
)
def test_unusable_arguments_are_named(
    train: NDArray[np.float32], validation: NDArray[np.float32], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_codec(train, validation, np.eye(3), 3, 1.0, config(**changes))


def test_targets_must_match_the_latents() -> None:
    latents = correlated_gaussian(5, 0)
    values = (torch.zeros(4, 2, 1), torch.zeros(5, 2, 1))
    settings = config(transform="residual_mlp", distortion="reconstruction")
    with pytest.raises(ConfigError, match="one target"):
        train_codec(latents, latents, np.eye(6), 6, 1.0, settings, decode=lambda x: x[:, :2, None], values=values)


def test_divergence_is_reported() -> None:
    latents = correlated_gaussian(20, 0)

    def decode(phi: torch.Tensor) -> torch.Tensor:
        return phi[:, :, None] / 0.0

    settings = config(transform="residual_mlp", distortion="reconstruction", steps=2)
    values = (torch.zeros(20, 6, 1), torch.zeros(20, 6, 1))
    with pytest.raises(FittingError, match="diverged at step 1"):
        train_codec(latents, latents, np.eye(6), 6, 4.0, settings, decode=decode, values=values)


def test_latents_that_are_not_finite_are_refused() -> None:
    latents = correlated_gaussian(20, 0)
    broken = latents.copy()
    broken[3, 1] = np.nan
    with pytest.raises(FittingError, match="not finite"):
        train_codec(broken, latents, np.eye(6), 6, 4.0, config())
    with pytest.raises(FittingError, match="not finite"):
        train_codec(latents, broken, np.eye(6), 6, 4.0, config())


def test_a_missing_compressai_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compressai.entropy_models", None)
    latents = correlated_gaussian(20, 0)
    with pytest.raises(ConfigError, match=r"vcinr-batch\[train\]"):
        train_codec(latents, latents, np.eye(6), 6, 4.0, config(steps=1))
