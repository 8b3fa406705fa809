"""The geometry of a gridded source: its axes, and how it is cut into blocks (one block = one sample)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.data.axes import Axis, axis_index, label_text, label_texts, make_axis, source_order, take_labels
from vcinr_batch.data.axis_json import LABEL_CAP, axis_from_json, axis_to_json, checked_int, checked_object
from vcinr_batch.data.samples import SampleKey
from vcinr_batch.data.times import decode_times
from vcinr_batch.errors import ConfigError, CorruptBitstreamError

if TYPE_CHECKING:
    import xarray

__all__ = [
    "BATCH_VALUES",
    "MAX_POINTS",
    "Axis",
    "Layout",
    "axis_from_json",
    "axis_index",
    "axis_to_json",
    "axis_variable",
    "block_extent",
    "label_text",
    "layout_from_json",
    "layout_to_json",
    "make_axis",
    "sample_key",
    "sample_keys",
    "source_order",
    "take_labels",
    "to_source_order",
]

BATCH_VALUES = 1 << 24
"""Values compressed at once: 64 MiB of float32, of which a fit holds a few; its last bits may depend on it."""
MAX_POINTS = 1 << 24
"""Largest sample that a reader of an archive or a bundle accepts, in points."""
_MAX_AXES = 32
# Attributes of ours that `axis_variable` turns back into the source's own.
_SOURCE_KEYS = ("source_units", "source_calendar", "source_dtype")


@dataclass(frozen=True, eq=False)
class Layout:
    """A variable's axes (dimensions in source order, labels in canonical order) and the block that a sample covers."""

    variable: str
    axes: tuple[Axis, ...]
    block_shape: tuple[int, ...]
    """Length of a block along each axis; the last block of an axis may reach past its end (padded under the mask)."""
    channels: int = 1

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.block_shape):
            raise ConfigError(f"{self.variable}: {len(self.axes)} axes but a block shape of {len(self.block_shape)}")
        if len(set(self.dims)) != len(self.dims):
            raise ConfigError(f"{self.variable}: two axes of the same name among {', '.join(self.dims)}")
        for axis, length in zip(self.axes, self.block_shape, strict=True):
            if not 1 <= length <= len(axis):
                raise ConfigError(f"block length of {axis.name!r} must be 1 to {len(axis)}, got {length}")

    @property
    def dims(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.axes)

    @property
    def block_counts(self) -> tuple[int, ...]:
        """Number of blocks along each axis."""
        return tuple(math.ceil(n / b) for n, b in zip(self.shape, self.block_shape, strict=True))

    @property
    def blocked_dims(self) -> tuple[str, ...]:
        """Dimensions that tell samples apart: more than one block, or blocks of length 1."""
        return tuple(
            axis.name
            for axis, count, length in zip(self.axes, self.block_counts, self.block_shape, strict=True)
            if count > 1 or length == 1
        )

    @property
    def sample_count(self) -> int:
        return math.prod(self.block_counts)

    @property
    def points_per_sample(self) -> int:
        """P, padding included."""
        return math.prod(self.block_shape)

    def axis(self, name: str) -> Axis:
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise ConfigError(f"{self.variable} has no dimension {name!r}; it has {', '.join(self.dims)}")


def block_extent(layout: Layout, block: tuple[int, ...]) -> tuple[slice, ...]:
    """Index range of a block along each axis, cut at the end of the axis. `block` has one index per axis."""
    return tuple(
        slice(i * length, min((i + 1) * length, len(axis)))
        for i, length, axis in zip(block, layout.block_shape, layout.axes, strict=True)
    )


def sample_key(layout: Layout, block: tuple[int, ...]) -> SampleKey:
    """The identity of a block: `t2m[time=2019-03-22T06:00:00]`, `t2m[time=...,latitude=58+16]`."""
    labels = []
    for axis, length, i in zip(layout.axes, layout.block_shape, block, strict=True):
        if length == 1:
            labels.append((axis.name, label_text(axis, i)))
        elif length < len(axis):
            labels.append((axis.name, f"{label_text(axis, i * length)}+{length}"))
    return SampleKey(layout.variable, tuple(labels))


def sample_keys(layout: Layout, blocks: NDArray[np.integer[Any]]) -> list[SampleKey]:
    """The identities of many blocks [B, axes], as `sample_key` has them; each label's text is made once."""
    columns = []
    for k, (axis, length) in enumerate(zip(layout.axes, layout.block_shape, strict=True)):
        if length == 1 or length < len(axis):
            found, at = np.unique(blocks[:, k], return_inverse=True)
            ending = "" if length == 1 else f"+{length}"
            labels = [(axis.name, text + ending) for text in label_texts(axis, found * length)]
            columns.append([labels[i] for i in at.reshape(-1).tolist()])
    names = zip(*columns, strict=True) if columns else [()] * len(blocks)
    return [SampleKey(layout.variable, labels) for labels in names]


def axis_variable(axis: Axis) -> "xarray.Variable":
    """The axis as the source had it: its order, decoded times, attributes, units and dtype."""
    import xarray

    labels = axis.values if axis.source_values is None else axis.source_values
    attributes = {name: value for name, value in axis.attributes.items() if name not in _SOURCE_KEYS}
    if not axis.is_time:
        return xarray.Variable((axis.name,), labels.astype(_source_dtype(axis, labels.dtype)), attributes)
    units, calendar = str(attributes.pop("units")), str(attributes.pop("calendar", "standard"))
    encoding = {
        "units": str(axis.attributes.get("source_units", units)),
        "calendar": str(axis.attributes.get("source_calendar", calendar)),
    }
    if axis.attributes.get("source_dtype") == "float64":
        encoding["dtype"] = "float64"
    return xarray.Variable((axis.name,), decode_times(labels, units, calendar), attributes, encoding)


def to_source_order(layout: Layout, array: NDArray[Any]) -> NDArray[Any]:
    """Turn an array of shape `layout.shape` from the canonical order of labels into the source's."""
    for k, axis in enumerate(layout.axes):
        if axis.source_values is not None:
            array = np.take(array, np.argsort(source_order(axis), kind="stable"), axis=k)
    return array


def layout_to_json(layout: Layout) -> dict[str, Any]:
    """The layout as JSON values; `layout_from_json` gives the very same layout back."""
    content: dict[str, Any] = {
        "variable": layout.variable,
        "axes": [axis_to_json(axis) for axis in layout.axes],
        "block": list(layout.block_shape),
    }
    return content if layout.channels == 1 else {**content, "channels": layout.channels}


def layout_from_json(content: Any) -> Layout:
    """Mirror of `layout_to_json` for JSON from an untrusted file.

    Raises:
        CorruptBitstreamError: not a layout, or one of more than 10^8 labels.
    """
    fields = checked_object(content, "a layout", {"variable", "axes", "block"}, {"channels"})
    variable, axes, block = fields["variable"], fields["axes"], fields["block"]
    if not isinstance(variable, str) or not isinstance(axes, list) or not isinstance(block, list):
        raise CorruptBitstreamError("a layout needs a variable, a list of axes and a list of block lengths")
    if len(axes) > _MAX_AXES:
        raise CorruptBitstreamError(f"a layout of {len(axes)} axes; at most {_MAX_AXES} are read")
    read: list[Axis] = []
    for axis in axes:
        read.append(axis_from_json(axis, LABEL_CAP - sum(map(len, read))))
    lengths = tuple(checked_int(length, "block length", 1, LABEL_CAP) for length in block)
    channels = checked_int(fields.get("channels", 1), "number of channels", 1, 2**16)
    try:
        return Layout(variable, tuple(read), lengths, channels)
    except ConfigError as error:
        raise CorruptBitstreamError(str(error)) from error


def _source_dtype(axis: Axis, default: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that the source had; anything but a plain number type is ignored, since files are untrusted."""
    name = axis.attributes.get("source_dtype")
    known = ("float32", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
    return np.dtype(str(name)) if str(name) in known else default
