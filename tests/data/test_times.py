import numpy as np
import pytest

from vcinr_batch.data.times import (
    axis_microseconds,
    check_units,
    day_and_year_fraction,
    decode_times,
    encode_times,
    parse_time,
    time_text,
)
from vcinr_batch.errors import ConfigError

cftime = pytest.importorskip("cftime")

DAY = 86_400_000_000


def test_whole_seconds_become_seconds_since_1970() -> None:
    labels, units, calendar = encode_times(np.array(["1970-01-02T00:00:01", "1969-12-31T23:59:59"], "datetime64[ns]"))
    assert labels.tolist() == [86401, -1]
    assert (units, calendar) == ("seconds since 1970-01-01", "proleptic_gregorian")


def test_fractions_of_a_second_become_microseconds() -> None:
    labels, units, _ = encode_times(np.array(["1970-01-01T00:00:00.25"], "datetime64[ns]"))
    assert labels.tolist() == [250_000]
    assert units == "microseconds since 1970-01-01"


@pytest.mark.parametrize("calendar", ["noleap", "all_leap", "360_day", "julian", "standard"])
def test_cftime_dates_come_back_equal(calendar: str) -> None:
    dates = np.array(
        [cftime.datetime(1400, 2, 28, 6, calendar=calendar), cftime.datetime(1582, 1, 1, calendar=calendar)]
    )
    labels, units, found = encode_times(dates)
    assert found == calendar
    assert decode_times(labels, units, calendar).tolist() == dates.tolist()


@pytest.mark.parametrize(
    ("units", "calendar", "value", "microseconds"),
    [
        ("hours since 1970-01-01", "standard", 1.5, DAY // 16),
        ("days since 1969-12-31 12:00:00", "proleptic_gregorian", 1, DAY // 2),
        ("s since 1970-01-02T00:00:00Z", "gregorian", -1, DAY - 1_000_000),
        ("minutes since 1970-01-01 00:00", "360_day", 90, 90 * 60 * 10**6),
        ("milliseconds since 1970-01-01", "standard", 2, 2_000),
        (
            "days since 1800-01-01",
            "standard",
            62091,
            0,
        ),  # 170 years of 365.25 days, less 1800 and 1900 which do not leap
    ],
)
def test_any_cf_units_are_read(units: str, calendar: str, value: float, microseconds: int) -> None:
    assert axis_microseconds(np.array([value]), units, calendar).tolist() == [microseconds]


@pytest.mark.parametrize(
    ("units", "calendar"),
    [
        ("months since 1970-01-01", "standard"),
        ("hours since yesterday", "standard"),
        ("hours", "standard"),
        ("hours since 1970-01-01", "mayan"),
        ("hours since 1970-02-30", "noleap"),
    ],
)
def test_other_units_are_refused(units: str, calendar: str) -> None:
    with pytest.raises(ConfigError):
        check_units(units, calendar)


@pytest.mark.parametrize(
    ("microseconds", "calendar", "text"),
    [
        (0, "standard", "1970-01-01T00:00:00"),
        (-1, "proleptic_gregorian", "1969-12-31T23:59:59.999999"),
        (1553234400 * 10**6, "proleptic_gregorian", "2019-03-22T06:00:00"),
        (59 * DAY, "360_day", "1970-02-30T00:00:00"),
        (59 * DAY, "noleap", "1970-03-01T00:00:00"),
    ],
)
def test_times_read_as_iso(microseconds: int, calendar: str, text: str) -> None:
    assert time_text(microseconds, calendar) == text


@pytest.mark.parametrize(
    ("text", "calendar", "first", "end"),
    [
        ("2019", "standard", "2019-01-01", "2020-01-01"),
        ("2019-12", "standard", "2019-12-01", "2020-01-01"),
        ("2019-2", "standard", "2019-02-01", "2019-03-01"),
        ("2019-03-22", "standard", "2019-03-22", "2019-03-23"),
        ("2019-03-22T06", "standard", "2019-03-22T06", "2019-03-22T07"),
        ("2019-03-22 06:30", "standard", "2019-03-22T06:30", "2019-03-22T06:31"),
        ("2019-03-22T06:30:15Z", "standard", "2019-03-22T06:30:15", "2019-03-22T06:30:16"),
        ("2019-03-22T06:30:15.25", "standard", "2019-03-22T06:30:15.250000", "2019-03-22T06:30:15.250001"),
    ],
)
def test_a_partial_time_means_an_interval(text: str, calendar: str, first: str, end: str) -> None:
    expected = [int(np.datetime64(t, "us").astype(np.int64)) for t in (first, end)]
    assert list(parse_time(text, calendar)) == expected


def test_a_month_of_the_360_day_calendar_has_30_days() -> None:
    first, end = parse_time("1985-02", "360_day")
    assert end - first == 30 * DAY


@pytest.mark.parametrize("text", ["", "march", "2019-3-", "19-03-01", "2019-02-30", "2019-13", "2019-01-01T25", "1e9"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_time(text, "proleptic_gregorian")


@pytest.mark.parametrize("calendar", ["proleptic_gregorian", "noleap"])
def test_fractions_of_day_and_year(calendar: str) -> None:
    """1970 has 365 days in both calendars: noon of its 74th day is 73.5 / 365 into it."""
    of_day, of_year = day_and_year_fraction(np.array([0, 73 * DAY + DAY // 2, 365 * DAY - 1]), calendar)
    assert of_day == pytest.approx([0, 0.5, 1], abs=1e-9)
    assert of_year == pytest.approx([0, 73.5 / 365, 1], abs=1e-9)
    assert of_day.max() < 1
    assert of_year.max() < 1


def test_the_julian_part_of_the_standard_calendar_is_not_read_as_gregorian() -> None:
    """The day before 15 October 1582 was 4 October."""
    reform = int(np.datetime64("1582-10-15", "us").astype(np.int64))
    assert time_text(reform - DAY, "standard") == "1582-10-04T00:00:00"
    assert time_text(reform, "standard") == "1582-10-15T00:00:00"


def test_times_beyond_nanoseconds_stay_exact() -> None:
    times = np.array(["0850-01-01", "2300-01-01"], "datetime64[s]")
    labels, units, calendar = encode_times(times)
    assert np.array_equal(decode_times(labels, units, calendar), times)
