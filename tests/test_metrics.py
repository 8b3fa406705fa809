import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcinr_batch.errors import ConfigError
from vcinr_batch.metrics import RateDistortion, max_error, psnr_db, rmse, round_up

# Two samples of three points and one channel: errors 3, -4, 0 and 1, 1, -1.
ERROR = np.array([[[3.0], [-4.0], [0.0]], [[1.0], [1.0], [-1.0]]], np.float32)


def test_rmse_and_max_error_of_hand_computed_samples():
    np.testing.assert_allclose(rmse(ERROR), [math.sqrt(25 / 3), 1.0])
    np.testing.assert_array_equal(max_error(ERROR), [4.0, 1.0])


@pytest.mark.parametrize(
    ("mask", "expected_rmse", "expected_max"),
    [
        ([True, False, True], [math.sqrt(9 / 2), 1.0], [3.0, 1.0]),
        ([[True, False, False], [True, True, True]], [3.0, 1.0], [3.0, 1.0]),
        ([[False, False, False], [True, False, False]], [0.0, 1.0], [0.0, 1.0]),
    ],
)
def test_masked_points_do_not_count(mask, expected_rmse, expected_max):
    error = ERROR.copy()
    error[~np.broadcast_to(np.array(mask), (2, 3))] = np.nan
    np.testing.assert_allclose(rmse(error, np.array(mask)), expected_rmse)
    np.testing.assert_array_equal(max_error(error, np.array(mask)), expected_max)


def test_channels_are_averaged_over_as_well():
    error = np.array([[[1.0, 7.0]]])
    np.testing.assert_allclose(rmse(error), [5.0])
    np.testing.assert_allclose(rmse(error, np.array([[True]])), [5.0])


def test_squares_of_large_errors_do_not_overflow():
    assert rmse(np.full((1, 4, 1), 1e30, np.float32))[0] == pytest.approx(1e30, rel=1e-6)


def test_psnr_is_20_log10_of_range_over_rmse():
    # 24.4 K range and 0.244 K error are a factor of 100, 40 dB.
    np.testing.assert_allclose(psnr_db(np.array([0.244, 24.4]), 24.4), [40.0, 0.0], atol=1e-12)
    assert psnr_db(0.0, 24.4) == math.inf


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, 0.0),
        (1.0, 1.0),
        (1.0078125, 1.0078125),  # 1 + 2^-7, the next one with 8 significant bits
        (1.0 + 2**-20, 1.0078125),
        (1.0 + 2**-40, 1.0078125),  # equals 1 as float32
        (255.0, 255.0),
        (255.5, 256.0),
        (0.1, 0.10009765625),  # 205/2048
        (1e-45, 65536 * 2**-149),  # denormal
        (math.inf, math.inf),
        (3.4e38, math.inf),  # above 255 * 2^120
    ],
)
def test_rounding_up_to_eight_significant_bits(value, expected):
    rounded = round_up(np.array([value]))
    assert rounded.dtype == np.float32
    assert rounded[0] == expected


@given(st.floats(2**-100, 1e38))
def test_a_rounded_error_is_never_smaller_and_at_most_a_128th_larger(value):
    rounded = float(round_up(np.array(value)))
    mantissa, _ = math.frexp(rounded)
    assert value <= rounded <= value * (1 + 1 / 128)
    assert (mantissa * 256).is_integer()
    assert float(round_up(np.float32(rounded))) == rounded


def test_nan_stays_visible():
    assert np.isnan(round_up(np.array([np.nan], np.float32))[0])


def test_rates_count_every_byte_with_and_without_the_bundle():
    measured = RateDistortion(
        samples=2,
        values=1000,
        archive_bytes=50,
        bundle_bytes=200,
        rmse=0.1,
        max_error=0.5,
        mean_psnr_db=40,
        source_bits=16,
    )
    assert measured.bits_per_value == 0.4
    assert measured.bits_per_value_with_bundle == 2.0
    assert measured.ratio_to_source == 40.0
    assert measured.ratio_to_float32 == 80.0


def test_no_rate_without_values():
    with pytest.raises(ConfigError, match="at least one sample"):
        RateDistortion(0, 0, 10, 10, 0.0, 0.0, 0.0, 16)
