"""What an evaluation found, and the figures that are compared: bits at matched PSNR, bits at a bound, BD-rate."""

from dataclasses import dataclass, field

from pipelines.operating_points import OperatingPoint
from pipelines.rate_distortion_curve import RateCurve, bd_rate
from vcinr_batch.bundle import Bundle

OURS = "vcinr"
TARGETS_DB = (35.0, 40.0, 45.0, 50.0, 60.0)
BOUND_SHARES = (0.05, 0.01, 0.005, 0.001)
ANCHORS = ("SPERR", "EOF")


@dataclass(frozen=True, eq=False)
class CodecResult:
    """One codec: its points for PSNR, and one for each bound."""

    name: str
    parameter: str
    model_bytes: int
    """What the decoder knows beforehand; not in any rate."""
    points: list[OperatingPoint]
    bounded: list[OperatingPoint]

    @property
    def curve(self) -> RateCurve:
        return RateCurve([p.psnr_db for p in self.points], [p.bits_per_value for p in self.points])

    @property
    def payload_curve(self) -> RateCurve:
        """Of the payloads alone: without keys, checksums, errors and manifest."""
        return RateCurve([p.psnr_db for p in self.points], [p.payload_bits_per_value for p in self.points])

    def at_bound(self, share: float) -> OperatingPoint | None:
        return next((point for point in self.bounded if point.bound_share == share), None)


@dataclass(eq=False)
class Evaluation:
    """All codecs on the same samples."""

    bundle: Bundle
    bundle_bytes: int
    samples: int
    rejected: int
    """Of those looked at, samples that no codec got: infinite values, or no value at all."""
    available: int
    """Samples in the source's selection."""
    values: int
    """Inside the masks."""
    field_shape: tuple[int, ...]
    """Of one sample as codecs get it."""
    value_range: float
    """Mean over samples, in the unit."""
    training_samples: int
    """Of the baselines that learn; 0 without them."""
    targets_db: tuple[float, ...] = TARGETS_DB
    bound_shares: tuple[float, ...] = BOUND_SHARES
    codecs: list[CodecResult] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Codecs without figures, and why."""

    @property
    def is_thinned(self) -> bool:
        """Only some of the available samples were looked at."""
        return self.available > self.samples + self.rejected

    def codec(self, name: str) -> CodecResult | None:
        return next((codec for codec in self.codecs if codec.name == name), None)

    def bd_rate(self, name: str, anchor: str) -> tuple[float, tuple[float, float]] | None:
        """As `bd_rate`, between the lowest and the highest target; None where it cannot be said."""
        one, other = self.codec(name), self.codec(anchor)
        if one is None or other is None or one is other:
            return None
        return bd_rate(one.curve, other.curve, min(self.targets_db), max(self.targets_db))
