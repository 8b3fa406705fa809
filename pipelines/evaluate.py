"""Compares codecs on held-out samples: rate and distortion at the same access unit, every byte counted."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipelines.archive_codec import archive_point
from pipelines.baseline_codecs import FieldCodec, library_codecs
from pipelines.eof_baseline import eof_codec, localized_codec
from pipelines.evaluate_figures import draw_figures
from pipelines.evaluate_inputs import EvaluateJob, EvaluationInputs, read_inputs
from pipelines.evaluate_page import result_json, result_page
from pipelines.evaluate_results import OURS, CodecResult, Evaluation
from pipelines.heldout_samples import HeldOut
from pipelines.operating_points import OperatingPoint, bounded_point, point_of, search_psnr
from vcinr_batch.compression import QualityRequest, one_thread
from vcinr_batch.errors import ArchiveExistsError, ConfigError, VcinrError
from vcinr_batch.storage import exists, join_url, public_url, write_bytes
from vcinr_batch.training.training_samples import TrainingSamples

__all__ = ["EvaluateJob", "EvaluateReport", "evaluate"]

OVERLAP_DB = 3.0
"""Near its finest level a base alone may cost more than a coarser one with a residual."""
RESULTS_JSON, RESULTS_PAGE = "results.json", "results.md"

Progress = Callable[[int, int, str], None]
"""Called with codecs done, codecs in all, and what is being done."""
Notice = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class EvaluateReport:
    """What `evaluate` wrote."""

    results: Evaluation
    files: tuple[str, ...]
    """URLs."""
    seconds: float


def evaluate(job: EvaluateJob, progress: Progress | None = None, notice: Notice | None = None) -> EvaluateReport:
    """Compare our codec with others on held-out samples; writes `results.json`, `results.md` and two plots.

    Every codec codes each sample alone and is measured by decoding its bytes. A codec that is not installed or that
    fails is left out, with the reason in the results.

    Args:
        job: the whole of it.
        progress: called before and after each codec.
        notice: called with one line for each codec that is left out.

    Raises:
        ArchiveExistsError: there are results at the output, and `overwrite` is off.
        ConfigError: training and held-out samples overlap, or a selection makes no sense.
        SourceError: a file is missing or damaged, or not one sample can be compressed.
        SampleNotFoundError, BundleMismatchError, CorruptBitstreamError: as `compress`.
    """
    started = time.monotonic()
    _check_output(job)
    with tempfile.TemporaryDirectory(prefix="vcinr-evaluate-") as folder, one_thread():
        inputs = read_inputs(job, Path(folder))
        results = _compare(job, inputs, progress or (lambda _done, _total, _text: None), notice or (lambda _text: None))
    files = _write(job, results, notice or (lambda _text: None))
    return EvaluateReport(results, tuple(files), time.monotonic() - started)


def _check_output(job: EvaluateJob) -> None:
    url = join_url(job.output, RESULTS_JSON)
    if not job.overwrite and exists(url, storage_options=job.storage_options):
        raise ArchiveExistsError(f"{public_url(url)} is there already; pass --overwrite, or another --output")


def _compare(job: EvaluateJob, inputs: EvaluationInputs, progress: Progress, notice: Notice) -> Evaluation:
    makers = _codec_makers(inputs)
    results = Evaluation(
        bundle=inputs.bundle,
        bundle_bytes=inputs.bundle_bytes,
        samples=len(inputs.held_out.blocks),
        rejected=inputs.rejected,
        available=inputs.available,
        values=inputs.held_out.value_count,
        field_shape=inputs.held_out.shape,
        value_range=float(inputs.held_out.value_range.mean()),
        training_samples=0 if inputs.training is None else len(inputs.training.normalized),
        targets_db=job.targets_db,
        bound_shares=job.bound_shares,
    )
    total = 1 + len(makers)
    progress(0, total, OURS)
    results.codecs.append(_our_result(inputs, results, notice))
    for done, (name, make) in enumerate(makers.items(), 1):
        progress(done, total, name)
        try:
            results.codecs += [_codec_result(codec, inputs.held_out, results) for codec in make()]
        except MemoryError:
            raise
        except Exception as error:  # a library may raise anything; the other codecs go on
            reason = str(error) if isinstance(error, VcinrError) else f"{type(error).__name__}: {error}"
            results.left_out[name] = reason[:300]
            notice(f"{name} is left out: {reason[:300]}")
    progress(total, total, "")
    return results


def _codec_makers(inputs: EvaluationInputs) -> dict[str, Callable[[], Sequence[FieldCodec]]]:
    makers: dict[str, Callable[[], Sequence[FieldCodec]]] = {}
    makers["EOF"] = partial(_learned, eof_codec, inputs)
    makers["localised EOF"] = partial(_learned, partial(localized_codec, bundle=inputs.bundle), inputs)
    return makers | library_codecs(float(inputs.held_out.value_range.mean()))


def _learned(make: Callable[[TrainingSamples], FieldCodec], inputs: EvaluationInputs) -> list[FieldCodec]:
    if inputs.training is None:
        raise ConfigError("it learns: give --train-select or --train-source")
    return [make(inputs.training)]


def _our_result(inputs: EvaluationInputs, results: Evaluation, notice: Notice) -> CodecResult:
    def at_level(level: float) -> OperatingPoint:
        return archive_point(inputs.job, inputs.held_out, level, QualityRequest(level=int(level)))

    def at_share(share: float) -> OperatingPoint:
        return _our_bound(inputs, share)

    finest = len(inputs.bundle.quality_psnr_db) - 1
    points = search_psnr(at_level, results.targets_db, (0.0, float(finest)), is_discrete=True)
    bounded = list[OperatingPoint]()
    try:
        bounded = [at_share(share) for share in results.bound_shares]
        # Beyond what the levels reach, a bound is how a user gets a PSNR.
        reached = max(point.psnr_db for point in points) - OVERLAP_DB
        beyond = [db for db in results.targets_db if db > reached]
        if beyond:
            found = search_psnr(at_share, beyond, (max(results.bound_shares), min(results.bound_shares)), False)
            points += [point for point in found if point.psnr_db > reached]
    except VcinrError as error:
        results.left_out[f"{OURS} at a bound"] = str(error)[:300]
        notice(f"{OURS} at a bound is left out: {str(error)[:300]}")
    return CodecResult(OURS, "quality level", inputs.bundle_bytes, points, bounded)


def _our_bound(inputs: EvaluationInputs, share: float) -> OperatingPoint:
    return archive_point(inputs.job, inputs.held_out, share, QualityRequest(max_error_share=share), share)


def _codec_result(codec: FieldCodec, held_out: HeldOut, results: Evaluation) -> CodecResult:
    points = search_psnr(
        partial(point_of, codec, held_out), results.targets_db, codec.ends, is_discrete=codec.is_discrete
    )
    bounded = [bounded_point(codec, held_out, share) for share in results.bound_shares]
    return CodecResult(codec.name, codec.parameter, codec.model_bytes, points, bounded)


def _write(job: EvaluateJob, results: Evaluation, notice: Notice) -> list[str]:
    contents = {RESULTS_JSON: result_json(results), RESULTS_PAGE: result_page(results).encode()}
    try:
        contents |= draw_figures(results)
    except ConfigError as error:
        notice(f"no plots: {error}")
    for name, content in contents.items():
        write_bytes(join_url(job.output, name), content, storage_options=job.storage_options)
    return [public_url(join_url(job.output, name)) for name in contents]
