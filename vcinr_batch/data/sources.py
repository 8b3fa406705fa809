"""Gridded fields as one array with labelled axes, whatever store and however many files they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, pairwise, product
from typing import Any

import numpy as np
import xarray
from numpy.typing import NDArray

from vcinr_batch.config import SourceConfig
from vcinr_batch.data.auxiliary import Auxiliary, take_auxiliary
from vcinr_batch.data.auxiliary_joining import join_auxiliaries, share_auxiliaries
from vcinr_batch.data.axes import Axis, axis_index, source_order, take_labels
from vcinr_batch.data.source_joining import join_parts
from vcinr_batch.data.source_parts import SourcePart, open_part
from vcinr_batch.data.source_urls import expand_urls, group_by_member
from vcinr_batch.data.stores import StoreFile, check_unchanged, read_store
from vcinr_batch.errors import ConfigError


@dataclass(frozen=True, eq=False)
class FieldSource:
    """A variable to be read piece by piece. It holds no open file and can be pickled."""

    urls: tuple[str, ...]
    variable: str
    axes: tuple[Axis, ...]
    """Dimensions in the source's order, `member` first; labels canonical, after selection."""
    unit: str
    attributes: Mapping[str, Any]
    """Of the variable, as JSON values."""
    dataset_attributes: Mapping[str, Any]
    encoding: Mapping[str, Any]
    """dtype, scale_factor, add_offset, _FillValue as delivered by the first file, as JSON values."""
    source_bits: int
    """Bits per value as delivered: packed int16 counts as 16."""
    chunk_shape: tuple[int, ...]
    """Of the store, along every axis; 1 where unknown."""
    files: tuple[StoreFile, ...] = field(repr=False)
    file_index: NDArray[np.int32] = field(repr=False)
    """[members, labels of the joined axis] which file holds it."""
    joined_places: NDArray[np.int64] = field(repr=False)
    """[members, labels of the joined axis] and where in that file."""
    places: tuple[NDArray[np.int64], ...] = field(repr=False)
    """For each axis, where in a file each label is; not looked at for `member` and the joined axis."""
    joined_dim: str | None
    """The time dimension, along which files are joined."""
    has_members: bool
    storage_options: Mapping[str, Any] = field(repr=False)
    auxiliaries: tuple[Auxiliary, ...] = field(default=(), repr=False)
    """What goes with the values beside their axes; labels as on the axes."""
    left_out: tuple[str, ...] = ()
    """Names of auxiliary variables that are not among them: too large, or not the same in all files."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.axes)


def open_fields(
    urls: str | Sequence[str], config: SourceConfig, storage_options: Mapping[str, Any] | None = None
) -> FieldSource:
    """Open a variable of NetCDF, Zarr or GRIB files; reads metadata only.

    Several files are joined along time in the order of their labels, or with `config.member_pattern` stacked along a
    new first dimension `member`.

    Args:
        urls: files on any fsspec URL, patterns allowed.
        config: variable, selection, member pattern.
        storage_options: of the file system.

    Raises:
        SourceError: missing, unreadable, no such variable, or files that do not fit together.
        SampleNotFoundError: the selection is empty.
        ConfigError: the selection names no dimension, or the variable is ambiguous.
    """
    options = dict(storage_options or {})
    expanded = expand_urls(urls, options)
    groups = group_by_member(expanded, config.member_pattern)
    opened = iter(share_auxiliaries(open_part(url, config.variable, options) for g in groups.values() for url in g))
    parts = {member: list(islice(opened, len(group))) for member, group in groups.items()}
    source = _join(expanded, parts, options, config.member_pattern is not None)
    first = next(iter(parts.values()))[0]
    return _select(source, config.select, first.scalars)


def read_extent(source: FieldSource, extent: tuple[slice, ...]) -> NDArray[np.float32]:
    """The values of a piece in canonical order, NaN where one is missing.

    Args:
        source: where from.
        extent: one slice without a step per axis, within the axis.

    Returns:
        float32 of the extent's shape, in the variable's unit.

    Raises:
        StoreUnavailableError: the store does not answer: nothing is known to be wrong with the data.
        DamagedSourceError: bytes of it do not decode.
        SourceError: a file of it is missing or cannot be read.
    """
    ranges = [range(*part.indices(len(axis))) for part, axis in zip(extent, source.axes, strict=True)]
    values = np.empty([len(indices) for indices in ranges], dtype=np.float32)
    if values.size == 0:
        return values
    if not source.has_members:
        _read_member(source, 0, ranges, values)
        return values
    for target, member in zip(values, ranges[0], strict=True):
        _read_member(source, member, ranges[1:], target)
    return values


def check_source_unchanged(source: FieldSource) -> None:
    """Raise where a Zarr store of the source is not the one that was opened; of other files each read makes sure.

    Raises:
        StoreUnavailableError: the store does not answer.
        SourceError: it was changed, or is gone.
    """
    for file in source.files:
        if file.format == "zarr":
            check_unchanged(file, source.storage_options)


def _read_member(source: FieldSource, member: int, ranges: list[range], target: NDArray[np.float32]) -> None:
    """Fill the values of one member from its files, each in one go."""
    skip = int(source.has_members)
    places = {
        axis.name: where[indices.start : indices.stop]
        for axis, where, indices in zip(source.axes[skip:], source.places[skip:], ranges, strict=True)
    }
    if source.joined_dim is None:
        _read_places(source, source.files[source.file_index[member, 0]], places, target)
        return
    k = list(places).index(source.joined_dim)
    files = source.file_index[member, ranges[k].start : ranges[k].stop]
    joined = source.joined_places[member, ranges[k].start : ranges[k].stop]
    for start, stop in pairwise([0, *(np.flatnonzero(np.diff(files)) + 1).tolist(), len(files)]):
        part = {**places, source.joined_dim: joined[start:stop]}
        _read_places(source, source.files[files[start]], part, target[(slice(None),) * k + (slice(start, stop),)])


def _read_places(
    source: FieldSource, file: StoreFile, places: Mapping[str, NDArray[np.int64]], target: NDArray[np.float32]
) -> None:
    """Fill `target`, whose axes are the keys of `places`, from one file in few contiguous reads."""
    dims = list(places)
    for runs in product(*(_runs(places[dim]) for dim in dims)):
        wanted = {dim: run[0] for dim, run in zip(dims, runs, strict=True)}
        block = read_store(file, source.storage_options, partial(_load, source.variable, wanted, dims))
        into = [run[1] for run in runs]
        if all(isinstance(index, slice) for index in into):
            target[tuple(into)] = block
        else:
            grid = [np.arange(n)[index] for index, n in zip(into, target.shape, strict=True)]
            target[np.ix_(*grid)] = block


def _load(name: str, wanted: Mapping[str, slice], dims: list[str], dataset: xarray.Dataset) -> NDArray[np.float32]:
    """A block with exactly the axes `dims`: other dimensions have length 1 here, missing ones are put in."""
    variable = dataset.variables[name]
    values = variable.isel({dim: places for dim, places in wanted.items() if dim in variable.dims})
    block = values.transpose(*(dim for dim in dims if dim in values.dims)).values
    with np.errstate(over="ignore"):
        block = block.astype(np.float32, copy=False)
    return block[tuple(slice(None) if dim in values.dims else np.newaxis for dim in dims)]


def _runs(places: NDArray[np.int64]) -> list[tuple[slice, slice | NDArray[np.int64]]]:
    """Contiguous ranges of places to read, and where each belongs among the places asked for."""
    order = np.argsort(places, kind="stable")
    breaks = np.flatnonzero(np.diff(places[order]) != 1) + 1
    return [(slice(int(places[run[0]]), int(places[run[-1]]) + 1), _as_slice(run)) for run in np.split(order, breaks)]


def _as_slice(indices: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    first, last = int(indices[0]), int(indices[-1])
    if np.array_equal(indices, np.arange(first, last + 1)):
        return slice(first, last + 1)
    if np.array_equal(indices, np.arange(first, last - 1, -1)):
        return slice(first, last - 1 if last else None, -1)
    return indices


def _join(
    urls: tuple[str, ...], parts: Mapping[str, list[SourcePart]], options: Mapping[str, Any], has_members: bool
) -> FieldSource:
    groups = list(parts.values())
    flat = [part for group in groups for part in group]
    first = flat[0]
    time = join_parts(groups)
    auxiliaries = join_auxiliaries(groups, time, has_members)
    axes = [time.axis if time.axis and axis.name == time.axis.name else axis for axis in first.axes]
    axes = [auxiliaries.describe(axis) for axis in axes]
    places = [source_order(axis) for axis in axes]
    chunk_shape = [min(chunk, len(axis)) for chunk, axis in zip(first.chunk_shape, axes, strict=True)]
    if has_members:
        axes.insert(0, Axis("member", np.array(list(parts))))
        places.insert(0, np.arange(len(groups)))
        chunk_shape.insert(0, 1)
    return FieldSource(
        urls=urls,
        variable=first.variable,
        axes=tuple(axes),
        unit=str(first.attributes.get("units", "")),
        attributes={**first.attributes, **auxiliaries.relations},
        dataset_attributes=first.dataset_attributes,
        encoding=first.encoding,
        source_bits=max(part.source_bits for part in flat),
        chunk_shape=tuple(chunk_shape),
        files=tuple(part.file for part in flat),
        file_index=time.file_index,
        joined_places=time.places,
        places=tuple(places),
        joined_dim=None if time.axis is None else time.axis.name,
        has_members=has_members,
        storage_options=options,
        auxiliaries=auxiliaries.variables,
        left_out=auxiliaries.left_out,
    )


def _select(source: FieldSource, select: Mapping[str, str], scalars: Mapping[str, Axis]) -> FieldSource:
    """Keep what is selected; a label of a scalar coordinate must match it."""
    for name, text in select.items():
        dims = [axis.name for axis in source.axes]
        if name in dims:
            source = _select_along(source, dims.index(name), text)
        elif name in scalars:
            axis_index(scalars[name], text)
        else:
            there = ", ".join([*dims, *scalars])
            raise ConfigError(f"source.select: {source.variable} has no dimension {name!r}; it has {there}")
    return source


def _select_along(source: FieldSource, k: int, text: str) -> FieldSource:
    axis, kept = take_labels(source.axes[k], axis_index(source.axes[k], text))
    where: tuple[slice | NDArray[np.int64], ...] = (slice(None),)
    if source.axes[k].name == source.joined_dim:
        where = (slice(None), kept)
    elif source.has_members and k == 0:
        where = (kept,)
    return replace(
        source,
        axes=(*source.axes[:k], axis, *source.axes[k + 1 :]),
        places=(*source.places[:k], source.places[k][kept], *source.places[k + 1 :]),
        chunk_shape=(*source.chunk_shape[:k], min(source.chunk_shape[k], len(axis)), *source.chunk_shape[k + 1 :]),
        file_index=source.file_index[where],
        joined_places=source.joined_places[where],
        auxiliaries=tuple(take_auxiliary(auxiliary, axis.name, kept) for auxiliary in source.auxiliaries),
    )
