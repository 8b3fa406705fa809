"""Summaries of archives and bundles, as aligned names and values for people and as JSON for machines."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vcinr_batch.console import plural, size_text
from vcinr_batch.data.coordinates import describe_grid
from vcinr_batch.data.layout import label_text
from vcinr_batch.inspection import LOSSLESS_LEVEL, ArchiveSummary, BundleSummary
from vcinr_batch.metrics import RateDistortion

if TYPE_CHECKING:
    from pipelines.repair import RepairReport
    from vcinr_batch.verification import VerificationReport

_SPELT_LEVELS = 4
_SPELT_DAMAGE = 20
# Recorded errors are rounded up by at most 0.8 %.
_ROUNDING_DB = 0.07


def archive_pairs(summary: ArchiveSummary) -> list[tuple[str, str]]:
    """An archive for people: names and values."""
    manifest, layout = summary.manifest, summary.manifest.layout
    axes = [
        f"{axis.name} {len(axis)} ({label_text(axis, 0)} to {label_text(axis, len(axis) - 1)}, blocks of {length})"
        for axis, length in zip(layout.axes, layout.block_shape, strict=True)
    ]
    name = manifest.attributes.get("long_name", "")
    parts = f"{plural(summary.figures.samples, 'sample')} in {plural(len(manifest.parts), 'part')}"
    rows = [
        ("row", "{key}  quality {quality}  {payload_bytes} B  RMSE {rmse:.4g}  max {max_error:.4g}".format(**row))
        for row in summary.first_rows
    ]
    return [
        ("archive", f"{summary.url} ({manifest.generator})"),
        ("variable", " ".join(str(part) for part in (manifest.variable, f"[{manifest.unit}]", name) if str(part))),
        *[("layout" if i == 0 else "", axis) for i, axis in enumerate(axes)],
        ("samples", f"{parts}, {summary.rejected:,} rejected"),
        *rate_pairs(summary.rate, manifest.unit, summary.figures.lowest_psnr_db),
        ("request", request_text(manifest.quality, summary.figures.lowest_psnr_db)),
        ("quality", quality_text(summary.figures.quality_counts, summary.bundle.quality_psnr_db)),
        ("bundle", manifest.bundle_sha256),
        *rows,
    ]


def archive_json(summary: ArchiveSummary) -> dict[str, Any]:
    """An archive for machines."""
    manifest, layout = summary.manifest, summary.manifest.layout
    return {
        "kind": "archive",
        "url": summary.url,
        "generator": manifest.generator,
        "variable": manifest.variable,
        "unit": manifest.unit,
        "dims": dict(zip(layout.dims, layout.shape, strict=True)),
        "block": dict(zip(layout.dims, layout.block_shape, strict=True)),
        "parts": len(manifest.parts),
        "rejected": summary.rejected,
        **rate_json(summary.rate),
        "lowest_psnr_db": summary.figures.lowest_psnr_db,
        "request": manifest.quality,
        "quality_counts": summary.figures.quality_counts,
        "bundle_sha256": manifest.bundle_sha256,
        **({"rows": summary.first_rows} if summary.first_rows else {}),
    }


def bundle_pairs(summary: BundleSummary) -> list[tuple[str, str]]:
    """A bundle for people."""
    bundle, network = summary.bundle, summary.bundle.config.network
    sizes = ", ".join(f"{owner} {size_text(size)}" for owner, size in summary.array_bytes.items())
    levels = bundle.quality_psnr_db
    return [
        ("bundle", summary.url),
        ("variable", f"{bundle.variable} [{bundle.normalizer.unit}]"),
        ("grid", describe_grid(bundle.grid)),
        ("size", f"{size_text(summary.file_bytes)}: {sizes}"),
        ("network", f"{network.modulation}, linear term {network.linear_term}, latent of {network.latent_dim}"),
        ("quality", f"levels 0 to {len(levels) - 1}, about {levels[0]:.3g} to {levels[-1]:.3g} dB"),
        *[("report" if i == 0 else "", line) for i, line in enumerate(nested_lines(bundle.report))],
    ]


def bundle_json(summary: BundleSummary) -> dict[str, Any]:
    """A bundle for machines."""
    bundle = summary.bundle
    return {
        "kind": "bundle",
        "url": summary.url,
        "sha256": bundle.sha256,
        "variable": bundle.variable,
        "unit": bundle.normalizer.unit,
        "file_bytes": summary.file_bytes,
        "array_bytes": summary.array_bytes,
        "quality_psnr_db": bundle.quality_psnr_db,
        "config": bundle.config.model_dump(mode="json"),
        "report": bundle.report,
    }


def rate_pairs(rate: RateDistortion, unit: str, lowest_psnr_db: float) -> list[tuple[str, str]]:
    """Rate and distortion for people."""
    with_bundle = rate.bits_per_value_with_bundle
    return [
        ("size", f"{size_text(rate.archive_bytes)} and a bundle of {size_text(rate.bundle_bytes)}"),
        ("rate", f"{rate.bits_per_value:.4g} bits per value, {with_bundle:.4g} with the bundle"),
        (
            "ratio",
            f"{rate.ratio_to_source:.4g} : 1 against the source ({rate.source_bits} bits per value), "
            f"{rate.ratio_to_float32:.4g} : 1 against float32",
        ),
        ("", f"with the bundle {rate.source_bits / with_bundle:.4g} : 1 and {32 / with_bundle:.4g} : 1"),
        (
            "PSNR",
            f"{rate.mean_psnr_db:.2f} dB, mean over samples; lowest {lowest_psnr_db:.2f} dB "
            "(against the range of the training values)",
        ),
        ("error", f"RMSE {rate.rmse:.4g} {unit}, at most {rate.max_error:.4g} {unit}"),
    ]


def rate_json(rate: RateDistortion) -> dict[str, float]:
    """Rate and distortion for machines."""
    names = (
        *("samples", "values", "archive_bytes", "bundle_bytes", "source_bits", "bits_per_value"),
        *("bits_per_value_with_bundle", "ratio_to_source", "ratio_to_float32", "mean_psnr_db", "rmse", "max_error"),
    )
    return {name: getattr(rate, name) for name in names}


def verification_pairs(report: "VerificationReport", has_source: bool, index_only: bool) -> list[tuple[str, str]]:
    """What a verification found, for people."""
    checked = f"{plural(report.rows, 'row')} in {plural(report.parts, 'part')}, {report.rejected:,} rejected"
    compared = plural(report.compared, "sample") if has_source else "no source given"
    if index_only:
        compared = "labels only; no value was read"
    hidden = report.problem_count - len(report.problems)
    return [
        ("archive", report.url),
        ("checked", checked),
        ("compared", compared),
        ("problems", f"{report.problem_count:,}" if report.problem_count else "none"),
        *(("", problem) for problem in report.problems),
        *([("", f"... and {hidden:,} more")] if hidden else []),
    ]


def repair_pairs(report: "RepairReport") -> list[tuple[str, str]]:
    """What a repair did, for people."""
    hidden = len(report.damage) - _SPELT_DAMAGE
    if not report.damage:
        return [("archive", report.url), ("damage", f"none in {plural(report.parts, 'part')}; nothing was touched")]
    fate = "in the archive, with a new manifest" if report.accepted else "left out; --accept-changed puts them in"
    changed = f"{plural(len(report.changed), 'part')} have other bytes now (changed source or other machine): {fate}"
    return [
        ("archive", report.url),
        *[("damage" if i == 0 else "", line) for i, line in enumerate(report.damage[:_SPELT_DAMAGE])],
        *([("", f"... and {hidden:,} more")] if hidden > 0 else []),
        ("restored", f"{plural(report.restored, 'part')}{', the bundle' if report.bundle_restored else ''}"),
        *([("changed", changed)] if report.changed else []),
        ("time", f"{report.seconds:.1f} s"),
    ]


def request_text(request: Mapping[str, Any], lowest_psnr_db: float) -> str:
    """What was asked for, and whether each sample got it: beyond the finest level a target PSNR is out of reach."""
    if isinstance(bound := request.get("max_error"), int | float):
        return f"no error above {bound:g} in the unit of the variable"
    if isinstance(share := request.get("max_error_share"), int | float):
        return f"no error above {100 * share:g} % of the range of the training values"
    if isinstance(rmse := request.get("target_rmse"), int | float):
        return f"RMSE {rmse:g} in the unit of the variable, or as near as the finest level comes"
    target = request.get("target_psnr")
    if not isinstance(target, int | float):
        return f"quality level {request.get('quality', 'unknown')}"
    missed = lowest_psnr_db < target - _ROUNDING_DB
    return f"PSNR {target:g} dB" + ("; out of reach for some samples" if missed else "")


def quality_text(counts: Mapping[int, int], psnr_db: Sequence[float]) -> str:
    """`level 7 (about 40.2 dB): 118 samples, level 8 (about 42.1 dB): 2 samples`; many levels as their range."""
    if LOSSLESS_LEVEL in counts:
        others = {level: n for level, n in counts.items() if level != LOSSLESS_LEVEL}
        lossless = f"lossless: {plural(counts[LOSSLESS_LEVEL], 'sample')}"
        return f"{quality_text(others, psnr_db)}, {lossless}" if others else lossless
    about = {level: f"about {psnr_db[level]:.3g} dB" if level < len(psnr_db) else "unknown" for level in counts}
    if len(counts) <= _SPELT_LEVELS:
        return ", ".join(f"level {level} ({about[level]}): {plural(n, 'sample')}" for level, n in counts.items())
    low, high, usual = min(counts), max(counts), max(counts, key=lambda level: counts[level])
    return (
        f"{len(counts)} levels from {low} ({about[low]}) to {high} ({about[high]}), "
        f"most often {usual} ({about[usual]}): {plural(counts[usual], 'sample')}"
    )


def nested_lines(content: Any, name: str = "") -> list[str]:
    """Nested names and numbers, one line for each list item or innermost mapping: `codec levels 0: psnr_db 33.5`."""
    if isinstance(content, Mapping) and any(isinstance(value, Mapping | list) for value in content.values()):
        return [line for key, value in content.items() for line in nested_lines(value, f"{name} {key}".strip())]
    if isinstance(content, list):
        return [line for i, value in enumerate(content) for line in nested_lines(value, f"{name} {i}".strip())]
    if isinstance(content, Mapping):
        content = ", ".join(f"{key} {_number_text(value)}" for key, value in content.items())
    return [f"{name}: {_number_text(content)}"]


def _number_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
