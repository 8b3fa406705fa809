"""Files become one source: joined along time in the order of their labels, the same for every member."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.data.axes import Axis, label_text, source_order
from vcinr_batch.data.source_parts import SourcePart
from vcinr_batch.data.times import EPOCH, axis_microseconds
from vcinr_batch.errors import SourceError
from vcinr_batch.storage import public_url


@dataclass(frozen=True, eq=False)
class JoinedTimes:
    """The joined axis of all members, and where its labels are."""

    axis: Axis | None
    """None where the files have no time."""
    file_index: NDArray[np.int32]
    """[members, labels] which file, counted through all members."""
    places: NDArray[np.int64]
    """[members, labels] where in that file."""


def join_parts(groups: Sequence[Sequence[SourcePart]]) -> JoinedTimes:
    """Join each member's files along their first time axis.

    Raises:
        SourceError: two files differ in anything but time, overlap, or have no time to join them along; two members
            differ in time. Names the files.
    """
    first = groups[0][0]
    for group in groups:
        for part in group:
            _check_labels(part)
            _check_fits(first, part)
    joined = [_join_group(group) for group in groups]
    for group, (axis, _, _) in zip(groups, joined, strict=True):
        _check_same_times(joined[0][0], axis, first, group[0])
    offsets = np.cumsum([0, *map(len, groups)], dtype=np.int32)
    return JoinedTimes(
        joined[0][0],
        np.stack([index + offset for (_, index, _), offset in zip(joined, offsets, strict=False)]),
        np.stack([places for _, _, places in joined]),
    )


def _check_labels(part: SourcePart) -> None:
    for k, axis in enumerate(part.axes):
        _, counts = np.unique(axis.values, return_counts=True)
        if k != part.time_dim and counts.max() > 1:
            raise SourceError(f"dimension {axis.name!r} in {public_url(part.file.url)} holds a label twice")


def _check_fits(first: SourcePart, part: SourcePart) -> None:
    """Everything but time must be the same in all files."""
    name = public_url(part.file.url)
    if part.variable != first.variable or set(part.dims) != set(first.dims):
        raise SourceError(
            f"{name} holds {part.variable}({', '.join(part.dims)}), "
            f"but {public_url(first.file.url)} holds {first.variable}({', '.join(first.dims)})"
        )
    for k, axis in enumerate(first.axes):
        other = part.axes[part.dims.index(axis.name)]
        if k != first.time_dim and not _same_labels(axis, other):
            raise SourceError(f"{axis.name} in {name} differs from that in {public_url(first.file.url)}")


def _same_labels(a: Axis, b: Axis) -> bool:
    """In the source's own order too, since one set of places serves all files."""
    pairs = ((a.values, b.values), (source_order(a), source_order(b)))
    return all(
        x.shape == y.shape
        and (np.array_equal(x, y) if "U" in (x.dtype.kind, y.dtype.kind) else np.allclose(x, y, rtol=1e-6, atol=1e-6))
        for x, y in pairs
    )


def _join_group(group: Sequence[SourcePart]) -> tuple[Axis | None, NDArray[np.int32], NDArray[np.int64]]:
    """The joined time axis of some files, and for each label its file within the group and its place there."""
    k = group[0].time_dim
    if k is None:
        if len(group) > 1:
            names = f"{public_url(group[0].file.url)} and {public_url(group[1].file.url)}"
            raise SourceError(f"{names} have no time dimension to join them along; set source.member_pattern to stack")
        return None, np.zeros(1, np.int32), np.zeros(1, np.int64)
    name = group[0].axes[k].name
    axes = [part.axes[part.dims.index(name)] for part in group]
    file_index = np.repeat(np.arange(len(group), dtype=np.int32), [len(axis) for axis in axes])
    places = np.concatenate([source_order(axis) for axis in axes])
    axis = axes[0] if len(axes) == 1 else _join_times(axes, group)
    order = np.argsort(np.concatenate([_microseconds(axis) for axis in axes]), kind="stable")
    file_index, places = file_index[order], places[order]
    _check_duplicates(axis, group, file_index)
    return axis, file_index, places


def _microseconds(axis: Axis) -> NDArray[np.int64]:
    return axis_microseconds(axis.values, str(axis.attributes["units"]), str(axis.attributes["calendar"]))


def _join_times(axes: list[Axis], group: Sequence[SourcePart]) -> Axis:
    for axis, part in zip(axes, group, strict=True):
        if axis.attributes["calendar"] != axes[0].attributes["calendar"]:
            raise SourceError(f"{public_url(part.file.url)} has another calendar than {public_url(group[0].file.url)}")
    labels = np.sort(np.concatenate([_microseconds(axis) for axis in axes]))
    unit = "microseconds"
    if np.all(labels % 1_000_000 == 0):
        labels, unit = labels // 1_000_000, "seconds"
    return Axis(axes[0].name, labels, {**axes[0].attributes, "units": f"{unit} since {EPOCH}"})


def _check_duplicates(axis: Axis, group: Sequence[SourcePart], file_index: NDArray[np.int32]) -> None:
    repeated = np.flatnonzero(np.diff(axis.values) == 0)
    if repeated.size == 0:
        return
    i = int(repeated[0])
    names = [public_url(group[file_index[j]].file.url) for j in (i, i + 1)]
    label = f"{axis.name}={label_text(axis, i)}"
    if names[0] == names[1]:
        raise SourceError(f"{names[0]} holds {label} twice")
    raise SourceError(
        f"{names[0]} and {names[1]} both hold {label}; if they are members of an ensemble, set source.member_pattern"
    )


def _check_same_times(first: Axis | None, axis: Axis | None, a: SourcePart, b: SourcePart) -> None:
    if first is None or axis is None:
        return
    if len(first) != len(axis) or not np.array_equal(_microseconds(first), _microseconds(axis)):
        raise SourceError(
            f"{first.name} of the member with {public_url(b.file.url)} differs from that with {public_url(a.file.url)}"
        )
