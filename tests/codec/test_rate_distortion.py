import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from vcinr_batch.codec.entropy_model import FrozenTables, ideal_bits
from vcinr_batch.codec.quantization import quantize
from vcinr_batch.codec.rate_distortion import choose_symbols
from vcinr_batch.errors import FittingError

MakeTables = Callable[[NDArray[np.float64], list[float]], FrozenTables]


@pytest.fixture(scope="module")
def scale() -> NDArray[np.float64]:
    return np.geomspace(3, 0.1, 24)


@pytest.fixture(scope="module")
def tables(make_tables: MakeTables, scale: NDArray[np.float64]) -> FrozenTables:
    return make_tables(scale, [1.0])


@pytest.fixture(scope="module")
def code(scale: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.random.default_rng(0).laplace(0, scale, (300, 24))


def test_weight_zero_rounds_plainly(tables: FrozenTables, code: NDArray[np.float64]) -> None:
    np.testing.assert_array_equal(choose_symbols(code, tables, 0, rate_weight=0), quantize(code, 1.0))


def test_each_symbol_is_the_cheaper_of_two(tables: FrozenTables, code: NDArray[np.float64]) -> None:
    def cost(symbol: int, k: int) -> float:
        start, place = tables.starts[0, k], symbol - int(tables.first[0, k])
        assert tables.shift[0, k] == 0
        listed = 0 <= place < tables.size[0, k] - 1
        count = tables.counts[start + (place if listed else tables.size[0, k] - 1)]
        bits = 16 - math.log2(count) + (0 if listed else 1)
        return (code[0, k] - symbol) ** 2 + math.log(2) / 6 * bits

    chosen = choose_symbols(code, tables, 0)
    for k, rounded in enumerate(quantize(code, 1.0)[0].tolist()):
        smaller = rounded - (rounded > 0) + (rounded < 0)
        assert chosen[0, k] == min((rounded, smaller), key=lambda symbol: (cost(symbol, k), symbol != rounded))


def test_the_trade_pays(tables: FrozenTables, code: NDArray[np.float64]) -> None:
    def cost(symbols: NDArray[np.int32]) -> tuple[float, float]:
        return float(ideal_bits(tables, 0, symbols).mean()), float(((code - symbols) ** 2).sum(1).mean())

    plain_bits, plain_error = cost(quantize(code, 1.0))
    bits, error = cost(choose_symbols(code, tables, 0))
    assert bits < 0.95 * plain_bits
    assert bits + 6 / math.log(2) * error < plain_bits + 6 / math.log(2) * plain_error


def test_a_code_that_is_not_finite_is_refused(tables: FrozenTables) -> None:
    with pytest.raises(FittingError, match="not finite"):
        choose_symbols(np.full((1, 24), np.nan), tables, 0)
