"""An evaluation as JSON, with every point, and as a Markdown page of tables."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from pipelines.evaluate_results import ANCHORS, OURS, CodecResult, Evaluation
from pipelines.operating_points import OperatingPoint
from pipelines.rate_distortion_curve import RateCurve
from vcinr_batch import __version__
from vcinr_batch.console import size_text

JSON_VERSION = 1


def result_json(results: Evaluation) -> bytes:
    """Everything that was measured."""
    normalizer = results.bundle.normalizer
    content = {
        "version": JSON_VERSION,
        "generator": f"vcinr-batch {__version__}",
        "bundle": {"sha256": results.bundle.sha256, "bytes": results.bundle_bytes},
        "samples": {
            "variable": normalizer.variable,
            "unit": normalizer.unit,
            "count": results.samples,
            "available": results.available,
            "rejected": results.rejected,
            "values": results.values,
            "shape": list(results.field_shape),
            "value_range": results.value_range,
            "training": results.training_samples,
        },
        "codecs": [_codec_json(codec) for codec in results.codecs],
        **compared_figures(results),
    }
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def compared_figures(results: Evaluation) -> dict[str, Any]:
    """The figures of the tables, as JSON values: by PSNR in dB, by bound as a share of the range, and BD-rates."""
    codecs = results.codecs
    return {
        "bits_at_psnr": {f"{db:g}": {c.name: c.curve.bits_at(db) for c in codecs} for db in results.targets_db},
        "bits_at_bound": {
            f"{share:g}": {c.name: _bits(c.at_bound(share)) for c in codecs} for share in results.bound_shares
        },
        "bd_rate_percent": {anchor: _bd_json(results, anchor) for anchor in ANCHORS},
        "left_out": results.left_out,
    }


def text_tables(results: Evaluation) -> list[str]:
    """Bits per value at the same PSNR and at the same largest error, as aligned lines."""
    columns = [f"{db:g} dB" for db in results.targets_db] + [f"{100 * s:g} %" for s in results.bound_shares]
    width = max((len(codec.name) for codec in results.codecs), default=0)
    lines = [" " * width + "".join(f"{column:>9}" for column in columns)]
    for codec in results.codecs:
        cells = _psnr_cells(results, codec)
        cells += [_number(_bits(codec.at_bound(share))) for share in results.bound_shares]
        lines.append(f"{codec.name:<{width}}" + "".join(f"{cell:>9}" for cell in cells))
    return lines


def result_page(results: Evaluation) -> str:
    """The tables, and how they came about."""
    normalizer = results.bundle.normalizer
    shape = " x ".join(str(n) for n in results.field_shape)
    some = f", evenly spread among {results.available:,}" if results.is_thinned else ""
    lines = [
        f"# {_plain(normalizer.variable)}: bits per value",
        "",
        f"{results.samples:,} held-out samples{some}, each of {shape} values and coded alone; {results.values:,} "
        f"values. {results.rejected:,} samples were rejected before. The range of the training values is "
        f"{results.value_range:.6g} {_plain(normalizer.unit)}; PSNR is the mean over samples, against it.",
        "",
        f"Of {OURS} all bytes of an archive count but its bundle ({size_text(results.bundle_bytes)}): payloads, keys, "
        "checksums, recorded errors, manifest. Of the other codecs only the code itself counts.",
        "",
        "## At the same PSNR",
        "",
        *_table(results, [f"{db:g} dB" for db in results.targets_db], lambda c: _psnr_cells(results, c)),
        "",
        *_payload_note(results),
        "One parameter for all samples; between two points the logarithm of the rate is interpolated; "
        "≤: the coarsest point is already better.",
        "",
        "## At the same largest error",
        "",
        *_table(
            results,
            [f"{100 * share:g} % of range" for share in results.bound_shares],
            lambda c: _bound_cells(results, c),
        ),
        "",
        _beyond_text(results),
        "",
        "## Bits against another codec at the same PSNR (BD-rate)",
        "",
        *_table(results, [f"against {anchor}" for anchor in ANCHORS], lambda c: _bd_cells(results, c)),
        "",
        "## What the decoder knows beforehand, and time",
        "",
        *_table(
            results,
            ["bytes", "parameter", "encode", "decode"],
            lambda c: [size_text(c.model_bytes) if c.model_bytes else "", c.parameter, *_time_cells(results, c)],
        ),
        "",
        f"Milliseconds per sample on one thread, at about 45 dB; of {OURS} with reading the source and writing the "
        "archive.",
    ]
    if results.left_out:
        lines += ["", "## Left out", "", *(f"- {name}: {_plain(reason)}" for name, reason in results.left_out.items())]
    return "\n".join(lines) + "\n"


def _codec_json(codec: CodecResult) -> dict[str, Any]:
    return {
        "name": codec.name,
        "parameter": codec.parameter,
        "model_bytes": codec.model_bytes,
        "points": [_point_json(point) for point in codec.points],
        "bounded": [_point_json(point) for point in codec.bounded],
    }


def _point_json(point: OperatingPoint) -> dict[str, Any]:
    content = {**asdict(point), **point.extra, "bits_per_value": point.bits_per_value}
    del content["extra"]
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in content.items()
        if not (point.bound_share is None and "bound" in name)
    }


def _bd_json(results: Evaluation, anchor: str) -> dict[str, Any]:
    found = {codec.name: results.bd_rate(codec.name, anchor) for codec in results.codecs}
    return {name: {"percent": bd[0], "from_db": bd[1][0], "to_db": bd[1][1]} for name, bd in found.items() if bd}


def _table(results: Evaluation, columns: Sequence[str], cells: Callable[[CodecResult], Sequence[str]]) -> list[str]:
    return [
        f"| | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
        *(f"| {codec.name} | {' | '.join(cells(codec))} |" for codec in results.codecs),
    ]


def _psnr_cells(results: Evaluation, codec: CodecResult) -> list[str]:
    return [_psnr_number(codec.curve, db) for db in results.targets_db]


def _bound_cells(results: Evaluation, codec: CodecResult) -> list[str]:
    points = [codec.at_bound(share) for share in results.bound_shares]
    return [
        f"- ({point.beyond_bound:,} beyond)" if point and point.beyond_bound else _number(_bits(point))
        for point in points
    ]


def _bd_cells(results: Evaluation, codec: CodecResult) -> list[str]:
    found = [results.bd_rate(codec.name, anchor) for anchor in ANCHORS]
    return [f"{bd[0]:+.1f} % ({bd[1][0]:.1f} to {bd[1][1]:.1f} dB)" if bd else "-" for bd in found]


def _time_cells(results: Evaluation, codec: CodecResult) -> list[str]:
    if not codec.points:
        return ["-", "-"]
    point = min(codec.points, key=lambda point: abs(point.psnr_db - 45))
    return [f"{1000 * seconds / results.samples:.2f}" for seconds in (point.encode_seconds, point.decode_seconds)]


def _payload_note(results: Evaluation) -> list[str]:
    ours = results.codec(OURS)
    if ours is None:
        return []
    cells = " / ".join(_psnr_number(ours.payload_curve, db) for db in results.targets_db)
    return [f"Of {OURS} the payloads alone: {cells}.", ""]


def _beyond_text(results: Evaluation) -> str:
    points = [point for codec in results.codecs for point in codec.bounded]
    count = sum(1 for point in points if point.beyond_bound)
    if not count:
        return "Every decoded value was compared with its source in float64: none is beyond its bound."
    return (
        f"Every decoded value was compared with its source in float64. {count} of {len(points)} codes have values "
        "beyond the bound even at the finest parameter: the table says how many, and no rate."
    )


def _bits(point: OperatingPoint | None) -> float | None:
    """The rate of a bounded code; None where it does not keep the bound."""
    return None if point is None or point.beyond_bound else point.bits_per_value


def _number(bits: float | None) -> str:
    return "-" if bits is None else f"{bits:.3f}"


def _psnr_number(curve: RateCurve, psnr_db: float) -> str:
    return ("≤ " if curve.is_coarser(psnr_db) else "") + _number(curve.bits_at(psnr_db))


def _plain(text: str) -> str:
    """Texts from files stay texts: no markup, one line."""
    return " ".join("".join(c if c.isprintable() and c not in "|<>`*[]\\" else " " for c in text).split())[:200]
