"""Values that stand for decoded ones, so that a test of reading can say exactly what must come back."""

from typing import Any

import numpy as np

from vcinr_batch.data.layout import Layout, block_extent


def decode(rows: Any, layout: Layout) -> np.ndarray:
    """Stands for a codec: a different value for every place, in canonical order; NaN in the padding."""
    source = np.arange(np.prod(layout.shape), dtype=np.float32).reshape(layout.shape)
    decoded = np.full((len(rows), *layout.block_shape), np.nan, np.float32)
    for values, row in zip(decoded, rows, strict=True):
        extent = block_extent(layout, row.block)
        values[tuple(slice(0, part.stop - part.start) for part in extent)] = source[extent]
    return decoded.reshape(len(rows), -1, 1)
