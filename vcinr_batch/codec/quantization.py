"""Code <-> symbols: uniform quantisation with one step per quality level."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.errors import FittingError

SYMBOL_LIMIT = 2**30


def quantize(code: NDArray[np.floating[Any]], step: float) -> NDArray[np.int32]:
    """Round a code to the nearest multiples of the step.

    Args:
        code: [B, K] in the unit of the code.
        step: distance between two reconstruction values, > 0.

    Returns:
        int32 [B, K], halves rounded to even, clipped to +-2^30.

    Raises:
        FittingError: the code is not finite; names the first such row.
    """
    finite = np.isfinite(code).all(axis=-1)
    if not finite.all():
        raise FittingError(f"row {int(np.argmin(finite))} of {len(code)}: its code is not finite, the fit diverged")
    symbols: NDArray[np.float64] = np.rint(code.astype(np.float64) / step)
    return np.clip(symbols, -SYMBOL_LIMIT, SYMBOL_LIMIT).astype(np.int32)


def dequantize(symbols: NDArray[np.int32], step: float) -> NDArray[np.float32]:
    """Reconstruct a code: float32 [B, K], exact product rounded once. Inverse of `quantize` up to half a step."""
    return (symbols.astype(np.float64) * step).astype(np.float32)
