"""The command `vcinr evaluate`."""

from typing import Annotated

import typer

from vcinr_batch.cli_archives import AsJson, MemberPattern, StorageOptionsText, parse_select, parse_storage_options


def evaluate_command(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Held-out data: NetCDF, Zarr or GRIB.")],
    bundle: Annotated[str, typer.Option(help="Bundle file, or a directory that holds one.")],
    output: Annotated[str, typer.Option(help="Folder for results.json, results.md and the plots.")],
    select: Annotated[
        list[str] | None,
        typer.Option("--select", metavar="DIM=LABEL", help="What is held out; repeat per dimension."),
    ] = None,
    train_sources: Annotated[
        list[str] | None,
        typer.Option(
            "--train-source",
            metavar="SOURCE",
            help="What EOFs learn from, by default SOURCE...; repeat, quote patterns.",
        ),
    ] = None,
    train_select: Annotated[
        list[str] | None,
        typer.Option("--train-select", metavar="DIM=LABEL", help="The same selection that the bundle was trained on."),
    ] = None,
    max_samples: Annotated[
        int, typer.Option(min=1, help="Of more samples as many as about this, evenly spread.")
    ] = 500,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results in the output.")] = False,
    variable: Annotated[str | None, typer.Option(help="Variable; the bundle's by default.")] = None,
    member_pattern: MemberPattern = None,
    storage_options: StorageOptionsText = "{}",
    as_json: AsJson = False,
) -> None:
    """Compare with other codecs on held-out data: bits at the same PSNR and at the same largest error."""
    import sys

    from pipelines.evaluate import EvaluateJob, evaluate
    from pipelines.evaluate_page import compared_figures, text_tables
    from vcinr_batch.console import ProgressDisplay, plural, print_json, print_pairs

    job = EvaluateJob(
        sources=tuple(sources),
        bundle=bundle,
        output=output,
        select=parse_select(select),
        variable=variable,
        member_pattern=member_pattern,
        train_sources=tuple(train_sources or ()),
        train_select=parse_select(train_select, "--train-select"),
        max_samples=max_samples,
        overwrite=overwrite,
        storage_options=parse_storage_options(storage_options),
    )

    def notice(text: str) -> None:
        if as_json:
            print_json({"event": "notice", "message": text})
        else:
            print(f"vcinr: {text}", file=sys.stderr, flush=True)

    with ProgressDisplay(as_json) as display:
        report = evaluate(job, lambda done, total, text: display.show("evaluate", done, total, {}, text), notice)
    if as_json:
        figures = {"files": report.files, "seconds": report.seconds, **compared_figures(report.results)}
        print_json({"event": "done", **figures})
        return
    for line in text_tables(report.results):
        print(line)
    samples = f"{plural(report.results.samples, 'sample')}, {report.results.rejected:,} rejected"
    print_pairs([("samples", samples), ("results", ", ".join(report.files)), ("time", f"{report.seconds:.1f} s")])
