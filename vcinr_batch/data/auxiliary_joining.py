"""The auxiliary variables of several files become those of one source."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.data.auxiliary import (
    BOUNDS,
    CHANNEL_DIM,
    MAX_BYTES,
    MAX_VARIABLES,
    Auxiliary,
    related_names,
    stored_bytes,
)
from vcinr_batch.data.axes import Axis, source_order
from vcinr_batch.data.source_auxiliary import FileAuxiliaries
from vcinr_batch.data.source_joining import JoinedTimes
from vcinr_batch.data.source_parts import SourcePart
from vcinr_batch.data.times import EPOCH

MAX_TOTAL_BYTES = 8 << 20
"""Of all auxiliary variables of a source; the smallest are kept."""


@dataclass(frozen=True, eq=False)
class JoinedAuxiliaries:
    """Of a whole source."""

    variables: tuple[Auxiliary, ...]
    """By name; labels in canonical order."""
    left_out: tuple[str, ...]
    """Names of those that are not kept."""
    relations: Mapping[str, str]
    """Attributes of the variable that name auxiliary variables which are all there."""
    bounds: Mapping[str, str]
    """The attribute `BOUNDS` of axes; auxiliary variables have theirs already."""

    def describe(self, axis: Axis) -> Axis:
        """An axis with the attribute that names its bounds, where they are kept."""
        name = self.bounds.get(axis.name)
        return axis if name is None else replace(axis, attributes={**axis.attributes, BOUNDS: name})


def share_auxiliaries(parts: Iterable[SourcePart]) -> list[SourcePart]:
    """The files as they are opened, in memory that does not grow with their number.

    What a file says as the first one does is held once. What it says otherwise is held while it may still be joined
    to a variable of `MAX_BYTES`, then dropped.
    """
    shared: list[SourcePart] = []
    held: Counter[str] = Counter()
    for part in parts:
        kept = {}
        for name, auxiliary in part.auxiliaries.variables.items():
            first = shared[0].auxiliaries.variables.get(name) if shared else auxiliary
            if first is not None and _is_same(first, auxiliary):
                kept[name] = first
                continue
            held[name] += _bytes(auxiliary)
            if held[name] <= MAX_BYTES:
                kept[name] = auxiliary
        shared.append(replace(part, auxiliaries=replace(part.auxiliaries, variables=kept)))
    return shared


def join_auxiliaries(groups: Sequence[Sequence[SourcePart]], time: JoinedTimes, has_members: bool) -> JoinedAuxiliaries:
    """Those of every member's files, joined along the same axis as the files.

    What lies along that axis is joined, and so are scalars that differ between the files; everything else has to be
    the same in all of them, or it is left out. So is what has the name of an axis that only the archive has.
    """
    files = [part.auxiliaries for group in groups for part in group]
    names = {name for file in files for name in (*file.variables, *file.left_out)}
    taken = {CHANNEL_DIM, *groups[0][0].dims, *(["member"] if has_members else [])}
    joined = {name: _join(name, groups, time) for name in names - taken}
    kept = _fitting([one for one in joined.values() if one is not None and one.own_dim not in taken])
    relations = groups[0][0].auxiliaries.relations
    bounds = _kept_bounds(kept, files)
    return JoinedAuxiliaries(
        variables=tuple(
            replace(one, attributes={**one.attributes, BOUNDS: bounds[one.name]}) if one.name in bounds else one
            for one in kept
        ),
        left_out=tuple(sorted(names - {auxiliary.name for auxiliary in kept})),
        relations={key: text for key, text in relations.items() if _is_kept(key, text, kept, files)},
        bounds=bounds,
    )


def _join(name: str, groups: Sequence[Sequence[SourcePart]], time: JoinedTimes) -> Auxiliary | None:
    first = groups[0][0].auxiliaries.variables.get(name)
    if first is None:
        return None
    found = [[part.auxiliaries.variables.get(name) for part in group] for group in groups]
    if not all(other is not None and _is_alike(first, other) for group in found for other in group):
        return None
    complete = [[other for other in group if other is not None] for group in found]
    is_same = all(_is_same(first, other) for group in complete for other in group)
    dim = None if time.axis is None else time.axis.name
    own = () if first.own_dim is None else (first.own_dim,)
    if dim is not None and dim not in first.dims and not is_same and first.dims == own:
        complete = [
            [_spread(scalar, dim, part) for scalar, part in zip(scalars, group, strict=True)]
            for scalars, group in zip(complete, groups, strict=True)
        ]
        first = complete[0][0]
    elif (dim is None or dim not in first.dims) and not is_same:
        return None
    if dim is None or dim not in first.dims:
        return _settled(first, first.values, groups[0][0], None)
    k = first.dims.index(dim)
    members = [np.concatenate([part.values for part in group], axis=k) for group in complete]
    offsets = np.cumsum([0, *map(len, groups)])
    ordered = [
        np.take(values, _order(group, time.file_index[m] - offsets[m], time.places[m], dim), axis=k)
        for m, (values, group) in enumerate(zip(members, groups, strict=True))
    ]
    if not all(_are_equal(ordered[0], other) for other in ordered[1:]):
        return None
    return _settled(first, ordered[0], groups[0][0], dim)


def _spread(scalar: Auxiliary, dim: str, part: SourcePart) -> Auxiliary:
    """A scalar of one file, or the bounds of one, as one for each of the file's labels."""
    length = len(part.axes[part.dims.index(dim)])
    return replace(scalar, dims=(dim, *scalar.dims), values=np.repeat(scalar.values[np.newaxis], length, axis=0))


def _order(group: Sequence[SourcePart], files: NDArray[Any], places: NDArray[np.int64], dim: str) -> NDArray[np.int64]:
    """For each joined label where it is when the files stand one behind the other."""
    starts = np.cumsum([0, *(len(part.axes[part.dims.index(dim)]) for part in group)])
    order: NDArray[np.int64] = starts[files] + places
    return order


def _settled(auxiliary: Auxiliary, values: NDArray[Any], part: SourcePart, joined_dim: str | None) -> Auxiliary:
    """In canonical order along the other axes, too, and times in whole seconds where they are."""
    attributes = auxiliary.attributes
    for k, dim in enumerate(auxiliary.dims):
        if dim not in (joined_dim, auxiliary.own_dim):
            values = np.take(values, source_order(part.axes[part.dims.index(dim)]), axis=k)
    if auxiliary.is_time and bool(np.all(values % 1_000_000 == 0)):
        values, attributes = values // 1_000_000, {**attributes, "units": f"seconds since {EPOCH}"}
    return replace(auxiliary, values=values, attributes=attributes)


def _fitting(auxiliaries: Sequence[Auxiliary]) -> tuple[Auxiliary, ...]:
    """The smallest, as many as fit into a manifest; by name."""
    kept: list[Auxiliary] = []
    total = 0
    for auxiliary in sorted(auxiliaries, key=lambda auxiliary: (_bytes(auxiliary), auxiliary.name)):
        total += _bytes(auxiliary)
        if _bytes(auxiliary) <= MAX_BYTES and total <= MAX_TOTAL_BYTES and len(kept) < MAX_VARIABLES:
            kept.append(auxiliary)
    return tuple(sorted(kept, key=lambda auxiliary: auxiliary.name))


def _is_kept(relation: str, text: str, kept: Sequence[Auxiliary], files: Sequence[FileAuxiliaries]) -> bool:
    """Whether all files say so, and what they name is there."""
    names = {auxiliary.name for auxiliary in kept}
    return names.issuperset(related_names(relation, text)) and all(f.relations.get(relation) == text for f in files)


def _kept_bounds(kept: Sequence[Auxiliary], files: Sequence[FileAuxiliaries]) -> dict[str, str]:
    """Those that all files name as the first one does, and that are there."""
    names = {auxiliary.name for auxiliary in kept if auxiliary.own_dim is not None}
    return {
        name: bounds
        for name, bounds in files[0].bounds.items()
        if bounds in names and all(file.bounds.get(name) == bounds for file in files)
    }


def _is_alike(a: Auxiliary, b: Auxiliary) -> bool:
    """Whether two files' values can stand in one array."""
    calendars = (a.attributes.get("calendar"), b.attributes.get("calendar")) if a.is_time else (None, None)
    is_exact = a.values.dtype.kind in "US" and a.values.dtype.kind == b.values.dtype.kind
    same_type = is_exact or a.values.dtype == b.values.dtype
    same_dims = a.dims == b.dims and a.own_dim == b.own_dim and a.own_length == b.own_length
    return same_dims and same_type and a.is_time == b.is_time and calendars[0] == calendars[1]


def _is_same(a: Auxiliary, b: Auxiliary) -> bool:
    return a is b or (_is_alike(a, b) and _are_equal(a.values, b.values))


def _are_equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """To the last bits of what containers and their writers differ in, as labels of axes are compared."""
    if a.shape != b.shape:
        return False
    if a.dtype.kind == "f":
        return bool(np.allclose(a, b, rtol=1e-6, atol=1e-6, equal_nan=True))
    return bool(np.array_equal(a, b))


def _bytes(auxiliary: Auxiliary) -> int:
    return stored_bytes(auxiliary.values.dtype, auxiliary.values.size) or 0
