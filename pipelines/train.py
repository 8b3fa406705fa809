"""Trains a bundle from a configuration and sources, here or on Ray Train, and puts it where `compress` finds it."""

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pipelines.ray_session import Notice, ray_session, waits_told
from pipelines.train_worker import LOG_FOLDER, ProgressBoard, TrainJob, TrainOutcome, train_bundle_of, train_in_group
from vcinr_batch.config import RunConfig
from vcinr_batch.errors import ConfigError, VcinrError
from vcinr_batch.storage import StorageOptions, check_url, join_url
from vcinr_batch.training.bundle_training import Progress

WORKER_FAILURES = 3
"""How often Ray Train starts the workers again after one was lost; preempted nodes do not count."""
# Long, since all workers wait while the first one starts the linear term; a dead worker is Ray's to notice.
_PEER_TIMEOUT_SECONDS = 6 * 3600
_LOOK_SECONDS = 0.3
_ABORT_SECONDS = 10.0
"""At Ctrl-C, for Ray Train to end its workers by itself."""


@dataclass(frozen=True)
class TrainWorkers:
    """Who trains."""

    count: int = 0
    """Workers of Ray Train that share every batch; 0 trains in this process without Ray."""
    use_gpu: bool = False
    """One graphics card for each worker."""
    cpus: int = 1
    """CPUs of a worker, and its torch threads."""
    address: str | None = None
    """Of a Ray cluster; a local Ray by default."""

    def __post_init__(self) -> None:
        if self.count < 0 or self.cpus < 1:
            raise ConfigError(f"expected 0 or more workers of 1 or more CPUs, got {self.count} of {self.cpus}")
        if not self.count and (self.use_gpu or self.address):
            raise ConfigError("a graphics card or a Ray address needs workers: give --num-workers 1 or more")


@dataclass(frozen=True)
class TrainReport:
    """What `train` wrote."""

    bundle_url: str
    bundle_sha256: str
    bundle_bytes: int
    validation_psnr_db: float
    """Of the fitted validation samples, before quantisation."""
    seconds: float
    log_url: str
    """Of the directory with `metrics.jsonl` and `tensorboard/`."""
    report: Mapping[str, Any]
    """As in the bundle."""


def train(
    config: RunConfig,
    sources: Sequence[str],
    output: str,
    checkpoint: str | None = None,
    progress: Progress | None = None,
    storage_options: StorageOptions = None,
    workers: TrainWorkers | None = None,
    notice: Notice | None = None,
) -> TrainReport:
    """Train a bundle and write it to `<output>/<sha256>.safetensors`.

    What is measured on the way goes to `<output>/training/<run>/`: `metrics.jsonl` and `tensorboard/`. A run that was
    killed goes on from its checkpoint when the same call is made again; the checkpoint is removed at the end. `<run>`
    is a digest of configuration and source files: different trainings in one output do not meet.

    Args:
        config: the whole run.
        sources: URLs and patterns of the training data.
        output: URL of a directory.
        checkpoint: URL; `<output>/checkpoint-<run>.safetensors` by default.
        progress: called with stage, step, steps and figures; with workers from another thread.
        storage_options: of the file systems of the sources and the output.
        workers: who trains; this process alone by default. Their number changes the rounding of the result only.
        notice: called with one line when workers wait for room on a cluster, now and then; from another thread.

    Raises:
        VcinrError: as `open_fields` and `train_bundle`, the output cannot be written, or workers were lost again and
            again.
        ConfigError: Ray is not installed, no cluster at the address, or fewer graphics cards than workers.
    """
    started = time.monotonic()
    for what, url in [*(("source", url) for url in sources), ("output", output), ("checkpoint", checkpoint)]:
        if url is not None:
            check_url(url, what)
    job = TrainJob(
        config,
        tuple(_absolute(url) for url in sources) if workers and workers.count else tuple(sources),
        output,
        checkpoint,
        storage_options,
    )
    outcome = (
        _train_on_ray(job, workers, progress, notice) if workers and workers.count else train_bundle_of(job, progress)
    )
    assert outcome is not None  # of the first worker, or of the only one
    return TrainReport(
        bundle_url=join_url(output, outcome.bundle_url.rsplit("/", 1)[-1]),
        bundle_sha256=outcome.bundle_sha256,
        bundle_bytes=outcome.bundle_bytes,
        validation_psnr_db=float(outcome.report["meta_learning"]["best_psnr_db"]),
        seconds=time.monotonic() - started,
        log_url=join_url(output, LOG_FOLDER, outcome.log_url.rsplit("/", 1)[-1]),
        report=outcome.report,
    )


def _train_on_ray(
    job: TrainJob, workers: TrainWorkers, progress: Progress | None, notice: Notice | None
) -> TrainOutcome:
    # Ray before 2.51 has both of its trainers and takes the older one unless told otherwise.
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    with ray_session(workers.address, workers.count * workers.cpus) as ray:
        _check_cards(ray, workers)
        board = ray.remote(num_cpus=0)(ProgressBoard).remote()
        wanted = {name: amount * workers.count for name, amount in _worker_resources(workers).items()}
        with (
            _shown(ray, board, progress),
            waits_told(ray, wanted, lambda: ray.get(board.has_started.remote()), notice),
        ):
            _fit(ray, job, workers, board)
        result = ray.get(board.result.remote())
    if isinstance(result, VcinrError):
        raise result
    if result is None:
        raise VcinrError("training ended without a result; run the same command again")
    return result  # type: ignore[no-any-return]


def _fit(ray: ModuleType, job: TrainJob, workers: TrainWorkers, board: Any) -> None:
    """Run Ray Train's workers to their end."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    job = TrainJob(
        job.config,
        job.sources,
        _absolute(job.output),
        _absolute(job.checkpoint) if job.checkpoint else None,
        job.storage_options,
    )  # Ray Train gives every worker a working directory of its own
    controllers: list[Any] = []

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """In place of Ray's handler, which waits without end while the workers have no room yet."""
            controllers.append(controller)

    with tempfile.TemporaryDirectory(prefix="vcinr-ray-train-", ignore_cleanup_errors=True) as storage:
        trainer = Trainer(
            # A closure, not train_loop_config, which Ray shows on its dashboard: storage options may hold credentials.
            lambda: train_in_group(job, board, workers.cpus),
            scaling_config=ScalingConfig(
                num_workers=workers.count, use_gpu=workers.use_gpu, resources_per_worker=_worker_resources(workers)
            ),
            # Ray's storage holds nothing: our own checkpoint is the one that counts, and needs no pickle.
            run_config=RunConfig(storage_path=storage, failure_config=FailureConfig(max_failures=WORKER_FAILURES)),
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if workers.use_gpu else "gloo", timeout_s=_PEER_TIMEOUT_SECONDS
            ),
        )
        try:
            trainer.fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            raise _our_error(error) from error
        except KeyboardInterrupt:
            for controller in controllers:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.get(controller.abort.remote(), timeout=_ABORT_SECONDS)
                ray.kill(controller)  # its workers die with it
            raise


@contextlib.contextmanager
def _shown(ray: ModuleType, board: Any, progress: Progress | None) -> Iterator[None]:
    """While open, hand on what the workers post; all of it, before it closes."""
    done = threading.Event()

    def look() -> None:
        ends = False
        with contextlib.suppress(ray.exceptions.RayError):  # the board is lost: the run ends with an error of its own
            while not ends:
                ends = done.wait(_LOOK_SECONDS)
                for event in ray.get(board.take.remote()):
                    if progress:
                        progress(*event)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _our_error(error: Exception) -> VcinrError:
    """The error of ours that a worker raised, or one that says that workers were lost."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, VcinrError):
            return cause
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    reason = lines[-1].strip() if lines else type(error).__name__
    return VcinrError(f"training workers failed {WORKER_FAILURES + 1} times ({reason}); run the same command again")


def _worker_resources(workers: TrainWorkers) -> dict[str, float]:
    return {"CPU": float(workers.cpus)} | ({"GPU": 1.0} if workers.use_gpu else {})


def _check_cards(ray: ModuleType, workers: TrainWorkers) -> None:
    """A Ray of our own does not grow: waiting for more cards would be for ever."""
    cards = int(ray.cluster_resources().get("GPU", 0))
    if workers.use_gpu and not workers.address and "RAY_ADDRESS" not in os.environ and cards < workers.count:
        raise ConfigError(f"--use-gpu: {workers.count} workers need a graphics card each, this machine has {cards}")


def _absolute(url: str) -> str:
    return url if "://" in url or "::" in url else os.path.abspath(url)
