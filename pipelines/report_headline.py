"""The top of a report's page: what the archive is, its headline figures, and what was asked for."""

from collections.abc import Mapping
from html import escape

from pipelines.map_figures import plain_text
from pipelines.report_comparison import Comparison
from vcinr_batch.archive.manifest import Manifest
from vcinr_batch.console import plural, size_text

Figures = Mapping[str, float | int | None]

_MAX_TEXT = 2000


def header(url: str, manifest: Manifest) -> str:
    """Variable, unit, long name and URL."""
    name = str(manifest.attributes.get("long_name", ""))
    lines = [
        f"<h1>{page_text(manifest.variable)}",
        f" <small>[{page_text(manifest.unit)}]</small>" if manifest.unit else "",
        "</h1>",
        f"<p>{page_text(name)}</p>" if name else "",
        f"<p><code>{page_text(url)}</code></p>",
    ]
    return f"<header>{''.join(lines)}</header>"


def cards(figures: Figures, unit: str) -> str:
    """One card for each headline figure; every number carries its exact value for machines."""

    def show(name: str, form: str = ".4g") -> str:
        value = figures[name]
        assert value is not None
        text = size_text(value) if form == "size" else format(value, form)
        return f'<data class="{name}" value="{value!r}">{page_text(text)}</data>'

    shown = page_text(unit)
    content = [
        ("samples", show("samples", ","), f"{show('rejected', ',')} rejected"),
        ("values", show("values", ","), f"{show('source_bits', 'd')} bits each as delivered"),
        ("size", show("archive_bytes", "size"), f"and a bundle of {show('bundle_bytes', 'size')}"),
        ("bits per value", show("bits_per_value"), f"{show('bits_per_value_with_bundle')} with the bundle"),
        ("ratio to the source", show("ratio_to_source"), f"{show('ratio_to_source_with_bundle')} with the bundle"),
        ("ratio to float32", show("ratio_to_float32"), f"{show('ratio_to_float32_with_bundle')} with the bundle"),
        (
            "mean PSNR [dB]",
            show("mean_psnr_db", ".2f"),
            f"lowest {show('lowest_psnr_db', '.2f')}; against the range of the training values",
        ),
        (f"max error, recorded [{shown}]", show("max_error"), f"RMSE {show('rmse')}"),
    ]
    if figures["measured_rmse"] is not None:
        below = f"RMSE {show('measured_rmse')}, bias {show('measured_bias', '.2g')}"
        content.append((f"max error, measured now [{shown}]", show("measured_max_error"), below))
    filled = (
        f'<div class="card"><div>{label}</div><div class="value">{value}</div><div>{below}</div></div>'
        for label, value, below in content
    )
    return f'<div class="cards">{"".join(filled)}</div>'


def request(asked: Mapping[str, object], comparison: Comparison | None) -> str:
    """What was asked for, and where the errors on the page come from."""
    target, level = asked.get("target_psnr"), asked.get("quality")
    if isinstance(target, int | float):
        words = f"for every sample the coarsest quality level that reaches a PSNR of {target:g} dB"
    elif isinstance(level, int):
        words = f"quality level {level} for every sample"
    elif isinstance(rmse := asked.get("target_rmse"), int | float):
        words = f"for every sample the coarsest quality level that reaches an RMSE of {rmse:g}"
    elif isinstance(bound := asked.get("max_error"), int | float):
        words = f"no value off by more than {bound:g}"
    elif isinstance(share := asked.get("max_error_share"), int | float):
        words = f"no value off by more than {100 * share:g} % of the range of the training values"
    else:
        words = ", ".join(f"{name} {value}" for name, value in asked.items()) or "unknown"
    if comparison is None:
        said = (
            "Nothing was compared with a source for this page. Errors were measured when the archive was compressed, "
            "on the decoded bytes, and are recorded in its rows, rounded up by at most 0.8 %."
        )
    else:
        said = (
            f"{plural(comparison.values, 'value')} were decoded and compared with the source for this page. Figures "
            "called recorded were measured when the archive was compressed and are rounded up by at most 0.8 %."
        )
    return f'<p class="said"><strong>Asked for:</strong> {page_text(words)}. {said}</p>'


def page_text(text: object) -> str:
    """A text from a file as it may stand on a page, in an attribute's quotes as well."""
    return escape(plain_text(text, _MAX_TEXT), quote=True)
