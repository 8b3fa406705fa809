"""What one file of a source holds: its axes, its encoding, and which variables there are to choose from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray
from numpy.typing import NDArray

from vcinr_batch.data.axes import Axis, make_axis
from vcinr_batch.data.grib_headers import grib_bits_per_value, grib_variables
from vcinr_batch.data.source_auxiliary import (
    FileAuxiliaries,
    read_auxiliaries,
    source_attributes,
    source_time_attributes,
)
from vcinr_batch.data.stores import StoreFile, find_store, open_store, reading
from vcinr_batch.data.times import encode_times
from vcinr_batch.errors import ConfigError, SourceError
from vcinr_batch.storage import public_url

_ENCODING_KEYS = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned")
_GRIB_GRID_DIMS = ("latitude", "longitude", "y", "x", "values")


@dataclass(frozen=True, eq=False)
class SourcePart:
    """One variable in one store."""

    file: StoreFile
    variable: str
    axes: tuple[Axis, ...]
    scalars: Mapping[str, Axis]
    """Coordinates that are the same for the whole variable, such as the one level of a GRIB file."""
    attributes: Mapping[str, Any]
    dataset_attributes: Mapping[str, Any]
    encoding: Mapping[str, Any]
    source_bits: int
    chunk_shape: tuple[int, ...]
    auxiliaries: FileAuxiliaries = field(default_factory=FileAuxiliaries)

    @property
    def dims(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes)

    @property
    def time_dim(self) -> int | None:
        """Place of the first time axis."""
        return next((k for k, axis in enumerate(self.axes) if axis.is_time), None)


def open_part(url: str, variable: str | None, storage_options: Mapping[str, Any]) -> SourcePart:
    """Read the metadata of one store.

    Args:
        url: one file or Zarr store.
        variable: its name, for GRIB also its short name; None where the store holds just one.
        storage_options: of the file system.

    Raises:
        SourceError: unreadable, or without that variable; names the variables there are.
        ConfigError: no variable named and several to choose from.
    """
    file = find_store(url, storage_options)
    if file.format == "grib":
        file, name = _find_in_grib(file, variable, storage_options)
    else:
        name = _choose(open_store(file, storage_options), variable, url)
    dataset = open_store(file, storage_options)
    if 0 in dataset[name].shape or dataset[name].ndim == 0:
        raise SourceError(f"{name} in {public_url(url)} holds no field: its shape is {dataset[name].shape}")
    with reading(url):
        return _describe(file, dataset, name, storage_options)


def _find_in_grib(file: StoreFile, variable: str | None, storage_options: Mapping[str, Any]) -> tuple[StoreFile, str]:
    """The messages of one variable, by cfgrib's name of it (`t2m`) or by its GRIB short name (`2t`).

    Never opens the file as a whole, since variables on different levels do not fit into one dataset.
    """
    if variable is None:
        variable = _only(grib_variables(file, storage_options), file.url)
    for key in ("cfVarName", "shortName"):
        chosen = replace(file, grib_filter=((key, variable),))
        names = list(open_store(chosen, storage_options).data_vars)
        if names:
            return chosen, str(names[0])
    raise _unknown_variable(grib_variables(file, storage_options), variable, file.url)


def _choose(dataset: xarray.Dataset, variable: str | None, url: str) -> str:
    if variable is None:
        return _only(_variables(dataset), url)
    if variable not in dataset.variables or variable in dataset.dims:
        raise _unknown_variable(_variables(dataset), variable, url)
    if dataset.variables[variable].dtype.kind not in "biuf":
        raise SourceError(f"{variable!r} in {public_url(url)} is not numeric: {dataset.variables[variable].dtype}")
    return variable


def _only(names: list[str], url: str) -> str:
    if not names:
        raise SourceError(f"{public_url(url)} holds no numeric variable with a dimension")
    if len(names) > 1:
        raise ConfigError(f"source.variable must name one of the variables in {public_url(url)}: {', '.join(names)}")
    return names[0]


def _unknown_variable(there: list[str], variable: str, url: str) -> SourceError:
    return SourceError(f"no variable {variable!r} in {public_url(url)}; it holds {', '.join(there) or 'none'}")


def _variables(dataset: xarray.Dataset) -> list[str]:
    return sorted(
        str(name)
        for name, variable in dataset.data_vars.items()
        if variable.ndim > 0 and variable.dtype.kind in "biuf" and not str(name).endswith(("_bnds", "_bounds"))
    )


def _describe(file: StoreFile, dataset: xarray.Dataset, name: str, storage_options: Mapping[str, Any]) -> SourcePart:
    array = dataset[name]
    axes = [read_axis(dataset, str(dim)) for dim in array.dims]
    scalars = {
        str(key): _to_axis(str(key), coordinate.variable.set_dims({str(key): 1}))
        for key, coordinate in array.coords.items()
        if coordinate.ndim == 0 and coordinate.dtype.kind in "biufMUSO" and not bool(coordinate.isnull())
    }
    if "time" in scalars and scalars["time"].is_time and not any(axis.is_time for axis in axes):
        axes.insert(0, scalars.pop("time"))  # one field per file: its time tells the samples apart
    encoding = source_encoding(array)
    if file.format == "grib":
        bits = grib_bits_per_value(file, storage_options)
    else:
        bits = 8 * np.dtype(encoding["dtype"]).itemsize
    return SourcePart(
        file=file,
        variable=name,
        axes=tuple(axes),
        scalars=scalars,
        attributes=source_attributes(array.attrs),
        # cfgrib writes the hour of reading into the history.
        dataset_attributes=source_attributes(
            {k: v for k, v in dataset.attrs.items() if not (k == "history" and file.format == "grib")}
        ),
        encoding=encoding,
        source_bits=bits,
        chunk_shape=tuple(_chunk_length(array, axis, file) for axis in axes),
        auxiliaries=read_auxiliaries(dataset, name, [axis.name for axis in axes]),
    )


def read_axis(dataset: xarray.Dataset, dim: str) -> Axis:
    """A dimension of a dataset with its labels; counted from 0 where it has none.

    Raises:
        SourceError: a label is missing.
    """
    if dim not in dataset.coords:
        return Axis(dim, np.arange(dataset.sizes[dim], dtype=np.int64))
    return _to_axis(dim, dataset.coords[dim].variable)


def _to_axis(name: str, variable: xarray.Variable) -> Axis:
    values, attributes = variable.values, source_attributes(variable.attrs)
    if values.dtype.kind == "M" or (values.dtype.kind == "O" and hasattr(values.ravel()[0], "calendar")):
        if values.dtype.kind == "M" and np.isnat(values).any():
            raise SourceError(f"dimension {name!r} has missing times")
        labels, units, calendar = encode_times(values)
        attributes |= source_time_attributes(variable, calendar) | {"units": units, "calendar": calendar}
        return make_axis(name, labels, attributes)
    if values.dtype.kind not in "biuf":
        return make_axis(name, values.astype(str), attributes)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise SourceError(f"dimension {name!r} has missing labels")
    if values.dtype.name not in ("int64", "float64"):
        attributes["source_dtype"] = values.dtype.name
    return make_axis(name, _wide(values), attributes)


def _wide(values: NDArray[Any]) -> NDArray[Any]:
    """int64 or float64; float32 through its shortest decimal, so that 49.9 stays 49.9 and equals a float64 source's."""
    if values.dtype.kind in "biu":
        return values.astype(np.int64)
    if values.dtype == np.float64:
        return values
    return np.array([float(str(value)) for value in values], dtype=np.float64)


def source_encoding(array: xarray.DataArray) -> dict[str, Any]:
    """How a file stores the values: dtype, scale_factor, add_offset, _FillValue; else dtype alone."""
    dtype = np.dtype(array.encoding.get("dtype", array.dtype))
    kept = {key: array.encoding[key] for key in _ENCODING_KEYS if array.encoding.get(key) is not None}
    return {"dtype": dtype.name} | source_attributes(kept)


def _chunk_length(array: xarray.DataArray, axis: Axis, file: StoreFile) -> int:
    """How many labels of an axis one chunk of the store spans; 1 where unknown."""
    if file.format == "grib":  # one message holds one whole grid
        return len(axis) if axis.name in _GRIB_GRID_DIMS else 1
    length = array.encoding.get("preferred_chunks", {}).get(axis.name, 1)
    return int(length if np.ndim(length) == 0 else length[0])
