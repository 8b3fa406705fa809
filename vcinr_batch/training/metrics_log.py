"""What training measured, as JSON lines and for TensorBoard, on any fsspec URL.

`<directory>/metrics.jsonl` is the record; the TensorBoard events are written from it, so that a run that was resumed
shows every step once in both.
"""

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from vcinr_batch.errors import SourceError
from vcinr_batch.storage import StorageOptions, exists, join_url, public_url, read_bytes, write_bytes

LINES_NAME, EVENTS_NAME = "metrics.jsonl", "tensorboard"


class MetricsLog:
    """An open log; one process writes it.

    Lines are written anew as a whole file with every record, and so are events on an object store, which cannot append:
    a run has few records, one for each validation. Of two processes that train the same at a time, the file is one's.
    """

    def __init__(self, directory: str, storage_options: StorageOptions = None, resume: bool = False) -> None:
        """Open the log.

        Args:
            directory: URL.
            storage_options: of its file system.
            resume: go on with the lines that are there; they are of this run. Otherwise they are replaced.

        Raises:
            SourceError: the lines that are there cannot be read.
        """
        self._url, self._options = join_url(directory, LINES_NAME), storage_options
        self._events_url = join_url(directory, EVENTS_NAME)
        self._lines: list[dict[str, Any]] = []
        if resume and exists(self._url, storage_options=storage_options):
            self._lines = _parse(read_bytes(self._url, storage_options=storage_options))
        fs, path = fsspec.core.url_to_fs(self._events_url, **dict(storage_options or {}))
        self._is_local = isinstance(fs, LocalFileSystem)
        self._folder = path if self._is_local else tempfile.mkdtemp(prefix="vcinr-events-")
        self._writer: Any = None

    def record(self, stage: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Add the figures of a step. Lines of this stage's later steps, from before a kill, are replaced.

        Raises:
            SourceError: the log cannot be written.
        """
        line = {"time": round(time.time(), 3), "stage": stage, "step": step, "steps": steps, **_finite(figures)}
        stages = [known["stage"] for known in self._lines]
        later = len(stages) - stages[::-1].index(stage) if stage in stages else len(stages)
        kept = [known for known in self._lines[:later] if known["stage"] != stage or known["step"] < step]
        if len(kept) < len(self._lines):
            self.close()
        self._lines = [*kept, line]
        self._write_lines()
        with self._translated_errors():
            self._write_events(line)

    def close(self) -> None:
        """Flush the events and forget the open file; the next record opens another one.

        Raises:
            SourceError: the events cannot be written.
        """
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._translated_errors():
                writer.close()
        if not self._is_local:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write_lines(self) -> None:
        text = "".join(_text(known) for known in self._lines)
        write_bytes(self._url, text.encode(), storage_options=self._options)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SourceError(f"cannot write {public_url(self._events_url)}: {error.strerror or error}") from error

    def _write_events(self, line: Mapping[str, Any]) -> None:
        new: Sequence[Mapping[str, Any]] = [line]
        if self._writer is None:
            self._writer, new = _open_writer(self._folder), self._lines
        if self._writer is None:
            return
        for known in new:
            _add_events(self._writer, known)
        self._writer.flush()
        if not self._is_local:
            for path in Path(self._folder).iterdir():
                url = join_url(self._events_url, path.name)
                write_bytes(url, path.read_bytes(), storage_options=self._options)


def _open_writer(folder: str) -> Any:
    """TensorBoard's writer, or None where tensorboardX is not installed: then there are the JSON lines."""
    try:
        # Not its SummaryWriter, which writes from a thread: what is flushed has to be in the file.
        from tensorboardX.event_file_writer import EventsWriter  # type: ignore[import-untyped]
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
    except ImportError:
        return None
    os.makedirs(folder, exist_ok=True)
    writer = EventsWriter(os.path.join(folder, "events"), f".{os.getpid()}")
    # TensorBoard reads a folder's files as one: from step 1 on, this one replaces what earlier ones hold.
    writer.write_event(Event(step=1, file_version="brain.Event:2"))
    writer.write_event(Event(step=1, session_log=SessionLog(status=SessionLog.START)))
    return writer


def _add_events(writer: Any, line: Mapping[str, Any]) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar  # type: ignore[import-untyped]

    for name, value in line.items():
        if name not in ("time", "stage", "step", "steps") and value is not None:
            summary = scalar(f"{line['stage']}/{name}", value)
            writer.write_event(Event(step=line["step"], wall_time=line["time"], summary=summary))


def _parse(data: bytes) -> list[dict[str, Any]]:
    """The whole lines; a kill may have cut the last one short."""
    lines = []
    for text in data.decode("utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("stage"), str) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":")) + "\n"


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    # JSON has no number for the others.
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
