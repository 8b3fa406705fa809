"""What an archive says about its samples: the errors measured when they were compressed, and their quality levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.archive.archive import Archive
from vcinr_batch.data.layout import Layout


@dataclass(frozen=True)
class SampleFigure:
    """One figure per sample."""

    name: str
    """As in `PartIndex`."""
    dtype: str
    missing: float
    """Where the sample was rejected."""
    description: str
    has_unit: bool


SAMPLE_FIGURES = (
    SampleFigure("rmse", "float32", np.nan, "root mean square error of the decoded sample", has_unit=True),
    SampleFigure("max_error", "float32", np.nan, "largest absolute error of the decoded sample", has_unit=True),
    SampleFigure("quality", "int16", -1, "quality level of the sample; -1 where it was rejected", has_unit=False),
)


def figure_axes(layout: Layout) -> tuple[int, ...]:
    """The axes that tell samples apart."""
    return tuple(k for k, axis in enumerate(layout.axes) if axis.name in layout.blocked_dims)


def read_figure(archive: Archive, figure: SampleFigure, places: Sequence[NDArray[np.int64]]) -> NDArray[Any]:
    """A figure at positions along the axes that tell samples apart; labels of one sample have the same.

    Args:
        archive: whose indexes are read, of the parts concerned only.
        figure: one of `SAMPLE_FIGURES`.
        places: positions along each of `figure_axes`, in any order.

    Returns:
        An array [number of positions along every one of these axes].

    Raises:
        SourceError, BitstreamError, UnsupportedFormatError: as `Archive.index`.
    """
    layout, axes = archive.layout, figure_axes(archive.layout)
    blocks = [along // layout.block_shape[k] for k, along in zip(axes, places, strict=True)]
    wanted = [np.unique(along) for along in blocks]
    table = np.full([len(along) for along in wanted], figure.missing, figure.dtype)
    everywhere = [np.zeros(1, np.int64) for _ in layout.axes]
    for k, along in zip(axes, places, strict=True):
        everywhere[k] = along
    for chosen in archive.select_at(everywhere):
        index = archive.index(chosen.part)
        rows = index.blocks[chosen.positions]
        at = tuple(np.searchsorted(along, rows[:, k]) for k, along in zip(axes, wanted, strict=True))
        found = getattr(index, figure.name)[chosen.positions]
        table[at] = found if axes else found[0]
    shown = np.ix_(*(np.searchsorted(along, found) for along, found in zip(wanted, blocks, strict=True)))
    return np.asarray(table[shown])
