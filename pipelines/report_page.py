"""The page of a report: one HTML5 file that loads nothing. Every text that comes from an archive is escaped here."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import yaml

from pipelines.map_figures import plain_text
from pipelines.report_comparison import Comparison
from pipelines.report_headline import cards, header, page_text, request
from pipelines.report_style import STYLE
from vcinr_batch import __version__
from vcinr_batch.console import plural
from vcinr_batch.data.coordinates import describe_grid
from vcinr_batch.data.layout import label_text
from vcinr_batch.inspection import ArchiveSummary

Rows = Sequence[tuple[str, str]]

_MAX_NAMES = 20
_MAX_CONFIG = 20_000
_MAX_REASONS = 10


@dataclass(frozen=True)
class WorstFigure:
    """One of the samples with the largest errors."""

    key: str
    recorded: str
    measured: str
    """Empty without a source."""
    remark: str
    svg: str


@dataclass(frozen=True, eq=False)
class PageContent:
    """What a page says; figures are SVG elements, everything else is plain text."""

    summary: ArchiveSummary
    figures: Mapping[str, float | int | None]
    distributions: Sequence[str]
    course: str | None
    """None where there is only one block along every axis."""
    course_axis: str
    course_has_gaps: bool
    space: str | None
    """None without a source, or where samples span no dimension."""
    comparison: Comparison | None
    worst: Sequence[WorstFigure]
    rejected: Sequence[tuple[str, str]]
    """Keys and reasons, of the first only."""
    reasons: Counter[str]
    sources: Sequence[str]


def make_page(content: PageContent) -> str:
    """The whole page as text."""
    manifest = content.summary.manifest
    title = f"{page_text(manifest.variable)}: archive report"
    parts = (
        *("<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">'),
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        *(f"<title>{title}</title>", f"<style>{STYLE}</style>", "</head>", "<body>", "<main>"),
        header(content.summary.url, manifest),
        request(manifest.quality, content.comparison),
        cards(content.figures, manifest.unit),
        _section("Rates and errors", _distributions(content)),
        _section(f"Over {page_text(content.course_axis)}", _course(content)) if content.course else "",
        _section("Over space", _space(content)),
        _section("Worst samples", _worst(content)),
        _section("Rejected samples", _rejected(content)),
        _section("Provenance", _provenance(content)),
        f"<footer>Written by vcinr-batch {page_text(__version__)}.</footer>",
        *("</main>", "</body>", "</html>"),
    )
    return "\n".join(part for part in parts if part) + "\n"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _distributions(content: PageContent) -> str:
    figures = "".join(f"<figure>{svg}</figure>" for svg in content.distributions)
    return f'<p>As recorded in the rows.</p><div class="figures">{figures}</div>'


def _course(content: PageContent) -> str:
    gaps = "; rejected samples leave gaps" if content.course_has_gaps else ""
    return f'<p>As recorded in the rows{gaps}.</p><figure class="wide">{content.course}</figure>'


def _space(content: PageContent) -> str:
    compared = content.comparison
    if compared is None or content.space is None:
        return ""
    remarks = ["Decoded bytes against the source, per cell over all stored samples."]
    if compared.only_archive:
        remarks.append(f"{plural(compared.only_archive, 'value')} of the archive are missing in the source.")
    if compared.unreadable:
        remarks.append(f"{plural(compared.unreadable, 'sample')} of the source could not be read.")
    return f'<p>{" ".join(remarks)}</p><figure class="wide">{content.space}</figure>'


def _worst(content: PageContent) -> str:
    figures = []
    for worst in content.worst:
        lines = [f"as recorded: {worst.recorded}"]
        lines += [f"measured now: {worst.measured}"] if worst.measured else []
        lines += [f"shown: {worst.remark}"] if worst.remark else []
        caption = "<br>".join(page_text(line) for line in lines)
        width = "pair" if content.comparison is not None else "single"
        figures.append(
            f'<figure class="{width}"><figcaption><code>{page_text(worst.key)}</code><br>{caption}</figcaption>'
            f"{worst.svg}</figure>"
        )
    return f'<p>The largest recorded errors.</p><div class="figures">{"".join(figures)}</div>'


def _rejected(content: PageContent) -> str:
    total = content.summary.rejected
    if not total:
        return "<p>None: every sample of the source is in the archive.</p>"
    counts = content.reasons.most_common(_MAX_REASONS)
    reasons = "; ".join(f"{page_text(reason)}: {count:,}" for reason, count in counts)
    if len(content.reasons) > len(counts):
        left = content.reasons.total() - sum(count for _, count in counts)
        reasons += f"; {plural(len(content.reasons) - len(counts), 'more reason')}: {left:,}"
    shown = f"the first {len(content.rejected):,}" if total > len(content.rejected) else "all of them"
    table = _table(("sample", "reason"), content.rejected)
    return f"<p>{plural(total, 'sample')} of the source; {shown} below. By reason: {reasons}.</p>{table}"


def _provenance(content: PageContent) -> str:
    summary, manifest = content.summary, content.summary.manifest
    layout, bundle = manifest.layout, summary.bundle
    names = [plain_text(name) for name in manifest.source_names]
    hidden = f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
    axes = [
        f"{axis.name} {len(axis)}: {label_text(axis, 0)} to {label_text(axis, len(axis) - 1)}, blocks of {length}"
        for axis, length in zip(layout.axes, layout.block_shape, strict=True)
    ]
    normalizer = bundle.normalizer
    background = (
        f"background of {normalizer.hours} hours x {normalizer.seasons} seasons"
        if normalizer.background is not None
        else f"mean {normalizer.offset:.6g} {normalizer.unit}"
    )
    parts = f"{plural(len(manifest.parts), 'part')}, container {manifest.container}"
    rows = [
        ("written by", manifest.generator),
        ("source", ", ".join(names[:_MAX_NAMES]) + hidden),
        *([("compared with", ", ".join(content.sources[:_MAX_NAMES]))] if content.sources else []),
        ("source attributes", ", ".join(f"{k}: {v}" for k, v in manifest.dataset_attributes.items())),
        ("stored in the source as", ", ".join(f"{k} {v}" for k, v in manifest.encoding.items())),
        *[("layout" if i == 0 else "", axis) for i, axis in enumerate(axes)],
        ("parts", parts),
        (
            "checksums",
            "SHA-256 of every part and of the bundle and a CRC-32 of every row are recorded; read and found right for "
            "this page: the bundle's, and those of the parts' indexes. vcinr verify checks them all.",
        ),
        ("bundle", manifest.bundle_sha256),
        ("grid", describe_grid(bundle.grid)),
        ("normaliser", f"{background}, scale {_range(normalizer.scale)}, range {_range(normalizer.value_range)}"),
    ]
    config = yaml.safe_dump(bundle.config.model_dump(mode="json"), sort_keys=False)[:_MAX_CONFIG]
    details = f"<details><summary>configuration of the bundle</summary><pre>{escape(config)}</pre></details>"
    return _table(None, [row for row in rows if row[1]]) + details


def _range(array: Any) -> str:
    low, high = float(array.min()), float(array.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _table(head: tuple[str, str] | None, rows: Iterable[tuple[str, str]]) -> str:
    top = f"<thead><tr><th>{head[0]}</th><th>{head[1]}</th></tr></thead>" if head else ""
    first = "td" if head else "th"
    body = "".join(f"<tr><{first}>{page_text(name)}</{first}><td>{page_text(value)}</td></tr>" for name, value in rows)
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'
