from typing import Any

import numpy as np
import pytest

from vcinr_batch.config import NormalizerConfig
from vcinr_batch.data.axes import Axis
from vcinr_batch.data.background_sums import (
    add_box,
    backgrounds,
    domain_axes,
    spread,
    start_sums,
    time_bins,
    usable_samples,
)
from vcinr_batch.data.layout import Layout

TIME = Axis("time", 3600 * np.arange(48), {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"})
LAYOUT = Layout(
    "t",
    (
        TIME,
        Axis("number", np.arange(2)),
        Axis("level", np.array([850, 500])),
        Axis("lat", np.array([1.0, 0.0])),
        Axis("lon", np.array([0.0, 1.0, 2.0])),
    ),
    (1, 1, 1, 2, 3),
)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"background": "mean"}, ["level", "lat", "lon"]),
        ({"background": "none"}, ["level"]),
        ({"background": "mean", "average_over": ("time", "level")}, ["number", "lat", "lon"]),
        ({"background": "mean", "average_over": ()}, ["number", "level", "lat", "lon"]),
    ],
)
def test_the_domain_is_what_is_not_averaged_over(config: dict[str, Any], names: list[str]) -> None:
    assert [LAYOUT.dims[k] for k in domain_axes(LAYOUT, NormalizerConfig(**config))] == names


def test_bins_count_hours_first() -> None:
    """1 and 2 January in 3 parts of the day and 365 of the year: bin = part + 3 * day."""
    assert time_bins(TIME, np.array([0, 7, 8, 23, 24, 47]), hours=3, seasons=365).tolist() == [0, 0, 1, 2, 3, 5]


def test_the_last_moment_of_a_leap_year_is_in_the_last_bin() -> None:
    end = np.array([int(np.datetime64("2021-01-01", "us").astype(np.int64)) - 1])
    axis = Axis("time", end, {"units": "microseconds since 1970-01-01", "calendar": "standard"})
    assert time_bins(axis, np.array([0]), hours=24, seasons=366).tolist() == [24 * 366 - 1]


def test_samples_with_infinity_or_without_values_are_not_usable() -> None:
    values = np.ones((3, 5), np.float32)
    values[0, 4] = np.inf  # in the narrow block at the edge
    values[1, 0:2] = np.nan  # with the row above it: not the whole block
    values[2, 2:4] = np.nan
    usable = usable_samples(values, (2, 2))
    assert usable.tolist() == [
        [True, True, True, True, False],
        [True, True, True, True, False],
        [True, True, False, False, True],
    ]


def test_sums_of_one_value_are_that_value() -> None:
    sums = start_sums(LAYOUT, NormalizerConfig(), 1, None, shift=10.0)
    values = np.full(LAYOUT.shape, 12.5, np.float32)
    add_box(sums, tuple(slice(0, n) for n in LAYOUT.shape), values, np.ones(LAYOUT.shape, bool))
    assert sums.mean == 12.5
    assert backgrounds(sums, 1, 1).tolist() == np.full((1, 2, 2, 3), 12.5).tolist()
    scale, value_range = spread(sums, around_mean=False)
    assert scale.shape == value_range.shape == (2, 1, 1)
    assert (scale.ravel().tolist(), value_range.ravel().tolist()) == ([1, 1], [1, 1])
