"""What one training worker does, alone in this process or as one of a group that Ray Train has started."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vcinr_batch.bundle import save_bundle
from vcinr_batch.config import RunConfig
from vcinr_batch.data.sources import FieldSource, open_fields
from vcinr_batch.errors import StoreUnavailableError, VcinrError
from vcinr_batch.storage import StorageOptions, exists, join_url, public_url, remove, sha256_hex, write_bytes
from vcinr_batch.training.bundle_training import Progress, train_codec_of, train_network
from vcinr_batch.training.metrics_log import MetricsLog
from vcinr_batch.training.worker_group import ALONE, WorkerGroup, current_group, on_every, on_first

LOG_FOLDER, CHECKPOINT_NAME = "training", "checkpoint-{}.safetensors"
"""The names of two trainings in one output differ: each goes on from its own checkpoint and has its own log."""


@dataclass(frozen=True)
class TrainJob:
    """One training run."""

    config: RunConfig
    sources: tuple[str, ...]
    output: str
    """URL of a directory for the bundle; the log of what was measured goes to `training/<run>/` in it."""
    checkpoint: str | None = None
    """URL; `checkpoint-<run>.safetensors` in the output by default. Removed at the end."""
    storage_options: StorageOptions = field(default=None, repr=False)
    """Of the file systems of all of them. May hold credentials: never shown."""


@dataclass(frozen=True)
class TrainOutcome:
    """What a run has written."""

    bundle_url: str
    bundle_sha256: str
    bundle_bytes: int
    log_url: str
    """Of the directory with what was measured."""
    report: Mapping[str, Any]
    """As in the bundle."""


class ProgressBoard:
    """A Ray actor between the workers, which post, and the driver, which looks now and then."""

    def __init__(self) -> None:
        self._events: list[tuple[Any, ...]] = []
        self._result: TrainOutcome | VcinrError | None = None
        self._has_started = False

    def start(self) -> None:
        """Say that the workers are there."""
        self._has_started = True

    def has_started(self) -> bool:
        """Whether they ever were."""
        return self._has_started

    def post(self, *event: Any) -> None:
        """Arguments of a `Progress`."""
        self._events.append(event)

    def take(self) -> list[tuple[Any, ...]]:
        """Events since the last call."""
        events, self._events = self._events, []
        return events

    def finish(self, result: TrainOutcome | VcinrError) -> None:
        """Leave what came out, or the error of ours that ended the run."""
        self._result = result

    def result(self) -> TrainOutcome | VcinrError | None:
        """None while nobody has finished."""
        return self._result


def run_identity(config: RunConfig, source: FieldSource) -> str:
    """12 hexadecimal digits, the same for two trainings of the same configuration on the same files.

    They depend on what the store says of the files (size and time of change, ETag), so no data is read for them; not on
    the workers, credentials or the output.
    """
    files = [[_place(file.url), file.fingerprint, file.format] for file in source.files]
    content = {"config": config.model_dump(mode="json"), "files": files}
    return sha256_hex(json.dumps(content, sort_keys=True).encode())[:12]


def train_bundle_of(
    job: TrainJob, progress: Progress | None = None, group: WorkerGroup = ALONE, device: str = "cpu"
) -> TrainOutcome | None:
    """Open the sources, train in both stages, write the bundle and remove the checkpoint.

    A run that was killed goes on from its checkpoint.

    Args:
        progress: called on the first worker.
        group: all of whose workers call this with the same job.
        device: of the network.

    Returns:
        On the first worker what was written; None on the others, which have nothing to do in the second stage.

    Raises:
        VcinrError: as `open_fields` and `train_bundle`, or the output cannot be written; on all workers the same.
    """
    source = on_every(group, lambda: open_fields(job.sources, job.config.source, job.storage_options))
    on_first(group, lambda: _check_writable(job.output, job.storage_options))
    # The first worker's: a shared file system need not show the same times everywhere.
    identity = on_first(group, lambda: run_identity(job.config, source))
    checkpoint = job.checkpoint or join_url(job.output, CHECKPOINT_NAME.format(identity))
    log_url = join_url(job.output, LOG_FOLDER, identity)
    logs: list[MetricsLog] = []

    def record(stage: str, step: int, steps: int, figures: dict[str, float]) -> None:
        # Opened with the first record: by then a checkpoint of another run has been refused.
        if not logs:
            logs.append(MetricsLog(log_url, job.storage_options, resumes))
        logs[0].record(stage, step, steps, figures)
        if progress:
            progress(stage, step, steps, figures)

    resumes = on_first(group, lambda: exists(checkpoint, storage_options=job.storage_options))
    try:
        trained = train_network(source, job.config, checkpoint, record, job.storage_options, group, device)
        if group.rank:
            return None
        bundle, data = train_codec_of(trained, job.config, record)
    finally:
        for log in logs:
            log.close()
    url = save_bundle(data, job.output, job.storage_options)
    remove(checkpoint, storage_options=job.storage_options)
    return TrainOutcome(url, bundle.sha256, len(data), log_url, bundle.report)


def train_in_group(job: TrainJob, board: Any, threads: int) -> None:
    """The function that Ray Train runs on each worker.

    An error of ours ends the run: it goes to the board, and every worker returns. All else, an unavailable store
    included, is raised: Ray Train starts the workers again, and they go on from the checkpoint.

    Args:
        board: handle of a `ProgressBoard`.
        threads: CPUs of this worker, so that several on one machine do not fight over its cores.
    """
    import ray
    from ray.train.torch import get_device

    torch.set_num_threads(threads)
    group = current_group()

    board.start.remote()

    def post(*event: Any) -> None:
        board.post.remote(*event)

    result: TrainOutcome | VcinrError | None
    try:
        result = train_bundle_of(job, post, group, str(get_device()))
    except StoreUnavailableError:
        raise
    except VcinrError as error:
        result = error
    if result is not None and group.rank == 0:
        ray.get(board.finish.remote(result))


def _place(url: str) -> str:
    """The URL without credentials, or the path whatever the working directory is."""
    return public_url(url) if "://" in url or "::" in url else os.path.abspath(url)


def _check_writable(output: str, storage_options: StorageOptions) -> None:
    """An output that cannot be written shows before the training, not after it."""
    probe = join_url(output, ".vcinr-can-write")
    write_bytes(probe, b"", storage_options=storage_options)
    remove(probe, storage_options=storage_options)
