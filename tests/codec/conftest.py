from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from vcinr_batch.codec.entropy_model import FrozenTables
from vcinr_batch.codec.table_freezing import freeze_tables


def laplace_tables(scale: NDArray[np.float64], steps: list[float]) -> FrozenTables:
    """Tables of Laplace distributions with mean magnitude `scale` [K]."""

    def cdf(x: NDArray[np.float64]) -> NDArray[np.float64]:
        tail = np.exp(-np.abs(x) / scale) / 2
        return np.where(x < 0, tail, 1 - tail)

    return freeze_tables(cdf, np.array(steps))


@pytest.fixture(scope="session")
def make_tables() -> Callable[[NDArray[np.float64], list[float]], FrozenTables]:
    return laplace_tables
