import numpy as np
import pytest

from vcinr_batch.codec.quantization import SYMBOL_LIMIT, dequantize, quantize
from vcinr_batch.errors import FittingError


def test_rounds_to_the_nearest_multiple_and_halves_to_even() -> None:
    code = np.array([[0.24, 0.26, 0.25, 0.75, -0.25, -0.75, -1.3]], np.float32)
    assert quantize(code, 0.5).tolist() == [[0, 1, 0, 2, 0, -2, -3]]


def test_symbols_are_int32_and_clipped() -> None:
    symbols = quantize(np.array([[3e38, -3e38]], np.float32), 1e-3)
    assert symbols.dtype == np.int32
    assert symbols.tolist() == [[SYMBOL_LIMIT, -SYMBOL_LIMIT]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_code_that_is_not_finite_is_refused_by_row(bad: float) -> None:
    code = np.zeros((3, 4), np.float32)
    code[1, 2] = bad
    with pytest.raises(FittingError, match="row 1 of 3"):
        quantize(code, 1.0)


def test_reconstruction_is_within_half_a_step() -> None:
    code = np.random.default_rng(0).normal(0, 10, (50, 7))
    restored = dequantize(quantize(code, 0.3), 0.3)
    assert restored.dtype == np.float32
    assert np.abs(restored - code).max() <= 0.15 + 1e-5


def test_no_samples_give_no_symbols() -> None:
    assert quantize(np.zeros((0, 5), np.float32), 1.0).shape == (0, 5)
