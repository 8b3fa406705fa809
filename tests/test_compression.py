"""The whole codec: what comes back, how wrong it is, and what happens to samples and rows that are no good."""

import copy
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vcinr_batch.archive.rows import ArchiveRow, row_checksum
from vcinr_batch.bundle import Bundle, load_bundle, make_bundle, parse_bundle, save_bundle
from vcinr_batch.codec.latent_codec import LatentCodec
from vcinr_batch.codec.table_freezing import freeze_tables
from vcinr_batch.codec.transforms import klt_transform
from vcinr_batch.compression import (
    OUT_OF_REACH_DB,
    OpenBundle,
    QualityRequest,
    check_layout,
    compress_samples,
    decompress_rows,
    open_bundle,
)
from vcinr_batch.config import parse_config
from vcinr_batch.data.axes import Axis
from vcinr_batch.data.coordinates import make_grid
from vcinr_batch.data.layout import Layout, sample_key
from vcinr_batch.data.normalization import Normalizer
from vcinr_batch.data.samples import Sample
from vcinr_batch.errors import BundleMismatchError, ConfigError, CorruptBitstreamError, FittingError
from vcinr_batch.network import fitting
from vcinr_batch.network.fitting import decode_latents, tangent
from vcinr_batch.network.gated_siren import GatedSiren
from vcinr_batch.storage import sha256_hex

TIMES, HEIGHT, WIDTH, LATENT = 24, 6, 8, 5
POINTS = HEIGHT * WIDTH
LEVELS = (20.0, 30.0, 40.0, 50.0)
SCALE, RANGE = 4.0, 32.0
# Settings of the network, and how far latents lie from phi0: near enough for the closed form with three chord steps.
KINDS: dict[str, tuple[dict[str, Any], float]] = {
    "gate": ({"modulation": "gate"}, 0.2),
    "shift": ({"modulation": "shift"}, 0.05),
    "sparse_shift": ({"modulation": "sparse_shift"}, 0.05),
    "gate and linear": ({"modulation": "gate", "linear_term": "eof"}, 0.1),
    "linear": ({"modulation": "none", "linear_term": "eof"}, 0.5),
}
SEA = np.arange(POINTS).reshape(HEIGHT, WIDTH) % WIDTH > 5  # cells without a value in any training sample


@dataclass(frozen=True)
class World:
    """A bundle that was never trained but fits its own fields, and those fields."""

    opened: OpenBundle
    layout: Layout
    fields: NDArray[np.float32]
    """[T, P], in K."""

    def sample(self, at: int, values: Any = None, mask: Any = None) -> Sample:
        block = (at, 0, 0)
        values = self.fields[at] if values is None else values
        mask = ~SEA.ravel() if mask is None else mask
        coordinates = self.opened.bundle.grid.coordinates()
        return Sample(sample_key(self.layout, block), block, coordinates, np.asarray(values, np.float32)[:, None], mask)

    def samples(self) -> list[Sample]:
        return [self.sample(i) for i in range(TIMES)]


def make_layout(times: int = TIMES) -> Layout:
    hours = Axis("time", np.arange(times), {"units": "hours since 2019-03-01", "calendar": "standard"})
    return Layout("t2m", (hours, Axis("y", np.arange(HEIGHT)), Axis("x", np.arange(WIDTH) * 0.5)), (1, HEIGHT, WIDTH))


def logistic_tables(scale: NDArray[np.float32], value_range: float) -> Any:
    def cdf(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1 / (1 + np.exp(-np.clip(x / (0.55 * scale), -700, 700)))  # 0.55: a logistic of unit variance

    return freeze_tables(cdf, math.sqrt(12) * value_range * 10 ** (-np.array(LEVELS) / 20))


def make_world(kind: str) -> World:
    torch.manual_seed(0)
    network_settings, spread = KINDS[kind]
    layout = make_layout()
    grid = make_grid(layout, "auto")
    settings = {"latent_dim": LATENT, "hidden_dim": 10, "hidden_layers": 1, "rank": 2, "hyper_dim": 8, "w0": 4.0}
    config = parse_config(
        {"network": settings | network_settings, "fit": {"chord_steps": 3}, "codec": {"quality_psnr_db": list(LEVELS)}}
    )
    network = GatedSiren(config.network, torch.from_numpy(grid.coordinates()), 1).requires_grad_(False)
    if network.linear is not None:
        torch.nn.init.normal_(network.linear.basis)
    if kind == "gate":  # an untrained gate hardly moves the output
        network.get_parameter("siren.output_weight").mul_(100)
    latents = network.phi0 + spread * torch.randn(TIMES, LATENT)
    _, jacobian = tangent(network)
    transform = klt_transform(latents.numpy(), (jacobian.T @ jacobian).double().numpy())
    # The steps of a level are meant for codes whose error is summed over the points.
    codec = LatentCodec(transform, logistic_tables(transform.scale.numpy(), RANGE / SCALE))
    background = np.linspace(270, 290, POINTS, dtype=np.float32).reshape(1, HEIGHT, WIDTH)
    normalizer = Normalizer(
        "t2m",
        "K",
        layout.axes[1:],
        background,
        1,
        1,
        280.0,
        np.full((1, 1), SCALE, np.float32),
        np.full((1, 1), RANGE, np.float32),
        ~SEA,
    )
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    bundle, _ = make_bundle(config, grid, normalizer, weights, codec.to_arrays(), {})
    noise = 0.02 * np.random.default_rng(0).standard_normal((TIMES, POINTS))
    fields = background.ravel() + SCALE * (decode_latents(network, latents).numpy()[..., 0] + noise)
    return World(open_bundle(bundle), layout, fields.astype(np.float32))


@pytest.fixture(scope="module")
def worlds() -> dict[str, World]:
    return {kind: make_world(kind) for kind in KINDS}


@pytest.fixture(params=list(KINDS))
def world(request: pytest.FixtureRequest, worlds: dict[str, World]) -> World:
    return worlds[request.param]


@pytest.fixture
def linear(worlds: dict[str, World]) -> World:
    return worlds["linear"]


def compress(world: World, samples: list[Sample], level: int | None = 2, target: float | None = None) -> Any:
    request = QualityRequest(level=level if target is None else None, target_psnr_db=target)
    return compress_samples(samples, world.opened, world.layout, request)


def errors_of(world: World, rows: list[ArchiveRow], samples: list[Sample]) -> NDArray[np.float64]:
    """[B, P] decoded minus source; NaN where either has no value."""
    decoded = decompress_rows(rows, world.opened, world.layout)[..., 0].astype(np.float64)
    difference: NDArray[np.float64] = decoded - np.stack([sample.values[:, 0] for sample in samples])
    return difference


def psnr(error: NDArray[np.float64]) -> NDArray[np.float64]:
    value: NDArray[np.float64] = 20 * np.log10(RANGE / np.sqrt(np.nanmean(error**2, axis=1)))
    return value


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_what_comes_back_is_within_the_recorded_error(world: World, level: int) -> None:
    samples = world.samples()
    rows, rejected = compress(world, samples, level)
    assert rejected == []
    assert [row.key for row in rows] == [sample.key for sample in samples]
    assert {row.quality for row in rows} == {level}
    error = errors_of(world, rows, samples)
    recorded_max, recorded_rmse = (np.array([getattr(row, name) for row in rows]) for name in ("max_error", "rmse"))
    actual_max, actual_rmse = np.nanmax(np.abs(error), axis=1), np.sqrt(np.nanmean(error**2, axis=1))
    assert (actual_max <= recorded_max).all()
    assert (actual_rmse <= recorded_rmse).all()
    # Rounded up by at most 1/128, after a guard band of 1e-5 of the largest anomaly and 2.4e-7 of values below 400 K.
    background = world.opened.bundle.normalizer.background
    assert background is not None
    decoded = decompress_rows(rows, world.opened, world.layout)[..., 0]
    guard = 1e-5 * np.nanmax(np.abs(decoded - background.ravel()), axis=1) + 1e-4
    assert (recorded_max <= (actual_max + guard) * (1 + 1 / 127)).all()
    assert (recorded_rmse <= (actual_rmse + guard) * (1 + 1 / 127)).all()


def test_a_finer_level_costs_more_and_errs_less(world: World) -> None:
    samples = world.samples()
    sizes, distortion = [], []
    for level in range(len(LEVELS)):
        rows, _ = compress(world, samples, level)
        sizes.append(sum(len(row.payload) for row in rows))
        distortion.append(float(np.nanmean(errors_of(world, rows, samples) ** 2)))
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    assert distortion == sorted(distortion, reverse=True)
    # Noise that no network can show has a variance of (0.02 * 4)^2 K^2, of which a fit of 5 latents to 36 points takes
    # 5/36 away. At the finest level, 50 dB of 32 K or (0.1 K)^2 at most, quantisation adds to it again; measured: .077
    # to .083 K in all.
    assert 0.07**2 < distortion[-1] < 0.09**2


def test_values_are_nan_outside_the_mask_and_only_there(world: World) -> None:
    rows, _ = compress(world, world.samples())
    decoded = decompress_rows(rows, world.opened, world.layout)
    assert decoded.shape == (TIMES, POINTS, 1)
    assert decoded.dtype == np.float32
    assert (np.isnan(decoded[..., 0]) == SEA.ravel()).all()


def test_the_expected_mask_costs_nothing_and_any_other_is_stored(linear: World) -> None:
    clouds = ~SEA.ravel() & (np.arange(POINTS) % 5 > 0)
    beyond = np.ones(POINTS, bool)
    samples = [linear.sample(0), linear.sample(1, mask=clouds), linear.sample(2, mask=beyond), linear.sample(3)]
    rows, _ = compress(linear, samples)
    assert [row.mask is None for row in rows] == [True, False, False, True]
    decoded = decompress_rows(rows, linear.opened, linear.layout)[..., 0]
    for sample, field in zip(samples, decoded, strict=True):
        assert sample.mask is not None
        np.testing.assert_array_equal(np.isnan(field), ~sample.mask)
    error = np.abs(errors_of(linear, rows, samples))
    assert (np.nanmax(error, axis=1) <= [row.max_error for row in rows]).all()
    assert np.nanmax(error) < 1.0


@pytest.mark.parametrize("rubbish", [1e30, np.nan, np.inf])
def test_what_lies_outside_the_mask_does_not_matter(world: World, rubbish: float) -> None:
    mask = ~SEA.ravel() & (np.arange(POINTS) % 4 > 0)
    spoiled = np.where(mask, world.fields[3], np.float32(rubbish))
    clean, dirty = (compress(world, [world.sample(3, values, mask)])[0] for values in (world.fields[3], spoiled))
    assert clean == dirty


def test_a_sample_is_compressed_alike_alone_and_among_others(world: World) -> None:
    rows, _ = compress(world, world.samples())
    alone, _ = compress(world, [world.sample(7)])
    assert alone[0].payload == rows[7].payload


def test_rows_decode_alike_in_any_company_and_order(world: World) -> None:
    rows = [row for level in (3, 0) for row in compress(world, world.samples()[:5], level)[0]]
    together = decompress_rows(rows, world.opened, world.layout)
    backwards = decompress_rows(rows[::-1], world.opened, world.layout)[::-1]
    np.testing.assert_allclose(together, backwards, rtol=1e-6)


@pytest.mark.parametrize("target", [30.0, 38.0, 46.0])
def test_each_sample_takes_the_coarsest_level_that_reaches_the_target(world: World, target: float) -> None:
    samples = world.samples()
    rows, _ = compress(world, samples, target=target)
    reached = psnr(errors_of(world, rows, samples))
    levels = np.array([row.quality for row in rows])
    finest = len(LEVELS) - 1
    assert ((reached >= target) | (levels == finest)).all()
    for level in range(1, finest + 1):
        at = np.flatnonzero(levels == level)
        if at.size:
            below, _ = compress(world, [samples[i] for i in at], level - 1)
            # By the error that a row records, guard band included: that is what a reader can rely on.
            assert (20 * np.log10(RANGE / np.array([row.rmse for row in below])) < target).all()


def test_targets_are_met_by_different_levels(worlds: dict[str, World]) -> None:
    """Or the test above would say little."""
    chosen = {
        row.quality
        for world in worlds.values()
        for target in (30.0, 38.0, 46.0)
        for row in compress(world, world.samples(), target=target)[0]
    }
    assert len(chosen) >= 3


@pytest.mark.parametrize(("target", "level"), [(-100.0, 0), (200.0, 3)])
def test_targets_out_of_reach_take_the_coarsest_or_finest_level(linear: World, target: float, level: int) -> None:
    rows, rejected = compress(linear, linear.samples(), target=target)
    assert {row.quality for row in rows} == {level}
    assert rejected == []


def test_where_the_target_is_out_of_reach_no_bits_are_spent_on_levels_that_gain_nothing(linear: World) -> None:
    # Noise of 2 K that the basis cannot follow: PSNR stays below 20 log10(32 / 2) = 24 dB and a bit at every level.
    noise = np.random.default_rng(0).normal(0, 2, POINTS)
    samples = [linear.sample(i, linear.fields[i] + noise) for i in range(4)]
    rows, _ = compress(linear, samples, target=45.0)
    by_level = np.stack([psnr(errors_of(linear, compress(linear, samples, q)[0], samples)) for q in range(len(LEVELS))])
    chosen = np.array([row.quality for row in rows])
    assert (chosen < len(LEVELS) - 1).all()
    lost = by_level[-1] - by_level[chosen, np.arange(4)]
    assert (lost <= OUT_OF_REACH_DB + 0.07).all()  # rows round errors up by 1/128 at most, which is 0.07 dB


def test_samples_that_cannot_be_compressed_are_rejected_by_name_and_the_rest_goes_on(world: World) -> None:
    infinite, two = world.fields[1].copy(), world.fields[4].copy()
    infinite[3] = -np.inf
    two[[3, 9]] = np.inf
    samples = [
        world.sample(0),
        world.sample(1, infinite),
        world.sample(2, mask=np.zeros(POINTS, bool)),
        world.sample(3, np.where(np.arange(POINTS) == 5, np.nan, world.fields[3])),
        world.sample(4, two),
        world.sample(5),
    ]
    rows, rejected = compress(world, samples)
    assert [row.key for row in rows] == [samples[0].key, samples[5].key]
    reasons = {str(item.key): item.reason for item in rejected}
    assert reasons["t2m[time=2019-03-01T01:00:00]"] == "1 infinite value"
    assert reasons["t2m[time=2019-03-01T02:00:00]"] == "no value at all"
    assert reasons["t2m[time=2019-03-01T03:00:00]"] == "the fit diverged"  # NaN where the mask promises a value
    assert reasons["t2m[time=2019-03-01T04:00:00]"] == "2 infinite values"
    assert {item.block for item in rejected} == {(1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0)}
    good, _ = compress(world, [samples[0], samples[5]])
    assert rows == good


@pytest.mark.parametrize("size", [1e20, 3e38])
def test_absurdly_large_values_take_no_other_sample_along(world: World, size: float) -> None:
    samples = [world.sample(0), world.sample(1, np.full(POINTS, size)), world.sample(2)]
    rows, rejected = compress(world, samples)
    assert [row.key for row in rows if row.block[0] != 1] == [samples[0].key, samples[2].key]
    assert len(rows) + len(rejected) == 3
    decoded = decompress_rows(rows, world.opened, world.layout)[..., 0]
    assert np.isfinite(decoded[:, ~SEA.ravel()]).all()


def test_no_samples_are_no_rows(linear: World) -> None:
    assert compress(linear, []) == ([], [])
    assert decompress_rows([], linear.opened, linear.layout).shape == (0, POINTS, 1)


def test_only_bad_samples_are_only_rejected(linear: World) -> None:
    nothing = linear.sample(0, mask=np.zeros(POINTS, bool))
    unfittable = linear.sample(1, np.full(POINTS, np.nan))
    assert compress(linear, [nothing])[0] == []
    rows, rejected = compress(linear, [unfittable])
    assert (rows, [item.key for item in rejected]) == ([], [unfittable.key])


def test_solvers_of_the_last_masks_are_kept_and_no_more(linear: World, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_bundle(linear.opened.bundle)
    fresh = dataclasses.replace(linear, opened=opened)
    masks = [np.arange(POINTS) != i for i in range(6)]
    compress(fresh, [fresh.sample(i, mask=mask) for i, mask in enumerate(masks)])
    assert len(opened.solvers) == 4

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("solved again")

    monkeypatch.setattr("vcinr_batch.compression.make_solver", refuse)
    rows, _ = compress(fresh, [fresh.sample(5, mask=mask) for mask in masks if mask[:2].all()][:1])
    assert len(rows) == 1


def test_the_gradient_fit_compresses_too() -> None:
    world = make_world("shift")
    bundle = world.opened.bundle
    config = bundle.config.model_copy(
        update={"fit": bundle.config.fit.model_copy(update={"method": "gradient", "inner_steps": 200})}
    )
    network = world.opened.network
    network.inner_rate.fill_(0.01)
    opened = OpenBundle(dataclasses.replace(bundle, config=config), network, world.opened.codec)
    gradient = dataclasses.replace(world, opened=opened)
    samples = gradient.samples()[:4]
    rows, rejected = compress(gradient, samples, level=3)
    assert rejected == []
    error = errors_of(gradient, rows, samples)
    assert (np.nanmax(np.abs(error), axis=1) <= [row.max_error for row in rows]).all()
    untouched = np.array([np.nanmean((s.values[:, 0] - 280) ** 2) for s in samples])
    assert (np.nanmean(error**2, axis=1) < untouched).all()


@pytest.mark.parametrize(
    ("request_of", "message"),
    [
        ({}, "give one of: quality level, target PSNR, target RMSE, max error; got none"),
        ({"level": 1, "target_psnr_db": 40.0}, "got quality and target_psnr"),
        ({"target_psnr_db": math.nan}, "finite number of dB"),
        ({"target_psnr_db": math.inf}, "finite number of dB"),
        ({"target_rmse": 0.0}, "target RMSE must be above 0, got 0.0"),
        ({"max_error": -1}, "max error must be above 0, got -1"),
        ({"max_error": "0.1"}, "max error: expected a number, got '0.1'"),
        ({"max_error_share": math.nan}, "max error share must be a finite number, got nan"),
        ({"max_error": 0.1, "max_error_share": 0.1}, "got max_error and max_error_share"),
    ],
)
def test_a_request_is_one_level_or_one_target(request_of: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QualityRequest(**request_of)


@pytest.mark.parametrize("level", [-1, 4, 99])
def test_a_level_that_the_bundle_lacks_is_refused(linear: World, level: int) -> None:
    with pytest.raises(ConfigError, match=f"quality {level}: this bundle has levels 0 to 3"):
        compress(linear, linear.samples(), level)


def signed(row: ArchiveRow, sha256: str, **changes: Any) -> ArchiveRow:
    """The row with changes and a checksum that fits them, as someone would write who knows the format."""
    row = dataclasses.replace(row, **changes)
    checksum = row_checksum(row.key, row.quality, row.payload, row.mask, sha256)
    return dataclasses.replace(row, checksum=checksum)


def test_a_row_under_another_bundle_fails_its_checksum_by_name(worlds: dict[str, World]) -> None:
    rows, _ = compress(worlds["linear"], worlds["linear"].samples())
    with pytest.raises(CorruptBitstreamError, match=r"t2m\[time=2019-03-01T00:00:00\]: .*checksum"):
        decompress_rows(rows, worlds["gate"].opened, worlds["gate"].layout)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: {"payload": row.payload[:-1]},
        lambda row: {"payload": row.payload + b"\1"},
        lambda row: {"payload": bytes([row.payload[0] ^ 1]) + row.payload[1:]},
        lambda row: {"quality": row.quality - 1},
        lambda row: {"key": dataclasses.replace(row.key, variable="d2m")},
        lambda _: {"mask": b""},
        lambda row: {"checksum": row.checksum ^ 1},
    ],
)
def test_an_edited_row_fails_its_checksum_by_name(linear: World, change: Any) -> None:
    rows, _ = compress(linear, linear.samples())
    rows[6] = dataclasses.replace(rows[6], **change(rows[6]))
    with pytest.raises(CorruptBitstreamError, match=r"\[time=2019-03-01T06:00:00\]: .*checksum"):
        decompress_rows(rows, linear.opened, linear.layout)


@pytest.mark.parametrize(
    "changes", [{"quality": 200}, {"mask": b"no zlib"}, {"payload": b"\0"}, {"payload": b"\xff" * 4000}]
)
def test_a_row_that_does_not_decode_under_its_checksum_is_named(linear: World, changes: dict[str, Any]) -> None:
    rows, _ = compress(linear, linear.samples())
    rows[6] = signed(rows[6], linear.opened.bundle.sha256, **changes)
    with pytest.raises(CorruptBitstreamError, match=r"t2m\[time=2019-03-01T06:00:00\]: "):
        decompress_rows(rows, linear.opened, linear.layout)


def test_random_payloads_decode_or_raise_our_error(linear: World) -> None:
    rows, _ = compress(linear, linear.samples()[:1])
    random = np.random.default_rng(0)
    for length in range(40):
        row = signed(rows[0], linear.opened.bundle.sha256, payload=random.bytes(length))
        try:
            decoded = decompress_rows([row], linear.opened, linear.layout)
        except CorruptBitstreamError:
            continue
        assert decoded.shape == (1, POINTS, 1)


def test_a_bundle_from_a_file_decodes_what_the_one_in_memory_wrote(world: World, tmp_path: Path) -> None:
    bundle = world.opened.bundle
    rows, _ = compress(world, world.samples())
    _, data = make_bundle(bundle.config, bundle.grid, bundle.normalizer, bundle.network, bundle.codec, bundle.report)
    loaded = open_bundle(load_bundle(save_bundle(data, str(tmp_path))))
    expected = decompress_rows(rows, world.opened, world.layout)
    np.testing.assert_array_equal(decompress_rows(rows, loaded, world.layout), expected)


def test_opening_a_bundle_leaves_the_random_numbers_of_the_caller_alone(world: World) -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    open_bundle(world.opened.bundle)
    assert torch.equal(torch.rand(3), expected)


def broken_bundle(world: World, **groups: Any) -> Bundle:
    """The bundle after a change, with a digest that fits: `network={"phi0": array}` replaces, None removes."""
    old = world.opened.bundle
    merged = {}
    for group in ("network", "codec"):
        arrays = dict(getattr(old, group)) | groups.get(group, {})
        merged[group] = {name: array for name, array in arrays.items() if array is not None}
    _, data = make_bundle(old.config, old.grid, old.normalizer, merged["network"], merged["codec"], {})
    return parse_bundle(data, sha256_hex(data))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"phi0": None}, "do not fit its config: phi0"),
        ({"phi0": np.zeros(6, np.float32)}, "do not fit its config: phi0"),
        ({"extra": np.zeros(1, np.float32)}, "do not fit its config: extra"),
        ({"log_ridge": np.float32([0.0])}, "do not fit its config: log_ridge"),
        ({"phi0": np.full(5, np.nan, np.float32)}, "not finite float32"),
        ({"phi0": np.full(5, np.inf, np.float32)}, "not finite float32"),
        ({"phi0": np.zeros(5)}, "not finite float32"),
    ],
)
def test_weights_that_do_not_fit_are_refused(linear: World, network: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptBitstreamError, match=message):
        open_bundle(broken_bundle(linear, network=network))


def test_a_codec_for_other_latents_is_refused(linear: World) -> None:
    latents = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    transform = klt_transform(latents, np.eye(3))
    codec = LatentCodec(transform, logistic_tables(transform.scale.numpy(), 1.0)).to_arrays()
    with pytest.raises(CorruptBitstreamError, match="codes latents of length 3, its network has 5"):
        open_bundle(broken_bundle(linear, codec=codec))


def test_a_broken_codec_is_refused(linear: World) -> None:
    with pytest.raises(CorruptBitstreamError):
        open_bundle(broken_bundle(linear, codec={"tables.counts": np.zeros(3, np.uint16)}))


def test_a_layout_of_the_same_grid_and_domain_is_accepted(linear: World) -> None:
    check_layout(linear.opened.bundle, linear.layout)
    check_layout(linear.opened.bundle, make_layout(times=3), unit="K")


def axis(layout: Layout, name: str, values: Any) -> Layout:
    axes = tuple(Axis(a.name, values, a.attributes) if a.name == name else a for a in layout.axes)
    shape = tuple(min(b, len(a)) for a, b in zip(axes, layout.block_shape, strict=True))
    return dataclasses.replace(layout, axes=axes, block_shape=shape)


@pytest.mark.parametrize(
    ("change", "unit", "message"),
    [
        (lambda layout: dataclasses.replace(layout, variable="d2m"), None, "'t2m'.*'d2m'"),
        (lambda layout: layout, "degC", "'K'.*'degC'"),
        (lambda layout: axis(layout, "y", np.arange(5)), None, "y 0 to 5 .*0 to 4"),
        (lambda layout: axis(layout, "x", np.arange(8) * 0.25), None, "x 0 to 3.5 .*0 to 1.75"),
        (lambda layout: dataclasses.replace(layout, block_shape=(1, 3, 8)), None, "6 y x 8 x.*3 y x 8 x"),
        (lambda layout: dataclasses.replace(layout, block_shape=(2, 6, 8)), None, "6 y x 8 x.*2 time x 6 y x 8 x"),
    ],
)
def test_a_bundle_for_something_else_names_both_sides(
    linear: World, change: Any, unit: str | None, message: str
) -> None:
    with pytest.raises(BundleMismatchError, match=message):
        check_layout(linear.opened.bundle, change(linear.layout), unit)


def test_a_bundle_for_the_sphere_meets_a_source_without_latitudes(linear: World) -> None:
    latitude, longitude = np.linspace(60, 50, HEIGHT), np.linspace(-5, 2, WIDTH)
    layout = Layout(
        "t2m",
        (linear.layout.axes[0], Axis("latitude", latitude), Axis("longitude", longitude)),
        linear.layout.block_shape,
    )
    normalizer = dataclasses.replace(linear.opened.bundle.normalizer, axes=layout.axes[1:])
    bundle = dataclasses.replace(linear.opened.bundle, grid=make_grid(layout, "sphere"), normalizer=normalizer)
    check_layout(bundle, layout)
    tiles = dataclasses.replace(layout, block_shape=(1, 3, 4))
    with pytest.raises(BundleMismatchError, match=r"on the sphere, latitude 60 to 50.*3 latitude x 4 longitude, cart"):
        check_layout(bundle, tiles)


def test_a_fit_that_fails_for_all_samples_together_still_serves_each_alone(
    linear: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_fit = fitting.fit_latents

    def fit(network: Any, values: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if len(values) > 1:
            raise FittingError("together")
        return true_fit(network, values, *arguments)

    monkeypatch.setattr("vcinr_batch.compression.fit_latents", fit)
    rows, rejected = compress(linear, linear.samples())
    assert (len(rows), rejected) == (TIMES, [])


def test_recorded_errors_cover_a_decode_in_other_arithmetic(world: World) -> None:
    """float64 stands for another machine; at the finest level the recorded error is not far above the actual one."""
    rows, _ = compress(world, world.samples(), level=3)
    opened = world.opened
    latents = opened.codec.decode([row.payload for row in rows], 3)
    double = copy.deepcopy(opened.network).double()
    double.coordinates = opened.network.coordinates.double()
    normalised = double(torch.from_numpy(latents).double())[..., 0].numpy()
    background = opened.bundle.normalizer.background
    assert background is not None
    valid = ~SEA.ravel()
    error = (background.ravel() + SCALE * normalised - world.fields)[:, valid]
    assert (np.abs(error).max(axis=1) <= [row.max_error for row in rows]).all()
    assert (np.sqrt((error**2).mean(axis=1)) <= [row.rmse for row in rows]).all()
