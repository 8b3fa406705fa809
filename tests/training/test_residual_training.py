"""Residual models learned from made-up fields."""

import numpy as np
import pytest

from tests.codec.made_up_residual import make_tables
from vcinr_batch.codec.residual import bounded_bits, decode_bounded, encode_bounded, step_index
from vcinr_batch.errors import ConfigError
from vcinr_batch.training.residual_prediction import common_weights, local_weights, moments, prediction_error, to_fixed
from vcinr_batch.training.residual_training import neighbour_taps, train_residual

ROWS, COLUMNS = 8, 12


def smooth_fields(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random walks over rows and columns: predictable from their neighbours."""
    return rng.normal(size=(count, ROWS, COLUMNS)).cumsum(1).cumsum(2).reshape(count, -1).astype(np.float32)


def levels_of(values: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """A base that leaves everything, one that leaves half, one that leaves white noise."""
    noise = rng.normal(size=values.shape).astype(np.float32)
    return [np.zeros_like(values), values / 2, values + 0.05 * noise]


def test_learned_residuals_take_fewer_bits_than_their_spread_alone() -> None:
    rng = np.random.default_rng(0)
    values, held_out = smooth_fields(rng, 40), smooth_fields(rng, 20)
    train_levels = levels_of(values, rng)
    valid, tables = np.ones(ROWS * COLUMNS, bool), make_tables(rng)
    model = train_residual(values, lambda q: train_levels[q], np.array([0.0, 1.0, 3.0]), valid, (1, ROWS, COLUMNS))
    step = 0.05
    residual = np.rint(held_out / step).astype(np.int32)
    symbols, masks = np.zeros((20, 7), np.int32), np.ones(residual.shape, bool)
    arguments = masks, tables, model, 0, step_index(step), (1, ROWS, COLUMNS)
    per_point = (bounded_bits(symbols, residual, *arguments).mean() - 200) / residual.shape[1]
    # The innovations are standard normal: 2.05 bits of entropy and log2 of the step, 4.32; no model can take less.
    # A distribution of the field's spread would need log2 of std(field) / std(innovation) = 2.6 bits more.
    assert per_point < 6.37 + 1.3
    payloads = encode_bounded(symbols, residual, *arguments)
    assert np.array_equal(decode_bounded(payloads, *arguments)[1], residual)


@pytest.mark.parametrize("shape", [(1,), (5,), (1, 2, 2), (3, 4, 5)], ids=str)
def test_small_and_deep_blocks_can_be_learned(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    points = int(np.prod(shape))
    values = rng.normal(size=(9, points)).astype(np.float32)
    valid = np.ones(points, bool)
    model = train_residual(values, lambda q: values * (0.0, 0.9)[q], np.array([0.0, 1.0]), valid, shape)
    residual, masks = np.rint(values / 0.3).astype(np.int32), np.ones(values.shape, bool)
    tables, symbols = make_tables(rng, 2), np.zeros((9, 7), np.int32)
    payloads = encode_bounded(symbols, residual, masks, tables, model, 1, -20, shape)
    assert np.array_equal(decode_bounded(payloads, masks, tables, model, 1, -20, shape)[1], residual)


def test_points_without_values_and_fields_without_residual_do_no_harm() -> None:
    values = np.zeros((6, 96), np.float32)
    valid = np.arange(96) % 3 > 0
    for some in (valid, np.zeros(96, bool)):
        model = train_residual(values, lambda _: values, np.array([0.0]), some, (ROWS, COLUMNS))
        assert model.point_count == 96


def test_the_same_fields_give_the_same_model() -> None:
    values = smooth_fields(np.random.default_rng(2), 10)
    models = [
        train_residual(values, lambda _: values / 3, np.array([0.0]), np.ones(96, bool), (ROWS, COLUMNS))
        for _ in range(2)
    ]
    assert np.array_equal(models[0].local, models[1].local)
    assert np.array_equal(models[0].context, models[1].context)


def test_shapes_that_disagree_are_named() -> None:
    with pytest.raises(ConfigError, match=r"expected \[N, P\]"):
        train_residual(np.zeros((4, 96), np.float32), lambda _: np.zeros(()), np.zeros(1), np.ones(95, bool), (8, 12))


def test_weights_of_a_random_walk_are_found_and_survive_rounding() -> None:
    # x[i, j] = x[i-1, j] + x[i, j-1] - x[i-1, j-1] + innovation: the weights 1, 1, -1 of west, north, north-west.
    values = smooth_fields(np.random.default_rng(3), 400).astype(np.float64)
    valid, block = np.ones(96, bool), (1, ROWS, COLUMNS)
    taps, spread = neighbour_taps(block)
    known = moments(values, valid, taps, block)
    weights = common_weights(known, 1e-4)
    place = {tuple(tap): t for t, tap in enumerate(taps.tolist())}
    found = [weights[0, place[tap]] for tap in ((0, 0, -1), (0, -1, 0), (0, -1, -1))]
    assert np.allclose(found, [1, 1, -1], atol=0.1)
    local = local_weights(known, 1e-4, 1e-3)
    fixed = to_fixed(known, local, 1e-4) / 2.0**9
    assert prediction_error(known, fixed, 1e-4).mean() < 1.01 * prediction_error(known, local, 1e-4).mean()
    assert int(spread.sum()) == 64
