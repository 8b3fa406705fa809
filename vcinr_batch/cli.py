"""The command line `vcinr`: parse, call one function, print its result.

Exit codes: 0 done; 1 done, but samples were rejected (`decompress`: are missing; `verify`: problems found); 2 wrong
usage or input; 70 a defect of ours; 130 interrupted. Everything heavy is imported inside the commands, so that `--help`
takes no time.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vcinr_batch import __version__
from vcinr_batch.cli_archives import (
    AsJson,
    MemberPattern,
    StorageOptionsText,
    compress_request,
    explaining_unfinished,
    parse_select,
    parse_storage_options,
)
from vcinr_batch.cli_convert import convert_command
from vcinr_batch.cli_evaluate import evaluate_command
from vcinr_batch.cli_evaluation import GridSpacing, Points, evaluation_request
from vcinr_batch.cli_jobs import Address, NoWait, jobs_app, submit_elsewhere
from vcinr_batch.cli_report import (
    Against,
    MoreSources,
    Overwrite,
    PictureOutput,
    Plot,
    all_sources,
    draw_sample,
    report_command,
)
from vcinr_batch.errors import ConfigError, VcinrError

if TYPE_CHECKING:
    from pipelines.compress import CompressJob, CompressProgress

EXIT_REJECTED, EXIT_USAGE, EXIT_DEFECT, EXIT_INTERRUPTED = 1, 2, 70, 130
TRACEBACK_VARIABLE = "VCINR_TRACEBACK"

# Typer has no public name for click's base exception and, from 0.27 on, brings its own click.
_ClickException: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    help="Compress large scientific archives with a learned, shared neural representation.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(jobs_app, name="jobs")

Sources = Annotated[
    list[str], typer.Argument(metavar="SOURCE...", help="NetCDF, Zarr or GRIB: paths, URLs or patterns.")
]
Select = Annotated[
    list[str] | None,
    typer.Option("--select", metavar="DIM=LABEL", help="One label, partial time or range a..b; repeat per dimension."),
]
Variable = Annotated[str | None, typer.Option(help="Variable; the configuration's or the bundle's by default.")]


def main() -> None:
    """Entry point of the command `vcinr`."""
    import logging
    import warnings

    if not os.environ.get(TRACEBACK_VARIABLE):
        # Third-party libraries' remarks are for developers; whoever runs a command gets results and one-line errors.
        warnings.simplefilter("ignore")
        logging.basicConfig(level=logging.CRITICAL)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; every error becomes one line on stderr."""
    try:
        code = app(args=list(arguments), prog_name="vcinr", standalone_mode=False)
    except _ClickException as error:
        return _fail(f"{error.format_message()} (see vcinr --help)", EXIT_USAGE)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except VcinrError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        return _fail(str(error), EXIT_USAGE)
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        text = f"unexpected {type(error).__name__}: {error}; set {TRACEBACK_VARIABLE}=1 for the traceback"
        return _fail(text, EXIT_DEFECT)
    if code == EXIT_INTERRUPTED:
        return _fail("interrupted", EXIT_INTERRUPTED)
    return code if isinstance(code, int) else 0


@app.callback(invoke_without_command=True)
def _vcinr(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print(f"vcinr-batch {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def train(
    context: typer.Context,
    config: Annotated[str, typer.Argument(help="YAML file of the run.")],
    sources: Sources,
    output: Annotated[str, typer.Option(help="Directory for the bundle.")],
    variable: Variable = None,
    select: Select = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the configuration: network.modulation=shift; repeat."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Default: checkpoint-RUN.safetensors in the output; removed at the end."),
    ] = None,
    num_workers: Annotated[
        int, typer.Option(help="Ray Train workers that share every batch; 0 trains in this process without Ray.")
    ] = 0,
    use_gpu: Annotated[bool, typer.Option("--use-gpu", help="One graphics card for each worker.")] = False,
    cpus_per_worker: Annotated[int, typer.Option(help="CPUs and torch threads of a worker.")] = 1,
    precision: Annotated[
        str | None,
        typer.Option(help="float32 or bfloat16, of the hidden layers in training; the configuration's by default."),
    ] = None,
    address: Address = None,
    no_wait: NoWait = False,
    storage_options: StorageOptionsText = "{}",
    as_json: AsJson = False,
) -> None:
    """Learn a bundle from training data."""
    submit_elsewhere(context, address, no_wait)
    from pipelines import train as training
    from vcinr_batch.config import load_config
    from vcinr_batch.console import ProgressDisplay, print_json, print_pairs, size_text

    settings = [*(settings or ()), *([f"meta_learning.precision={precision}"] if precision else [])]
    run_config = load_config(config, settings)
    changes: dict[str, Any] = {"select": {**run_config.source.select, **parse_select(select)}}
    changes |= {"variable": variable} if variable else {}
    run_config = run_config.model_copy(update={"source": run_config.source.model_copy(update=changes)})
    with ProgressDisplay(as_json) as display:
        report = training.train(
            run_config,
            sources,
            output,
            checkpoint,
            lambda stage, step, steps, figures: display.show(stage, step, steps, figures, _figures_text(figures)),
            parse_storage_options(storage_options),
            training.TrainWorkers(num_workers, use_gpu, cpus_per_worker, address),
            partial(_show_notice, as_json),
        )
    if as_json:
        print_json({"event": "done", **vars(report)})
        return
    print_pairs(
        [
            ("bundle", report.bundle_url),
            ("size", size_text(report.bundle_bytes)),
            ("PSNR", f"{report.validation_psnr_db:.2f} dB on the validation samples, before quantisation"),
            *([("log", report.log_url)] if run_config.meta_learning.steps else []),
            ("time", f"{report.seconds:.1f} s"),
        ]
    )


@app.command()
def compress(
    context: typer.Context,
    sources: Sources,
    bundle: Annotated[str, typer.Option(help="Bundle file, or a directory that holds one.")],
    output: Annotated[str, typer.Option(help="URL of the archive to be.")],
    select: Select = None,
    quality: Annotated[int | None, typer.Option(help="Quality level of the bundle, the same for all samples.")] = None,
    target_psnr: Annotated[
        float | None, typer.Option(metavar="DB", help="For each sample the coarsest level that reaches this PSNR.")
    ] = None,
    target_rmse: Annotated[
        float | None, typer.Option(metavar="RMSE", help="The same for an RMSE, in the unit of the variable.")
    ] = None,
    max_error: Annotated[
        str | None,
        typer.Option(
            metavar="E|P%", help="No value is off by more: 0.1 in the unit, 0.1% of the range of the training values."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Ray workers; 0 runs without Ray.", show_default="the number of CPUs, here or of the cluster"
        ),
    ] = None,
    num_gpus: Annotated[float, typer.Option(help="GPUs reserved for each worker.")] = 0.0,
    shard_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="A worker that takes longer for a shard is replaced; of no effect with --workers 0."
        ),
    ] = 3600.0,
    max_rejected: Annotated[
        str | None,
        typer.Option(metavar="N|P%", help="With more rejected samples there is no archive; no limit by default."),
    ] = None,
    shard_samples: Annotated[
        int | None, typer.Option(help="Samples per shard.", show_default="the bundle's configuration")
    ] = None,
    container: Annotated[
        str, typer.Option(metavar="zarr|parquet", help="What the archive is made of; both hold the same bytes.")
    ] = "parquet",
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the Parquet archive at the output; no archive gives way to Zarr."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing; measure a few shards and say what the job will cost.")
    ] = False,
    variable: Variable = None,
    member_pattern: MemberPattern = None,
    address: Address = None,
    no_wait: NoWait = False,
    storage_options: StorageOptionsText = "{}",
    as_json: AsJson = False,
) -> None:
    """Compress a source into an archive."""
    submit_elsewhere(context, address, no_wait)
    from pipelines import compress as compression
    from pipelines.dry_run_text import left_out_pairs
    from vcinr_batch.config import SourceConfig
    from vcinr_batch.console import ProgressDisplay, print_json, print_pairs, size_text
    from vcinr_batch.summary_text import archive_json, archive_pairs

    job = compression.CompressJob(
        sources=tuple(sources),
        bundle=bundle,
        output=output,
        request=compress_request(quality, target_psnr, target_rmse, max_error),
        source=SourceConfig(variable=variable, select=parse_select(select), member_pattern=member_pattern),
        shard_samples=shard_samples,
        workers=_cpu_count() if workers is None and not (address or os.environ.get("RAY_ADDRESS")) else workers,
        address=address,
        num_gpus=num_gpus,
        shard_timeout_seconds=shard_timeout,
        max_rejected=max_rejected,
        overwrite=overwrite,
        storage_options=parse_storage_options(storage_options),
        container=container,
    )
    if dry_run:
        _show_dry_run(job, as_json)
        return
    with ProgressDisplay(as_json) as display:
        report = compression.compress(
            job, lambda progress: _show_compression(display, progress), partial(_show_notice, as_json)
        )
    summary, last, speed = report.summary, report.last, report.last.source_bytes_per_second
    rejected = {str(sample.key): sample.reason for sample in report.rejected_examples}
    if as_json:
        content = {**archive_json(summary), "rejected_examples": rejected, "seconds": report.seconds}
        counts = {"resumed": last.resumed_samples, "retried": last.retried, "left_out": report.left_out}
        print_json({"event": "done", **content, **counts, "source_bytes_per_second": speed})
    else:
        lines = [("rejected", f"{key}: {reason}") for key, reason in rejected.items()]
        if last.resumed_samples or last.retried:
            lines.append(("resumed", f"{last.resumed_samples:,} samples of an earlier run; {last.retried:,} retried"))
        lines += left_out_pairs(report.left_out)
        print_pairs([*archive_pairs(summary), *lines, ("time", f"{report.seconds:.1f} s, {size_text(speed)}/s")])
    if summary.rejected:
        raise typer.Exit(EXIT_REJECTED)


@app.command()
def decompress(
    context: typer.Context,
    archive: Annotated[str, typer.Argument(help="URL of the archive.")],
    output: Annotated[str, typer.Option(help="Ends with .nc (NetCDF 4) or .zarr (Zarr 3); of points also with .csv.")],
    select: Select = None,
    points: Points = None,
    grid: GridSpacing = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Ray workers; 0 runs without Ray.", show_default="0 for a few fields, else the number of CPUs"
        ),
    ] = None,
    address: Address = None,
    no_wait: NoWait = False,
    storage_options: StorageOptionsText = "{}",
    as_json: AsJson = False,
) -> None:
    """Restore an archive, or a selection of it, into NetCDF or Zarr; at points or on another grid, too."""
    elsewhere = evaluation_request(points, grid, runs_elsewhere=bool(workers or address or no_wait))
    submit_elsewhere(context, address, no_wait)
    from pipelines import decompress as decompression
    from pipelines.restore_progress import progress_figures, progress_text
    from vcinr_batch.console import ProgressDisplay, plural, print_json, print_pairs, size_text

    options = parse_storage_options(storage_options)
    with ProgressDisplay(as_json) as display:
        if elsewhere:
            report = elsewhere(archive, output, parse_select(select), overwrite, options, display)
        else:
            report = decompression.decompress(
                archive,
                output,
                parse_select(select),
                overwrite,
                options,
                workers=workers,
                address=address,
                progress=lambda now: display.show(
                    "restore", now.samples, now.total_samples, progress_figures(now), progress_text(now)
                ),
            )
    if as_json:
        print_json({"event": "done", **vars(report)})
    else:
        shape = ", ".join(f"{dim} {size}" for dim, size in report.shape.items())
        missing = f", {report.rejected:,} were rejected when the archive was made: NaN" if report.rejected else ""
        print_pairs(
            [
                ("output", report.output),
                ("variable", f"{report.variable} ({shape})"),
                ("samples", f"{plural(report.samples, 'sample')} decoded{missing}"),
                ("size", size_text(report.output_bytes)),
                ("time", f"{report.seconds:.1f} s"),
            ]
        )
    if report.rejected:
        raise typer.Exit(EXIT_REJECTED)


@app.command()
def inspect(
    url: Annotated[str, typer.Argument(metavar="ARCHIVE_OR_BUNDLE", help="URL of an archive or a bundle.")],
    more_sources: MoreSources = None,
    rows: Annotated[int, typer.Option(min=0, help="Also list the first rows.")] = 0,
    plot: Plot = None,
    against: Against = None,
    output: PictureOutput = None,
    overwrite: Overwrite = False,
    member_pattern: MemberPattern = None,
    storage_options: StorageOptionsText = "{}",
    as_json: AsJson = False,
) -> None:
    """Show what an archive or a bundle holds; decodes nothing but the sample of --plot."""
    from vcinr_batch.console import print_json, print_pairs
    from vcinr_batch.inspection import ArchiveSummary, inspect_url
    from vcinr_batch.summary_text import archive_json, archive_pairs, bundle_json, bundle_pairs

    options = parse_storage_options(storage_options)
    sources = all_sources(against, more_sources)
    with explaining_unfinished(url, options):
        if draw_sample(url, plot, sources, output, overwrite, member_pattern, options, as_json):
            return
        summary = inspect_url(url, rows, options)
    if isinstance(summary, ArchiveSummary):
        content, pairs = archive_json(summary), archive_pairs(summary)
    else:
        content, pairs = bundle_json(summary), bundle_pairs(summary)
    if as_json:
        print_json({"event": "done", **content})
    else:
        print_pairs(pairs)


app.command("report")(report_command)
app.command("convert")(convert_command)
app.command("evaluate")(evaluate_command)


@app.command()
def verify(
    archive: Annotated[str, typer.Argument(help="URL of the archive.")],
    against: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE...", help="Compare with the source: recompute every error.")
    ] = None,
    more_sources: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    index_only: Annotated[
        bool,
        typer.Option("--index-only", help="Read no values: is every sample of the source there, once, and no other?"),
    ] = False,
    member_pattern: MemberPattern = None,
    storage_options: StorageOptionsText = "{}",
    as_json: AsJson = False,
) -> None:
    """Prove that an archive is whole and right."""
    from vcinr_batch.completeness import verify_index
    from vcinr_batch.console import ProgressDisplay, print_json, print_pairs
    from vcinr_batch.summary_text import verification_pairs
    from vcinr_batch.verification import open_original, verify_archive

    if more_sources and not against:
        raise ConfigError(f"unexpected argument {more_sources[0]!r}; give sources after --against")
    options = parse_storage_options(storage_options)
    # A shell expands `--against data/*.nc` into one option value and further arguments.
    urls = [*(against or []), *(more_sources or [])]
    if index_only and not urls:
        raise ConfigError("--index-only compares with a source; give it with --against")
    with explaining_unfinished(archive, options), ProgressDisplay(as_json) as display:

        def show(done: int, total: int, problems: int) -> None:
            display.show("verify", done, total, {"problems": problems})

        source = open_original(archive, urls, member_pattern, options) if urls else None
        if index_only and source is not None:
            report = verify_index(archive, source, show, options)
        else:
            report = verify_archive(archive, source, show, options)
    if as_json:
        print_json({"event": "done", "is_good": report.is_good, "index_only": index_only, **vars(report)})
    else:
        print_pairs(verification_pairs(report, bool(urls), index_only))
    if not report.is_good:
        raise typer.Exit(EXIT_REJECTED)


@app.command()
def repair(
    archive: Annotated[str, typer.Argument(help="URL of the archive.")],
    sources: Annotated[
        list[str] | None, typer.Option("--source", metavar="SOURCE...", help="What the archive was made of.")
    ] = None,
    more_sources: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    bundle: Annotated[str | None, typer.Option(help="A copy of the archive's bundle, if that is lost.")] = None,
    accept_changed: Annotated[
        bool,
        typer.Option("--accept-changed", help="Also put in parts that come out with other bytes; a new manifest."),
    ] = False,
    workers: Annotated[int, typer.Option(help="Ray workers; 0 runs without Ray.")] = 0,
    address: Address = None,
    member_pattern: MemberPattern = None,
    storage_options: StorageOptionsText = "{}",
    as_json: AsJson = False,
) -> None:
    """Redo the missing and damaged parts of an archive."""
    from pipelines import repair as repairing
    from pipelines.compress_plan import WorkerOptions
    from vcinr_batch.console import ProgressDisplay, print_json, print_pairs
    from vcinr_batch.summary_text import repair_pairs

    if more_sources and not sources:
        raise ConfigError(f"unexpected argument {more_sources[0]!r}; give sources after --source")
    options = parse_storage_options(storage_options)
    job = repairing.RepairJob(
        archive=archive,
        sources=(*(sources or []), *(more_sources or [])),
        bundle=bundle,
        member_pattern=member_pattern,
        accept_changed=accept_changed,
        workers=WorkerOptions(None if address and not workers else workers, address),
        storage_options=options,
    )
    with explaining_unfinished(archive, options), ProgressDisplay(as_json) as display:
        report = repairing.repair(job, lambda stage, done, total: display.show(stage, done, total, {}))
    if as_json:
        print_json({"event": "done", "is_good": report.is_good, **vars(report)})
    else:
        print_pairs(repair_pairs(report))
    if not report.is_good:
        raise typer.Exit(EXIT_REJECTED)


def _fail(message: str, code: int) -> int:
    print(f"vcinr: {' '.join(message.split())}", file=sys.stderr)
    return code


def _cpu_count() -> int:
    # What this process may use: in a container or under Slurm less than the machine has. macOS does not tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _show_notice(as_json: bool, text: str) -> None:
    from vcinr_batch.console import print_json

    if as_json:
        print_json({"event": "waiting", "message": text})
    else:
        print(f"vcinr: {text}", file=sys.stderr, flush=True)


def _show_compression(display: Any, progress: "CompressProgress") -> None:
    from pipelines.compress_progress import progress_figures, progress_text

    figures, text = progress_figures(progress), progress_text(progress)
    display.show("compress", progress.samples, progress.total_samples, figures, text)


def _show_dry_run(job: "CompressJob", as_json: bool) -> None:
    from pipelines.dry_run import estimate
    from pipelines.dry_run_text import dry_run_json, dry_run_pairs
    from vcinr_batch.console import print_json, print_pairs

    report = estimate(job)
    if as_json:
        print_json({"event": "done", **dry_run_json(report)})
    else:
        print_pairs(dry_run_pairs(report))


def _figures_text(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
