"""The codecs that users would take instead, at the same access unit: every field alone, from libraries of the extra
`baselines`.

Only the bytes of the code itself are counted: what an archive adds (keys, checksums, an index) costs them nothing here.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.heldout_samples import HeldOut
from vcinr_batch.errors import ConfigError

Field = NDArray[np.float32]
Parameters = NDArray[np.float64]

_ROUNDING = 2.0**-23
"""Share of the largest value by which a tolerance stays below a bound: float32 outputs are rounded once more."""
_JPEG2000_LEVELS = 65535


class FieldCodec(Protocol):
    """A codec with one parameter. It codes each sample alone; nothing of a sample helps another one."""

    @property
    def name(self) -> str: ...

    @property
    def parameter(self) -> str:
        """What the parameter is, with its unit."""

    @property
    def ends(self) -> tuple[float, float]:
        """A coarse and a fine parameter to begin a search with."""

    @property
    def is_discrete(self) -> bool:
        """The parameter is a level: 0, 1, ..; otherwise it is positive and its logarithm is searched."""

    @property
    def keeps_bounds(self) -> bool:
        """Has a mode that keeps an error bound by itself: `encode_within`."""

    @property
    def model_bytes(self) -> int:
        """What the decoder has to know beforehand: learned bases and tables."""

    def encode(self, held_out: HeldOut, parameters: Parameters) -> list[bytes]:
        """Code N samples, each with its own parameter [N]."""

    def encode_within(self, held_out: HeldOut, bounds: Parameters) -> list[bytes]:
        """Code N samples so that no value is further off than its sample's bound [N]."""

    def decode(self, held_out: HeldOut, payloads: Sequence[bytes], parameters: Parameters) -> Field:
        """Values [N, *shape]. Looks only at the shape, the background and the scale of `held_out`."""


@dataclass(frozen=True)
class LibraryCodec:
    """A codec from a library, one call per field."""

    name: str
    parameter: str
    ends: tuple[float, float]
    encode_field: Callable[[Field, float], bytes]
    decode_field: Callable[[bytes, tuple[int, ...], float], Field]
    encode_field_within: Callable[[Field, float], bytes] | None = None
    of_anomalies: bool = False
    """Codes the difference from the bundle's background, which the decoder knows."""
    is_discrete: bool = False
    model_bytes: int = 0

    @property
    def keeps_bounds(self) -> bool:
        return self.encode_field_within is not None

    def encode(self, held_out: HeldOut, parameters: Parameters) -> list[bytes]:
        fields = self._fields(held_out)
        return [self.encode_field(field, float(p)) for field, p in zip(fields, parameters, strict=True)]

    def encode_within(self, held_out: HeldOut, bounds: Parameters) -> list[bytes]:
        assert self.encode_field_within is not None
        fields, tolerances = self._fields(held_out), tolerances_of(held_out, bounds)
        return [self.encode_field_within(field, float(t)) for field, t in zip(fields, tolerances, strict=True)]

    def decode(self, held_out: HeldOut, payloads: Sequence[bytes], parameters: Parameters) -> Field:
        pairs = zip(payloads, parameters, strict=True)
        fields = np.stack([self.decode_field(payload, held_out.shape, float(p)) for payload, p in pairs])
        return (fields + held_out.background if self.of_anomalies else fields).astype(np.float32)

    def _fields(self, held_out: HeldOut) -> Field:
        # Libraries may read memory as it lies, whatever the strides.
        return np.ascontiguousarray(held_out.anomalies if self.of_anomalies else held_out.values)


def tolerances_of(held_out: HeldOut, bounds: Parameters) -> Parameters:
    """What to ask of a codec with a tolerance so that its float32 output keeps a bound: a little less."""
    return np.maximum(bounds - _ROUNDING * float(np.abs(held_out.values).max()), bounds / 2)


def library_codecs(value_range: float) -> dict[str, Callable[[], Sequence[FieldCodec]]]:
    """By name, what makes the codecs of a library. It raises ConfigError, naming the extra, where that is missing.

    Args:
        value_range: of the variable; searches begin at shares of it.
    """
    ends = (0.2 * value_range, 1e-3 * value_range)
    return {
        "SPERR": lambda: _sperr(),
        "SZ3": lambda: [_sz3(ends)],
        "ZFP": lambda: [_zfp(ends)],
        "JPEG2000": lambda: [_jpeg2000(ends)],
        "quantise + pcodec": lambda: [_pcodec(ends)],
    }


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} is not installed: pip install 'vcinr-batch[baselines]'") from error


def _sperr() -> list[LibraryCodec]:
    """SPERR (Li et al. 2023): by size where PSNR counts, which serves it best, and by tolerance where a bound does.

    Of a plane without its header of 10 bytes, since the shape is known.
    """
    library = _library("imagecodecs")

    def encode(field: Field, value: float, mode: str) -> bytes:
        return bytes(library.sperr_encode(field, value, mode=mode, header=field.ndim == 3, numthreads=1))

    def decode(payload: bytes, shape: tuple[int, ...], _: float) -> Field:
        if len(shape) == 3:
            return np.asarray(library.sperr_decode(payload, numthreads=1))
        return np.asarray(library.sperr_decode(payload, shape=shape, dtype=np.float32, header=False))

    return [
        LibraryCodec(
            name=name,
            parameter="bits per value asked for",
            ends=(0.1, 4.0),
            encode_field=lambda field, p: encode(field, p, "bpp"),
            decode_field=decode,
            encode_field_within=lambda field, tolerance: encode(field, tolerance, "pwe"),
            of_anomalies=of_anomalies,
        )
        for name, of_anomalies in (("SPERR", False), ("SPERR on anomalies", True))
    ]


def _sz3(ends: tuple[float, float]) -> LibraryCodec:
    """SZ3 (Liang et al. 2023), interpolation and Lorenzo predictors."""
    library = _library("pysz")

    def encode(field: Field, tolerance: float) -> bytes:
        config = library.szConfig(*field.shape)
        config.errorBoundMode = library.szErrorBoundMode.ABS
        config.absErrorBound = tolerance
        config.cmprAlgo = library.szAlgorithm.INTERP_LORENZO
        return bytes(library.sz.compress(field, config)[0])

    def decode(payload: bytes, shape: tuple[int, ...], _: float) -> Field:
        return np.asarray(library.sz.decompress(np.frombuffer(payload, np.uint8).copy(), np.float32, shape)[0])

    return LibraryCodec("SZ3", "tolerance in the unit", ends, encode, decode, encode)


def _zfp(ends: tuple[float, float]) -> LibraryCodec:
    """ZFP (Lindstrom 2014), fixed accuracy, which only knows powers of two."""
    library = _library("imagecodecs")

    def encode(field: Field, tolerance: float) -> bytes:
        return bytes(library.zfp_encode(field, tolerance, mode="a", numthreads=1))

    def decode(payload: bytes, _shape: tuple[int, ...], _: float) -> Field:
        return np.asarray(library.zfp_decode(payload))

    return LibraryCodec("ZFP", "tolerance in the unit", ends, encode, decode, encode)


def _jpeg2000(ends: tuple[float, float]) -> LibraryCodec:
    """JPEG2000, irreversible, on 16 bits between a field's smallest and largest value, which take 8 bytes.

    The planes of a sample of three dimensions lie below each other in one image.
    """
    library = _library("imagecodecs")

    def encode(field: Field, wanted_rmse: float) -> bytes:
        image = field.reshape(-1, field.shape[-1])
        low, high = np.float32(image.min()), np.float32(image.max())
        width = max(float(high) - float(low), 1e-30)
        scaled = np.rint((image.astype(np.float64) - low) / width * _JPEG2000_LEVELS).astype(np.uint16)
        level = min(max(20 * math.log10(width / wanted_rmse), 1.0), 120.0)
        coded = library.jpeg2k_encode(scaled, level=level, codecformat="J2K", reversible=False, numthreads=1)
        return np.array([low, high], "<f4").tobytes() + bytes(coded)

    def decode(payload: bytes, shape: tuple[int, ...], _: float) -> Field:
        low, high = np.frombuffer(payload[:8], "<f4").astype(np.float64)
        image = library.jpeg2k_decode(payload[8:]).astype(np.float64)
        values = low + image * (high - low) / _JPEG2000_LEVELS
        return np.asarray(values, np.float32).reshape(shape)

    return LibraryCodec("JPEG2000", "RMSE asked for, in the unit", (ends[0] / 4, ends[1]), encode, decode)


def _pcodec(ends: tuple[float, float]) -> LibraryCodec:
    """Linear quantisation, then lossless integers by pcodec: of 16 bits where they fit."""
    library = _library("pcodec")
    codec = _library("pcodec.standalone")

    def encode(field: Field, tolerance: float) -> bytes:
        integers = np.rint(field.astype(np.float64) / (2 * tolerance))
        fits = float(np.abs(integers).max()) <= np.iinfo(np.int16).max
        return bytes(
            codec.simple_compress(integers.astype(np.int16 if fits else np.int32).ravel(), library.ChunkConfig())
        )

    def decode(payload: bytes, shape: tuple[int, ...], tolerance: float) -> Field:
        integers = np.asarray(codec.simple_decompress(payload)).astype(np.float64)
        return (integers * (2 * tolerance)).astype(np.float32).reshape(shape)

    return LibraryCodec("quantise + pcodec", "half a step, in the unit", ends, encode, decode, encode)
