"""The auxiliary variables of one file: what xarray calls the coordinates of a variable, save those of its axes, and
the bounds of all of them."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray
from numpy.typing import NDArray

from vcinr_batch.data.attributes_json import attributes_from_json, attributes_to_json
from vcinr_batch.data.auxiliary import BOUNDS, MAX_BYTES, RELATIONS, Auxiliary, is_usable_name, stored_bytes
from vcinr_batch.data.times import EPOCH, axis_microseconds, encode_times

_MAX_DIMS = 2
"""Of those that the fields have."""


@dataclass(frozen=True, eq=False)
class FileAuxiliaries:
    """Of one file; of several that were joined they are `auxiliary_joining.JoinedAuxiliaries`."""

    variables: Mapping[str, Auxiliary] = field(default_factory=dict)
    """Labels in the file's order; times in microseconds since 1970."""
    left_out: frozenset[str] = frozenset()
    """Names of those that an archive does not keep: too large, or of a type that it has no word for."""
    relations: Mapping[str, str] = field(default_factory=dict)
    """Attributes of the variable that name auxiliary variables: `{"grid_mapping": "crs"}`."""
    bounds: Mapping[str, str] = field(default_factory=dict)
    """The attribute `BOUNDS` of axes and auxiliary variables: `{"time": "time_bnds"}`."""


def read_auxiliaries(dataset: xarray.Dataset, variable: str, dims: Collection[str]) -> FileAuxiliaries:
    """Read all that is small enough.

    Args:
        dataset: of the file.
        variable: whose auxiliary variables they are.
        dims: names of its axes, those included that a scalar has become.
    """
    array = dataset[variable]
    found: dict[str, Auxiliary | None] = {
        str(name): _read(str(name), coordinate.variable)
        for name, coordinate in sorted(array.coords.items(), key=lambda item: str(item[0]))
        if str(name) not in dims and name not in (*array.dims, array.name)
    }
    bounds = _bounds(dataset, array)
    for name, text in bounds.items():
        found[text] = _read_bounds(text, dataset, array, name if name in dims else None)
    return FileAuxiliaries(
        variables={name: auxiliary for name, auxiliary in found.items() if auxiliary is not None},
        left_out=frozenset(name for name, auxiliary in found.items() if auxiliary is None),
        relations={key: str(array.encoding[key]) for key in RELATIONS if array.encoding.get(key)},
        bounds=bounds,
    )


def source_attributes(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """As a manifest gives them back: numbers of their type, anything that it has no word for as text."""
    return attributes_from_json(attributes_to_json(attributes), "a source")


def source_time_attributes(variable: xarray.Variable, calendar: str) -> dict[str, str]:
    """The source's own units, calendar and type of times where it is float64.

    Midnight is left out of the units, which some containers write and others do not.
    """
    units = str(variable.encoding.get("units", ""))
    source_calendar = str(variable.encoding.get("calendar", calendar))
    kept = {"source_units": re.sub(r"[T ]0?0:00(:00(\.0*)?)?Z?$", "", units)} if units else {}
    if variable.encoding.get("dtype") == np.dtype(np.float64):
        kept["source_dtype"] = "float64"
    return kept | ({"source_calendar": source_calendar} if source_calendar != calendar else {})


def _bounds(dataset: xarray.Dataset, array: xarray.DataArray) -> dict[str, str]:
    """Which variables of the file are the bounds of which coordinates."""
    named = {str(name): str(coordinate.encoding.get(BOUNDS, "")) for name, coordinate in array.coords.items()}
    taken = (*array.coords, *array.dims, array.name)
    return {name: bounds for name, bounds in named.items() if bounds in dataset.variables and bounds not in taken}


def _read_bounds(name: str, dataset: xarray.Dataset, array: xarray.DataArray, axis: str | None) -> Auxiliary | None:
    """As `_read`; those of a scalar that has become an axis lie along it."""
    variable = dataset.variables[name]
    if axis is not None and axis not in variable.dims:
        variable = xarray.Variable(
            (axis, *variable.dims), variable.values[np.newaxis], variable.attrs, variable.encoding
        )
    own = [str(dim) for dim in variable.dims if dim not in (*array.dims, axis)]
    if len(own) != 1 or not is_usable_name(own[0]):
        return None
    auxiliary = _read(name, variable, _MAX_DIMS + 1)
    return None if auxiliary is None else replace(auxiliary, own_dim=own[0])


def _read(name: str, variable: xarray.Variable, max_dims: int = _MAX_DIMS) -> Auxiliary | None:
    """None where an archive does not keep it."""
    dims = tuple(str(dim) for dim in variable.dims)
    if not is_usable_name(name) or len(dims) > max_dims or variable.size > MAX_BYTES:
        return None
    if variable.dtype.kind in "biuf" and variable.nbytes > MAX_BYTES:
        return None
    values, attributes = variable.values, source_attributes(variable.attrs)
    if values.dtype.kind == "M" or _are_dates(values):
        if values.dtype.kind == "M" and bool(np.isnat(values).any()):
            return None
        labels, units, calendar = encode_times(values.reshape(-1))
        attributes |= source_time_attributes(variable, calendar)
        attributes |= {"units": f"microseconds since {EPOCH}", "calendar": calendar}
        return Auxiliary(name, dims, axis_microseconds(labels, units, calendar).reshape(values.shape), attributes)
    if values.dtype.kind not in "biuf":
        texts = _as_texts(values)
        return None if texts is None or _is_too_large(texts) else Auxiliary(name, dims, texts, attributes)
    return None if _is_too_large(values) else Auxiliary(name, dims, values, attributes)


def _is_too_large(values: NDArray[Any]) -> bool:
    """Or of a type that JSON has no word for."""
    size = stored_bytes(values.dtype, values.size)
    return size is None or size > MAX_BYTES


def _are_dates(values: NDArray[Any]) -> bool:
    return values.dtype.kind == "O" and all(hasattr(value, "calendar") for value in values.reshape(-1).tolist())


def _as_texts(values: NDArray[Any]) -> NDArray[Any] | None:
    """Texts, or bytes in UTF-8; None where they are neither."""
    items = values.reshape(-1).tolist()
    try:
        if all(isinstance(item, str) for item in items):
            "".join(items).encode()
            return values.astype(str)
        if values.dtype.kind == "S":
            b"\n".join(items).decode()
            return values
    except UnicodeError:
        return None
    return None
