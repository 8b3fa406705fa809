"""Rate over distortion between points, and Bjontegaard's difference, against figures made by hand and by scipy."""

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from pipelines.rate_distortion_curve import RateCurve, bd_rate, monotone_cubic


def test_between_two_points_the_logarithm_of_the_rate_is_interpolated() -> None:
    curve = RateCurve([40.0, 50.0], [0.25, 4.0])
    assert curve.bits_at(45.0) == pytest.approx(1.0)
    assert curve.bits_at(50.0) == pytest.approx(4.0)


def test_above_the_finest_point_nothing_is_known_and_below_the_coarsest_its_bits_are_enough() -> None:
    curve = RateCurve([40.0, 50.0], [0.25, 4.0])
    assert curve.bits_at(50.1) is None
    assert curve.bits_at(35.0) == pytest.approx(0.25)
    assert curve.is_coarser(35.0)
    assert not curve.is_coarser(40.0)


def test_a_point_that_another_one_beats_is_left_out() -> None:
    curve = RateCurve([40.0, 42.0, 41.0, 50.0, 50.0], [1.0, 0.9, 0.95, 4.0, 3.0])
    assert curve.psnr_db.tolist() == [42.0, 50.0]
    assert np.exp(curve.log_bits).tolist() == pytest.approx([0.9, 3.0])


def test_points_without_a_single_bit_have_no_logarithm_and_are_left_out() -> None:
    assert RateCurve([30.0, 40.0], [0.0, 1.0]).psnr_db.tolist() == [40.0]
    assert RateCurve([30.0], [0.0]).bits_at(30.0) is None


def test_half_the_bits_everywhere_are_a_bd_rate_of_minus_fifty_percent() -> None:
    psnr = [34.0, 41.0, 47.0, 62.0]
    bits = [0.1, 0.3, 1.1, 3.0]
    found = bd_rate(RateCurve(psnr, [b / 2 for b in bits]), RateCurve(psnr, bits), 35.0, 60.0)
    assert found is not None
    assert found[0] == pytest.approx(-50.0)
    assert found[1] == (35.0, 60.0)


def test_the_bd_rate_of_two_straight_lines_is_the_mean_of_their_difference() -> None:
    # Log rates 0 and x / 10 - 4 over 40..50 dB: the mean difference is 1/2.
    found = bd_rate(RateCurve([40.0, 50.0], [1.0, np.e]), RateCurve([30.0, 55.0], [0.999999, 1.0]), 35.0, 60.0)
    assert found is not None
    assert found[0] == pytest.approx(100 * np.expm1(0.5), rel=1e-3)
    assert found[1] == (40.0, 50.0)


def test_curves_with_less_than_one_decibel_in_common_have_no_bd_rate() -> None:
    low, high = RateCurve([30.0, 40.0], [1.0, 2.0]), RateCurve([39.5, 50.0], [1.0, 2.0])
    assert bd_rate(low, high, 0.0, 100.0) is None
    assert bd_rate(RateCurve([30.0], [1.0]), low, 0.0, 100.0) is None


@pytest.mark.parametrize("count", [2, 3, 9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_monotone_cubics_are_those_of_scipy(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = np.cumsum(rng.uniform(0.1, 3, count)), rng.standard_normal(count)
    if seed:
        y = np.sort(y)
    at = np.linspace(x[0], x[-1], 101)
    np.testing.assert_allclose(monotone_cubic(x, y, at), PchipInterpolator(x, y)(at), rtol=1e-9, atol=1e-9)
