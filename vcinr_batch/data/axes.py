"""One dimension of a gridded source: its labels in canonical order, their text form, and finding them by text."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.data.times import axis_microseconds, parse_time, time_text, time_texts
from vcinr_batch.errors import ConfigError, SampleNotFoundError

_LATITUDE_UNITS = ("degrees_north", "degree_north", "degrees_n", "degree_n", "degreesn", "degreen")
_LONGITUDE_UNITS = ("degrees_east", "degree_east", "degrees_e", "degree_e", "degreese", "degreee")
_MATCH = 1e-6
_RESERVED = str.maketrans({c: f"%{ord(c):02X}" for c in "%,=[]+"})


@dataclass(frozen=True, eq=False)
class Axis:
    """One dimension of the source with its labels, in canonical order.

    Canonical: latitude descending (north first); longitude ascending and contiguous, a global axis rolled so that it
    starts at its smallest non-negative value, a regional one so that it starts in [-180, 180); time ascending. Time is
    int64 in CF units (`attributes["units"]`, `["calendar"]`), so that every calendar fits.
    """

    name: str
    values: NDArray[Any]
    """1-D labels: int64, float64 or str."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """As in the source; time axes carry their CF units and calendar, and the source's as `source_units` and so on."""
    source_values: NDArray[Any] | None = None
    """The labels in the source's own order and convention where they differ; a permutation of `values` modulo 360."""

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or self.values.size == 0:
            raise ConfigError(f"axis {self.name!r} needs 1-D labels, not empty; got shape {self.values.shape}")

    def __len__(self) -> int:
        return int(self.values.size)

    @property
    def is_time(self) -> bool:
        return " since " in str(self.attributes.get("units", ""))

    @property
    def is_latitude(self) -> bool:
        """By its name, units or standard name; a name alone counts only with labels that can be degrees."""
        return _is_geographic(self.name, self.attributes, self.values) == "latitude"

    @property
    def is_longitude(self) -> bool:
        """As `is_latitude`."""
        return _is_geographic(self.name, self.attributes, self.values) == "longitude"


def make_axis(name: str, source_values: NDArray[Any], attributes: Mapping[str, Any]) -> Axis:
    """The axis of labels that come in the source's order and convention (time already as integers)."""
    values, _ = _canonical(name, attributes, source_values)
    same = values.dtype == source_values.dtype and np.array_equal(values, source_values)
    return Axis(name, values, attributes, None if same else source_values)


def source_order(axis: Axis) -> NDArray[np.int64]:
    """For each canonical label its place in the source's order: `canonical = from_source[source_order(axis)]`."""
    if axis.source_values is None:
        return np.arange(len(axis))
    return _canonical(axis.name, axis.attributes, axis.source_values)[1]


def take_labels(axis: Axis, positions: NDArray[np.int64]) -> tuple[Axis, NDArray[np.int64]]:
    """The axis with only the labels at `positions`, and for each of its labels the place on the axis it came from.

    What stays of a global longitude may be a region across Greenwich, which has another canonical order; the source's
    order would then tear it apart, so that such a part keeps the canonical one.
    """
    order = source_order(axis)
    in_source_order = positions[np.argsort(order[positions], kind="stable")]
    labels = axis.values if axis.source_values is None else axis.source_values
    part = make_axis(axis.name, labels[order[in_source_order]], axis.attributes)
    places = in_source_order[source_order(part)]
    torn = bool(np.any(np.diff(order[in_source_order]) != 1))
    return (replace(part, source_values=None) if torn and part.is_longitude else part), places


def label_text(axis: Axis, i: int) -> str:
    """The label as it stands in sample keys: `2019-03-22T06:00:00`, `850`, `57.75`, text with `%,=[]+` escaped."""
    value = axis.values[i]
    if axis.is_time:
        calendar = _calendar(axis)
        return time_text(int(axis_microseconds(value, str(axis.attributes["units"]), calendar)), calendar)
    if axis.values.dtype.kind in "US":
        return str(value).translate(_RESERVED)
    number = float(value)
    if axis.values.dtype.kind in "iu" or (number.is_integer() and abs(number) < 1e15):
        return str(int(value))
    return repr(number).replace("e+", "e")


def label_texts(axis: Axis, places: NDArray[np.int64]) -> list[str]:
    """`label_text` of many labels; of times at a tenth of the cost."""
    if not axis.is_time:
        return [label_text(axis, i) for i in places.tolist()]
    calendar = _calendar(axis)
    return time_texts(axis_microseconds(axis.values[places], str(axis.attributes["units"]), calendar), calendar)


def axis_index(axis: Axis, text: str) -> NDArray[np.int64]:
    """Positions that a text selects, ascending: one label, a partial time, or an inclusive range `a..b`.

    Either end of a range may be open or a partial time. Numbers match within 1e-6 relative, and the ends of a numeric
    range may come in either order. Longitudes match modulo 360: `a..b` runs eastwards from a to b where a < b, else
    along the shorter way between them.

    Raises:
        SampleNotFoundError: nothing is selected; names the axis' extent.
        ConfigError: the text is no label of this axis.
    """
    first, separator, last = text.partition("..")
    first, last = first.strip(), last.strip()
    if axis.is_time:
        if not text.strip():
            raise ConfigError(f"{axis.name}: an empty text; expected a time, a part of one, or a range a..b")
        chosen = _times_between(axis, first, last if separator else first)
    elif axis.values.dtype.kind in "US":
        chosen = _words_between(axis, first, last) if separator else _words(axis, text)
    elif axis.is_longitude:
        chosen = _longitudes_between(axis, _number(axis, first), _number(axis, last if separator else first))
    else:
        chosen = _numbers_between(axis, _number(axis, first), _number(axis, last if separator else first))
    positions = np.flatnonzero(chosen)
    if positions.size == 0:
        extent = f"{label_text(axis, 0)}..{label_text(axis, len(axis) - 1)}"
        raise SampleNotFoundError(f"{axis.name}={text} selects nothing; {axis.name} holds {len(axis)} labels, {extent}")
    return positions


def _calendar(axis: Axis) -> str:
    return str(axis.attributes.get("calendar", "standard"))


def _times_between(axis: Axis, first: str, last: str) -> NDArray[np.bool_]:
    calendar = _calendar(axis)
    times = axis_microseconds(axis.values, str(axis.attributes["units"]), calendar)
    chosen = np.ones(len(axis), dtype=bool)
    if first:
        chosen &= times >= parse_time(first, calendar)[0]
    if last:
        chosen &= times < parse_time(last, calendar)[1]
    return chosen


def _words(axis: Axis, text: str) -> NDArray[np.bool_]:
    chosen: NDArray[np.bool_] = (axis.values == text) | (axis.values == unquote(text))
    return chosen


def _words_between(axis: Axis, first: str, last: str) -> NDArray[np.bool_]:
    """From one label to the other by their places; where the whole text is a label (`a..b` as a name), that one."""
    whole = _words(axis, f"{first}..{last}")
    if whole.any():
        return whole
    ends = []
    for end, default in ((first, 0), (last, len(axis) - 1)):
        found = np.flatnonzero(_words(axis, end)) if end else np.array([default])
        if found.size == 0:
            return np.zeros(len(axis), dtype=bool)
        ends.append(int(found[0]))
    places = np.arange(len(axis))
    return (places >= min(ends)) & (places <= max(ends))


def _number(axis: Axis, text: str) -> float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise ConfigError(f"{axis.name}={text!r}: expected a number, or a range like 10..20")
    return number


def _numbers_between(axis: Axis, first: float | None, last: float | None) -> NDArray[np.bool_]:
    low, high = (-np.inf if first is None else first), (np.inf if last is None else last)
    if low > high:
        low, high = high, low
    values = axis.values.astype(np.float64)
    slack = _MATCH * np.abs(values) + 1e-12
    chosen: NDArray[np.bool_] = (values >= low - slack) & (values <= high + slack)
    return chosen


def _longitudes_between(axis: Axis, first: float | None, last: float | None) -> NDArray[np.bool_]:
    if first is None or last is None:
        return _numbers_between(axis, first, last)
    if abs(last - first) >= 360:
        return np.ones(len(axis), dtype=bool)
    width = (last - first) % 360
    if first > last and width > 180:
        first, width = last, 360 - width
    slack = _MATCH * 180
    chosen: NDArray[np.bool_] = (axis.values.astype(np.float64) - first + slack) % 360 <= width + 2 * slack
    return chosen


def _is_geographic(name: str, attributes: Mapping[str, Any], values: NDArray[Any]) -> str | None:
    if values.dtype.kind not in "iuf":
        return None
    units, standard_name = str(attributes.get("units", "")).lower(), str(attributes.get("standard_name", ""))
    if standard_name in ("latitude", "longitude"):
        return standard_name
    if units in _LATITUDE_UNITS or units in _LONGITUDE_UNITS:
        return "latitude" if units in _LATITUDE_UNITS else "longitude"
    low, high = float(values.min()), float(values.max())
    if name.lower() in ("latitude", "lat") and low >= -90.001 and high <= 90.001:
        return "latitude"
    if name.lower() in ("longitude", "lon") and low >= -360 and high <= 720:
        return "longitude"
    return None


def _canonical(
    name: str, attributes: Mapping[str, Any], source: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Canonical labels, and for each of them its place in the source."""
    if " since " in str(attributes.get("units", "")):
        order = np.argsort(source, kind="stable")
        return source[order], order
    kind = _is_geographic(name, attributes, source)
    if kind == "latitude":
        order = np.argsort(-source, kind="stable")
        return source[order].astype(np.float64), order
    if kind == "longitude":
        return _canonical_longitude(source.astype(np.float64))
    return source, np.arange(len(source))


def _canonical_longitude(source: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    wrapped = np.mod(source, 360.0)
    wrapped[360.0 - wrapped < 1e-7] = 0.0
    order = np.argsort(wrapped, kind="stable")
    gaps = np.diff(wrapped[order], append=wrapped[order[0]] + 360.0)
    if gaps.min() < 1e-7:  # both 0 and 360 are there: leave the labels alone
        order = np.argsort(source, kind="stable")
        return source[order], order
    if len(source) > 1 and gaps.max() <= 1.5 * np.median(gaps):  # goes round the globe
        target = wrapped[order]
    else:  # starts east of the widest gap
        order = np.roll(order, -int(np.argmax(gaps)) - 1)
        start = (wrapped[order[0]] + 180.0) % 360.0 - 180.0
        target = start + np.mod(wrapped[order] - wrapped[order[0]], 360.0)
    turns = np.rint((target - source[order]) / 360.0)
    moved = np.round(source[order] + 360.0 * turns, 9)  # 359.9 must not come out as 359.90000000000003
    return np.where(turns == 0, source[order], moved), order
