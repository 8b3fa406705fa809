from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vcinr_batch.codec.entropy_model import FrozenTables
from vcinr_batch.codec.latent_codec import LatentCodec
from vcinr_batch.codec.transforms import klt_transform
from vcinr_batch.errors import ConfigError, CorruptBitstreamError, FittingError

MakeTables = Callable[[NDArray[np.float64], list[float]], FrozenTables]


@pytest.fixture(scope="module")
def latents() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5))).astype(np.float32)


@pytest.fixture(params=[0, 4], ids=["klt", "residual_mlp"])
def codec(request: pytest.FixtureRequest, latents: NDArray[np.float32], make_tables: MakeTables) -> LatentCodec:
    transform = klt_transform(latents, 2 * np.eye(5), hidden_dim=request.param)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return LatentCodec(transform, make_tables(transform.scale.double().numpy(), [0.5, 0.25, 0.01]))


def test_decode_returns_what_the_symbols_say(codec: LatentCodec, latents: NDArray[np.float32]) -> None:
    for quality in range(codec.quality_count):
        payloads = codec.encode(latents, quality)
        symbols = codec.symbols(latents, quality)
        np.testing.assert_array_equal(codec.decode(payloads, quality), codec.latents_of(symbols, quality))


def test_finer_levels_cost_more_and_err_less(latents: NDArray[np.float32], make_tables: MakeTables) -> None:
    transform = klt_transform(latents, 2 * np.eye(5))
    codec = LatentCodec(transform, make_tables(transform.scale.double().numpy(), [0.5, 0.25, 0.01]))
    payloads = [codec.encode(latents, quality) for quality in range(3)]
    errors = [float(((codec.decode(p, q) - latents) ** 2).mean()) for q, p in enumerate(payloads)]
    sizes = [sum(map(len, p)) for p in payloads]
    assert errors[0] > errors[1] > errors[2]
    assert sizes[0] < sizes[1] < sizes[2]
    # Metric 2: an error of step^2 / 12 in the code is half of that in a latent.
    assert errors[2] == pytest.approx(0.01**2 / 12 / 2, rel=0.1)


def test_rate_weight_trades_bytes_for_error(codec: LatentCodec, latents: NDArray[np.float32]) -> None:
    plain, thrifty = codec.encode(latents, 0, rate_weight=0), codec.encode(latents, 0)
    assert sum(map(len, thrifty)) < sum(map(len, plain))


def test_arrays_restore_the_codec(codec: LatentCodec, latents: NDArray[np.float32]) -> None:
    arrays = codec.to_arrays()
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    restored = LatentCodec.from_arrays(arrays)
    payloads = codec.encode(latents, 1)
    assert restored.encode(latents, 1) == payloads
    np.testing.assert_array_equal(restored.decode(payloads, 1), codec.decode(payloads, 1))


def test_a_restored_codec_keeps_its_own_copy(codec: LatentCodec, latents: NDArray[np.float32]) -> None:
    arrays = {name: array.copy() for name, array in codec.to_arrays().items()}
    restored = LatentCodec.from_arrays(arrays)
    arrays["transform.mean"] += 1
    np.testing.assert_array_equal(restored.symbols(latents, 0), codec.symbols(latents, 0))


def _change(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("transform.mean"), "mean or transform.scale is missing"),
        (lambda arrays: arrays.pop("transform.W_synthesis"), "W_synthesis"),
        (lambda arrays: arrays.pop("tables.counts"), "missing counts"),
        (_change("transform.extra", np.zeros(1, np.float32)), "extra"),
        (_change("other", np.zeros(1, np.float32)), "unexpected arrays"),
        (_change("transform.mean", np.zeros(5)), "finite float32"),
        (_change("transform.mean", np.full(5, np.inf, np.float32)), "finite float32"),
        (_change("transform.mean", np.zeros(4, np.float32)), "K <= L"),
        (_change("transform.mean", np.zeros(6, np.float32)), "misshapen"),
        (_change("transform.scale", np.zeros(5, np.float32)), "> 0"),
        (_change("transform.scale", np.ones(4, np.float32)), "misshapen"),
        (_change("transform.analysis_mlp.0.bias", np.zeros(3, np.float32)), "misshapen"),
        (_change("transform.W_analysis", np.zeros((5, 5), np.int32)), "finite float32"),
    ],
)
def test_arrays_that_are_not_a_codec_are_refused(
    codec: LatentCodec, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    arrays = dict(codec.to_arrays())
    change(arrays)
    with pytest.raises(CorruptBitstreamError, match=message):
        LatentCodec.from_arrays(arrays)


def test_tables_for_another_code_length_are_refused(codec: LatentCodec, make_tables: MakeTables) -> None:
    other = make_tables(np.ones(4), [1.0])
    with pytest.raises(ConfigError, match="transform codes 5 dimensions, the tables 4"):
        LatentCodec(codec.transform, other)
    arrays = {name: array for name, array in codec.to_arrays().items() if name.startswith("transform.")}
    arrays |= LatentCodec(klt_transform(np.eye(4, dtype=np.float32) * 3, np.eye(4), 1.0), other).to_arrays() | arrays
    with pytest.raises(CorruptBitstreamError, match="the tables 4"):
        LatentCodec.from_arrays(arrays)


@pytest.mark.parametrize("quality", [-1, 3])
def test_levels_that_do_not_exist_are_named(codec: LatentCodec, latents: NDArray[np.float32], quality: int) -> None:
    with pytest.raises(ConfigError, match="levels 0 to 2"):
        codec.symbols(latents, quality)
    with pytest.raises(ConfigError, match="levels 0 to 2"):
        codec.latents_of(np.zeros((1, 5), np.int32), quality)


def test_latents_of_another_length_or_not_finite_are_refused(codec: LatentCodec) -> None:
    with pytest.raises(ConfigError, match=r"expected latents \[B, 5\]"):
        codec.encode(np.zeros((2, 4), np.float32), 0)
    with pytest.raises(FittingError, match="row 0 of 1"):
        codec.encode(np.full((1, 5), np.nan, np.float32), 0)


def test_no_latents_give_no_payloads(codec: LatentCodec) -> None:
    assert codec.encode(np.zeros((0, 5), np.float32), 0) == []
    assert codec.decode([], 0).shape == (0, 5)
