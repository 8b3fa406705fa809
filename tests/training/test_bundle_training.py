"""From a source to a bundle: which samples train, where the network starts, and that a run can be repeated."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from numpy.typing import NDArray

from vcinr_batch.compression import QualityRequest, check_layout, compress_samples, decompress_rows, open_bundle
from vcinr_batch.config import RunConfig, parse_config
from vcinr_batch.data.coordinates import make_grid
from vcinr_batch.data.normalization import fit_normalizer
from vcinr_batch.data.shards import iter_samples, make_layout, plan_shards
from vcinr_batch.data.sources import FieldSource, open_fields
from vcinr_batch.errors import ConfigError, SourceError
from vcinr_batch.storage import sha256_hex
from vcinr_batch.training.bundle_training import Progress, start_network, train_bundle
from vcinr_batch.training.training_samples import TrainingSamples, load_training_samples

HOURS, HEIGHT, WIDTH = 40, 6, 8
TINY: dict[str, Any] = {
    "network": {"latent_dim": 4, "hidden_dim": 8, "hidden_layers": 1, "rank": 2, "hyper_dim": 8, "linear_term": "eof"},
    "meta_learning": {"steps": 4, "validate_every": 2, "batch_size": 8, "fit_points": 24, "loss_points": 12},
    "codec": {"steps": 10, "quality_psnr_db": [20.0, 30.0, 40.0]},
}


def waves(hours: int = HOURS) -> NDArray[np.float64]:
    """Two travelling waves (four patterns) on a gradient, in K, and 0.05 K of noise."""
    hour = np.arange(hours)[:, None, None]
    y, x = np.arange(HEIGHT)[:, None], np.arange(WIDTH)
    noise = 0.05 * np.random.default_rng(0).standard_normal((hours, HEIGHT, WIDTH))
    return 280 + y + 3 * np.sin(0.5 * x + 0.9 * hour) + 2 * np.cos(0.7 * y - 1.3 * hour) + noise


def write(path: Path, values: NDArray[np.float64]) -> str:
    axes = {
        "time": np.datetime64("2019-03-01", "ns") + np.arange(len(values)) * np.timedelta64(1, "h"),
        "latitude": ("latitude", 60 - np.arange(HEIGHT) * 0.5, {"units": "degrees_north"}),
        "longitude": ("longitude", np.arange(WIDTH) * 0.5, {"units": "degrees_east"}),
    }
    fields = (("time", "latitude", "longitude"), values.astype(np.float32), {"units": "K"})
    xarray.Dataset({"t2m": fields}, axes).to_netcdf(path)
    return str(path)


def make_config(**sections: Any) -> RunConfig:
    return parse_config({name: TINY.get(name, {}) | sections.get(name, {}) for name in {*TINY, *sections}})


@pytest.fixture
def source(tmp_path: Path) -> FieldSource:
    return open_fields(write(tmp_path / "t2m.nc", waves()), make_config().source)


def load(source: FieldSource, config: RunConfig) -> TrainingSamples:
    layout = make_layout(source, config.sample)
    shards = plan_shards(layout, config.sample.shard_samples, source.chunk_shape)
    normalizer = fit_normalizer(source, layout, config.normalizer, shards)
    grid = make_grid(layout, config.sample.coordinates)
    return load_training_samples(source, layout, grid, normalizer, shards, config.meta_learning)


def test_a_trained_bundle_compresses_hours_that_it_has_not_seen(tmp_path: Path) -> None:
    url = write(tmp_path / "t2m.nc", waves(60))
    config = make_config(source={"select": {"time": "2019-03-01T00..2019-03-02T15"}})
    bundle, data = train_bundle(open_fields(url, config.source), config)
    assert bundle.sha256 == sha256_hex(data)
    assert len(bundle.quality_psnr_db) == 3

    unseen = open_fields(url, parse_config({"source": {"select": {"time": "2019-03-02T16.."}}}).source)
    layout = make_layout(unseen, bundle.config.sample)
    check_layout(bundle, layout, unseen.unit)
    grid = make_grid(layout, "auto")
    samples = [
        sample for shard in plan_shards(layout, 99, (1, 1, 1)) for sample in iter_samples(unseen, layout, grid, shard)
    ]
    opened = open_bundle(bundle)
    rows, rejected = compress_samples(samples, opened, layout, QualityRequest(level=2))
    decoded = decompress_rows(rows, opened, layout)
    assert rejected == []
    error = np.abs(decoded - np.stack([sample.values for sample in samples]))
    assert (error.max(axis=(1, 2)) <= [row.max_error for row in rows]).all()
    # 40 dB of a range of about 15 K allow 0.15 K rms of quantisation beside 0.05 K of noise.
    assert np.sqrt((error**2).mean()) < 0.25
    assert np.mean([len(row.payload) for row in rows]) < 8


def stop_at(stage: str, step: int) -> Progress:
    def progress(at_stage: str, at_step: int, _steps: int, _figures: dict[str, float]) -> None:
        if (at_stage, at_step) == (stage, step):
            raise KeyboardInterrupt

    return progress


def test_the_same_run_gives_the_same_bytes_killed_or_not(source: FieldSource, tmp_path: Path) -> None:
    config, url = make_config(), str(tmp_path / "state")
    torch.manual_seed(1)
    _, expected = train_bundle(source, config)
    torch.manual_seed(2)
    with pytest.raises(KeyboardInterrupt):
        train_bundle(source, config, url, stop_at("meta-learning", 4))
    seen: list[tuple[str, int]] = []
    _, resumed = train_bundle(source, config, url, lambda stage, step, *_: seen.append((stage, step)))
    assert [step for stage, step in seen if stage == "meta-learning"] == [4]
    assert resumed == expected


@pytest.mark.parametrize(
    ("change", "continued"),
    [
        ({"codec": {"steps": 11}}, True),  # comes after meta-learning
        ({"source": {"variable": "t2m"}}, True),
        ({"meta_learning": {"seed": 1}}, False),
        ({"network": {"w0": 10.0}}, False),
        ({"normalizer": {"background": "none"}}, False),
    ],
)
def test_a_checkpoint_serves_only_the_run_that_it_belongs_to(
    source: FieldSource, tmp_path: Path, change: dict[str, Any], continued: bool
) -> None:
    url = str(tmp_path / "state")
    with pytest.raises(KeyboardInterrupt):
        train_bundle(source, make_config(), url, stop_at("meta-learning", 4))
    left, config = Path(url).read_bytes(), make_config(**change)
    if continued:
        with pytest.raises(KeyboardInterrupt):
            train_bundle(source, config, url, stop_at("meta-learning", 4))
    else:
        with pytest.raises(ConfigError, match=r"state: checkpoint of another run .* delete it or give --checkpoint"):
            train_bundle(source, config, url)
        assert Path(url).read_bytes() == left


@pytest.mark.parametrize("background", ["none", "mean", "climatology"])
def test_a_field_that_does_not_vary_is_refused_before_training(tmp_path: Path, background: str) -> None:
    config = make_config(normalizer={"background": background})
    source = open_fields(write(tmp_path / "t2m.nc", np.full((HOURS, HEIGHT, WIDTH), 280.1)), config.source)
    stages: list[str] = []
    with pytest.raises(SourceError, match=f"t2m does not vary: all {HOURS} samples are their background everywhere"):
        train_bundle(source, config, progress=lambda stage, *_: stages.append(stage))
    assert stages == []


def test_a_latent_longer_than_a_sample_is_refused_before_training(tmp_path: Path) -> None:
    values = waves()
    values[:, 0, 0] = np.nan
    source = open_fields(write(tmp_path / "t2m.nc", values), make_config().source)
    config = make_config(network={"latent_dim": HEIGHT * WIDTH})
    with pytest.raises(ConfigError, match=r"network\.latent_dim = 48, but a sample of t2m has 47 values"):
        train_bundle(source, config)


def test_samples_of_one_point_are_refused(source: FieldSource) -> None:
    config = make_config(network={"latent_dim": 1}, sample={"block": {"time": 1, "latitude": 1, "longitude": 1}})
    with pytest.raises(ConfigError, match="samples of at least 2 points with values, these have 1"):
        train_bundle(source, config)


def test_the_report_says_what_was_trained(source: FieldSource) -> None:
    stages: list[str] = []
    bundle, _ = train_bundle(source, make_config(), progress=lambda stage, *_: stages.append(stage))
    report = json.loads(json.dumps(bundle.report))
    assert report["samples"] == HOURS
    assert report["validation_samples"] == 6  # the last 15 % of 40
    # phi0 4, ridge 1, rates 4; SIREN 8*3 + 64 + 2*8 + 8 + 1; gate 2*4, 4*8+8, 2*(64+8), 8*32+32; basis 48*4.
    assert report["parameters"] == 9 + 113 + (8 + 40 + 144 + 288) + 192
    assert report["meta_learning"]["best_psnr_db"] >= report["meta_learning"]["start_psnr_db"]
    levels = [level["psnr_db"] for level in report["codec"]["levels"]]
    assert levels == sorted(levels)
    assert report["codec"]["validation_psnr_before_quantisation_db"] >= levels[-1] - 0.5
    assert stages[:2] == ["meta-learning", "meta-learning"]


def test_the_last_hours_validate(source: FieldSource) -> None:
    samples = load(source, make_config(meta_learning={"validation_share": 0.25}))
    np.testing.assert_array_equal(samples.validation, np.arange(HOURS) >= 30)


def test_all_tiles_of_an_hour_go_the_same_way(source: FieldSource) -> None:
    config = make_config(sample={"block": {"time": 1, "latitude": 3, "longitude": 4}})
    samples = load(source, config)
    assert samples.normalized.shape == (HOURS * 4, 12, 1)
    np.testing.assert_array_equal(samples.validation, np.arange(HOURS * 4) >= 34 * 4)  # tiles of an hour are neighbours


def test_with_a_single_usable_hour_some_tiles_train_and_some_validate(tmp_path: Path) -> None:
    values = waves(2)
    values[1] = np.nan
    source = open_fields(write(tmp_path / "t2m.nc", values), make_config().source)
    block = {"time": 1, "latitude": 3, "longitude": 4}
    samples = load(source, make_config(sample={"block": block}, normalizer={"background": "none"}))
    np.testing.assert_array_equal(samples.validation, [False, False, False, True])


@pytest.mark.parametrize(("hours", "validating"), [(2, 1), (3, 1), (4, 1)])
def test_few_samples_are_split_with_at_least_one_on_either_side(tmp_path: Path, hours: int, validating: int) -> None:
    source = open_fields(write(tmp_path / "t2m.nc", waves(hours)), make_config().source)
    samples = load(source, make_config())
    np.testing.assert_array_equal(samples.validation, np.arange(hours) >= hours - validating)


def test_training_values_are_anomalies_of_unit_spread(source: FieldSource) -> None:
    samples = load(source, make_config())
    values = waves().astype(np.float32).reshape(HOURS, -1)
    anomalies = values - values.mean(axis=0)
    np.testing.assert_allclose(samples.normalized[..., 0], anomalies / anomalies.std(), atol=1e-4)
    assert samples.value_range == pytest.approx((values.max() - values.min()) / anomalies.std(), rel=1e-4)


def test_rejected_samples_do_not_train(tmp_path: Path) -> None:
    values = waves()
    values[3, 0, 0] = np.inf
    values[7] = np.nan
    source = open_fields(write(tmp_path / "t2m.nc", values), make_config().source)
    samples = load(source, make_config())
    assert len(samples.normalized) == HOURS - 2
    assert np.isfinite(samples.normalized).all()
    assert samples.valid.all()


def test_missing_values_train_as_the_background_and_points_without_any_not_at_all(tmp_path: Path) -> None:
    values = waves()
    values[:, 0, 0] = np.nan
    values[5, 1, 1] = np.nan
    source = open_fields(write(tmp_path / "t2m.nc", values), make_config().source)
    samples = load(source, make_config())
    np.testing.assert_array_equal(np.flatnonzero(~samples.valid), [0])
    assert samples.normalized[5, WIDTH + 1, 0] == 0
    assert not samples.normalized[:, 0].any()
    network = start_network(samples, make_grid(make_layout(source, make_config().sample), "auto"), make_config())
    assert network.linear is not None
    assert not network.linear.basis[0].any()


@pytest.mark.parametrize("hours", [1, 2])
def test_fewer_than_two_usable_samples_are_an_error(tmp_path: Path, hours: int) -> None:
    values = waves(hours)
    values[1:] = np.inf
    source = open_fields(write(tmp_path / "t2m.nc", values), make_config().source)
    with pytest.raises(SourceError, match="t2m: training needs at least 2 usable samples, found 1"):
        train_bundle(source, make_config())


def test_the_basis_does_not_see_the_validation_samples(source: FieldSource) -> None:
    config = make_config()
    grid = make_grid(make_layout(source, config.sample), "auto")
    samples = load(source, config)
    start = start_network(samples, grid, config)
    samples.normalized[samples.validation] = 7.0
    again = start_network(samples, grid, config)
    assert start.linear is not None
    assert again.linear is not None
    assert torch.equal(start.linear.basis, again.linear.basis)
    samples.normalized[~samples.validation] *= 2.0
    doubled = start_network(samples, grid, config)
    assert doubled.linear is not None
    torch.testing.assert_close(doubled.linear.basis.abs(), 2 * start.linear.basis.abs(), rtol=1e-3, atol=1e-4)


def test_the_start_is_drawn_from_the_seed_of_the_run_alone(source: FieldSource) -> None:
    grid = make_grid(make_layout(source, make_config().sample), "auto")
    samples = load(source, make_config())
    starts = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(starts))
        before = torch.get_rng_state()
        starts.append(start_network(samples, grid, make_config(meta_learning={"seed": seed})))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(starts[0].phi0, starts[1].phi0)
    assert not torch.equal(starts[0].phi0, starts[2].phi0)


@pytest.mark.parametrize(("fit", "expected"), [({}, 8.3e-7), ({"ridge": 1e-3}, 1e-3)])
def test_the_ridge_starts_as_configured(source: FieldSource, fit: dict[str, float], expected: float) -> None:
    config = make_config(fit=fit)
    grid = make_grid(make_layout(source, config.sample), "auto")
    network = start_network(load(source, config), grid, config)
    assert network.log_ridge.exp().item() == pytest.approx(expected, rel=0.01)


def test_the_linear_term_is_stored_in_half_and_decodes_alike(source: FieldSource) -> None:
    """The codec was trained on the rounded basis, so float16 to float32 and back must change nothing."""
    bundle, _ = train_bundle(source, make_config())
    assert {name for name, array in bundle.network.items() if array.dtype == np.float16} == {"linear.basis"}
    opened = open_bundle(bundle)
    assert opened.network.linear is not None
    assert opened.network.linear.basis.dtype == torch.float32
    np.testing.assert_array_equal(opened.network.linear.basis.numpy(), bundle.network["linear.basis"])


def test_a_purely_linear_bundle_needs_no_meta_learning(source: FieldSource) -> None:
    network = {"modulation": "none", "linear_term": "localized", "taper_length": 200.0, "latent_dim": 10}
    bundle, _ = train_bundle(source, make_config(network=network, meta_learning={"steps": 0}))
    assert set(bundle.network) == {"phi0", "log_ridge", "inner_rate", "linear.basis"}
    # Ten of 48 dimensions hold the four patterns; what is left of the noise is 0.05 K, and the range some 15 K: 49 dB.
    assert bundle.report["meta_learning"]["best_psnr_db"] > 40


def test_at_most_so_many_samples_train_drawn_from_the_whole_series(source: FieldSource) -> None:
    few = load(source, make_config(meta_learning={"max_samples": 12}, sample={"shard_samples": 9}))
    every = load(source, make_config())
    places = [int(np.flatnonzero((every.normalized == sample).all(axis=(1, 2)))[0]) for sample in few.normalized]
    assert len(places) == 12
    assert places == sorted(set(places))
    assert len(set(np.diff(places))) > 1  # not every k-th: that may be one hour of the day
    again = load(source, make_config(meta_learning={"max_samples": 12}, sample={"shard_samples": 40}))
    np.testing.assert_array_equal(few.normalized, again.normalized)


def test_newer_keys_that_were_not_used_change_neither_bundles_nor_checkpoints() -> None:
    plain = make_config().model_dump(mode="json")["meta_learning"]
    used = make_config(meta_learning={"max_samples": 9, "precision": "bfloat16"}).model_dump(mode="json")
    assert used["meta_learning"] == {**plain, "max_samples": 9, "precision": "bfloat16"}
    assert {"max_samples", "precision"}.isdisjoint(plain)
