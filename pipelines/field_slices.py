"""What of a block of values a picture can show: one or two of its dimensions, at the resolution of the picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.data.layout import Axis, label_text

Values = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class FieldSlice:
    """What of a block of values can be drawn: one or two dimensions of it."""

    values: Values
    """[vertical, horizontal], or [horizontal] for a line; NaN where there is no value."""
    axes: tuple[Axis, ...]
    """One per dimension, in the order of the values."""
    edges: tuple[NDArray[np.float64], ...]
    """Cell edges along each dimension, one more than there are cells; positions where labels are no rising numbers."""
    remark: str = ""
    """What was left out: `level 850, first of 4`."""


def slice_field(values: Values, axes: Sequence[Axis]) -> FieldSlice:
    """The part of a block that a picture can show: latitude and longitude, else the last two dimensions of it.

    Of every other dimension the first label is taken, and the remark says so.

    Args:
        values: [one dimension per axis].
        axes: with the labels of the block.
    """
    kept = map_dimensions(axes) or [len(axes) - 1]
    remarks = [
        f"{axis.name} {label_text(axis, 0)}, first of {len(axis)}"
        for k, axis in enumerate(axes)
        if k not in kept and len(axis) > 1
    ]
    index = tuple(slice(None) if k in kept else 0 for k in range(len(axes)))
    return make_slice(_in_order(values[index], kept), [axes[k] for k in kept], ", ".join(remarks))


def map_dimensions(axes: Sequence[Axis]) -> list[int]:
    """At most two dimensions that span a picture, the vertical one first: latitude and longitude where both are there.

    Else the last two of more than one label; empty where no dimension has more than one.
    """
    long = [k for k, axis in enumerate(axes) if len(axis) > 1]
    latitude, longitude = ([k for k in long if getattr(axes[k], name)] for name in ("is_latitude", "is_longitude"))
    return [latitude[0], longitude[0]] if latitude and longitude else long[-2:]


def make_slice(values: Values, axes: Sequence[Axis], remark: str = "") -> FieldSlice:
    """A slice of values [one or two dimensions] with the axes of these dimensions."""
    return FieldSlice(values, tuple(axes), tuple(_edges(axis) for axis in axes), remark)


def coarsened(field: FieldSlice, cells: int, keep: Literal["mean", "largest"]) -> FieldSlice:
    """The same slice with at most `cells` cells along each dimension, so that a picture stays small.

    Args:
        field: to be drawn.
        cells: at most so many, >= 1.
        keep: of several cells their mean, or the value of the largest magnitude.
    """
    values, edges = field.values, list(field.edges)
    for k, count in enumerate(values.shape):
        if count > cells:
            bounds = np.linspace(0, count, cells + 1).astype(np.int64)
            values = _reduced(values, bounds[:-1], k, keep)
            edges[k] = edges[k][bounds]
    return replace(field, values=values, edges=tuple(edges))


def is_numeric(axis: Axis) -> bool:
    """Whether the labels are numbers that rise or fall all along; times are drawn by their places, with labels."""
    if axis.is_time or axis.values.dtype.kind not in "iuf":
        return False
    steps = np.diff(axis.values.astype(np.float64))
    return bool(np.isfinite(axis.values).all() and ((steps > 0).all() or (steps < 0).all()))


def _in_order(values: Values, kept: Sequence[int]) -> Values:
    """The kept dimensions of values in the order of `kept`, which need not be the ascending one."""
    return values.transpose(tuple(np.argsort(np.argsort(kept)).tolist())) if values.ndim == 2 else values


def _edges(axis: Axis) -> NDArray[np.float64]:
    if not is_numeric(axis):
        return np.arange(len(axis) + 1) - 0.5
    labels = axis.values.astype(np.float64)
    middles = (labels[1:] + labels[:-1]) / 2
    if not middles.size:
        return np.array([labels[0] - 0.5, labels[0] + 0.5])
    edges = np.concatenate([[2 * labels[0] - middles[0]], middles, [2 * labels[-1] - middles[-1]]])
    return np.clip(edges, -90, 90) if axis.is_latitude else edges


def _reduced(values: Values, starts: NDArray[np.int64], k: int, keep: str) -> Values:
    if keep == "mean":
        there = np.isfinite(values)
        total = np.add.reduceat(np.where(there, values, 0.0), starts, axis=k, dtype=np.float64)
        count = np.add.reduceat(there, starts, axis=k, dtype=np.int64)
        return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))
    high, low = np.fmax.reduceat(values, starts, axis=k), np.fmin.reduceat(values, starts, axis=k)
    return np.asarray(np.where(np.abs(high) >= np.abs(low), high, low))
