"""What a source says beside its axes (scalars, 2-D latitudes, bounds, grid mappings), kept in full, as JSON values."""

import base64
import binascii
import math
import re
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.data.attributes_json import attributes_from_json, attributes_to_json
from vcinr_batch.data.axes import Axis
from vcinr_batch.data.axis_json import check_time, checked_int, checked_object
from vcinr_batch.data.layout import Layout, axis_variable
from vcinr_batch.errors import CorruptBitstreamError

if TYPE_CHECKING:
    import xarray

MAX_BYTES = 1 << 20
"""Largest auxiliary variable: its numbers' bytes; of texts the characters of the longest, times their number."""
MAX_VARIABLES = 64
CHANNEL_DIM = "channel"
"""Of decoded samples of several channels: nothing else may have that name."""
RELATIONS = ("ancillary_variables", "cell_measures", "grid_mapping")
"""Attributes of a variable that name auxiliary variables which are no coordinates of it."""
BOUNDS = "bounds"
"""Attribute of a coordinate that names the variable with the ends of its cells."""

_NUMBERS = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f4", "<f8")
_TEXTS = {"text": "U", "bytes": "S"}
_NO_NAME = re.compile(r"[\x00-\x1f\x7f/\\]|^\.\.?$")  # neither NetCDF nor a path in a Zarr store takes it
_NAME_CHARACTERS = 256


@dataclass(frozen=True, eq=False)
class Auxiliary:
    """A variable that goes with the fields: a coordinate that is no axis, the bounds of one, or a grid mapping."""

    name: str
    dims: tuple[str, ...]
    """Of the fields' dimensions, in an order of its own; none of a scalar. `own_dim` is one of them."""
    values: NDArray[Any]
    """Along its dimensions, labels in canonical order: numbers, texts, bytes in UTF-8; times are int64 in CF units."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """As in the source; of times also as an axis has them."""
    own_dim: str | None = None
    """A dimension that the fields do not have, such as the two ends of a cell: then it is no coordinate of theirs."""

    @property
    def own_length(self) -> int:
        """Of `own_dim`; 0 where there is none."""
        return 0 if self.own_dim is None else int(self.values.shape[self.dims.index(self.own_dim)])

    @property
    def is_time(self) -> bool:
        return self.values.dtype == np.int64 and " since " in str(self.attributes.get("units", ""))


def stored_bytes(dtype: np.dtype[Any], count: int) -> int | None:
    """What `MAX_BYTES` is about, of that many values of a type; None where the type cannot be kept."""
    if dtype.kind in "US":
        return count * max(1, dtype.itemsize // (4 if dtype.kind == "U" else 1))
    return count * dtype.itemsize if dtype.newbyteorder("<").str in _NUMBERS else None


def is_usable_name(name: Any) -> bool:
    """Whether files of every format can hold a variable of that name."""
    if not isinstance(name, str) or not 0 < len(name) <= _NAME_CHARACTERS or not _is_unicode(name):
        return False
    return _NO_NAME.search(name) is None


def take_auxiliary(auxiliary: Auxiliary, dim: str, places: NDArray[np.int64]) -> Auxiliary:
    """With only the labels at those places of a dimension, in their order; the same where it does not span it."""
    if dim not in auxiliary.dims:
        return auxiliary
    return replace(auxiliary, values=np.take(auxiliary.values, places, axis=auxiliary.dims.index(dim)))


def auxiliary_variable(auxiliary: Auxiliary) -> "xarray.Variable":
    """As the source had it: decoded times, attributes, units and types."""
    import xarray

    if not auxiliary.is_time:
        is_text = auxiliary.values.dtype.kind == "U"  # as objects they are of any length: Zarr has no other standard
        values = auxiliary.values.astype(object) if is_text else auxiliary.values
        return xarray.Variable(auxiliary.dims, values, dict(auxiliary.attributes))
    flat = axis_variable(Axis(auxiliary.name, auxiliary.values.reshape(-1), auxiliary.attributes))
    return xarray.Variable(auxiliary.dims, flat.values.reshape(auxiliary.values.shape), flat.attrs, flat.encoding)


def related_names(relation: str, text: str) -> list[str]:
    """The variables that an attribute of `RELATIONS` names: `crs`, `crs: y x`, `area: cell_area`, `flag error`."""
    words = text.replace(" :", ":").split()
    keys = [word.rstrip(":") for word in words if word.endswith(":")]
    if relation == "grid_mapping" and keys:
        return keys
    return [word for word in words if not word.endswith(":")]


def coordinates_among(auxiliaries: Collection[Auxiliary], attributes: Mapping[str, Any]) -> set[str]:
    """Names of those that are coordinates of a variable: no bounds, and nothing that one of its `RELATIONS` names."""
    related = {name for key in RELATIONS for name in related_names(key, str(attributes.get(key, "")))}
    return {auxiliary.name for auxiliary in auxiliaries if auxiliary.own_dim is None} - related


def coordinates_attribute(auxiliaries: Collection[Auxiliary], attributes: Mapping[str, Any]) -> dict[str, str]:
    """CF's attribute `coordinates` of a variable of these attributes in a file; nothing where there are none."""
    named = sorted(name for name in coordinates_among(auxiliaries, attributes) if not re.search(r"\s", name))
    return {"coordinates": " ".join(named)} if named else {}


def auxiliaries_to_json(auxiliaries: Collection[Auxiliary]) -> list[dict[str, Any]]:
    """As JSON values; `auxiliaries_from_json` gives the very same values back."""
    return [_to_json(auxiliary) for auxiliary in auxiliaries]


def auxiliaries_from_json(content: Any, layout: Layout) -> tuple[Auxiliary, ...]:
    """Mirror of `auxiliaries_to_json` for JSON from an untrusted file.

    Args:
        content: what `json.loads` gave.
        layout: the axes that the auxiliary variables lie along.

    Raises:
        CorruptBitstreamError: not a list of auxiliary variables that fit the layout, or too large ones.
    """
    if not isinstance(content, list) or len(content) > MAX_VARIABLES:
        raise CorruptBitstreamError(f"expected a list of at most {MAX_VARIABLES} auxiliary variables")
    read = tuple(_from_json(entry, layout) for entry in content)
    names, taken = [auxiliary.name for auxiliary in read], {*layout.dims, layout.variable, CHANNEL_DIM}
    for i, name in enumerate(names):
        if name in taken or name in names[:i]:
            raise CorruptBitstreamError(f"the name of the auxiliary variable {name[:40]!r} is taken already")
    lengths: dict[str, int] = {}
    for auxiliary in read:
        dim, length = auxiliary.own_dim, auxiliary.own_length
        if dim is not None and (dim in taken or dim in names or lengths.setdefault(dim, length) != length):
            raise CorruptBitstreamError(f"the dimension {dim[:40]!r} of {auxiliary.name[:40]!r} is another one already")
    return read


def _to_json(auxiliary: Auxiliary) -> dict[str, Any]:
    values = auxiliary.values
    content: dict[str, Any] = {"name": auxiliary.name, "dims": list(auxiliary.dims)}
    if auxiliary.own_dim is not None:
        content["sizes"] = {auxiliary.own_dim: auxiliary.own_length}
    if values.dtype.kind in "US":
        texts = values.reshape(-1).tolist()
        content["dtype"] = "text" if values.dtype.kind == "U" else "bytes"
        content["data"] = [text if isinstance(text, str) else text.decode() for text in texts]
    else:
        content["dtype"] = values.dtype.newbyteorder("<").str
        content["data"] = _pack(values)
    if auxiliary.attributes:
        content["attributes"] = attributes_to_json(auxiliary.attributes)
    return content


def _from_json(content: Any, layout: Layout) -> Auxiliary:
    required = {"name", "dims", "dtype", "data"}
    fields = checked_object(content, "an auxiliary variable", required, {"attributes", "sizes"})
    name, dims, dtype = fields["name"], fields["dims"], fields["dtype"]
    if not is_usable_name(name):
        raise CorruptBitstreamError(f"not the name of an auxiliary variable: {str(name)[:40]!r}")
    what = f"auxiliary variable {name[:40]!r}"
    own_dim, length = _own_from_json(fields["sizes"], what) if "sizes" in fields else (None, 0)
    known = layout.dims if own_dim is None else (*layout.dims, own_dim)
    is_list = isinstance(dims, list) and all(isinstance(dim, str) and dim in known for dim in dims)
    if not is_list or len(set(dims)) != len(dims):
        raise CorruptBitstreamError(f"{what}: expected some of {', '.join(known)}, got {str(dims)[:80]}")
    if own_dim is not None and own_dim not in dims:
        raise CorruptBitstreamError(f"{what}: {own_dim[:40]!r} is none of its dimensions")
    shape = tuple(length if dim == own_dim else len(layout.axis(dim)) for dim in dims)
    if not isinstance(dtype, str) or dtype not in (*_NUMBERS, *_TEXTS):
        raise CorruptBitstreamError(f"{what} has an unknown type {str(dtype)[:40]!r}")
    read = _texts_from_json if dtype in _TEXTS else _unpack
    values = read(fields["data"], dtype, math.prod(shape), what).reshape(shape)
    attributes = attributes_from_json(fields.get("attributes", {}), what)
    auxiliary = Auxiliary(name, tuple(dims), values, attributes, own_dim)
    if auxiliary.is_time:
        check_time(Axis(name, values.reshape(-1), auxiliary.attributes))
    return auxiliary


def _own_from_json(content: Any, what: str) -> tuple[str, int]:
    """Name and length of a dimension that is no axis."""
    if not isinstance(content, dict) or len(content) != 1 or not all(map(is_usable_name, content)):
        raise CorruptBitstreamError(f"{what}: expected name and length of one dimension, got {str(content)[:80]}")
    ((name, length),) = content.items()
    return name, checked_int(length, f"{what}: length of {name[:40]!r}", 1, MAX_BYTES)


def _texts_from_json(content: Any, dtype: str, count: int, what: str) -> NDArray[Any]:
    if not isinstance(content, list) or len(content) != count or not all(isinstance(text, str) for text in content):
        raise CorruptBitstreamError(f"{what}: expected a list of {count} texts")
    if count * max(1, *map(len, content)) > MAX_BYTES or not all(map(_is_unicode, content)):
        raise CorruptBitstreamError(f"{what}: its texts are too long, or no Unicode")
    values = content if dtype == "text" else [text.encode() for text in content]
    return np.array(values, dtype=_TEXTS[dtype])


def _pack(values: NDArray[Any]) -> str:
    """Base64 of zlib of the numbers' bits as unsigned integers: differences, all their lowest bytes first.

    Neighbours on a grid differ in the low bytes only, whatever their type.
    """
    width = values.dtype.itemsize
    flat = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).reshape(-1)
    gaps = np.diff(flat.view(f"<u{width}"), prepend=np.zeros(1, f"<u{width}"))
    planes = gaps.astype(f"<u{width}").view(np.uint8).reshape(-1, width).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode("ascii")


def _unpack(content: Any, dtype: str, count: int, what: str) -> NDArray[Any]:
    width = np.dtype(dtype).itemsize
    if count * width > MAX_BYTES or not isinstance(content, str):
        raise CorruptBitstreamError(f"{what}: expected at most {MAX_BYTES} bytes of packed numbers")
    try:
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(base64.b64decode(content, validate=True), count * width + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise CorruptBitstreamError(f"{what}: its numbers do not unpack: {error}") from error
    if len(raw) != count * width or not unpacker.eof:
        raise CorruptBitstreamError(f"{what}: its packed numbers are not {count}")
    planes = np.frombuffer(raw, np.uint8).reshape(width, count)
    gaps = np.ascontiguousarray(planes.T).view(f"<u{width}").reshape(count)
    bits = np.cumsum(gaps, dtype=f"<u{width}")
    if dtype == "|b1" and bool((bits > 1).any()):
        raise CorruptBitstreamError(f"{what}: expected truth values of 0 and 1")
    return bits.view(dtype)


def _is_unicode(text: str) -> bool:
    """False with a lone surrogate, which JSON can write and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
