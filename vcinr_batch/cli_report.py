"""The part of the command line that draws: `vcinr inspect --plot` and `vcinr report`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from vcinr_batch.cli_archives import (
    AsJson,
    MemberPattern,
    StorageOptionsText,
    explaining_unfinished,
    parse_storage_options,
)
from vcinr_batch.errors import ConfigError

Plot = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Draw one sample into a PNG: its key, or labels like time=2019-03-22T06."),
]
Against = Annotated[
    list[str] | None, typer.Option(metavar="SOURCE...", help="Compare with the source: draw the error, too.")
]
# A shell expands `--against data/*.nc` into one option value and further arguments.
MoreSources = Annotated[list[str] | None, typer.Argument(hidden=True)]
PictureOutput = Annotated[
    str | None, typer.Option(metavar="FILE.png", help="Of the picture.", show_default="named after the sample")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output.")]


def draw_sample(
    url: str,
    key: str | None,
    sources: Sequence[str],
    output: str | None,
    overwrite: bool,
    member_pattern: str | None,
    storage_options: Mapping[str, Any],
    as_json: bool,
) -> bool:
    """Draw one sample and print where; False, and nothing done, without a key.

    Raises:
        ConfigError: what belongs to `--plot` is given without it.
        VcinrError: as `plot_sample`.
    """
    if key is None:
        if sources or output or overwrite or member_pattern:
            raise ConfigError("--against, --output, --overwrite and --member-pattern belong to --plot KEY")
        return False
    from pipelines.sample_picture import plot_sample
    from vcinr_batch.console import print_json, print_pairs

    report = plot_sample(url, key, sources, output, overwrite, member_pattern, storage_options)
    if as_json:
        print_json({"event": "done", **vars(report)})
        return True
    measured = (
        []
        if report.measured_rmse is None
        else [("measured", f"RMSE {report.measured_rmse:.4g}, max {report.measured_max_error:.4g}")]
    )
    size = f"{report.payload_bytes:,} B, {report.bits_per_value:.3g} bits per value"
    pairs = [("picture", report.output), ("sample", f"{report.key}  quality {report.quality}, {size}")]
    print_pairs([*pairs, ("recorded", f"RMSE {report.rmse:.4g}, max {report.max_error:.4g}"), *measured])
    return True


def all_sources(against: Sequence[str] | None, more: Sequence[str] | None) -> list[str]:
    """The sources of `--against` and those that a shell has made arguments of.

    Raises:
        ConfigError: an argument that belongs to nothing.
    """
    if more and not against:
        raise ConfigError(f"unexpected argument {more[0]!r}; give sources after --against")
    return [*(against or ()), *(more or ())]


def report_command(
    archive: Annotated[str, typer.Argument(help="URL of the archive.")],
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE...", help="Compare with the source: errors over space, too."),
    ] = None,
    more_sources: MoreSources = None,
    output: Annotated[str, typer.Option(metavar="FILE.html", help="Of the page.")] = "report.html",
    overwrite: Overwrite = False,
    member_pattern: MemberPattern = None,
    storage_options: StorageOptionsText = "{}",
    as_json: AsJson = False,
) -> None:
    """Write a page with all figures of an archive, its errors and its worst samples."""
    from pipelines.report import report_json, write_report
    from vcinr_batch.console import ProgressDisplay, print_json, print_pairs, size_text

    sources = all_sources(against, more_sources)
    options = parse_storage_options(storage_options)
    with explaining_unfinished(archive, options), ProgressDisplay(as_json) as display:
        written = write_report(
            archive,
            output,
            sources,
            overwrite,
            member_pattern,
            lambda stage, done, total: display.show(stage, done, total, {}),
            options,
        )
    if as_json:
        print_json({"event": "done", **report_json(written)})
        return
    figures = written.figures
    compared = "with the source, every value" if sources else "nothing: no source given; errors are as recorded"
    print_pairs(
        [
            ("page", f"{written.output} ({size_text(written.output_bytes)})"),
            ("samples", f"{figures['samples']:,} and {figures['rejected']:,} rejected"),
            ("compared", compared),
        ]
    )
