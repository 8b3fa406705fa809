"""Axes as plain JSON values: short, exact, and checked on the way in, where they may come from anyone."""

import base64
import binascii
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.data.attributes_json import attributes_from_json, attributes_to_json
from vcinr_batch.data.axes import Axis, make_axis
from vcinr_batch.data.times import check_units, decode_times
from vcinr_batch.errors import ConfigError, CorruptBitstreamError

LABEL_CAP = 10**8
_MAX_DECIMALS = 9
# Beyond these a progression could overflow; labels are then packed one by one.
_INT_BOUND = 2**62
_FLOAT_BOUND = 1e15


def axis_to_json(axis: Axis) -> dict[str, Any]:
    """The axis as JSON values; `axis_from_json` gives the very same labels back."""
    content: dict[str, Any] = {"name": axis.name, "labels": _labels_to_json(axis.values)}
    if axis.attributes:
        content["attributes"] = attributes_to_json(axis.attributes)
    if axis.source_values is not None:
        content["source_labels"] = _labels_to_json(axis.source_values)
    return content


def axis_from_json(content: Any, label_cap: int = LABEL_CAP) -> Axis:
    """Mirror of `axis_to_json` for JSON from an untrusted file.

    Args:
        content: what `json.loads` gave.
        label_cap: largest number of labels to allocate memory for.

    Raises:
        CorruptBitstreamError: not an axis, or one with more labels than the cap.
    """
    fields = checked_object(content, "an axis", {"name", "labels"}, {"attributes", "source_labels"})
    name = fields["name"]
    if not isinstance(name, str) or not name:
        raise CorruptBitstreamError(f"the name of an axis must be a text, got {str(name)[:40]!r}")
    attributes = attributes_from_json(fields.get("attributes", {}), f"axis {name!r}")
    values = _labels_from_json(fields["labels"], name, label_cap)
    if "source_labels" not in fields:
        axis = Axis(name, values, attributes)
    else:
        axis = make_axis(name, _labels_from_json(fields["source_labels"], name, label_cap), attributes)
        if axis.values.dtype != values.dtype or not np.array_equal(axis.values, values):
            raise CorruptBitstreamError(f"axis {name!r}: its labels in the source's order are others")
    if axis.is_time:
        check_time(axis)
    return axis


def checked_object(content: Any, what: str, required: set[str], optional: set[str] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment]
    """A JSON object with all the required keys and none that is unknown.

    Raises:
        CorruptBitstreamError: anything else.
    """
    if not isinstance(content, dict):
        raise CorruptBitstreamError(f"expected {what} as a JSON object, got {type(content).__name__}")
    missing, unknown = required - content.keys(), content.keys() - required - optional
    if missing or unknown:
        problem = f"lacks {min(missing)!r}" if missing else f"has an unknown key {str(min(unknown))[:40]!r}"
        raise CorruptBitstreamError(f"{what} {problem}")
    return content


def checked_int(content: Any, what: str, low: int, high: int) -> int:
    """A JSON integer in [low, high].

    Raises:
        CorruptBitstreamError: anything else.
    """
    if not isinstance(content, int) or isinstance(content, bool) or not low <= content <= high:
        raise CorruptBitstreamError(f"{what} must be an integer from {low} to {high}, got {str(content)[:40]!r}")
    return content


def check_time(axis: Axis) -> None:
    """Make sure that labels from an untrusted file are times that can be calculated with.

    Raises:
        CorruptBitstreamError: other units, another calendar, or times beyond what these can express.
    """
    units, calendar = str(axis.attributes["units"]), str(axis.attributes.get("calendar", "standard"))
    try:
        check_units(units, calendar)
        if axis.values.dtype.kind != "i" or not _within_time(axis.values, units):
            raise ConfigError("its labels are no times")
        decode_times(axis.values[[int(axis.values.argmin()), int(axis.values.argmax())]], units, calendar)
    except ConfigError as error:
        raise CorruptBitstreamError(f"axis {axis.name!r}: {error}") from error


def _labels_to_json(values: NDArray[Any]) -> list[str] | dict[str, Any]:
    if values.dtype.kind in "US":
        return [str(value) for value in values]
    regular = _regular(values)
    if regular is not None:
        return {"dtype": values.dtype.name, **regular}
    # The gaps between times and levels compress far better than the labels.
    raw = np.diff(values, prepend=0) if values.dtype.kind == "i" else values
    packed = zlib.compress(raw.astype(values.dtype.newbyteorder("<")).tobytes(), 9)
    data = base64.b64encode(packed).decode("ascii")
    return {"dtype": values.dtype.name, "count": len(values), "data": data}


def _regular(values: NDArray[Any]) -> dict[str, Any] | None:
    """start, step, count and maybe decimals that give exactly these labels."""
    count, start = len(values), values[0].item()
    if values.dtype.kind == "i":
        step = int(values[1]) - int(start) if count > 1 else 0
        exact = abs(step) <= _INT_BOUND // count and abs(start) <= _INT_BOUND and bool(np.all(np.diff(values) == step))
        return {"start": start, "step": step, "count": count} if exact else None
    if np.abs(values).max() >= _FLOAT_BOUND:
        return None
    if count == 1:
        return {"start": start, "step": 0.0, "count": 1}
    for step in ((values[-1] - values[0]).item() / (count - 1), (values[1] - values[0]).item()):
        for decimals in (None, *range(1, _MAX_DECIMALS + 1)):
            rounded = step if decimals is None else round(step, decimals)
            if np.array_equal(_progression(start, rounded, count, decimals), values):
                regular = {"start": start, "step": rounded, "count": count}
                return regular if decimals is None else {**regular, "decimals": decimals}
    return None


def _progression(start: float, step: float, count: int, decimals: int | None) -> NDArray[np.float64]:
    values = start + step * np.arange(count, dtype=np.float64)
    return values if decimals is None else np.round(values, decimals)


def _labels_from_json(content: Any, name: str, label_cap: int) -> NDArray[Any]:
    if isinstance(content, list):
        if not content or len(content) > label_cap or not all(isinstance(label, str) for label in content):
            raise CorruptBitstreamError(f"axis {name!r}: expected up to {label_cap} texts as labels")
        if sum(map(len, content)) > label_cap or max(map(len, content)) * len(content) > label_cap:
            raise CorruptBitstreamError(f"axis {name!r}: its labels are too long")
        return np.array(content, dtype=str)
    if isinstance(content, dict) and "data" in content:
        return _packed_from_json(content, name, label_cap)
    return _regular_from_json(content, name, label_cap)


def _regular_from_json(content: Any, name: str, label_cap: int) -> NDArray[Any]:
    fields = checked_object(content, f"labels of axis {name!r}", {"dtype", "start", "step", "count"}, {"decimals"})
    count = checked_int(fields["count"], f"number of labels of {name!r}", 1, label_cap)
    if fields["dtype"] == "int64":
        start = checked_int(fields["start"], f"first label of {name!r}", -_INT_BOUND, _INT_BOUND)
        step = checked_int(fields["step"], f"label step of {name!r}", -(_INT_BOUND // count), _INT_BOUND // count)
        return start + step * np.arange(count, dtype=np.int64)
    numbers = (fields["start"], fields["step"])
    if fields["dtype"] != "float64" or not all(type(n) in (int, float) and abs(n) <= 2 * _FLOAT_BOUND for n in numbers):
        raise CorruptBitstreamError(f"axis {name!r}: expected int64 or float64 labels with a finite start and step")
    decimals = fields.get("decimals")
    if decimals is not None:
        decimals = checked_int(decimals, f"decimals of {name!r}", 1, _MAX_DECIMALS)
    return _progression(float(numbers[0]), float(numbers[1]), count, decimals)


def _packed_from_json(content: dict[str, Any], name: str, label_cap: int) -> NDArray[Any]:
    fields = checked_object(content, f"labels of axis {name!r}", {"dtype", "count", "data"})
    count = checked_int(fields["count"], f"number of labels of {name!r}", 1, label_cap)
    if fields["dtype"] not in ("int64", "float64") or not isinstance(fields["data"], str):
        raise CorruptBitstreamError(f"axis {name!r}: expected packed int64 or float64 labels")
    try:
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(base64.b64decode(fields["data"], validate=True), 8 * count + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise CorruptBitstreamError(f"axis {name!r}: its labels do not unpack: {error}") from error
    if len(raw) != 8 * count or not unpacker.eof:
        raise CorruptBitstreamError(f"axis {name!r}: its packed labels are not {count}")
    if fields["dtype"] == "int64":
        return np.cumsum(np.frombuffer(raw, dtype="<i8"), dtype=np.int64)
    values = np.frombuffer(raw, dtype="<f8").astype(np.float64)
    if not np.isfinite(values).all():
        raise CorruptBitstreamError(f"axis {name!r}: a label is not a finite number")
    return values


def _within_time(values: NDArray[np.int64], units: str) -> bool:
    """Within 100,000 years of 1970, so that no arithmetic on microseconds can overflow."""
    per_label = 1 if units.startswith("micro") else 1_000 if units.startswith("milli") else 1_000_000
    limit = 100_000 * 366 * 86_400 * 1_000_000 // per_label
    return bool(np.abs(values).max() <= limit)
