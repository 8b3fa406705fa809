"""Restores into one NetCDF 4 file: the driver alone writes it (HDF5 has a single writer), region by region.

The variable lies in one piece (contiguous, not compressed, as `xarray.Dataset.to_netcdf` has it), so that the file's
bytes do not depend on the order in which the regions come.
"""

import contextlib
import errno
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.restore_regions import ArchiveSelection, OpenSelection, Region, decode_region
from vcinr_batch.data.auxiliary import coordinates_attribute
from vcinr_batch.errors import ConfigError

_ENGINES = {"netcdf4": "netCDF4", "h5netcdf": "h5netcdf"}
_FULL_BYTES = 1 << 20
"""A disk with less than that is full: HDF5 writes in larger pieces."""


@dataclass(frozen=True, eq=False)
class DecodedRegion:
    """A region on its way to the driver."""

    region: Region
    values: NDArray[np.float32]


def read_region(source: ArchiveSelection, region: Region) -> DecodedRegion:
    """Decode a region. Raises as `decode_region`."""
    return DecodedRegion(region, decode_region(source, region))


def netcdf_engine() -> str:
    """The library that writes.

    Raises:
        ConfigError: there is none; names the extra.
    """
    engine = next((e for e, module in _ENGINES.items() if importlib.util.find_spec(module)), None)
    if engine is None:
        raise ConfigError("writing NetCDF needs netCDF4 or h5netcdf: pip install 'vcinr-batch[netcdf]'")
    return engine


@contextmanager
def netcdf_variable(
    opened: OpenSelection, shape: tuple[int, ...], path: Path, engine: str
) -> Iterator[Callable[[DecodedRegion], None]]:
    """A new file with everything but the variable's values.

    Yields:
        A function that writes a region.

    Raises:
        OSError, RuntimeError, ValueError, TypeError: what the library raises where the file cannot be written.
    """
    archive, selection = opened.archive, opened.selection
    attributes = archive.variable_attributes
    attributes |= coordinates_attribute(archive.manifest.auxiliaries, attributes)
    sizes = dict(zip(selection.dims, shape, strict=True))
    coordinates = archive.coordinates(selection)
    with netcdf_file(path, engine, archive.layout.variable, sizes, attributes, coordinates) as write:
        yield lambda decoded: write(decoded.region.slices, decoded.values)


@contextmanager
def netcdf_file(
    path: Path, engine: str, name: str, sizes: Mapping[str, int], attributes: Mapping[Any, Any], coordinates: Any
) -> Iterator[Callable[[tuple[slice, ...], NDArray[np.float32]], None]]:
    """A new file with a variable and its coordinates (a dataset), whose values are still to be written.

    Yields:
        A function that writes values to a region.

    Raises:
        OSError, RuntimeError, ValueError, TypeError: as `netcdf_variable`.
    """
    create = _create_with_netcdf4 if engine == "netcdf4" else _create_with_h5netcdf
    with _naming_full_disks(path):
        _write_coordinates(coordinates.reset_coords(), path, engine)
        file, variable = create(path, name, sizes, netcdf_attributes(attributes))

    def write(region: tuple[slice, ...], values: NDArray[np.float32]) -> None:
        with _naming_full_disks(path):
            variable[region] = values

    try:
        yield write
    except BaseException:
        with contextlib.suppress(Exception):  # on a full disk closing fails, too, and says less
            file.close()
        raise
    with _naming_full_disks(path):
        file.close()


def netcdf_attributes(attributes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Attributes as NetCDF can hold them: texts, numbers and lists of one of them; anything else as JSON."""
    return {
        name: value if isinstance(value, np.ndarray | np.generic) or _is_plain(value) else json.dumps(value)
        for name, value in attributes.items()
    }


def _write_coordinates(dataset: Any, path: Path, engine: str) -> None:
    dataset.attrs = netcdf_attributes(dataset.attrs)
    for variable in dataset.variables.values():
        variable.attrs = netcdf_attributes(variable.attrs)
    # NaN is no fill value of a coordinate: CF forbids missing labels. What else a coordinate brings along (units,
    # calendar, dtype) goes with it: to_netcdf's encoding would replace a variable's own.
    encoding = {name: {**dataset[name].encoding, "_FillValue": None} for name in dataset.variables}
    dataset.to_netcdf(path, engine=engine, format="NETCDF4", encoding=encoding)


def _create_with_netcdf4(
    path: Path, name: str, sizes: Mapping[str, int], attributes: Mapping[Any, Any]
) -> tuple[Any, Any]:
    """The open file and its new variable."""
    import netCDF4

    file = netCDF4.Dataset(path, "a")
    for dim in sizes.keys() - file.dimensions.keys():
        file.createDimension(dim, sizes[dim])
    variable = file.createVariable(name, "f4", tuple(sizes), fill_value=np.float32(np.nan), contiguous=True)
    variable.setncatts(attributes)
    variable.set_auto_maskandscale(False)
    return file, variable


def _create_with_h5netcdf(
    path: Path, name: str, sizes: Mapping[str, int], attributes: Mapping[Any, Any]
) -> tuple[Any, Any]:
    """As `_create_with_netcdf4`."""
    import h5netcdf

    file = h5netcdf.File(path, "a")
    for dim in sizes.keys() - set(file.dimensions):
        file.dimensions[dim] = sizes[dim]
    variable = file.create_variable(name, tuple(sizes), "f4", fillvalue=np.float32(np.nan))
    for key, value in attributes.items():
        variable.attrs[key] = value
    return file, variable


@contextmanager
def _naming_full_disks(path: Path) -> Iterator[None]:
    """HDF5 only says that writing failed; where the disk is full, say so."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if shutil.disk_usage(path.parent).free < _FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    numbers = [isinstance(item, int | float) and not isinstance(item, bool) for item in items]
    return bool(items) and (all(numbers) or all(isinstance(item, str) for item in items))
