"""The command `vcinr convert`: an archive of Parquet files into one of Zarr chunks and back."""

from typing import Annotated

import typer

from vcinr_batch.cli_archives import AsJson, StorageOptionsText, explaining_unfinished, parse_storage_options


def convert_command(
    archive: Annotated[str, typer.Argument(help="URL of the archive.")],
    output: Annotated[str, typer.Argument(help="URL of the archive to be.")],
    container: Annotated[str, typer.Option(metavar="zarr|parquet", help="What the new archive is made of.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the archive at the output.")] = False,
    storage_options: StorageOptionsText = "{}",
    as_json: AsJson = False,
) -> None:
    """Write an archive again as Zarr or as Parquet: the same rows, nothing is compressed anew."""
    from pipelines.convert import convert
    from vcinr_batch.console import ProgressDisplay, plural, print_json, print_pairs, size_text

    options = parse_storage_options(storage_options)
    with explaining_unfinished(archive, options), ProgressDisplay(as_json) as display:
        report = convert(
            archive,
            output,
            container,
            overwrite,
            options,
            lambda stage, done, total: display.show(stage, done, total, {}),
        )
    if as_json:
        print_json({"event": "done", **vars(report)})
        return
    samples = f"{plural(report.samples, 'sample')}, {plural(report.parts, 'part')}"
    kept = f"; {plural(report.kept, 'file')} of an earlier run" if report.kept else ""
    print_pairs(
        [
            ("output", f"{report.output} ({report.container})"),
            ("variable", report.variable),
            ("samples", samples + (f"; {report.rejected:,} were rejected" if report.rejected else "")),
            ("files", f"{report.copied:,} copied{kept}"),
            ("size", size_text(report.bytes)),
            ("time", f"{report.seconds:.1f} s"),
        ]
    )
