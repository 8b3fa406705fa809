"""Payloads of base symbols and residual integers."""

import numpy as np
import pytest

from tests.codec.made_up_residual import make_model, make_symbols, make_tables
from vcinr_batch.codec.residual import bounded_bits, decode_bounded, encode_bounded, step_index
from vcinr_batch.codec.residual_kernel import set_arguments
from vcinr_batch.errors import ConfigError, CorruptBitstreamError

SHAPES = [(1, 5, 9), (13,), (1, 1), (1,), (3, 4, 5), (2, 2, 5, 6), (24, 1), (1, 40, 1, 30)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [0, 1, 40, 2**16, 2**30, 2**31 - 1])
def test_symbols_and_residuals_come_back(shape: tuple[int, ...], size: int) -> None:
    rng = np.random.default_rng(size % 1000)
    points = int(np.prod(shape))
    model, tables, symbols = make_model(rng, points), make_tables(rng), make_symbols(rng, 6, 7)
    residual = (rng.uniform(-1, 1, (6, points)) * size).astype(np.int32)
    masks = rng.random((6, points)) > 0.3
    masks[0], masks[1] = False, True
    for index in (-1000, 0, 17, 1000):
        payloads = encode_bounded(symbols, residual, masks, tables, model, 1, index, shape)
        decoded = decode_bounded(payloads, masks, tables, model, 1, index, shape)
        assert np.array_equal(decoded[0], symbols)
        assert np.array_equal(decoded[1], np.where(masks, residual, 0))
        assert not any(payload.endswith(b"\0") for payload in payloads)


def test_the_ends_of_int32_can_be_coded() -> None:
    rng = np.random.default_rng(3)
    model, tables, symbols = make_model(rng, 45), make_tables(rng), make_symbols(rng, 2, 7)
    ends = np.array([-(2**31), 2**31 - 1], np.int32)
    residual, masks = rng.choice(ends, (2, 45)), np.ones((2, 45), bool)
    payloads = encode_bounded(symbols, residual, masks, tables, model, 0, 0, (5, 9))
    assert np.array_equal(decode_bounded(payloads, masks, tables, model, 0, 0, (5, 9))[1], residual)


def test_bits_tell_the_length_of_payloads() -> None:
    rng = np.random.default_rng(4)
    model, tables = make_model(rng, 600), make_tables(rng)
    symbols = rng.integers(-3, 4, (8, 7)).astype(np.int32)
    residual, masks = rng.integers(-3, 4, (8, 600)).astype(np.int32), np.ones((8, 600), bool)
    bits = bounded_bits(symbols, residual, masks, tables, model, 1, 5, (20, 30))
    coded = 8 * np.array([len(p) for p in encode_bounded(symbols, residual, masks, tables, model, 1, 5, (20, 30))])
    # A payload is the shortest number in its interval: less than a byte over, or some zero bytes under.
    assert (coded - bits < 9).all()
    assert (coded - bits > -0.01 * bits - 24).all()


def test_a_row_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(5)
    model, tables, symbols = make_model(rng, 45), make_tables(rng), make_symbols(rng, 4, 7)
    residual, masks = rng.integers(-9, 9, (4, 45)).astype(np.int32), rng.random((4, 45)) > 0.2
    together = encode_bounded(symbols, residual, masks, tables, model, 2, 9, (5, 9))
    alone = [
        encode_bounded(symbols[i : i + 1], residual[i : i + 1], masks[i : i + 1], tables, model, 2, 9, (5, 9))[0]
        for i in range(4)
    ]
    assert together == alone


def test_what_lies_outside_the_mask_does_not_matter() -> None:
    rng = np.random.default_rng(6)
    model, tables, symbols = make_model(rng, 45), make_tables(rng), make_symbols(rng, 1, 7)
    residual, masks = rng.integers(-9, 9, (1, 45)).astype(np.int32), rng.random((1, 45)) > 0.5
    other = np.where(masks, residual, 12345).astype(np.int32)
    assert encode_bounded(symbols, residual, masks, tables, model, 0, 0, (5, 9)) == encode_bounded(
        symbols, other, masks, tables, model, 0, 0, (5, 9)
    )


def test_any_bytes_decode_or_are_corrupt() -> None:
    rng = np.random.default_rng(7)
    model, tables, symbols = make_model(rng, 45), make_tables(rng), make_symbols(rng, 1, 7)
    residual, masks = rng.integers(-99, 99, (1, 45)).astype(np.int32), np.ones((1, 45), bool)
    payload = encode_bounded(symbols, residual, masks, tables, model, 1, 0, (5, 9))[0]
    noticed = 0
    for trial in range(300):
        data = bytearray(payload if trial % 2 else rng.bytes(int(rng.integers(0, 300))))
        for _ in range(int(rng.integers(1, 4))):
            if data:
                data[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            assert decode_bounded([bytes(data)], masks, tables, model, 1, 0, (5, 9))[1].shape == (1, 45)
        except CorruptBitstreamError:
            noticed += 1
    assert noticed


@pytest.mark.parametrize("payload", [b"\1\0", b"\xff" * 12, b"\1" * 100_000], ids=["zero", "beyond", "long"])
def test_payloads_that_are_never_written_are_refused(payload: bytes) -> None:
    rng = np.random.default_rng(8)
    model, tables = make_model(rng, 45), make_tables(rng)
    good = encode_bounded(
        make_symbols(rng, 1, 7), np.zeros((1, 45), np.int32), np.ones((1, 45), bool), tables, model, 1, 0, (5, 9)
    )
    with pytest.raises(CorruptBitstreamError, match="payload 1 of 2"):
        decode_bounded([*good, payload], np.ones((2, 45), bool), tables, model, 1, 0, (5, 9))


@pytest.mark.parametrize(
    ("quality", "shape", "dtype", "message"),
    [
        (3, (5, 9), np.int32, "levels 0 to 2"),
        (0, (5, 8), np.int32, "45 points"),
        (0, (5, 9), np.int64, "expected residual int32"),
    ],
)
def test_arguments_that_do_not_fit_are_named(quality: int, shape: tuple[int, ...], dtype: type, message: str) -> None:
    rng = np.random.default_rng(9)
    model, tables, symbols = make_model(rng, 45), make_tables(rng), make_symbols(rng, 1, 7)
    with pytest.raises(ConfigError, match=message):
        encode_bounded(symbols, np.zeros((1, 45), dtype), np.ones((1, 45), bool), tables, model, quality, 0, shape)


def test_the_kernels_get_integers_only() -> None:
    model = make_model(np.random.default_rng(10), 45)
    arguments = set_arguments(model, 1, 0, (1, 5, 9))
    assert all(np.issubdtype(argument.dtype, np.integer) for argument in arguments)


@pytest.mark.parametrize(
    ("step", "index"),
    [(1.0, 0), (2.0, 16), (0.5, -16), (1.0442737824274138, 1), (1.0442737824274135, 0), (1.999999, 15), (3e-5, -241)],
)
def test_step_index_counts_sixteenths_of_an_octave(step: float, index: int) -> None:
    assert step_index(step) == index


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_that_is_none_is_refused(step: float) -> None:
    with pytest.raises(ConfigError, match="above zero"):
        step_index(step)
