"""What normalisation has learned about a variable, as a value and in its stored form."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.data.axes import Axis
from vcinr_batch.data.axis_json import LABEL_CAP, axis_from_json, axis_to_json, checked_int, checked_object
from vcinr_batch.errors import ConfigError, CorruptBitstreamError

_MAX_BINS = 10_000
_MAX_AXES = 32


@dataclass(frozen=True, eq=False)
class Normalizer:
    """What is subtracted from values and what they are divided by, learned on the training samples."""

    variable: str
    unit: str
    axes: tuple[Axis, ...]
    """The domain: the axes that the background distinguishes, none of them time; without one, those like a level."""
    background: NDArray[np.float32] | None
    """[bins, *domain], in the unit; None where only `offset` is subtracted."""
    hours: int
    """Bins of the day (UTC); 1 for a plain mean."""
    seasons: int
    """Bins of the year; bin = hour bin + hours * season bin."""
    offset: float
    """Subtracted where there is no background: the mean of the training values."""
    scale: NDArray[np.float32]
    """Standard deviation of the training anomalies, > 0; for each domain axis its length or 1."""
    value_range: NDArray[np.float32]
    """Largest minus smallest training value, > 0, of the scale's shape; the range of a PSNR."""
    mask: NDArray[np.bool_] | None
    """[*domain], cells with a value in every training sample; None where that is all of them."""

    def __post_init__(self) -> None:
        domain = tuple(len(axis) for axis in self.axes)
        wanted = {"background": (self.hours * self.seasons, *domain), "mask": domain, "value_range": self.scale.shape}
        for name, shape in wanted.items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise ConfigError(
                    f"{self.variable}: the normaliser's {name} must have shape {shape}, got {array.shape}"
                )
        if self.scale.ndim != len(domain) or any(
            n not in (1, m) for n, m in zip(self.scale.shape, domain, strict=True)
        ):
            raise ConfigError(
                f"{self.variable}: the normaliser's scale of shape {self.scale.shape} is not for {domain}"
            )
        if not (np.all(self.scale > 0) and np.all(self.value_range > 0)):
            raise ConfigError(f"{self.variable}: the normaliser's scale and range must be positive")


def normalizer_to_arrays(normalizer: Normalizer) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """JSON values and arrays that `normalizer_from_arrays` takes; the mask as one bit per cell."""
    content = {
        "variable": normalizer.variable,
        "unit": normalizer.unit,
        "axes": [axis_to_json(axis) for axis in normalizer.axes],
        "hours": normalizer.hours,
        "seasons": normalizer.seasons,
        "offset": normalizer.offset,
    }
    arrays: dict[str, NDArray[Any]] = {"scale": normalizer.scale, "value_range": normalizer.value_range}
    if normalizer.background is not None:
        arrays["background"] = normalizer.background
    if normalizer.mask is not None:
        arrays["mask"] = np.packbits(normalizer.mask)
    return content, arrays


def normalizer_from_arrays(content: Any, arrays: Mapping[str, NDArray[Any]]) -> Normalizer:
    """Mirror of `normalizer_to_arrays` for what came from an untrusted file.

    Raises:
        CorruptBitstreamError: the parts contradict each other or are no normaliser.
    """
    fields = checked_object(content, "a normaliser", {"variable", "unit", "axes", "hours", "seasons", "offset"})
    variable, unit, offset = fields["variable"], fields["unit"], fields["offset"]
    if not isinstance(variable, str) or not isinstance(unit, str):
        raise CorruptBitstreamError("the variable and unit of a normaliser must be texts")
    if not isinstance(offset, (int, float)) or not math.isfinite(offset):
        raise CorruptBitstreamError("the offset of a normaliser must be a number")
    if not isinstance(fields["axes"], list) or len(fields["axes"]) > _MAX_AXES:
        raise CorruptBitstreamError("the axes of a normaliser must be a short list")
    axes: list[Axis] = []
    for axis in fields["axes"]:
        axes.append(axis_from_json(axis, LABEL_CAP - sum(map(len, axes))))
    background, scale, value_range = (_floats(arrays, name) for name in ("background", "scale", "value_range"))
    if scale is None or value_range is None:
        raise CorruptBitstreamError("a normaliser needs the arrays scale and value_range")
    try:
        return Normalizer(
            variable=variable,
            unit=unit,
            axes=tuple(axes),
            background=background,
            hours=checked_int(fields["hours"], "hours", 1, _MAX_BINS),
            seasons=checked_int(fields["seasons"], "seasons", 1, _MAX_BINS),
            offset=float(offset),
            scale=scale,
            value_range=value_range,
            mask=_unpacked_mask(arrays, tuple(len(axis) for axis in axes)),
        )
    except ConfigError as error:
        raise CorruptBitstreamError(str(error)) from error


def _floats(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.float32] | None:
    array = arrays.get(name)
    if array is None:
        return None
    if array.dtype != np.float32 or not np.isfinite(array).all():
        raise CorruptBitstreamError(f"the normaliser's {name} must be finite float32 numbers")
    return array


def _unpacked_mask(arrays: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    packed = arrays.get("mask")
    if packed is None:
        return None
    count = math.prod(shape)
    if packed.dtype != np.uint8 or packed.shape != (-(-count // 8),):
        raise CorruptBitstreamError(f"the normaliser's mask must be {count} bits")
    mask: NDArray[np.bool_] = np.unpackbits(packed, count=count).astype(bool).reshape(shape)
    return mask
