"""Choice of symbols by what they cost, not by rounding alone. The decoder does not know about it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.codec.entropy_model import FrozenTables, symbol_bits
from vcinr_batch.codec.quantization import quantize

# At high rate the error of a dimension is step^2 / 12 and quarters with each bit: bits are worth this many step^2.
_STEP2_PER_BIT = float(np.log(2)) / 6


def choose_symbols(
    code: NDArray[np.floating[Any]], tables: FrozenTables, quality: int, rate_weight: float = 1.0
) -> NDArray[np.int32]:
    """Round a code, then move each symbol one towards zero where that saves more rate than it costs error.

    Minimises `(code / step - symbol)^2 + rate_weight * (ln 2 / 6) * bits` over the two candidates of each dimension
    (rate-distortion optimised quantisation; a step of this size makes the trade worth the same at all rates).

    Args:
        code: [B, K] in the unit of the code, orthonormal in the decoder's output.
        rate_weight: 0 rounds plainly, 1 balances.

    Returns:
        int32 [B, K].

    Raises:
        FittingError: a code that is not finite.
    """
    step = float(tables.steps[quality])
    rounded = quantize(code, step)
    if rate_weight == 0:
        return rounded
    smaller = rounded - np.sign(rounded)
    exact = code.astype(np.float64) / step
    saved_bits = symbol_bits(tables, quality, rounded) - symbol_bits(tables, quality, smaller)
    added_error = (exact - smaller) ** 2 - (exact - rounded) ** 2
    return np.where(added_error < rate_weight * _STEP2_PER_BIT * saved_bits, smaller, rounded)
