"""Attributes as JSON values and back: a number keeps its type, which CF asks for in `valid_range` or `flag_values`."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vcinr_batch.errors import CorruptBitstreamError

_MAX_DEPTH = 8
_DTYPES = ("|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f4", "<f8")
_NOT_FINITE = ("nan", "inf", "-inf")
_TYPED_KEYS = {"dtype", "data"}
_OBJECT = "object"


def attributes_to_json(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as JSON values; `attributes_from_json` gives equal numbers of the same types back.

    Texts, int64, float64 and lists of them stay as they are. Other numbers, and those with a NaN or an infinity among
    them, become `{"dtype": "<f4", "data": [1.5, "inf"]}`. Only what is nested in a list or an object loses its type.
    """
    return {str(name): _to_json(value) for name, value in attributes.items()}


def attributes_from_json(content: Any, what: str) -> dict[str, Any]:
    """Mirror of `attributes_to_json` for JSON from an untrusted file; typed numbers become NumPy scalars and arrays.

    Raises:
        CorruptBitstreamError: not an object of texts, numbers, truth values, nulls and lists or objects of them.
    """
    if not isinstance(content, dict) or not _is_plain(content, _MAX_DEPTH):
        raise CorruptBitstreamError(f"{what}: its attributes are not an object of plain JSON values")
    return {name: _from_json(value, f"{what}: attribute {name[:40]!r}") for name, value in content.items()}


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        plain = {str(key): _plain(item) for key, item in value.items()}
        return {"dtype": _OBJECT, "data": plain} if plain.keys() == _TYPED_KEYS else plain
    numbers = _numbers(value)
    if numbers is None:
        return _plain(value)
    data = _plain(numbers)
    if numbers.dtype in (np.int64, np.float64) and numbers.size and np.isfinite(numbers).all():
        return data
    return {"dtype": numbers.dtype.newbyteorder("<").str, "data": data}


def _numbers(value: Any) -> np.ndarray[Any, Any] | None:
    """The array of a number, or of a flat row of numbers, if it is one that has to keep its type."""
    if isinstance(value, list | tuple):
        if not value or not all(isinstance(item, float) for item in value):
            return None
    elif not isinstance(value, float | np.ndarray | np.generic):
        return None
    array = np.asarray(value)
    return array if array.ndim <= 1 and array.dtype.newbyteorder("<").str in _DTYPES else None


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _from_json(value: Any, what: str) -> Any:
    if not isinstance(value, dict) or value.keys() != _TYPED_KEYS:
        return value
    dtype, data = value["dtype"], value["data"]
    if dtype == _OBJECT and isinstance(data, dict):
        return data
    items = data if isinstance(data, list) else [data]
    if dtype not in _DTYPES or not all(_is_number(item, dtype) for item in items):
        raise CorruptBitstreamError(f"{what} is not a row of numbers of the type {str(dtype)[:40]!r}")
    array = np.array([float(item) if isinstance(item, str) else item for item in items], np.dtype(dtype))
    return array if isinstance(data, list) else array[0]


def _is_number(item: Any, dtype: str) -> bool:
    """Whether an entry of `data` is a number that the type holds."""
    if dtype[1] == "f":
        if isinstance(item, str):
            return item in _NOT_FINITE
        return type(item) in (int, float) and abs(item) <= float(np.finfo(dtype).max)
    return type(item) is int and int(np.iinfo(dtype).min) <= item <= int(np.iinfo(dtype).max)


def _is_plain(content: Any, depth: int) -> bool:
    if content is None or isinstance(content, (str, bool, int)):
        return True
    if isinstance(content, float):
        return math.isfinite(content)
    if depth == 0:
        return False
    if isinstance(content, Mapping):
        return all(isinstance(key, str) and _is_plain(value, depth - 1) for key, value in content.items())
    return isinstance(content, list) and all(_is_plain(value, depth - 1) for value in content)
