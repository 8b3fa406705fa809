from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import xarray

from vcinr_batch.config import NormalizerConfig, SampleConfig, SourceConfig
from vcinr_batch.data.layout import Layout, make_axis
from vcinr_batch.data.normalization import (
    Normalizer,
    background_at,
    check_domain,
    denormalize,
    expected_mask,
    fit_normalizer,
    normalize,
    range_at,
    scale_at,
)
from vcinr_batch.data.shards import make_layout, plan_shards, shard_blocks
from vcinr_batch.data.sources import FieldSource, open_fields
from vcinr_batch.errors import BundleMismatchError, SourceError

DAYS = 400
LEVELS = (850.0, 500.0)


def fields(seed: int = 0) -> xarray.Dataset:
    """400 days of 6-hourly values on 2 levels of 3 x 4: means, seasons and spreads differ by level."""
    random = np.random.default_rng(seed)
    times = np.datetime64("2019-01-01", "ns") + np.arange(4 * DAYS) * np.timedelta64(6, "h")
    values = random.normal(0, 1, (len(times), 2, 3, 4)) * np.array([1.0, 5.0])[:, None, None]
    values += np.array([270.0, 250.0])[:, None, None] + np.arange(12).reshape(3, 4)
    values += 3 * (np.arange(len(times)) % 4)[:, None, None, None]
    return xarray.Dataset(
        {"t": (("time", "level", "latitude", "longitude"), values.astype(np.float32), {"units": "K"})},
        {
            "time": times,
            "level": list(LEVELS),
            "latitude": ("latitude", [50.0, 51.0, 52.0], {"units": "degrees_north"}),
            "longitude": ("longitude", [0.0, 1.0, 2.0, 3.0], {"units": "degrees_east"}),
        },
    )


def opened(dataset: xarray.Dataset, path: Path) -> FieldSource:
    dataset.to_zarr(path / "a.zarr", consolidated=False)
    return open_fields(str(path / "a.zarr"), SourceConfig())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FieldSource:
    return opened(fields(), tmp_path_factory.mktemp("long"))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> FieldSource:
    """One day."""
    return opened(fields().isel(time=slice(0, 4)), tmp_path_factory.mktemp("short"))


def cut(source: FieldSource, **block: int) -> Layout:
    return make_layout(source, SampleConfig(block=block or {"time": 1}))


def fit(
    source: FieldSource, layout: Layout, background: Literal["none", "mean", "climatology"] = "mean", **config: Any
) -> Normalizer:
    shards = plan_shards(layout, 300, source.chunk_shape)
    return fit_normalizer(source, layout, NormalizerConfig(background=background, **config), shards)


def all_blocks(layout: Layout) -> list[tuple[int, ...]]:
    return [block for shard in plan_shards(layout, 10**6, layout.shape) for block in shard_blocks(shard)]


def canonical(dataset: xarray.Dataset) -> Any:
    return dataset.t.values[:, :, ::-1].astype(np.float64)


def test_the_mean_is_taken_per_cell_and_the_scale_per_level(source: FieldSource) -> None:
    dataset = fields()
    normalizer = fit(source, cut(source))
    values = canonical(dataset)
    mean = values.mean(axis=0)
    assert [axis.name for axis in normalizer.axes] == ["level", "latitude", "longitude"]
    assert normalizer.background == pytest.approx(mean[None], rel=1e-6)
    assert normalizer.scale.shape == (2, 1, 1)
    assert normalizer.scale.ravel() == pytest.approx((values - mean).std(axis=(0, 2, 3)), rel=1e-5)
    assert normalizer.value_range.ravel() == pytest.approx(np.ptp(values, axis=(0, 2, 3)), rel=1e-6)
    assert normalizer.offset == pytest.approx(values.mean())
    assert (normalizer.variable, normalizer.unit, normalizer.mask) == ("t", "K", None)


@pytest.mark.parametrize(
    "block", [{"time": 1}, {"time": 6}, {"time": 6, "latitude": 2, "longitude": 3}, {"latitude": 1}]
)
def test_it_does_not_depend_on_how_samples_are_cut(source: FieldSource, block: dict[str, int]) -> None:
    a, b = fit(source, cut(source), "climatology"), fit(source, cut(source, **block), "climatology")
    assert a.background is not None
    assert b.background == pytest.approx(a.background, rel=1e-6)
    assert b.scale == pytest.approx(a.scale, rel=1e-5)
    assert np.array_equal(b.value_range, a.value_range)


def reference_bins(times: Any, hours: int, seasons: int) -> Any:
    """By the calendar, written without the module's own functions."""
    bins = []
    for time in times.astype("datetime64[s]").astype(object):
        year_days = 366 if time.year % 4 == 0 else 365
        day = time.timetuple().tm_yday - 1 + (time.hour * 3600 + time.minute * 60) / 86400
        bins.append(time.hour * hours // 24 + hours * int(day / year_days * seasons))
    return np.array(bins)


@pytest.mark.parametrize(("hours", "seasons"), [(4, 1), (8, 4), (1, 12), (2, 3)])
def test_a_climatology_is_the_mean_of_each_bin(source: FieldSource, hours: int, seasons: int) -> None:
    dataset = fields()
    layout = cut(source)
    normalizer = fit(source, layout, "climatology", hours=hours, seasons=seasons)
    assert normalizer.background is not None
    assert normalizer.background.shape == (hours * seasons, 2, 3, 4)
    values, bins = canonical(dataset), reference_bins(dataset.time.values, hours, seasons)
    anomalies = np.empty_like(values)
    for b in np.unique(bins):
        mean = values[bins == b].mean(axis=0)
        assert normalizer.background[b] == pytest.approx(mean, rel=1e-6)
        anomalies[bins == b] = values[bins == b] - mean
    assert normalizer.scale.ravel() == pytest.approx(anomalies.std(axis=(0, 2, 3)), rel=1e-5)
    given = background_at(normalizer, layout, [(t, 1, 0, 0) for t in (0, 700, 1599)])
    expected = normalizer.background[bins[[0, 700, 1599]], 1].reshape(3, 12, 1)
    assert np.array_equal(given, expected)


def test_an_empty_bin_takes_the_same_hour_then_the_same_season(tmp_path: Path) -> None:
    """One month at 00 and 06 UTC: January is all there is of the year, and nothing is there of 12 and 18 UTC."""
    dataset = fields().isel(time=slice(0, 120), level=[0])
    dataset = dataset.isel(time=np.arange(120) % 4 < 2)
    source = opened(dataset, tmp_path)
    normalizer = fit(source, cut(source), "climatology", hours=4, seasons=2)
    values = canonical(dataset)
    night, morning, both = values[::2].mean(axis=0), values[1::2].mean(axis=0), values.mean(axis=0)
    assert normalizer.background == pytest.approx(
        np.stack([night, morning, both, both, night, morning, both, both]), rel=1e-6
    )


def test_a_block_of_hours_has_a_background_for_each(source: FieldSource) -> None:
    layout = cut(source, time=3)
    normalizer = fit(source, layout, "climatology", hours=4, seasons=1)
    assert normalizer.background is not None
    given = background_at(normalizer, layout, [(1, 0, 0, 0), (533, 1, 0, 0)]).reshape(2, 3, 3, 4)
    assert np.array_equal(given[0], normalizer.background[[3, 0, 1], 0])
    assert np.array_equal(given[1], normalizer.background[[3, 3, 3], 1]), "padding repeats the last hour"


def test_without_background_one_mean_is_subtracted(source: FieldSource) -> None:
    dataset = fields()
    layout = cut(source)
    normalizer = fit(source, layout, "none")
    values = canonical(dataset)
    assert normalizer.background is None
    assert [axis.name for axis in normalizer.axes] == ["level"]
    assert normalizer.scale == pytest.approx(np.sqrt(((values - values.mean()) ** 2).mean(axis=(0, 2, 3))), rel=1e-5)
    assert background_at(normalizer, layout, [(5, 1, 0, 0)]).tolist() == [[[np.float32(values.mean())]] * 12]


def test_members_share_one_background(tmp_path: Path) -> None:
    for member in (1, 2):
        fields(seed=member).isel(level=0, drop=True).to_zarr(tmp_path / f"m{member}.zarr", consolidated=False)
    source = open_fields(str(tmp_path / "*.zarr"), SourceConfig(member_pattern=r"m(\d)"))
    normalizer = fit(source, cut(source))
    both = np.stack([canonical(fields(seed=member))[:, 0] for member in (1, 2)])
    assert [axis.name for axis in normalizer.axes] == ["latitude", "longitude"]
    assert normalizer.background == pytest.approx(both.mean(axis=(0, 1))[None], rel=1e-6)


def test_gaps_make_a_mask_and_rejected_samples_do_not_count(tmp_path: Path) -> None:
    dataset = fields().isel(time=slice(0, 20))
    dataset.t.values[:, 0, 0, 0] = np.nan  # never there
    dataset.t.values[7, 1, 2, 3] = np.nan  # there but once
    dataset.t.values[3, 0] = np.inf
    dataset.t.values[4, 1] = np.nan
    source = opened(dataset, tmp_path)
    layout = cut(source)
    normalizer = fit(source, layout)
    values = canonical(dataset)
    values[3, 0] = np.nan
    gaps = np.zeros((2, 3, 4), bool)
    gaps[0, 2, 0] = gaps[1, 0, 3] = True
    assert normalizer.mask is not None
    assert np.array_equal(normalizer.mask, ~gaps)
    values[0, 0, 2, 0] = np.nanmean(values)  # a cell without any value is given the mean of all
    mean = np.nanmean(values, axis=0, keepdims=True)
    values[0, 0, 2, 0] = np.nan
    assert normalizer.background == pytest.approx(mean, rel=1e-6)
    assert normalizer.offset == pytest.approx(np.nanmean(values), rel=1e-6)
    assert normalizer.scale.ravel() == pytest.approx(np.nanstd(values - mean, axis=(0, 2, 3)), rel=1e-5)
    assert np.array_equal(expected_mask(normalizer, layout, (0, 1, 0, 0)), ~gaps[1].ravel())


def test_the_expected_mask_leaves_the_padding_out(source: FieldSource) -> None:
    layout = cut(source, time=3, latitude=2, longitude=4)
    mask = expected_mask(fit(source, layout), layout, (533, 0, 1, 0)).reshape(3, 2, 4)
    assert np.argwhere(mask).tolist() == [[0, 0, k] for k in range(4)]


def test_nothing_to_learn_from_is_an_error(tmp_path: Path) -> None:
    dataset = fields().isel(time=slice(0, 3))
    dataset.t.values[:] = np.nan
    source = opened(dataset, tmp_path)
    with pytest.raises(SourceError, match=r"t has no usable value in the training samples of .*a\.zarr"):
        fit(source, cut(source))


@pytest.mark.parametrize("background", ["none", "mean"])
def test_a_constant_has_scale_and_range_one(tmp_path: Path, background: Literal["none", "mean"]) -> None:
    dataset = fields().isel(time=slice(0, 7), level=[0])
    dataset.t.values[:] = 273.16
    source = opened(dataset, tmp_path)
    normalizer = fit(source, cut(source), background)
    assert (normalizer.scale.ravel().tolist(), normalizer.value_range.ravel().tolist()) == ([1], [1])


def test_a_small_spread_on_a_large_mean_is_not_lost(tmp_path: Path) -> None:
    """Pressures of 1e5 with anomalies of 1: a sum of squares would lose them without the shift."""
    dataset = fields().isel(level=[0])
    dataset["t"] = (dataset.t.dims, np.random.default_rng(1).normal(1e5, 1, dataset.t.shape).astype(np.float32))
    source = opened(dataset, tmp_path)
    values = dataset.t.values.astype(np.float64)
    assert fit(source, cut(source)).scale.item() == pytest.approx((values - values.mean(axis=0)).std(), rel=1e-4)


def test_sources_without_time_have_one_bin(tmp_path: Path) -> None:
    xarray.Dataset({"v": (("member", "x"), np.arange(12.0).reshape(3, 4))}).to_zarr(
        tmp_path / "a.zarr", consolidated=False
    )
    source = open_fields(str(tmp_path / "a.zarr"), SourceConfig())
    layout = cut(source, member=1)
    normalizer = fit(source, layout, "climatology")
    assert (normalizer.hours, normalizer.seasons) == (1, 1)
    assert normalizer.background is not None
    assert normalizer.background.tolist() == [[4, 5, 6, 7]]
    assert background_at(normalizer, layout, [(2, 0)]).tolist() == [[[4], [5], [6], [7]]]


def test_slabs_and_shards_give_the_same_sums(source: FieldSource, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = cut(source)
    whole = fit(source, layout)
    monkeypatch.setattr("vcinr_batch.data.normalization._SLAB_VALUES", 1000)
    pieces = fit(source, layout)
    assert pieces.background == pytest.approx(whole.background, rel=1e-7)
    assert pieces.scale == pytest.approx(whole.scale, rel=1e-6)


def test_scale_and_range_are_those_of_the_level(source: FieldSource) -> None:
    layout = cut(source)
    normalizer = fit(source, layout)
    blocks = [(0, 1, 0, 0), (5, 0, 0, 0), (6, 1, 0, 0)]
    scale, value_range = normalizer.scale.ravel(), normalizer.value_range.ravel()
    assert scale_at(normalizer, layout, blocks).shape == (3, 1, 1)
    assert scale_at(normalizer, layout, blocks).ravel().tolist() == scale[[1, 0, 1]].tolist()
    assert range_at(normalizer, layout, blocks).tolist() == value_range[[1, 0, 1]].tolist()


def test_a_block_of_several_levels_has_one_scale(source: FieldSource) -> None:
    layout = cut(source, time=1, level=2)
    normalizer = fit(source, layout)
    assert normalizer.scale.shape == (1, 1, 1)
    assert scale_at(normalizer, layout, [(0, 0, 0, 0)]).shape == (1, 1, 1)


def test_normalising_and_back_gives_the_values(source: FieldSource) -> None:
    dataset = fields()
    layout = cut(source)
    normalizer = fit(source, layout, "climatology")
    blocks = all_blocks(layout)
    values = canonical(dataset).astype(np.float32).reshape(len(blocks), 12, 1)
    background, scale = background_at(normalizer, layout, blocks), scale_at(normalizer, layout, blocks)
    inner = normalize(values, background, scale)
    assert inner.dtype == np.float32
    assert inner.mean() == pytest.approx(0, abs=1e-3)
    assert inner.std() == pytest.approx(1, abs=1e-3)
    assert denormalize(inner, background, scale) == pytest.approx(values, abs=1e-4)


def renamed(layout: Layout, **changes: Any) -> Layout:
    axes = tuple(changes.get(axis.name, axis) for axis in layout.axes)
    return Layout(changes.get("variable", layout.variable), axes, layout.block_shape)


def axis(name: str, values: Any) -> Any:
    return make_axis(name, np.array(values), {})


@pytest.mark.parametrize(
    ("changes", "unit"),
    [
        ({}, None),
        ({}, "K"),
        ({"latitude": axis("lat", [52.00005, 51.0, 50.0])}, "K"),
        ({"longitude": axis("lon", [360.0, 361.0, 362.0, 363.0])}, "K"),
        ({"level": axis("level", [850.0001, 500.0])}, "K"),
    ],
)
def test_the_same_domain_passes(short: FieldSource, changes: dict[str, Any], unit: str | None) -> None:
    layout = cut(short)
    check_domain(fit(short, layout), renamed(layout, **changes), unit)


@pytest.mark.parametrize(
    ("changes", "unit", "problem"),
    [
        ({"variable": "sst"}, None, "is for variable 't', the source has 'sst'"),
        ({}, "degC", "is for unit 'K', the source has 'degC'"),
        ({"latitude": axis("lat", [53.0, 51.0, 50.0])}, None, "is for latitude 52 to 50 .*, the source has 53 to 50"),
        ({"longitude": axis("lon", [0.0, 1.0, 2.0, 4.0])}, None, "is for longitude 0 to 3"),
        (
            {"latitude": axis("y", [0, 1, 2])},
            None,
            "needs dimension 'latitude', the source has time, level, y",
        ),
        ({"level": axis("level", [850.0, 501.0])}, None, "is for level 850 to 500"),
        ({"level": axis("level", ["a", "b"])}, None, "is for level 850 to 500 .*, the source has a, b"),
    ],
)
def test_another_domain_is_named(short: FieldSource, changes: dict[str, Any], unit: str | None, problem: str) -> None:
    layout = cut(short)
    with pytest.raises(BundleMismatchError, match=problem):
        check_domain(fit(short, layout), renamed(layout, **changes), unit)


def test_without_background_any_grid_passes(short: FieldSource) -> None:
    layout = cut(short)
    check_domain(fit(short, layout, "none"), renamed(layout, latitude=axis("lat", [9.0, 8.0, 7.0])))
