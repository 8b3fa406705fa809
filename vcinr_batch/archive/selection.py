"""What a selection of an archive looks like decoded: its axes in the source's order, and where each label is stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.data.auxiliary import CHANNEL_DIM as CHANNEL_DIM
from vcinr_batch.data.axes import Axis, axis_index, source_order, take_labels
from vcinr_batch.data.layout import Layout
from vcinr_batch.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Selection:
    """The labels of a layout that somebody asked for."""

    axes: tuple[Axis, ...]
    """As the dataset shows them: `axis_variable` gives the source's order."""
    places: tuple[NDArray[np.int64], ...]
    """For each axis and each label in the source's order: its position on the archive's axis."""
    channels: int = 1

    @property
    def dims(self) -> tuple[str, ...]:
        """Of the decoded array; more than one channel make a last dimension."""
        names = tuple(axis.name for axis in self.axes)
        return names if self.channels == 1 else (*names, CHANNEL_DIM)

    @property
    def shape(self) -> tuple[int, ...]:
        lengths = tuple(map(len, self.places))
        return lengths if self.channels == 1 else (*lengths, self.channels)

    def piece(self, region: Sequence[slice]) -> tuple[NDArray[np.int64], ...]:
        """The archive's positions of a region [one slice per axis] of the decoded array."""
        return tuple(places[along] for places, along in zip(self.places, region, strict=True))


def make_selection(layout: Layout, wanted: Mapping[str, str] | None) -> Selection:
    """The labels of a layout that the texts select; None selects everything.

    Raises:
        ConfigError: no such dimension, or a text that is no label of it.
        SampleNotFoundError: a text that selects nothing.
    """
    positions = selected_positions(layout, wanted)
    taken = [take_labels(axis, chosen) for axis, chosen in zip(layout.axes, positions, strict=True)]
    places = tuple(canonical[np.argsort(source_order(axis), kind="stable")] for axis, canonical in taken)
    return Selection(tuple(axis for axis, _ in taken), places, layout.channels)


def selected_positions(layout: Layout, wanted: Mapping[str, str] | None) -> list[NDArray[np.int64]]:
    """Selected positions along every axis of a layout, ascending. Arguments and errors as `make_selection`."""
    if not isinstance(wanted, Mapping | None):
        raise ConfigError(
            f"expected a text for each dimension, as in {{'time': '2019-03-22'}}, got {str(wanted)[:80]!r}"
        )
    texts = dict(wanted or {})
    unknown = [name for name in texts if name not in layout.dims]
    if unknown:
        raise ConfigError(f"{layout.variable} has no dimension {unknown[0]!r}; it has {', '.join(layout.dims)}")
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ConfigError(
                f"{name}: expected a text, a label or a range a..b, got {str(text)[:80]} ({type(text).__name__})"
            )
    return [
        axis_index(axis, texts[axis.name]) if axis.name in texts else np.arange(len(axis), dtype=np.int64)
        for axis in layout.axes
    ]
