"""Draws what lies on one or two dimensions: maps, sections and lines with their coordinates, colour bar and unit.

Matplotlib (extra `plot`) is imported when the first figure is made. Texts come from untrusted files: none is taken for
mathematics, and none may carry control characters into a picture.
"""

import math
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.field_slices import FieldSlice, Values, is_numeric
from vcinr_batch.data.layout import Axis, label_text
from vcinr_batch.errors import ConfigError

VALUE_COLOURS, ERROR_COLOURS, AMOUNT_COLOURS = "RdYlBu_r", "PuOr_r", "viridis"
_MAX_TEXT = 200
_TICKS = 6
_STEEPEST = 0.2
"""Smallest cosine of a latitude that a map's aspect follows; nearer to the pole maps would become needles."""


@dataclass(frozen=True)
class Colours:
    """Which colours mean which values."""

    name: str
    """One of matplotlib's colour maps."""
    low: float
    high: float


@contextmanager
def drawing(changes: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """Settings of matplotlib while figures are made and saved; gives its class `Figure`.

    Raises:
        ConfigError: matplotlib is not installed (extra `plot`).
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("drawing needs matplotlib: pip install 'vcinr-batch[plot]'") from error
    settings: Any = {"text.parse_math": False, **(changes or {})}
    with matplotlib.rc_context(settings):
        yield Figure


def value_colours(*fields: Values) -> Colours:
    """Colours over the range of all the fields."""
    found = [field[np.isfinite(field)] for field in fields]
    low = min((float(part.min()) for part in found if part.size), default=0.0)
    high = max((float(part.max()) for part in found if part.size), default=1.0)
    return Colours(VALUE_COLOURS, low, high if high > low else low + max(abs(low) * 1e-6, 1e-12))


def error_colours(*fields: Values) -> Colours:
    """Diverging colours, symmetric around zero."""
    largest = max((float(np.abs(part).max()) for f in fields if (part := f[np.isfinite(f)]).size), default=0.0)
    return Colours(ERROR_COLOURS, -(largest or 1e-12), largest or 1e-12)


def amount_colours(field: Values) -> Colours:
    """Colours from zero to the largest."""
    return Colours(AMOUNT_COLOURS, 0.0, max(value_colours(field).high, 1e-12))


def draw_slice(figure: Any, axes: Any, field: FieldSlice, title: str, unit: str, colours: Colours) -> None:
    """Draw a map with its colour bar, or a line, into a matplotlib figure's axes."""
    axes.set_title(plain_text(title))
    if field.values.ndim == 1:
        _draw_line(axes, field, unit)
        return
    vertical, horizontal = field.edges
    limits = {"vmin": colours.low, "vmax": colours.high, "cmap": colours.name}
    if _is_even(vertical) and _is_even(horizontal):
        extent = (horizontal[0], horizontal[-1], vertical[-1], vertical[0])
        image = axes.imshow(field.values, extent=extent, interpolation="none", aspect="auto", **limits)
    else:
        image = axes.pcolormesh(horizontal, vertical, field.values, rasterized=True, **limits)
    _label(axes.yaxis, field.axes[0])
    _label(axes.xaxis, field.axes[1])
    # North and high levels up, as the canonical order of labels has them; what is no coordinate runs downwards.
    low, high = sorted((vertical[0], vertical[-1]))
    axes.set_ylim((low, high) if _rises(field.axes[0]) else (high, low))
    aspect = _aspect(field)
    axes.set_aspect(aspect)
    wide = aspect * abs(vertical[-1] - vertical[0]) < 0.62 * abs(horizontal[-1] - horizontal[0])
    bar = figure.colorbar(image, ax=axes, label=plain_text(unit), location="bottom" if wide else "right", shrink=0.9)
    bar.solids.set_rasterized(True)
    bar.outline.set_linewidth(0.5)
    bar.locator = _few_ticks()
    bar.update_ticks()


def plain_text(text: object, most: int = _MAX_TEXT) -> str:
    """A text from a file as it may stand in a picture or on a page: no control characters, not endless."""
    plain = "".join(c if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn") else " " for c in str(text))
    return plain if len(plain) <= most else f"{plain[:most]}..."


def label_ticks(axis: Axis, count: int = _TICKS) -> tuple[list[int], list[str]]:
    """A few positions on an axis and their labels; times without the parts that are zero in all of them."""
    positions = sorted({round(i) for i in np.linspace(0, len(axis) - 1, min(count, len(axis)))})
    texts = [plain_text(label_text(axis, i)) for i in positions]
    if axis.is_time:
        for ending in (":00", ":00", "T00"):
            if all(text.endswith(ending) for text in texts):
                texts = [text.removesuffix(ending) for text in texts]
    return positions, texts


def _rises(axis: Axis) -> bool:
    """Whether larger labels belong further up; pressures and depths do not."""
    goes_down = axis.attributes.get("positive") == "down" or axis.attributes.get("units") in ("Pa", "hPa", "millibars")
    return is_numeric(axis) and not goes_down


def _is_even(edges: NDArray[np.float64]) -> bool:
    steps = np.diff(edges[1:-1]) if len(edges) > 4 else np.diff(edges)
    return bool(np.allclose(steps, steps.mean(), rtol=0.05, atol=0))


def _aspect(field: FieldSlice) -> float:
    """Height of one vertical unit over the width of one horizontal unit."""
    vertical, horizontal = field.axes
    if vertical.is_latitude and horizontal.is_longitude:
        middle = math.radians(float(field.edges[0][0] + field.edges[0][-1]) / 2)
        return 1 / max(math.cos(middle), _STEEPEST)
    height, width = (abs(float(edges[-1] - edges[0])) for edges in field.edges)
    cells = field.values.shape[0] / field.values.shape[1]
    return width / height * min(max(cells, 0.4), 1.6)


def _draw_line(axes: Any, field: FieldSlice, unit: str) -> None:
    (edges,) = field.edges
    axes.plot((edges[1:] + edges[:-1]) / 2, field.values, linewidth=1.2, marker="." if len(field.values) < 40 else None)
    axes.set_ylabel(plain_text(unit))
    _label(axes.xaxis, field.axes[0])


def _label(side: Any, axis: Axis) -> None:
    unit = "" if axis.is_time else str(axis.attributes.get("units", ""))
    side.set_label_text(plain_text(f"{axis.name} [{unit}]" if unit else axis.name))
    if is_numeric(axis):
        side.set_major_locator(_few_ticks())
        return
    positions, texts = label_ticks(axis, 4)
    side.set_ticks(positions, texts)


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=_TICKS - 1, steps=[1, 2, 2.5, 5, 10])
