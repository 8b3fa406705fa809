"""Operating points of codecs: what samples cost and lose, at parameters that are searched for a PSNR or a bound."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.baseline_codecs import Field, FieldCodec, Parameters
from pipelines.heldout_samples import HeldOut
from vcinr_batch.metrics import psnr_db

MAX_PSNR_DB = 200.0
"""A sample that comes back exactly counts as this."""
CLOSE_DB = 0.05
SEARCH_STEPS = 6
WIDENINGS = 4
BOUND_STEPS = 9

PointAt = Callable[[float], "OperatingPoint"]


@dataclass(frozen=True)
class OperatingPoint:
    """A codec at one parameter, over all samples."""

    parameter: float | None
    """None where samples have different ones."""
    payload_bytes: int
    total_bytes: int
    """Without what the decoder knows beforehand."""
    values: int
    psnr_db: float
    """Mean over samples."""
    rmse: float
    """Over all values, in the unit."""
    max_error: float
    encode_seconds: float
    decode_seconds: float
    bound_share: float | None = None
    """The bound asked for, as a share of the range; None where a PSNR was."""
    beyond_bound: int = 0
    """Values further off than the bound."""
    samples_beyond_bound: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def bits_per_value(self) -> float:
        return 8 * self.total_bytes / self.values

    @property
    def payload_bits_per_value(self) -> float:
        return 8 * self.payload_bytes / self.values


def measure(held_out: HeldOut, decoded: Field, bound_share: float | None = None) -> dict[str, Any]:
    """The errors of decoded values [N, *shape], as fields of an `OperatingPoint`; outside the masks nothing counts."""
    error = np.abs(decoded.astype(np.float64) - held_out.values)
    error = np.where(held_out.masks, error, 0.0).reshape(len(error), -1)
    counts = held_out.masks.reshape(len(error), -1).sum(axis=1)
    squares = np.square(error).sum(axis=1)
    with np.errstate(invalid="ignore"):
        psnr = np.minimum(psnr_db(np.sqrt(squares / counts), held_out.value_range), MAX_PSNR_DB)
    found: dict[str, Any] = {
        "values": held_out.value_count,
        "psnr_db": float(psnr.mean()),
        "rmse": math.sqrt(float(squares.sum()) / held_out.value_count),
        "max_error": float(error.max(initial=0.0)),
    }
    if bound_share is not None:
        beyond = (~(error <= (bound_share * held_out.value_range)[:, None])).sum(axis=1)
        found |= {
            "bound_share": bound_share,
            "beyond_bound": int(beyond.sum()),
            "samples_beyond_bound": int((beyond > 0).sum()),
        }
    return found


def point_of(codec: FieldCodec, held_out: HeldOut, parameter: float) -> OperatingPoint:
    """Code and decode every sample with one parameter."""
    parameters = np.full(len(held_out.blocks), parameter)
    started = time.monotonic()
    payloads = codec.encode(held_out, parameters)
    coded = time.monotonic()
    decoded = codec.decode(held_out, payloads, parameters)
    seconds = coded - started, time.monotonic() - coded
    total = sum(map(len, payloads))
    return OperatingPoint(
        parameter, total, total, encode_seconds=seconds[0], decode_seconds=seconds[1], **measure(held_out, decoded)
    )


def search_psnr(
    point_at: PointAt, targets_db: Sequence[float], ends: tuple[float, float], is_discrete: bool
) -> list[OperatingPoint]:
    """Points beside each target PSNR: one close to it, or its two neighbours where the parameter is a level.

    Args:
        point_at: makes the point of a parameter.
        targets_db: what to come close to.
        ends: a coarse and a fine parameter. Levels stay between them; a positive parameter may go beyond.
        is_discrete: the parameter is a level.

    Returns:
        All points that were made on the way, from coarse to fine.
    """
    search = _Search(point_at, is_discrete)
    low, high = (search.point(end) for end in ends)
    for _ in range(0 if is_discrete else WIDENINGS):
        ratio = (ends[0] / ends[1]) ** 0.25
        if low.psnr_db > min(targets_db):
            low = search.point(search.parameter_of(low) * ratio)
        if high.psnr_db < max(targets_db):
            high = search.point(search.parameter_of(high) / ratio)
    for target in targets_db:
        search.approach(target)
    return search.points


class _Search:
    """Remembers every point made."""

    def __init__(self, point_at: PointAt, is_discrete: bool) -> None:
        self._point_at, self._is_discrete = point_at, is_discrete
        self._known: dict[float, OperatingPoint] = {}

    @property
    def points(self) -> list[OperatingPoint]:
        return sorted(self._known.values(), key=lambda point: point.psnr_db)

    def point(self, parameter: float) -> OperatingPoint:
        if parameter not in self._known:
            self._known[parameter] = self._point_at(parameter)
        return self._known[parameter]

    @staticmethod
    def parameter_of(point: OperatingPoint) -> float:
        assert point.parameter is not None
        return point.parameter

    def approach(self, target_db: float) -> None:
        for _ in range(64 if self._is_discrete else SEARCH_STEPS):
            points = self.points
            above = next((point for point in points if point.psnr_db >= target_db), None)
            below = next((point for point in reversed(points) if point.psnr_db < target_db), None)
            if above is None or below is None:
                return  # out of reach
            if min(above.psnr_db - target_db, target_db - below.psnr_db) <= CLOSE_DB and not self._is_discrete:
                return
            parameter = self._between(below, above, target_db)
            if parameter in self._known:
                return
            self.point(parameter)

    def _between(self, below: OperatingPoint, above: OperatingPoint, target_db: float) -> float:
        """By the straight line between the two; never right at one of them, so that a step function is halved."""
        first, last = self.parameter_of(below), self.parameter_of(above)
        share = (target_db - below.psnr_db) / (above.psnr_db - below.psnr_db)
        share = min(max(share, 0.1), 0.9)
        if self._is_discrete:
            if abs(last - first) <= 1:
                return first
            inner = sorted((first, last))
            return float(min(max(round(first + share * (last - first)), inner[0] + 1), inner[1] - 1))
        return math.exp(math.log(first) + share * (math.log(last) - math.log(first)))


def bounded_point(codec: FieldCodec, held_out: HeldOut, share: float) -> OperatingPoint:
    """Every sample within a bound: by the codec's own mode, or with the coarsest parameter that keeps it, by bisection.

    Args:
        codec: any.
        held_out: the samples.
        share: the bound, as a share of each sample's range.
    """
    bounds = share * held_out.value_range
    started = time.monotonic()
    if codec.keeps_bounds:
        from pipelines.baseline_codecs import tolerances_of

        payloads, parameters = codec.encode_within(held_out, bounds), tolerances_of(held_out, bounds)
    else:
        parameters = _search_bounds(codec, held_out, bounds)
        payloads = codec.encode(held_out, parameters)
    coded = time.monotonic()
    decoded = codec.decode(held_out, payloads, parameters)
    seconds = coded - started, time.monotonic() - coded
    total = sum(map(len, payloads))
    return OperatingPoint(
        None, total, total, encode_seconds=seconds[0], decode_seconds=seconds[1], **measure(held_out, decoded, share)
    )


def _search_bounds(codec: FieldCodec, held_out: HeldOut, bounds: Parameters) -> Parameters:
    """The coarsest parameter [N] found at which each sample keeps its bound; the finest where none does."""
    coarse, fine = (np.full(len(bounds), end) for end in codec.ends)
    if not codec.is_discrete:
        coarse, fine = np.maximum(bounds, 1e-300), bounds / 64
    steps = math.ceil(math.log2(codec.ends[1] - codec.ends[0] + 1)) if codec.is_discrete else BOUND_STEPS
    for _ in range(steps):
        middle = (coarse + fine) // 2 if codec.is_discrete else np.sqrt(coarse * fine)
        kept = _keeps(codec, held_out, middle, bounds)
        # A level that fails is never tried again; a level that holds stays in reach.
        fine = np.where(kept, middle, fine)
        coarse = np.where(kept, coarse, np.minimum(middle + 1, fine) if codec.is_discrete else middle)
    return fine


def _keeps(codec: FieldCodec, held_out: HeldOut, parameters: Parameters, bounds: Parameters) -> NDArray[np.bool_]:
    decoded = codec.decode(held_out, codec.encode(held_out, parameters), parameters)
    error = np.where(held_out.masks, np.abs(decoded.astype(np.float64) - held_out.values), 0.0)
    kept: NDArray[np.bool_] = error.reshape(len(error), -1).max(axis=1) <= bounds
    return kept
