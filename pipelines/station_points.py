"""Points to evaluate an archive at, from a CSV file: a latitude, a longitude, and whatever else its columns say."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vcinr_batch.archive.query import evaluable_dims
from vcinr_batch.data.axes import Axis
from vcinr_batch.data.interpolation import Floats, locate
from vcinr_batch.data.layout import Layout
from vcinr_batch.errors import ConfigError
from vcinr_batch.storage import StorageOptions, public_url, read_bytes

if TYPE_CHECKING:
    import xarray

POINTS_DIM = "points"
_NAMES = {"latitude": ("latitude", "lat"), "longitude": ("longitude", "lon")}


@dataclass(frozen=True, eq=False)
class StationPoints:
    """The points of a file, in its order."""

    latitude_deg: Floats
    longitude_deg: Floats
    columns: dict[str, list[str]]
    """All columns as they stand in the file; those of the coordinates last."""

    def as_arrays(self, layout: Layout) -> "dict[str, xarray.DataArray]":
        """What `Archive.evaluate` takes; the other columns are the points' coordinates."""
        import xarray

        latitude, longitude = geographic_axes(layout)
        names = list(self.columns)[:-2]
        carried = {name: (POINTS_DIM, np.array(self.columns[name], dtype=object)) for name in names}
        return {
            axis.name: xarray.DataArray(values, carried, (POINTS_DIM,))
            for axis, values in ((latitude, self.latitude_deg), (longitude, self.longitude_deg))
        }


def read_points(url: str, layout: Layout, storage_options: StorageOptions = None) -> StationPoints:
    """Read points and make sure that they lie on the grid.

    Args:
        url: of a CSV file with a header; the names latitude or lat and longitude or lon count in any case.
        layout: of the archive.
        storage_options: of the file's file system.

    Raises:
        SourceError: there is no such file.
        ConfigError: it is not such a file, or a point is off the grid; names the line.
    """
    place = public_url(url)
    header, rows = _read_table(read_bytes(url, storage_options=storage_options), place)
    at = {kind: _find_column(header, kind, place) for kind in _NAMES}
    taken = [name for name in header if name in (*layout.dims, layout.variable, POINTS_DIM)]
    taken = [name for name in taken if header.index(name) not in at.values()]
    if taken:
        raise ConfigError(f"{place}: the archive has a {taken[0]!r} of its own: rename that column")
    coordinates = {
        kind: np.array([_number(cells[k], f"{place} line {line}: {header[k]}") for line, cells in rows])
        for kind, k in at.items()
    }
    for axis, (kind, values) in zip(geographic_axes(layout), coordinates.items(), strict=True):
        _check_inside(axis, values, [f"{place} line {line}: {header[at[kind]]}" for line, _ in rows])
    order = [k for k in range(len(header)) if k not in at.values()] + list(at.values())
    columns = {header[k]: [cells[k] for _, cells in rows] for k in order}
    return StationPoints(coordinates["latitude"], coordinates["longitude"], columns)


def geographic_axes(layout: Layout) -> tuple[Axis, Axis]:
    """The grid's latitude and longitude.

    Raises:
        ConfigError: the grid has none.
    """
    axes = [layout.axes[k] for k in evaluable_dims(layout)]
    latitude = next((axis for axis in axes if axis.is_latitude), None)
    longitude = next((axis for axis in axes if axis.is_longitude), None)
    if latitude is None or longitude is None:
        names = ", ".join(axis.name for axis in axes) or "no dimension"
        raise ConfigError(f"the archive's grid has no latitude and longitude but {names}: use Archive.evaluate there")
    return latitude, longitude


def _read_table(data: bytes, place: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and each row with the number of its line."""
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place}: not a text file in UTF-8") from error
    except csv.Error as error:
        raise ConfigError(f"{place} line {reader.line_num}: not CSV ({error})") from error
    if not lines:
        raise ConfigError(f"{place}: empty; expected a header with latitude and longitude, and one point per line")
    (_, header), *rows = lines
    if not rows:
        raise ConfigError(f"{place}: no points after the header")
    double = next((name for name in header if header.count(name) > 1), None)
    if double is not None:
        raise ConfigError(f"{place}: two columns of the name {double!r}")
    for line, cells in rows:
        if len(cells) != len(header):
            raise ConfigError(f"{place} line {line}: {len(cells)} cells, the header has {len(header)}")
    return header, rows


def _find_column(header: Sequence[str], kind: str, place: str) -> int:
    found = [k for k, name in enumerate(header) if name.lower() in _NAMES[kind]]
    if len(found) != 1:
        names, what = " or ".join(_NAMES[kind]), ", ".join(header)
        raise ConfigError(f"{place}: expected one column {names} in the header, got {what[:200]}")
    return found[0]


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"{where} {text[:40]!r} is not a number") from error


def _check_inside(axis: Axis, values: Floats, names: Sequence[str]) -> None:
    try:
        locate(axis, values, axis.name)
    except ConfigError:
        for i, name in enumerate(names):  # once more, one by one, to name the line
            locate(axis, values[i : i + 1], name)
        raise
