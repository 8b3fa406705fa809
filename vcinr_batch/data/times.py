"""Time labels of any CF calendar: integers on an axis, microseconds since 1970 to calculate with, ISO 8601 to read.

The proleptic Gregorian calendar needs numpy only; every other one needs cftime (it comes with the extra `netcdf`).
"""

import datetime
import functools
import re
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.errors import ConfigError

EPOCH = "1970-01-01"
_UNIT_US = {
    "day": 86_400_000_000,
    "hour": 3_600_000_000,
    "minute": 60_000_000,
    "second": 1_000_000,
    "millisecond": 1_000,
    "microsecond": 1,
}
_UNIT_NAMES = {"d": "day", "h": "hour", "hr": "hour", "min": "minute", "s": "second", "sec": "second"}
_UNIT_NAMES |= {"msec": "millisecond", "ms": "millisecond"}
_GREGORIAN = ("standard", "gregorian", "proleptic_gregorian")
_CALENDARS = (*_GREGORIAN, "julian", "noleap", "365_day", "all_leap", "366_day", "360_day")
_REFORM_US = int(np.datetime64("1582-10-15", "us").astype(np.int64))
_PARTIAL_TIME = re.compile(
    r"(?P<year>[+-]?\d{4,6})(?:-(?P<month>\d\d?)(?:-(?P<day>\d\d?)"
    r"(?:[T ](?P<hour>\d\d?)(?::(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d{1,6}))?)?)?Z?)?)?)?"
)


def encode_times(times: NDArray[Any]) -> tuple[NDArray[np.int64], str, str]:
    """Decoded times to integers that every container of the same data gives alike.

    Args:
        times: datetime64 of any resolution, or cftime objects of one calendar.

    Returns:
        The labels, their CF units (seconds since 1970, microseconds where there are fractions) and their calendar.
    """
    if times.dtype.kind == "M":
        microseconds, calendar = times.astype("datetime64[us]").astype(np.int64), "proleptic_gregorian"
    else:
        calendar = str(times.ravel()[0].calendar)
        numbers = cftime().date2num(times, f"microseconds since {EPOCH}", calendar=calendar)
        microseconds = np.asarray(numbers).astype(np.int64)
    if np.all(microseconds % 1_000_000 == 0):
        return microseconds // 1_000_000, f"seconds since {EPOCH}", calendar
    return microseconds, f"microseconds since {EPOCH}", calendar


def decode_times(values: NDArray[Any], units: str, calendar: str) -> NDArray[Any]:
    """Mirror of `encode_times`: datetime64 (of nanoseconds where they reach far enough) or cftime objects.

    Raises:
        ConfigError: units or calendar are not CF.
    """
    microseconds = axis_microseconds(values, units, calendar)
    if not _is_gregorian(calendar, microseconds):
        return np.asarray(_cftime_dates(microseconds, calendar), dtype=object)
    times = microseconds.astype("datetime64[us]")
    in_range = np.abs(microseconds) < 2**63 // 1000
    return times.astype("datetime64[ns]") if bool(in_range.all()) else times


def axis_microseconds(values: NDArray[Any], units: str, calendar: str) -> NDArray[np.int64]:
    """CF time labels of any shape as microseconds since 1970-01-01 in their own calendar.

    Raises:
        ConfigError: units or calendar are not CF.
    """
    multiplier, offset = _units(units, calendar)
    if values.dtype.kind in "iu":
        microseconds: NDArray[np.int64] = values.astype(np.int64) * multiplier + offset
    else:
        microseconds = np.rint(values.astype(np.float64) * multiplier).astype(np.int64) + offset
    return microseconds


def time_text(microseconds: int, calendar: str) -> str:
    """`2019-03-22T06:00:00`, with six more digits only where the second is not whole."""
    if not _is_gregorian(calendar, np.asarray(microseconds)):
        # Ten times faster than num2date on one number.
        date = cftime().datetime(1970, 1, 1, calendar=calendar) + datetime.timedelta(microseconds=microseconds)
        return str(date.isoformat())
    whole, fraction = divmod(microseconds, 1_000_000)
    return str(np.datetime64(microseconds, "us") if fraction else np.datetime64(whole, "s"))


def time_texts(microseconds: NDArray[np.int64], calendar: str) -> list[str]:
    """`time_text` of many times [N]."""
    if microseconds.size == 0 or not _is_gregorian(calendar, microseconds) or (microseconds % 1_000_000).any():
        return [time_text(int(time), calendar) for time in microseconds]
    texts: list[str] = np.datetime_as_string((microseconds // 1_000_000).astype("datetime64[s]")).tolist()
    return texts


def parse_time(text: str, calendar: str) -> tuple[int, int]:
    """The interval [start, end) in microseconds that a whole or partial ISO 8601 time means: `2019-03` is that month.

    Raises:
        ConfigError: not a time, or not a date of this calendar.
    """
    match = _PARTIAL_TIME.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a time; write it like 2019-03-22T06:00, 2019-03-22 or 2019-03")
    given = {name: value for name, value in match.groupdict().items() if value is not None}
    year, month, day = int(given["year"]), int(given.get("month", 1)), int(given.get("day", 1))
    clock = [int(given.get(name, 0)) for name in ("hour", "minute", "second")]
    if clock[0] > 23 or clock[1] > 59 or clock[2] > 59:
        raise ConfigError(f"{text!r} is not a time of day")
    fraction = given.get("fraction", "").ljust(6, "0")
    start = _date_us(text, year, month, day, calendar) + int(fraction)
    start += sum(part * _UNIT_US[unit] for part, unit in zip(clock, ("hour", "minute", "second"), strict=True))
    if "month" not in given:
        return start, _date_us(text, year + 1, 1, 1, calendar)
    if "day" not in given:
        return start, _date_us(text, year + month // 12, month % 12 + 1, 1, calendar)
    if "fraction" in given:
        return start, start + 1
    finest = next(unit for unit in ("second", "minute", "hour", "day") if unit in given)
    return start, start + _UNIT_US[finest]


def day_and_year_fraction(
    microseconds: NDArray[np.int64], calendar: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How much of its day (UTC) and of its year has passed at each time, both in [0, 1)."""
    of_day = (microseconds % _UNIT_US["day"]) / _UNIT_US["day"]
    if _is_gregorian(calendar, microseconds):
        years = microseconds.astype("datetime64[us]").astype("datetime64[Y]")
        starts = years.astype("datetime64[us]").astype(np.int64)
        ends = (years + 1).astype("datetime64[us]").astype(np.int64)
        return of_day, (microseconds - starts) / (ends - starts)
    year_of = np.array([date.year for date in _cftime_dates(microseconds, calendar)], dtype=np.int64)
    unique, inverse = np.unique(year_of, return_inverse=True)
    bounds = np.array([[_date_us("", int(y) + k, 1, 1, calendar) for k in (0, 1)] for y in unique], dtype=np.int64)
    starts, ends = bounds[inverse.reshape(-1)].T
    return of_day, (microseconds - starts) / (ends - starts)


def check_units(units: str, calendar: str) -> None:
    """Raise a `ConfigError` unless these are CF units and a CF calendar that this module reads."""
    _units(units, calendar)


@functools.lru_cache(maxsize=256)
def _units(units: str, calendar: str) -> tuple[int, int]:
    """Microseconds per unit, and microseconds from 1970 to the reference date."""
    name, separator, reference = units.partition(" since ")
    name = name.strip().lower()
    name = _UNIT_NAMES.get(name, name.removesuffix("s"))
    if not separator or name not in _UNIT_US or calendar not in _CALENDARS:
        raise ConfigError(f"{units!r} in calendar {calendar!r} are not CF time units that can be read")
    return _UNIT_US[name], parse_time(reference.strip().removesuffix("UTC").strip(), calendar)[0]


def _date_us(text: str, year: int, month: int, day: int, calendar: str) -> int:
    if calendar not in _CALENDARS:
        raise ConfigError(f"unknown calendar {calendar!r}; known are {', '.join(_CALENDARS)}")
    try:
        if calendar == "proleptic_gregorian" or (calendar in _GREGORIAN and year > 1582):
            return int(np.datetime64(f"{year:04d}-{month:02d}-{day:02d}", "us").astype(np.int64))
        date = cftime().datetime(year, month, day, calendar=calendar)
        return int(cftime().date2num(date, f"microseconds since {EPOCH}", calendar=calendar))
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{text!r} is not a date of the calendar {calendar}: {error}") from error


def _cftime_dates(microseconds: NDArray[np.int64], calendar: str) -> Any:
    try:
        return cftime().num2date(microseconds, f"microseconds since {EPOCH}", calendar=calendar)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"time outside what the calendar {calendar} can express: {error}") from error


def _is_gregorian(calendar: str, microseconds: NDArray[np.int64]) -> bool:
    """Whether numpy's calendar gives the same dates: `standard` is Julian before the reform of 1582."""
    if calendar == "proleptic_gregorian":
        return True
    return calendar in _GREGORIAN and bool(np.min(microseconds) >= _REFORM_US)


def cftime() -> ModuleType:
    """The module cftime.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import cftime as module
    except ImportError as error:
        raise ConfigError("other calendars need cftime: pip install 'vcinr-batch[netcdf]'") from error
    return module  # type: ignore[no-any-return]
