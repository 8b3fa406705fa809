"""What somebody asks of an archive at any coordinates: which samples, and where; and how the answer looks."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.archive.sample_lookup import find_blocks
from vcinr_batch.archive.selection import CHANNEL_DIM, make_selection
from vcinr_batch.data.auxiliary import BOUNDS, Auxiliary, auxiliary_variable, take_auxiliary
from vcinr_batch.data.axes import Axis, source_order
from vcinr_batch.data.interpolation import Floats, Stencil, label_stencil, locate, make_stencil
from vcinr_batch.data.layout import Layout, axis_variable
from vcinr_batch.data.samples import SampleKey
from vcinr_batch.errors import ConfigError

if TYPE_CHECKING:
    import xarray

Keys = Mapping[str, str] | Iterable[SampleKey | str] | None
"""A selection as `Archive.select` takes it, or sample keys; None is everything."""


@dataclass(frozen=True, eq=False)
class AxisQuery:
    """Where along one axis of the layout."""

    positions: Floats
    """[N], fractional positions on the axis."""
    stencil: Stencil
    """The same N."""

    def take(self, chosen: slice) -> "AxisQuery":
        return AxisQuery(self.positions[chosen], self.stencil.take(chosen))


@dataclass(frozen=True, eq=False)
class Query:
    """Coordinates along every axis of the layout. Without points, the answer is their outer product."""

    axes: tuple[AxisQuery, ...]
    pointwise: tuple[int, ...]
    """Axes whose coordinates belong together, one by one: they share the answer's last dimension, the points."""
    coordinates: "xarray.Dataset"
    """Of the answer, along all of its dimensions."""
    dims: tuple[str, ...]
    """Of the answer: the channels left out, and the scalars with one label."""
    scalars: tuple[str, ...] = ()
    """Dimensions that the answer loses, since a single number was given."""
    are_required: bool = False
    """Whether a sample that the archive does not hold is an error."""

    @property
    def outer(self) -> tuple[int, ...]:
        """Axes that have a dimension of the answer for themselves, in its order."""
        return tuple(k for k in range(len(self.axes)) if k not in self.pointwise)

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every one of `dims`."""
        points = [len(self.axes[self.pointwise[0]].positions)] if self.pointwise else []
        return (*(len(self.axes[k].positions) for k in self.outer), *points)

    def piece(self, region: Sequence[slice]) -> tuple[AxisQuery, ...]:
        """Along every axis, what a region of the answer asks for."""
        along = dict(zip(self.outer, region, strict=False))
        return tuple(axis.take(along.get(k, region[-1])) for k, axis in enumerate(self.axes))


def make_query(layout: Layout, keys: Keys, coordinates: Mapping[str, Any]) -> Query:
    """What the arguments of `Archive.evaluate` ask for.

    Raises:
        ConfigError, SampleNotFoundError: as `Archive.evaluate`.
    """
    given = {_axis_place(layout, name): (name, value) for name, value in coordinates.items()}
    if len(given) < len(coordinates):
        raise ConfigError(f"coordinates of one dimension given twice: {', '.join(map(str, coordinates))}")
    samples = _sample_axes(layout, keys, {layout.axes[k].name for k in given})
    pointwise, points_dim = _pointwise(layout, given)
    axes, variables = [], {}
    scalars = []
    for k, axis in enumerate(layout.axes):
        if k not in given:
            places, variables[axis.name] = samples[k]
            axes.append(AxisQuery(places.astype(np.float64), label_stencil(places)))
            continue
        name, value = given[k]
        labels = _numbers(name, value)
        positions = locate(axis, labels.reshape(-1), name)
        axes.append(AxisQuery(positions, make_stencil(axis, positions)))
        variables[axis.name] = _coordinate(axis, labels.reshape(-1), points_dim if k in pointwise else axis.name)
        scalars += [axis.name] if labels.ndim == 0 else []
    outer = [axis.name for k, axis in enumerate(layout.axes) if k not in pointwise]
    dims = (*outer, points_dim) if pointwise else tuple(outer)
    dataset = _dataset(variables, [value for k, (_, value) in given.items() if k in pointwise], points_dim)
    are_keys = keys is not None and not isinstance(keys, Mapping)
    return Query(tuple(axes), pointwise, dataset, dims, tuple(scalars), are_keys)


def evaluable_dims(layout: Layout) -> list[int]:
    """The grid's dimensions: axes of numbers other than time, of which a block covers more than one label."""
    return [
        k
        for k, axis in enumerate(layout.axes)
        if layout.block_shape[k] > 1 and axis.values.dtype.kind in "iuf" and not axis.is_time
    ]


def answer_coordinates(query: Query, layout: Layout, auxiliaries: Iterable[Auxiliary]) -> "xarray.Dataset":
    """The answer's coordinates, with those of the archive's auxiliary variables that do not lie along the grid.

    Without bounds: cells have some only on the archive's own grid, and a DataArray cannot hold them.
    """
    gridded = {layout.axes[k].name for k in evaluable_dims(layout)}
    variables = dict(query.coordinates.variables)
    for part in auxiliaries:
        if gridded.isdisjoint(part.dims) and part.name not in variables and part.own_dim is None:
            for k in query.outer:
                part = take_auxiliary(part, layout.axes[k].name, query.axes[k].positions.astype(np.int64))
            variables[part.name] = auxiliary_variable(part)
    answer = type(query.coordinates)(coords=variables)
    for coordinate in answer.coords.values():
        coordinate.attrs = {key: value for key, value in coordinate.attrs.items() if key != BOUNDS}
    return answer


def label_answer(
    query: Query,
    values: NDArray[np.float32],
    coordinates: "xarray.Dataset",
    name: str,
    attributes: Mapping[str, Any],
) -> "xarray.DataArray":
    """The answer as xarray has it; values [*query.shape, C], coordinates from `answer_coordinates`."""
    import xarray

    shape = query.shape if values.shape[-1] == 1 else values.shape
    array = xarray.DataArray(values.reshape(shape), coordinates.coords, answer_dims(query, values.shape[-1]), name)
    return array.assign_attrs(attributes).isel(dict.fromkeys(query.scalars, 0))


def answer_dims(query: Query, channels: int) -> tuple[str, ...]:
    """Dimensions of an answer as it is written: more than one channel make a last one."""
    return query.dims if channels == 1 else (*query.dims, CHANNEL_DIM)


def _axis_place(layout: Layout, name: str) -> int:
    """The axis of a coordinate: by its name; latitude and longitude by these names, whatever the source calls them."""
    possible = evaluable_dims(layout)
    for k in possible:
        if layout.axes[k].name == name:
            return k
    for k in possible:
        axis = layout.axes[k]
        if (name == "latitude" and axis.is_latitude) or (name == "longitude" and axis.is_longitude):
            return k
    names = ", ".join(layout.axes[k].name for k in possible) or "no dimension"
    raise ConfigError(f"{name!r} is no dimension of the archive's grid: it can be evaluated along {names}")


def _sample_axes(layout: Layout, keys: Keys, given: set[str]) -> "list[tuple[NDArray[np.int64], xarray.Variable]]":
    """For every axis the positions asked for and the coordinate variable that goes with them."""
    if keys is None or isinstance(keys, Mapping):
        both = sorted(given & set(keys or {}))
        if both:
            raise ConfigError(f"{both[0]} is given as coordinates and selected as well: take one of them")
        selection = make_selection(layout, keys)
        pairs = zip(selection.places, selection.axes, strict=True)
        return [(places, axis_variable(axis)) for places, axis in pairs]
    if not isinstance(keys, str | SampleKey | Iterable):
        raise ConfigError(f"expected a selection or sample keys, got {keys!r:.80}")
    blocks = find_blocks(layout, [keys] if isinstance(keys, str | SampleKey) else keys)
    if not len(blocks):
        raise ConfigError("no sample keys given")
    tiled = [layout.axes[k].name for k in evaluable_dims(layout) if layout.block_counts[k] > 1]
    if tiled:
        raise ConfigError(f"keys of this archive name tiles along {', '.join(tiled)}: give a selection instead")
    chosen = [list(dict.fromkeys(along)) for along in blocks.T.tolist()]
    wanted = set(map(tuple, blocks.tolist()))
    if math.prod(map(len, chosen)) != len(wanted):
        raise ConfigError("the keys given are not all combinations of their labels: evaluate them in several calls")
    whole = make_selection(layout, None)
    axes = []
    for k, along in enumerate(chosen):
        axis, length = layout.axes[k], layout.block_shape[k]
        if k in evaluable_dims(layout):
            axes.append((whole.places[k], axis_variable(axis)))
            continue
        places = np.concatenate([np.arange(i * length, min((i + 1) * length, len(axis))) for i in along])
        axes.append((places, axis_variable(axis)[source_order(axis)[places]]))
    return axes


def _pointwise(layout: Layout, given: Mapping[int, tuple[str, Any]]) -> tuple[tuple[int, ...], str]:
    """The axes whose coordinates share a dimension of their own, and its name."""
    import xarray

    shared: dict[str, list[int]] = {}
    for k, (name, value) in given.items():
        if isinstance(value, xarray.DataArray) and value.ndim == 1 and value.dims[0] not in (name, layout.axes[k].name):
            shared.setdefault(str(value.dims[0]), []).append(k)
    if not shared:
        return (), ""
    if len(shared) > 1:
        raise ConfigError(f"points have one dimension, which all their coordinates share; got {', '.join(shared)}")
    ((dim, places),) = shared.items()
    if dim in layout.dims:
        raise ConfigError(f"points along {dim!r}, which is a dimension of the archive: give them another name")
    lengths = {given[k][1].size for k in places}
    if len(lengths) > 1:
        raise ConfigError(f"the coordinates of points along {dim!r} differ in length: {sorted(lengths)}")
    return tuple(sorted(places)), dim


def _numbers(name: str, value: Any) -> Floats:
    """A number or a list of numbers as float64."""
    if isinstance(value, np.ma.MaskedArray) and np.any(value.mask):
        raise ConfigError(f"{name}: some coordinates are masked; leave them out")
    try:
        numbers = np.asarray(value)
    except ValueError as error:  # lists of unequal length
        raise ConfigError(f"{name}: expected a number or a list of numbers") from error
    if numbers.dtype.kind not in "iuf" or numbers.ndim > 1:
        what = f"{numbers.ndim}-D {numbers.dtype} values" if numbers.ndim else repr(value)
        raise ConfigError(f"{name}: expected a number or a list of numbers, got {what}")
    if numbers.size == 0:
        raise ConfigError(f"{name}: no coordinates given")
    return numbers.astype(np.float64)


def _coordinate(axis: Axis, labels: Floats, dim: str) -> "xarray.Variable":
    """Coordinates as they were asked for, with the attributes of the archive's own."""
    original = axis_variable(replace(axis, values=axis.values[:1], source_values=None))
    return type(original)((dim,), labels, original.attrs)


def _dataset(variables: Mapping[str, Any], points: Sequence[Any], points_dim: str) -> "xarray.Dataset":
    """Coordinates of the answer, with what the points' own arrays bring along: a station's name, its height."""
    import xarray

    carried = {
        str(name): coordinate.variable
        for array in points
        for name, coordinate in array.coords.items()
        if coordinate.dims == (points_dim,) and name not in variables
    }
    return xarray.Dataset(coords={**carried, **variables})
