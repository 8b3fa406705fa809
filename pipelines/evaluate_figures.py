"""Plots of an evaluation: PSNR over bits per value, and bits per value over the bound."""

import io
from typing import Any

from pipelines.evaluate_results import OURS, Evaluation
from pipelines.map_figures import drawing

_DPI = 130
_SIZE = (7.0, 5.0)


def draw_figures(results: Evaluation) -> dict[str, bytes]:
    """PNG files by name.

    Raises:
        ConfigError: matplotlib is not installed (extra `plot`).
    """
    with drawing() as figure_class:
        figures = {"psnr.png": _draw_psnr(figure_class, results)}
        if any(codec.bounded for codec in results.codecs):
            figures["bounds.png"] = _draw_bounds(figure_class, results)
    return figures


def _draw_psnr(figure_class: Any, results: Evaluation) -> bytes:
    figure = figure_class(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    shown = min(results.targets_db) - 3, max(results.targets_db) + 3
    for codec in results.codecs:
        points = sorted(codec.points, key=lambda point: point.psnr_db)
        points = [point for point in points if shown[0] <= point.psnr_db <= shown[1]]
        bits = [point.bits_per_value for point in points]
        axes.plot(bits, [point.psnr_db for point in points], label=codec.name, **_style(codec.name))
    axes.set_xscale("log")
    axes.set_xlabel("bits per value")
    axes.set_ylabel("PSNR, dB")
    return _finish(figure, axes)


def _draw_bounds(figure_class: Any, results: Evaluation) -> bytes:
    figure = figure_class(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    for codec in results.codecs:
        points = [point for point in codec.bounded if not point.beyond_bound]
        shares = [100 * (point.bound_share or 0.0) for point in points]
        if not points:
            continue
        axes.plot(shares, [point.bits_per_value for point in points], label=codec.name, **_style(codec.name))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("largest error allowed, % of the range")
    axes.set_ylabel("bits per value")
    return _finish(figure, axes)


def _style(name: str) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3.5, "linewidth": 2.6 if name == OURS else 1.3}


def _finish(figure: Any, axes: Any) -> bytes:
    for axis in (axes.xaxis, axes.yaxis):
        # Plain numbers: texts are no mathematics here, powers of ten would show their source.
        axis.set_major_formatter(lambda value, _place: f"{value:g}")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(fontsize="small")
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=_DPI, metadata={"Software": None})
    return target.getvalue()
