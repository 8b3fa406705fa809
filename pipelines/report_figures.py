"""The figures of a report as inline SVG: histograms, curves and maps that take the page's text colour."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.field_slices import FieldSlice, coarsened
from pipelines.map_figures import Colours, draw_slice, drawing, label_ticks, plain_text
from pipelines.report_statistics import Course, Distribution

MAX_MAP_CELLS = 256
"""Along each side of a map: finer grids are coarsened, so that a page stays small."""

# Stands for the colour of the page's text, which differs between light and dark mode.
_TEXT_COLOUR = "#010203"
_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vcinr",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.facecolor": "none",
    "axes.grid": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _TEXT_COLOUR),
}
_BAR, _MEAN, _LARGEST = "#4c86b8", "#4c86b8", "#d98032"


@dataclass(frozen=True, eq=False)
class MapPanel:
    """One map of a figure."""

    field: FieldSlice
    title: str
    unit: str
    colours: Colours
    is_error: bool
    """Coarsened to the largest errors rather than to means."""


def histogram_svg(name: str, distribution: Distribution, step: float, label: str) -> str:
    """How samples are spread over values.

    Args:
        name: unlike any other figure's of the page.
        distribution: of at least one value.
        step: of the values, see `Distribution.histogram`.
        label: of the values, with their unit.
    """
    edges, counts = distribution.histogram(step)
    with drawing(_STYLE) as figure_class:
        figure = figure_class(figsize=(4.3, 2.3), layout="constrained")
        axes = figure.subplots()
        axes.stairs(counts, edges, fill=True, color=_BAR, linewidth=0)
        axes.set_xlabel(plain_text(label))
        axes.set_ylabel("samples")
        axes.set_ylim(0, 1.05 * max(int(counts.max()), 1))
        axes.yaxis.set_major_locator(_few_ticks(4, integers=True))
        axes.xaxis.set_major_locator(_few_ticks(6, integers=bool(step == 1)))
        axes.xaxis.set_major_formatter(_short_number)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        if len(counts) < 4:  # a few bars shall not become walls
            middle, half = (edges[0] + edges[-1]) / 2, max(2 * (edges[1] - edges[0]), (edges[-1] - edges[0]) / 2)
            axes.set_xlim(middle - half, middle + half)
        return _svg(figure, name)


def course_svg(name: str, course: Course, unit: str) -> str:
    """Mean and largest RMSE, and the rate, along an axis: two rows of curves over the same labels."""
    with drawing(_STYLE) as figure_class:
        figure = figure_class(figsize=(8.6, 3.9), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        marker = "." if len(course.positions) < 60 else None
        curves = [("largest", course.largest_rmse, _LARGEST), ("mean", course.mean_rmse, _MEAN)]
        is_single = int(course.samples.max()) <= 1  # both curves would be one
        for label, values, colour in curves[1:] if is_single else curves:
            above.plot(course.positions, values, color=colour, linewidth=1.2, marker=marker, label=label)
        above.set_ylabel(plain_text(f"RMSE [{unit}]"))
        if not is_single:
            above.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1)
        below.plot(course.positions, course.bits_per_value, color=_MEAN, linewidth=1.2, marker=marker)
        below.set_ylabel("bits per value")
        for axes in (above, below):
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(_few_ticks(4))
            axes.grid(axis="y", color=_TEXT_COLOUR, alpha=0.15, linewidth=0.6)
        positions, texts = label_ticks(course.axis)
        below.set_xticks(positions, texts)
        below.set_xlabel(plain_text(course.axis.name))
        return _svg(figure, name)


def maps_svg(name: str, panels: Sequence[MapPanel]) -> str:
    """Maps side by side."""
    with drawing(_STYLE) as figure_class:
        figure = figure_class(figsize=(4.3 * len(panels), 3.5), layout="compressed")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            field = coarsened(panel.field, MAX_MAP_CELLS, "largest" if panel.is_error else "mean")
            draw_slice(figure, axes, field, panel.title, panel.unit, panel.colours)
            axes.spines[:].set_visible(field.values.ndim == 2)
        return _svg(figure, name, is_map=True)


def error_step(values: NDArray[np.float64]) -> float:
    """How far apart recorded errors lie that are as large as the largest of these: they have 8 significant bits."""
    largest = float(values.max(initial=0.0))
    return float(2.0 ** (np.floor(np.log2(largest)) - 7)) if largest > 0 else 1.0


def _svg(figure: Any, name: str, is_map: bool = False) -> str:
    """The figure as an element of a page: no prolog, no links, ids that no other figure has, the page's text colour."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that matplotlib's own font lacks; the page's font draws the text
        # Maps have their own aspect and leave room; charts are all of one size.
        box = {"bbox_inches": "tight", "pad_inches": 0.03} if is_map else {}
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(data, format="svg", metadata=empty, **box)
    text = data.getvalue().decode()
    text = text[text.index("<svg") :].replace(_TEXT_COLOUR, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return _own_ids(_bare_root(text), name).strip()


def _bare_root(text: str) -> str:
    root, rest = text.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', root)
    assert view_box is not None
    return f'<svg {view_box[0]} role="img">{rest}'


def _own_ids(text: str, name: str) -> str:
    """Drop the ids that nothing refers to and put the figure's name in front of the others."""
    wanted = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))

    def own(found: re.Match[str]) -> str:
        return f' id="{name}-{found[1]}"' if found[1] in wanted else ""

    text = re.sub(r' id="([^"]*)"', own, text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)


def _few_ticks(count: int, integers: bool = False) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=count, integer=integers, steps=[1, 2, 2.5, 5, 10])


def _short_number(value: float, _: object = None) -> str:
    return f"{value:.4g}"
