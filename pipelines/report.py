"""`vcinr report`: everything that is known of an archive on one self-contained HTML page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.field_slices import make_slice, slice_field
from pipelines.map_figures import amount_colours, drawing, error_colours, value_colours
from pipelines.report_comparison import Comparison, compare_over_space
from pipelines.report_figures import MapPanel, course_svg, error_step, histogram_svg, maps_svg
from pipelines.report_page import PageContent, WorstFigure, make_page
from pipelines.report_statistics import Statistics, count_reasons, measure_archive
from pipelines.sample_picture import check_output, decode_sample, open_matching_source, sample_lines
from vcinr_batch.archive.archive import Archive
from vcinr_batch.data.sources import FieldSource
from vcinr_batch.errors import DamagedSourceError
from vcinr_batch.inspection import ArchiveSummary, inspect_archive
from vcinr_batch.storage import StorageOptions, public_url, write_bytes

Progress = Callable[[str, int, int], None]
"""Called with the stage (`read`, `compare`, `draw`), what is done and what there is in all."""


@dataclass(frozen=True)
class ReportFile:
    """A report that was written, and its headline figures."""

    output: str
    output_bytes: int
    rejected: int
    figures: Mapping[str, float | int | None]
    """By name; those of a comparison are None without a source."""


def write_report(
    url: str,
    output: str,
    sources: Sequence[str] = (),
    overwrite: bool = False,
    member_pattern: str | None = None,
    progress: Progress | None = None,
    storage_options: StorageOptions = None,
) -> ReportFile:
    """Write the page; nothing is written where anything fails.

    Args:
        url: of the archive.
        output: of the page, ends with `.html`.
        sources: what the archive was made of; adds what is compared anew, and where errors lie in space.
        overwrite: replace the file that is there.
        member_pattern: as for `compress`.
        progress: told how far the work is.
        storage_options: of the archive's file system.

    Raises:
        ConfigError: matplotlib is missing, the archive holds no sample, or the source is another one.
        ArchiveExistsError: the output is there already.
        SourceError, BitstreamError, UnsupportedFormatError, BundleMismatchError: a file is missing or damaged.
    """
    with drawing():  # before any work: without matplotlib there is no report
        check_output(output, overwrite, ".html", storage_options)
    show = progress or (lambda *_: None)
    archive = Archive.open(url, storage_options)
    source = open_matching_source(archive, sources, member_pattern) if sources else None
    summary = inspect_archive(url, 0, storage_options)
    statistics = measure_archive(archive, summary.bundle.normalizer, lambda *now: show("read", *now))
    comparison = compare_over_space(archive, source, lambda *now: show("compare", *now)) if source else None
    figures = headline_figures(summary, statistics, comparison)
    rejected, reasons = count_reasons(archive)
    content = PageContent(
        summary=summary,
        figures=figures,
        distributions=_distributions(statistics, archive.manifest.unit),
        course=course_svg("course", statistics.course, archive.manifest.unit) if statistics.course else None,
        course_axis=statistics.course.axis.name if statistics.course else "",
        course_has_gaps=statistics.course.has_gaps if statistics.course else False,
        space=_space(comparison, archive.manifest.unit) if comparison else None,
        comparison=comparison,
        worst=_worst(archive, source, statistics, show),
        rejected=rejected,
        reasons=reasons,
        sources=[public_url(item).rstrip("/").rpartition("/")[2] for item in sources],
    )
    page = make_page(content).encode()
    write_bytes(output, page, storage_options=storage_options)
    return ReportFile(public_url(output), len(page), summary.rejected, figures)


def headline_figures(
    summary: ArchiveSummary, statistics: Statistics, comparison: Comparison | None
) -> dict[str, float | int | None]:
    """The figures at the top of the page, by name; errors in the variable's unit."""
    rate = summary.rate
    with_bundle = rate.bits_per_value_with_bundle
    return {
        "samples": rate.samples,
        "rejected": summary.rejected,
        "values": rate.values,
        "parts": len(summary.manifest.parts),
        "archive_bytes": rate.archive_bytes,
        "bundle_bytes": rate.bundle_bytes,
        "payload_bytes": statistics.stored_payload_bytes,
        "bits_per_value": rate.bits_per_value,
        "bits_per_value_with_bundle": with_bundle,
        "source_bits": rate.source_bits,
        "ratio_to_source": rate.ratio_to_source,
        "ratio_to_float32": rate.ratio_to_float32,
        "ratio_to_source_with_bundle": rate.source_bits / with_bundle,
        "ratio_to_float32_with_bundle": 32 / with_bundle,
        "mean_psnr_db": rate.mean_psnr_db,
        "lowest_psnr_db": summary.figures.lowest_psnr_db,
        "rmse": rate.rmse,
        "max_error": rate.max_error,
        "measured_rmse": comparison.total_rmse if comparison else None,
        "measured_max_error": comparison.total_max_error if comparison else None,
        "measured_bias": comparison.total_bias if comparison else None,
    }


def _distributions(statistics: Statistics, unit: str) -> list[str]:
    rmse, largest = statistics.rmse, statistics.max_error
    return [
        histogram_svg("bytes", statistics.payload_bytes, 1, "bytes of a sample"),
        histogram_svg("quality", statistics.quality, 1, "quality level (higher is finer)"),
        histogram_svg("rmse", rmse, error_step(rmse.values), f"RMSE of a sample [{unit}]"),
        histogram_svg("largest", largest, error_step(largest.values), f"max error of a sample [{unit}]"),
    ]


def _space(comparison: Comparison, unit: str) -> str | None:
    """Maps of RMSE, max error and bias; None where samples span no dimension."""
    if not comparison.axes:
        return None
    rmse, largest, bias = (
        make_slice(values, comparison.axes) for values in (comparison.rmse, comparison.max_error, comparison.bias)
    )
    return maps_svg(
        "space",
        [
            MapPanel(rmse, "RMSE", unit, amount_colours(rmse.values), False),
            MapPanel(largest, "max error", unit, amount_colours(largest.values), True),
            MapPanel(bias, "bias: mean of decoded - source", unit, error_colours(bias.values), False),
        ],
    )


def _worst(archive: Archive, source: FieldSource | None, statistics: Statistics, show: Progress) -> list[WorstFigure]:
    figures = []
    unit = archive.manifest.unit
    for i, worst in enumerate(statistics.worst):
        try:
            sample = decode_sample(archive, worst.block, source)
        except DamagedSourceError:
            sample = decode_sample(archive, worst.block)
        field = slice_field(sample.values, sample.axes)
        panels = [MapPanel(field, "decoded", unit, value_colours(field.values), False)]
        if sample.error is not None:
            error = slice_field(sample.error, sample.axes)
            panels.append(MapPanel(error, "decoded - source", unit, error_colours(error.values), True))
        recorded, measured = sample_lines(sample, unit)
        svg = maps_svg(f"worst{i}", panels)
        figures.append(WorstFigure(str(sample.row.key), recorded, measured, field.remark, svg))
        show("draw", i + 1, len(statistics.worst))
    return figures


def report_json(report: ReportFile) -> dict[str, Any]:
    """The figures for machines."""
    return {"output": report.output, "output_bytes": report.output_bytes, **report.figures}
