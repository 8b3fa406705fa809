"""The unit of compression, whatever the modality: values at coordinates, with an identity."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.errors import SourceError


@dataclass(frozen=True, order=True)
class SampleKey:
    """Identity of a sample: its variable and, for each sample dimension, the label of the block's first element."""

    variable: str
    labels: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """The canonical text form, e.g. `t2m[time=2019-03-22T06:00:00,level=850]`."""
        inner = ",".join(f"{name}={label}" for name, label in self.labels)
        return f"{self.variable}[{inner}]" if inner else self.variable


@dataclass(frozen=True, eq=False)
class Sample:
    """One compressible unit."""

    key: SampleKey
    block: tuple[int, ...]
    """Index of the block along each axis of the source's layout; what a container stores."""
    coordinates: NDArray[np.float32]
    """[P, D], shared by all samples of a grid."""
    values: NDArray[np.float32]
    """[P, C] in the variable's unit; anything where the mask is False."""
    mask: NDArray[np.bool_] | None = None
    """[P], True where there is a value; None where there is one everywhere."""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.coordinates.ndim != 2 or len(self.values) != len(self.coordinates):
            raise SourceError(
                f"{self.key}: expected values [P, C] at coordinates [P, D], "
                f"got {self.values.shape} at {self.coordinates.shape}"
            )
        if self.mask is not None and self.mask.shape != self.values.shape[:1]:
            raise SourceError(f"{self.key}: expected a mask of shape {self.values.shape[:1]}, got {self.mask.shape}")


@dataclass(frozen=True)
class RejectedSample:
    """A sample that is not in the archive, and why."""

    key: SampleKey
    block: tuple[int, ...]
    reason: str


def rejection_reason(sample: Sample) -> str | None:
    """Why a sample cannot be compressed: infinite values, or no value at all. None where it can be."""
    infinite = np.isinf(sample.values)
    if sample.mask is not None:
        infinite &= sample.mask[:, None]
    count = int(infinite.sum())
    if count:
        return f"{count} infinite value{'s' if count > 1 else ''}"
    if sample.mask is not None and not sample.mask.any():
        return "no value at all"
    return None
