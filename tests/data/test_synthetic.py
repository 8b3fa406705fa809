from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from vcinr_batch.config import SourceConfig
from vcinr_batch.data import synthetic
from vcinr_batch.data.sources import open_fields, read_extent
from vcinr_batch.data.synthetic import LARGEST, MEMORY_HOURS, SLOPE, synthetic_reanalysis, write_synthetic
from vcinr_batch.errors import ConfigError, SourceError

UK = (58.0, 50.0, -10.0, 2.0)


@pytest.fixture(scope="module")
def year() -> xarray.Dataset:
    return synthetic_reanalysis(365, 16, 32, seed=3, hours_per_step=6, waves=128)


def test_the_same_seed_gives_the_same_data() -> None:
    a, b, c = (synthetic_reanalysis(2, 8, 12, seed=seed, region=UK, waves=64).t2m for seed in (1, 1, 2))
    assert np.array_equal(a.values, b.values)
    assert np.abs(a.values - c.values).mean() > 1
    assert a.dtype == np.float32
    assert a.attrs["units"] == "K"


@pytest.mark.parametrize(
    ("region", "latitude", "longitude"),
    [
        (None, [90, 45, 0, -45, -90], [0, 90, 180, 270]),
        (UK, [58, 56, 54, 52, 50], [-10, -6, -2, 2]),
    ],
)
def test_the_grid_is_the_globe_or_the_region(region: Any, latitude: list[float], longitude: list[float]) -> None:
    dataset = synthetic_reanalysis(2, 5, 4, seed=0, region=region, waves=8, start="2020-02-28")
    assert dataset.latitude.values.tolist() == latitude
    assert dataset.longitude.values.tolist() == longitude
    assert dataset.time.values[[0, 24, -1]].tolist() == [
        int(np.datetime64(t, "ns").astype(np.int64)) for t in ("2020-02-28T00", "2020-02-29T00", "2020-02-29T23")
    ]


def test_poles_have_one_temperature(year: xarray.Dataset) -> None:
    """Every point of the pole's row is the same place; the diurnal cycle vanishes there."""
    pole = year.t2m.values[:, 0]
    assert np.ptp(pole, axis=1).max() < 1e-3


def test_temperatures_are_those_of_the_earth(year: xarray.Dataset) -> None:
    zonal = year.t2m.values.mean(axis=(0, 2))
    assert 200 < year.t2m.values.min() < year.t2m.values.max() < 330
    assert zonal[7:9].mean() - zonal[[0, -1]].mean() == pytest.approx(42, abs=8)


def test_winter_is_when_the_formula_says(year: xarray.Dataset) -> None:
    """Annual harmonic at 66 and 54 N: coldest from 15 January (land) to 14 February (sea), amplitude 2.5 to 11 K."""
    north = year.t2m.values[:, 2:4].mean(axis=(1, 2))
    day = np.arange(len(north)) / 4
    harmonic = 2 * (north * np.exp(-2j * np.pi * day / 365.25)).mean()
    coldest = (np.angle(-harmonic) * -365.25 / (2 * np.pi)) % 365.25
    assert 15 <= coldest <= 45
    assert 2.5 < abs(harmonic) < 11


def test_afternoons_are_warmest_over_land() -> None:
    """The mean day at each point peaks at 15 h local solar time: at 15 UTC on the zero meridian, 9 UTC on 90 E."""
    dataset = synthetic_reanalysis(60, 3, 8, seed=0, region=(40.0, 38.0, 0.0, 315.0), waves=64)
    mean_day = dataset.t2m.values.reshape(60, 24, 3, 8).mean(axis=(0, 2))
    harmonic = (mean_day * np.exp(-2j * np.pi * np.arange(24) / 24)[:, None]).mean(axis=0)
    peak = (np.angle(harmonic) * -24 / (2 * np.pi)) % 24
    local = (peak + dataset.longitude.values / 15) % 24
    strong = np.abs(harmonic) > 0.8
    assert strong.sum() >= 2
    assert local[strong] == pytest.approx(np.full(strong.sum(), 15), abs=0.6)


def moving(steps: int, points: Any, waves: int, finest: float, wind: Any, hours: float, seed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    drawn = synthetic._draw_waves(random, waves, finest)
    return synthetic._moving_field(random, drawn, points, np.asarray(wind), steps, hours)


def test_weather_has_unit_variance_and_the_stated_slope() -> None:
    """Structure function along the equator within the inertial range: log-log slope SLOPE - 1."""
    arc = np.geomspace(0.015, 0.1, 6)
    points = np.stack([np.cos([0, *arc]), np.sin([0, *arc]), np.zeros(7)], axis=1)
    # Independent fields: one step per field, with no memory left between them.
    field = moving(4000, points, 512, 1500.0, np.zeros(3), hours=1e4)
    assert field.var() == pytest.approx(1, abs=0.1)
    structure = ((field[:, 1:] - field[:, :1]) ** 2).mean(axis=0)
    slope = np.polyfit(np.log(arc), np.log(structure), 1)[0]
    assert slope == pytest.approx(SLOPE - 1, abs=0.2)


def test_weather_is_isotropic() -> None:
    angle = np.linspace(0, np.pi, 5)
    points = np.stack([np.ones(5), 0.05 * np.cos(angle), 0.05 * np.sin(angle)], axis=1)
    points = np.concatenate([[[1, 0, 0]], points / np.linalg.norm(points, axis=1, keepdims=True)])
    field = moving(4000, points, 1024, 300.0, np.zeros(3), hours=1e4)
    structure = ((field[:, 1:] - field[:, :1]) ** 2).mean(axis=0)
    assert structure / structure.mean() == pytest.approx(np.ones(5), abs=0.15)


def test_large_scales_remember_longest() -> None:
    """Waves of the largest scale alone have the AR(1) memory exp(-dt / MEMORY_HOURS)."""
    random = np.random.default_rng(0)
    drawn = synthetic._draw_waves(random, 256, 1.0)  # no finer than twice LARGEST
    norms = np.linalg.norm(drawn.vectors, axis=1)
    assert LARGEST <= norms.min() <= norms.max() <= 2 * LARGEST
    field = synthetic._moving_field(random, drawn, np.array([[1.0, 0, 0]]), np.zeros(3), 20_000, 6.0)[:, 0]
    field -= field.mean()
    correlation = (field[1:] * field[:-1]).mean() / field.var()
    assert np.exp(-6 / MEMORY_HOURS * 2 ** (2 / 3)) - 0.02 < correlation < np.exp(-6 / MEMORY_HOURS) + 0.02


def test_weather_moves_with_the_wind() -> None:
    """The field at a point is most like the one three hours earlier and upstream, here 0.06 Earth radii."""
    shift = np.arange(-6, 7) * 0.02
    points = np.stack([np.cos(shift), np.sin(shift), np.zeros(13)], axis=1)
    field = moving(3000, points, 256, 200.0, [0, 0.02, 0], hours=3.0)
    likeness = (field[1:, 6:7] * field[:-1]).mean(axis=0)
    assert shift[int(likeness.argmax())] == pytest.approx(-0.06, abs=1e-9)


def test_mountains_are_colder() -> None:
    """Without any weather, the mean temperature falls with the formula's lapse rate."""
    times = np.array(["2019-04-15"], "datetime64[h]")
    latitude, longitude, height = np.array([50.0]), np.zeros(2), np.array([[0.0, 1000.0]])
    climate = synthetic._climate(times, latitude, longitude, np.ones((1, 2)), height)
    assert climate[0, 0, 0] - climate[0, 0, 1] == pytest.approx(6.5)


@pytest.mark.parametrize("name", ["a.nc", "a.zarr"])
@pytest.mark.parametrize("remote", [False, True])
def test_it_is_written_packed_as_era5(tmp_path: Path, name: str, remote: bool) -> None:
    dataset = synthetic_reanalysis(2, 6, 8, seed=1, region=UK, waves=16)
    url = f"memory://{tmp_path.name}/{name}" if remote else str(tmp_path / name)
    write_synthetic(url, dataset)
    source = open_fields(url, SourceConfig())
    values = read_extent(source, tuple(slice(0, n) for n in source.shape))
    span = float(dataset.t2m.max() - dataset.t2m.min())
    assert (source.source_bits, source.unit, source.chunk_shape) == (16, "K", (24, 6, 8))
    assert np.abs(values - dataset.t2m.values).max() <= span / 65532 / 2 + 3e-5  # half a step and float32
    assert np.array_equal(source.axes[1].values, dataset.latitude.values)


@pytest.mark.parametrize(
    "arguments",
    [
        {"days": 0},
        {"height": 1},
        {"waves": 0},
        {"hours_per_step": 0},
        {"region": (50.0, 58.0, 0.0, 10.0)},
        {"region": (58.0, 50.0, 10.0, 0.0)},
        {"region": (91.0, 50.0, 0.0, 10.0)},
    ],
)
def test_an_impossible_size_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        synthetic_reanalysis(**{"days": 1, "height": 4, "width": 4, "seed": 0, **arguments})


@pytest.mark.parametrize("name", ["a.nc", "a.zarr"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SourceError, match="file"):
        write_synthetic(str(tmp_path / "file" / name), synthetic_reanalysis(1, 4, 4, seed=0, waves=4))
