"""Where the points of a sample are: the network's input, the same for all samples of a bundle."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.data.axes import Axis
from vcinr_batch.data.axis_json import axis_from_json, axis_to_json, checked_int, checked_object
from vcinr_batch.data.layout import Layout
from vcinr_batch.errors import ConfigError, CorruptBitstreamError

_DEGREE_TOLERANCE = 1e-4
_POINT_CAP = 10**9
_MAX_DIMS = 32


@dataclass(frozen=True, eq=False)
class Grid:
    """The points of a block in row-major order."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    """Length of the block along each dimension."""
    system: Literal["sphere", "cartesian"]
    latitude_deg: NDArray[np.float64] | None = None
    """Labels of the latitude dimension, north first; None unless `system` is sphere."""
    longitude_deg: NDArray[np.float64] | None = None
    """Labels of the longitude dimension, eastwards."""
    geographic_dims: tuple[int, int] | None = None
    """Places of the latitude and the longitude dimension among `dims`."""

    def __post_init__(self) -> None:
        if len(self.dims) != len(self.shape) or min(self.shape, default=1) < 1:
            raise ConfigError(f"a grid of dimensions {self.dims} cannot have the shape {self.shape}")
        if self.system == "cartesian":
            return
        if self.latitude_deg is None or self.longitude_deg is None or self.geographic_dims is None:
            raise ConfigError("a grid on the sphere needs latitudes and longitudes")
        latitude, longitude = self.geographic_dims
        if (self.shape[latitude], self.shape[longitude]) != (len(self.latitude_deg), len(self.longitude_deg)):
            raise ConfigError(f"a grid of shape {self.shape} needs as many latitudes and longitudes")

    @property
    def point_count(self) -> int:
        """P."""
        return math.prod(self.shape)

    @property
    def coordinate_dim(self) -> int:
        """D: 3 on the sphere and one for every other dimension of more than one point; at least 1."""
        return max(len(self._linear_dims) + (3 if self.system == "sphere" else 0), 1)

    @property
    def _linear_dims(self) -> list[int]:
        geographic = self.geographic_dims or ()
        return [k for k, n in enumerate(self.shape) if n > 1 and k not in geographic]

    def coordinates(self) -> NDArray[np.float32]:
        """Points as the network sees them.

        Sphere, as COIN++ and Functa do for ERA5: (cos lat cos lon, cos lat sin lon, sin lat), then every other
        dimension of more than one point from -1 to 1. Cartesian: every such dimension from -1 to 1.

        Returns:
            float32 [P, D], row-major points.
        """
        return self.coordinates_at(
            [np.arange(n, dtype=np.float64).reshape(self._alone(k)) for k, n in enumerate(self.shape)]
        )

    def coordinates_at(self, positions: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
        """What the network sees at fractional positions, by the transform of `coordinates`; at whole ones the same.

        Between two labels, latitudes, longitudes and the numbers from -1 to 1 change linearly; the latter go on outside
        of the grid. A longitude after the last label lies between it and the first one.

        Args:
            positions: for every dimension of the grid, arrays that broadcast together; of latitude 0 to n - 1, of
                longitude 0 to n.

        Returns:
            float32 [P, D], row-major in the shape that they broadcast to.
        """
        shape = np.broadcast_shapes(*(along.shape for along in positions))
        columns = [*self._sphere_columns(positions), *(self._linear_column(k, positions[k]) for k in self._linear_dims)]
        if not columns:
            return np.zeros((math.prod(shape), 1), np.float32)
        points = np.stack(np.broadcast_arrays(*columns), axis=-1)
        full = np.broadcast_to(points, (*shape, points.shape[-1]))
        return np.ascontiguousarray(full.reshape(math.prod(shape), -1), dtype=np.float32)

    def _sphere_columns(self, positions: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        if self.latitude_deg is None or self.longitude_deg is None or self.geographic_dims is None:
            return []
        once_round = np.append(self.longitude_deg, self.longitude_deg[0] + 360.0)
        latitude = np.deg2rad(_label_at(self.latitude_deg, positions[self.geographic_dims[0]]))
        longitude = np.deg2rad(_label_at(once_round, positions[self.geographic_dims[1]]))
        return [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)]

    def _linear_column(self, k: int, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        n = self.shape[k]
        outside = positions - np.clip(positions, 0, n - 1)
        inside = _label_at(np.linspace(-1, 1, n), positions)
        return np.where(outside == 0, inside, inside + outside * (2 / (n - 1)))

    def _alone(self, dim: int) -> list[int]:
        return [-1 if k == dim else 1 for k in range(len(self.shape))]


def _label_at(labels: NDArray[np.float64], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Labels at fractional positions; at whole ones exactly those of the grid."""
    return np.interp(positions, np.arange(len(labels)), labels)


def make_grid(layout: Layout, system: Literal["auto", "sphere", "cartesian"]) -> Grid:
    """The grid of a layout's blocks.

    Args:
        layout: axes and block lengths.
        system: `auto` takes the sphere where one block spans the whole latitude and longitude.

    Raises:
        ConfigError: `sphere` without a latitude and a longitude dimension that a block spans whole.
    """
    latitude, longitude = _spanned(layout, "is_latitude"), _spanned(layout, "is_longitude")
    if system != "cartesian" and latitude is not None and longitude is not None:
        return Grid(
            layout.dims,
            layout.block_shape,
            "sphere",
            layout.axes[latitude].values.astype(np.float64),
            layout.axes[longitude].values.astype(np.float64),
            (latitude, longitude),
        )
    if system == "sphere":
        raise ConfigError(
            "sample.coordinates = 'sphere' needs blocks that span a whole latitude and longitude; "
            f"{layout.variable} has blocks of {_dims_text(layout.dims, layout.block_shape)}"
        )
    return Grid(layout.dims, layout.block_shape, "cartesian")


def grids_equal(a: Grid, b: Grid) -> bool:
    """Whether two grids have the same points.

    Latitudes and longitudes may differ by 1e-4 degrees, longitudes by whole turns. Dimensions of one point and the
    names of latitude and longitude do not matter.
    """
    if a.system != b.system or _effective(a) != _effective(b):
        return False
    if a.latitude_deg is None or a.longitude_deg is None or b.latitude_deg is None or b.longitude_deg is None:
        return True
    turned = np.mod(a.longitude_deg - b.longitude_deg + 180.0, 360.0) - 180.0
    return bool(
        np.all(np.abs(a.latitude_deg - b.latitude_deg) <= _DEGREE_TOLERANCE)
        and np.all(np.abs(turned) <= _DEGREE_TOLERANCE)
    )


def describe_grid(grid: Grid) -> str:
    """One line for messages: `33 latitude x 49 longitude on the sphere, latitude 58 to 50, longitude -10 to 2`."""
    text = _dims_text(grid.dims, grid.shape)
    if grid.latitude_deg is None or grid.longitude_deg is None:
        return f"{text}, {grid.system}"
    ends = [f"{axis[0]:g} to {axis[-1]:g}" for axis in (grid.latitude_deg, grid.longitude_deg)]
    return f"{text} on the sphere, latitude {ends[0]}, longitude {ends[1]}"


def grid_to_json(grid: Grid) -> dict[str, Any]:
    """The grid as JSON values; `grid_from_json` gives the very same points back."""
    content: dict[str, Any] = {"dims": list(grid.dims), "shape": list(grid.shape), "system": grid.system}
    if grid.latitude_deg is None or grid.longitude_deg is None or grid.geographic_dims is None:
        return content
    return {
        **content,
        "latitude": axis_to_json(Axis("latitude", grid.latitude_deg)),
        "longitude": axis_to_json(Axis("longitude", grid.longitude_deg)),
        "geographic": list(grid.geographic_dims),
    }


def grid_from_json(content: Any) -> Grid:
    """Mirror of `grid_to_json` for JSON from an untrusted file.

    Raises:
        CorruptBitstreamError: not a grid, or one of absurd size.
    """
    fields = checked_object(content, "a grid", {"dims", "shape", "system"}, {"latitude", "longitude", "geographic"})
    dims, shape, system = fields["dims"], fields["shape"], fields["system"]
    if not isinstance(dims, list) or not all(isinstance(dim, str) for dim in dims) or len(dims) > _MAX_DIMS:
        raise CorruptBitstreamError("the dimensions of a grid must be a short list of names")
    if not isinstance(shape, list) or len(shape) != len(dims):
        raise CorruptBitstreamError("a grid needs a length for each dimension")
    lengths = tuple(checked_int(n, "length of a grid", 1, _POINT_CAP) for n in shape)
    if math.prod(lengths) > _POINT_CAP:
        raise CorruptBitstreamError(f"a grid of {math.prod(lengths)} points; at most {_POINT_CAP} are read")
    if system == "cartesian":
        return Grid(tuple(dims), lengths, "cartesian")
    if system != "sphere":
        raise CorruptBitstreamError(f"unknown coordinates {str(system)[:40]!r}; known are sphere and cartesian")
    return _sphere_from_json(fields, tuple(dims), lengths)


def _sphere_from_json(fields: dict[str, Any], dims: tuple[str, ...], shape: tuple[int, ...]) -> Grid:
    places = fields.get("geographic")
    if not isinstance(places, list) or len(places) != 2 or places[0] == places[1]:
        raise CorruptBitstreamError("a grid on the sphere needs the places of its latitude and longitude")
    latitude, longitude = (checked_int(k, "place of a dimension", 0, len(dims) - 1) for k in places)
    axes = [
        axis_from_json(fields.get(name), label_cap=shape[k])
        for name, k in (("latitude", latitude), ("longitude", longitude))
    ]
    if any(axis.values.dtype.kind != "f" or np.abs(axis.values).max() > 1000 for axis in axes):
        raise CorruptBitstreamError("latitudes and longitudes of a grid must be degrees")
    try:
        return Grid(dims, shape, "sphere", axes[0].values, axes[1].values, (latitude, longitude))
    except ConfigError as error:
        raise CorruptBitstreamError(str(error)) from error


def _spanned(layout: Layout, kind: Literal["is_latitude", "is_longitude"]) -> int | None:
    """Place of the latitude or longitude dimension if a block spans it whole."""
    for k, axis in enumerate(layout.axes):
        if getattr(axis, kind) and layout.block_shape[k] == len(axis):
            return k
    return None


def _effective(grid: Grid) -> list[tuple[str, int]]:
    """Dimensions that matter: more than one point, or on the sphere."""
    names = list(grid.dims)
    geographic = grid.geographic_dims or ()
    for k, name in zip(geographic, ("latitude", "longitude"), strict=False):
        names[k] = name
    return [(name, n) for k, (name, n) in enumerate(zip(names, grid.shape, strict=True)) if n > 1 or k in geographic]


def _dims_text(dims: tuple[str, ...], shape: tuple[int, ...]) -> str:
    return " x ".join(f"{n} {dim}" for dim, n in zip(dims, shape, strict=True) if n > 1) or "one point"
