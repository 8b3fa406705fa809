"""How good decoded samples shall be: what a user asks for, and how manifests put it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vcinr_batch.errors import ConfigError, CorruptBitstreamError

_NAMES = {
    "level": "quality",
    "target_psnr_db": "target_psnr",
    "target_rmse": "target_rmse",
    "max_error": "max_error",
    "max_error_share": "max_error_share",
}


@dataclass(frozen=True)
class QualityRequest:
    """One of: a quality level; a PSNR or RMSE that every sample shall reach; a bound that no value's error exceeds.

    Raises:
        ConfigError: none of them or several, or a number out of range.
    """

    level: int | None = None
    """Quality level of the bundle, the same for all samples."""
    target_psnr_db: float | None = None
    """For each sample the coarsest level that reaches this PSNR, against the range of the training values."""
    target_rmse: float | None = None
    """For each sample the coarsest level whose RMSE, in the variable's unit, is no larger; above 0."""
    max_error: float | None = None
    """No decoded value differs from the source's by more, in the variable's unit; above 0."""
    max_error_share: float | None = None
    """The same as a share of the range of the training values, e.g. 0.001."""

    def __post_init__(self) -> None:
        given = [name for name in _NAMES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                "give one of: quality level, target PSNR, target RMSE, max error; got "
                + (" and ".join(_NAMES[name] for name in given) or "none")
            )
        value = getattr(self, given[0])
        if given == ["level"]:
            if type(value) is not int:
                raise ConfigError(f"quality: expected the number of a level, got {value!r:.80}")
            return
        what = _NAMES[given[0]].replace("_", " ").replace("psnr", "PSNR").replace("rmse", "RMSE")
        kind = "number of dB" if given == ["target_psnr_db"] else "number"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{what}: expected a {kind}, got {value!r:.80}")
        if not math.isfinite(value):
            raise ConfigError(f"{what} must be a finite {kind}, got {value}")
        if given != ["target_psnr_db"] and value <= 0:
            raise ConfigError(f"{what} must be above 0, got {value}")

    @property
    def is_bound(self) -> bool:
        """Whether every single value's error is bounded."""
        return self.max_error is not None or self.max_error_share is not None


def request_to_json(request: QualityRequest) -> dict[str, Any]:
    """How a manifest and the Zarr codec's configuration put what is asked for."""
    wanted = {name: getattr(request, key) for key, name in _NAMES.items()}
    return {name: value for name, value in wanted.items() if value is not None}


def request_from_json(content: Mapping[str, Any]) -> QualityRequest:
    """Mirror of `request_to_json`.

    Raises:
        ConfigError: it asks for nothing that this version knows.
    """
    if set(content) - set(_NAMES.values()):
        raise ConfigError(f"expected one of {', '.join(_NAMES.values())}, got {str(dict(content))[:80]}")
    return QualityRequest(**{key: content.get(name) for key, name in _NAMES.items()})


def parse_max_error(text: str) -> QualityRequest:
    """`0.1` is in the variable's unit, `0.1%` a share of the range of the training values.

    Raises:
        ConfigError: neither.
    """
    found = re.fullmatch(r"\s*([0-9.eE+-]{1,40})\s*(%?)\s*", text)
    try:
        value = float(found[1]) if found else math.nan
    except ValueError:
        value = math.nan
    if not found or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"max error: expected a number above 0 like 0.1 or a percentage like 0.1%, got {text[:40]!r}")
    return QualityRequest(max_error_share=value / 100) if found[2] else QualityRequest(max_error=value)


def check_level(request: QualityRequest, level_count: int) -> None:
    """Raise a `ConfigError` for a level that a bundle does not have."""
    if request.level is not None and not 0 <= request.level < level_count:
        raise ConfigError(f"quality {request.level}: this bundle has levels 0 to {level_count - 1}")


def bound_from_json(content: Mapping[str, Any]) -> QualityRequest | None:
    """The error bound that an archive was asked for, which decoding needs; None where it was asked for something else.

    Raises:
        CorruptBitstreamError: a bound that is none.
    """
    if not content.keys() & {"max_error", "max_error_share"}:
        return None
    try:
        return request_from_json(content)
    except ConfigError as error:
        raise CorruptBitstreamError(f"what the archive was asked for: {error}") from error
