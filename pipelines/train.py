"""Trains a bundle from a configuration and sources, and puts it where `compress` finds it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vcinr_batch.bundle import save_bundle
from vcinr_batch.config import RunConfig
from vcinr_batch.data.sources import open_fields
from vcinr_batch.storage import StorageOptions, check_url, join_url, remove, write_bytes
from vcinr_batch.training.bundle_training import Progress, train_bundle

CHECKPOINT_NAME = "checkpoint.safetensors"


@dataclass(frozen=True)
class TrainReport:
    """What `train` wrote."""

    bundle_url: str
    bundle_sha256: str
    bundle_bytes: int
    validation_psnr_db: float
    """Of the fitted validation samples, before quantisation."""
    seconds: float
    report: Mapping[str, Any]
    """As in the bundle."""


def train(
    config: RunConfig,
    sources: Sequence[str],
    output: str,
    checkpoint: str | None = None,
    progress: Progress | None = None,
    storage_options: StorageOptions = None,
) -> TrainReport:
    """Train a bundle and write it to `<output>/<sha256>.safetensors`.

    A run that was killed goes on from its checkpoint when the same call is made again; the checkpoint is removed at the
    end.

    Args:
        config: the whole run.
        sources: URLs and patterns of the training data.
        output: URL of a directory.
        checkpoint: URL; `<output>/checkpoint.safetensors` by default.
        progress: called with stage, step, steps and figures.
        storage_options: of the file systems of the sources and the output.

    Raises:
        VcinrError: as `open_fields` and `train_bundle`, or the output cannot be written.
    """
    started = time.monotonic()
    for what, url in [*(("source", url) for url in sources), ("output", output), ("checkpoint", checkpoint)]:
        if url is not None:
            check_url(url, what)
    source = open_fields(sources, config.source, storage_options)
    _check_writable(output, storage_options)
    checkpoint_url = checkpoint or join_url(output, CHECKPOINT_NAME)
    bundle, data = train_bundle(source, config, checkpoint_url, progress, storage_options)
    url = save_bundle(data, output, storage_options)
    remove(checkpoint_url, storage_options=storage_options)
    return TrainReport(
        bundle_url=url,
        bundle_sha256=bundle.sha256,
        bundle_bytes=len(data),
        validation_psnr_db=float(bundle.report["meta_learning"]["best_psnr_db"]),
        seconds=time.monotonic() - started,
        report=bundle.report,
    )


def _check_writable(output: str, storage_options: StorageOptions) -> None:
    """An output that cannot be written shows before the training, not after it."""
    probe = join_url(output, ".vcinr-can-write")
    write_bytes(probe, b"", storage_options=storage_options)
    remove(probe, storage_options=storage_options)
