"""A seeded stand-in for a reanalysis: 2 m temperature with the structure that a compressor has to deal with.

For demos and tests, where no real data may be needed. With latitude `a` and longitude `o` in radians, UTC hour `h`, day
of the year `d`, and x the point on the unit sphere, in K:

    T = 302 - 42 sin^2 a - 0.0065 z(x)                                  zonal mean, lapse rate over the orography
        - (3 + 9 l) sin a  cos(2 pi (d - 15 - 30 (1 - l)) / 365.25)     season: stronger and earlier over land
        + (0.4 + 4 l) cos a cos(2 pi (h + 12 o / pi - 15) / 24)         day: warmest at 15 h local solar time
        + (1.5 + 2.5 sin^2 2a) (1 + 0.2 l) w(x, t)                      weather: strongest in the middle latitudes

Land share `l` = 1 / (1 + exp(-8 c)) and orography `z` = 1500 l max(g, 0) metres come from two fixed fields c and g, the
weather w from a moving one. Each is a sum of N plane waves through space, the real part of `sum_j Z_j exp(i k_j . x)`,
of unit variance: on the sphere that is isotropic and smooth at the poles. Wavenumbers |k| (per Earth radius) are spread
evenly in their logarithm from `LARGEST` to the grid's own limit. A wave has variance ~ |k|^(1 - SLOPE), so that the
energy spectrum is E(k) ~ k^-SLOPE and the structure function of w grows like r^(SLOPE - 1).

In time, the amplitude of every wave is a complex AR(1) process whose memory shrinks with its scale,
`tau(k) = MEMORY_HOURS (LARGEST / |k|)^(2/3)`, carried along by a wind: `Z(t + dt) = rho exp(-i k . v dt) Z(t) + noise`
with `rho = exp(-dt / tau)` and v, `WIND_M_PER_S` fast, eastwards at the middle longitude.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xarray
from numpy.typing import NDArray

from vcinr_batch.errors import ConfigError, SourceError
from vcinr_batch.storage import public_url, write_bytes

SLOPE = 2.5
LARGEST = 6.0
MEMORY_HOURS = 60.0
WIND_M_PER_S = 10.0
_EARTH_RADIUS_M = 6.371e6
_POINTS_AT_ONCE = 4096
_FILL_VALUE = -32767


@dataclass(frozen=True, eq=False)
class _Waves:
    """Plane waves through space."""

    vectors: NDArray[np.float64]
    """[N, 3] per Earth radius."""
    spread: NDArray[np.float64]
    """[N] standard deviation of the real and of the imaginary amplitude; their squares sum to 1."""


def synthetic_reanalysis(
    days: int,
    height: int,
    width: int,
    seed: int,
    *,
    hours_per_step: int = 1,
    region: tuple[float, float, float, float] | None = None,
    start: str = "2019-01-01",
    waves: int = 1024,
) -> xarray.Dataset:
    """Make a dataset with one variable `t2m` [time, latitude, longitude] in K, north first, as the module describes it.

    Args:
        days: length of the series.
        height: number of latitudes.
        width: number of longitudes.
        seed: of everything random; the same arguments give the same data.
        hours_per_step: 1 or 6 are usual.
        region: north, south, west, east in degrees, all included; None for the globe with both poles.
        start: first day.
        waves: N; the weather has 2 N degrees of freedom at a time.

    Raises:
        ConfigError: a size that is too small, or a region that is none.
    """
    if min(days, hours_per_step, waves) < 1 or min(height, width) < 2:
        raise ConfigError("a synthetic reanalysis needs at least a day, an hour per step, a wave and 2 x 2 points")
    latitude, longitude = _grid_degrees(height, width, region)
    points = _on_sphere(latitude, longitude)
    finest = float(np.pi / np.deg2rad(latitude[0] - latitude[1]))  # a shorter wave would be noise on this grid
    fixed, moving = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    land = 1 / (1 + np.exp(-8 * _still_field(fixed, _draw_waves(fixed, waves, finest), points)))
    orography_m = 1500 * land * np.maximum(_still_field(fixed, _draw_waves(fixed, waves, finest), points), 0)

    times = np.datetime64(start, "h") + np.arange(0, 24 * days, hours_per_step)
    middle = np.deg2rad(longitude.mean())
    wind = np.array([-np.sin(middle), np.cos(middle), 0]) * WIND_M_PER_S * 3600 / _EARTH_RADIUS_M
    weather = _moving_field(moving, _draw_waves(moving, waves, finest), points, wind, len(times), hours_per_step)

    grid = (height, width)
    land, orography_m = land.reshape(grid), orography_m.reshape(grid)
    values = _climate(times, latitude, longitude, land, orography_m)
    values += _weather_spread(latitude, land) * weather.reshape(-1, *grid)
    return _dataset(values, times, latitude, longitude, f"synthetic reanalysis, seed {seed}")


def write_synthetic(url: str, dataset: xarray.Dataset, *, storage_options: Mapping[str, Any] | None = None) -> None:
    """Write such a dataset as ERA5 is delivered: int16 with scale and offset, a day or so per chunk.

    Args:
        url: ends in `.zarr` for Zarr, anything else is NetCDF 4.
        dataset: what `synthetic_reanalysis` made.
        storage_options: of the file system.

    Raises:
        ConfigError: the extra `netcdf` is not installed.
        SourceError: the place cannot be written.
    """
    encoding = {str(name): _packing(variable) for name, variable in dataset.data_vars.items()}
    if url.rstrip("/").endswith(".zarr"):
        for packing in encoding.values():
            packing["chunks"] = packing.pop("chunksizes")
        options = dict(storage_options or {}) or None
        try:
            dataset.to_zarr(url, mode="w", encoding=encoding, storage_options=options, consolidated=False)
        except OSError as error:
            raise SourceError(f"cannot write {public_url(url)}: {error}") from error
        return
    with TemporaryDirectory() as folder:
        path = os.path.join(folder, "synthetic.nc")
        try:
            dataset.to_netcdf(path, engine="netcdf4", encoding=encoding)
        except (ImportError, ValueError) as error:  # xarray raises either for an engine that is not there
            raise ConfigError(f"cannot write NetCDF: {error}; pip install 'vcinr-batch[netcdf]'") from error
        with open(path, "rb") as file:
            write_bytes(url, file.read(), storage_options=storage_options)


def _grid_degrees(
    height: int, width: int, region: tuple[float, float, float, float] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if region is None:
        return np.linspace(90.0, -90.0, height), np.arange(width) * 360.0 / width
    north, south, west, east = region
    if not (-90 <= south < north <= 90 and west < east < west + 360):
        raise ConfigError(f"region {region} is not north > south in [-90, 90] and west < east")
    return np.linspace(north, south, height), np.linspace(west, east, width)


def _on_sphere(latitude: NDArray[np.float64], longitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """[P, 3] unit vectors of the grid's points, row-major."""
    a, o = np.meshgrid(np.deg2rad(latitude), np.deg2rad(longitude), indexing="ij")
    points: NDArray[np.float64] = np.stack([np.cos(a) * np.cos(o), np.cos(a) * np.sin(o), np.sin(a)], axis=-1)
    return points.reshape(-1, 3)


def _draw_waves(random: np.random.Generator, waves: int, finest: float) -> _Waves:
    directions = random.standard_normal((waves, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    share = (np.arange(waves) + 0.5) / waves
    wavenumbers = LARGEST * max(finest / LARGEST, 2.0) ** share
    variance = wavenumbers ** (1 - SLOPE)
    return _Waves(directions * wavenumbers[:, None], np.sqrt(variance / variance.sum()))


def _still_field(random: np.random.Generator, waves: _Waves, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """[P], one draw of the field."""
    field: NDArray[np.float64] = _evaluate(waves, _noise(random, waves)[None], points)[0]
    return field


def _moving_field(
    random: np.random.Generator,
    waves: _Waves,
    points: NDArray[np.float64],
    wind: NDArray[np.float64],
    steps: int,
    hours: float,
) -> NDArray[np.float64]:
    """[T, P], a series of the field; wind [3] in Earth radii per hour."""
    memory = MEMORY_HOURS * (LARGEST / np.linalg.norm(waves.vectors, axis=1)) ** (2 / 3)
    keep = np.exp(-hours / memory)
    carry = keep * np.exp(-1j * (waves.vectors @ wind) * hours)
    amplitudes = np.empty((steps, len(memory)), dtype=np.complex128)
    amplitudes[0] = _noise(random, waves)
    for t in range(1, steps):
        amplitudes[t] = carry * amplitudes[t - 1] + np.sqrt(1 - keep**2) * _noise(random, waves)
    return _evaluate(waves, amplitudes, points)


def _noise(random: np.random.Generator, waves: _Waves) -> NDArray[np.complex128]:
    real, imaginary = random.standard_normal((2, len(waves.spread)))
    noise: NDArray[np.complex128] = waves.spread * (real + 1j * imaginary)
    return noise


def _evaluate(waves: _Waves, amplitudes: NDArray[np.complex128], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The real part of amplitudes [T, N] times exp(i k . x) [N, P], as float32 products."""
    parts = np.concatenate([amplitudes.real, -amplitudes.imag], axis=1).astype(np.float32)
    field = np.empty((len(amplitudes), len(points)))
    for start in range(0, len(points), _POINTS_AT_ONCE):
        phase = waves.vectors @ points[start : start + _POINTS_AT_ONCE].T
        basis = np.concatenate([np.cos(phase), np.sin(phase)]).astype(np.float32)
        field[:, start : start + _POINTS_AT_ONCE] = parts @ basis
    return field


def _climate(
    times: NDArray[np.datetime64],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    land: NDArray[np.float64],
    orography_m: NDArray[np.float64],
) -> NDArray[np.float64]:
    """[T, height, width], everything but the weather."""
    a = np.deg2rad(latitude)[:, None]
    hour = (times - times.astype("datetime64[D]")).astype(np.float64)[:, None, None]
    day = (times.astype("datetime64[D]") - times.astype("datetime64[Y]")).astype(np.float64)[:, None, None] + hour / 24
    season = -(3 + 9 * land) * np.sin(a) * np.cos(2 * np.pi * (day - 15 - 30 * (1 - land)) / 365.25)
    diurnal = (0.4 + 4 * land) * np.cos(a) * np.cos(2 * np.pi * (hour + longitude / 15 - 15) / 24)
    climate: NDArray[np.float64] = 302 - 42 * np.sin(a) ** 2 - 0.0065 * orography_m + season + diurnal
    return climate


def _weather_spread(latitude: NDArray[np.float64], land: NDArray[np.float64]) -> NDArray[np.float64]:
    """[height, width] standard deviation of the weather in K."""
    spread: NDArray[np.float64] = (1.5 + 2.5 * np.sin(2 * np.deg2rad(latitude))[:, None] ** 2) * (1 + 0.2 * land)
    return spread


def _dataset(
    values: NDArray[np.float64],
    times: NDArray[np.datetime64],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    title: str,
) -> xarray.Dataset:
    attributes = {"units": "K", "long_name": "2 metre temperature", "standard_name": "air_temperature"}
    return xarray.Dataset(
        {"t2m": (("time", "latitude", "longitude"), values.astype(np.float32), attributes)},
        {
            "time": ("time", times.astype("datetime64[ns]"), {"standard_name": "time"}),
            "latitude": ("latitude", latitude, {"units": "degrees_north", "standard_name": "latitude"}),
            "longitude": ("longitude", longitude, {"units": "degrees_east", "standard_name": "longitude"}),
        },
        {"title": title, "Conventions": "CF-1.7"},
    )


def _packing(variable: xarray.DataArray) -> dict[str, Any]:
    low, high = float(variable.min()), float(variable.max())
    return {
        "dtype": "int16",
        "scale_factor": (high - low) / 65532 or 1.0,
        "add_offset": (high + low) / 2,
        "_FillValue": _FILL_VALUE,
        "chunksizes": (min(24, variable.shape[0]), *variable.shape[1:]),
    }
