"""What the command line shows: progress, results as aligned lines, the same as JSON lines."""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

JSON_SECONDS = 1.0
"""Time between progress lines for machines."""
LOG_SECONDS = 30.0
"""Time between progress lines where stderr is a file."""


class ProgressDisplay:
    """Progress while it is open: a bar on a terminal, JSON lines on stdout with `--json`, else now and then a line."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last = time.monotonic()

    def __enter__(self) -> "ProgressDisplay":
        if sys.stderr.isatty() and not self._as_json:
            self._bar = _make_bar()
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, stage: str, done: int, total: int, figures: Mapping[str, float], text: str = "") -> None:
        """Show that `done` of `total` are done.

        Args:
            stage: what is going on; each stage has a bar of its own.
            done: so far.
            total: in all.
            figures: for machines.
            text: the figures, for people.
        """
        if self._bar is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bar.add_task(stage, total=total, text="")
            self._bar.update(self._tasks[stage], completed=done, total=total, text=text)
            return
        now = time.monotonic()
        if done < total and now - self._last < (JSON_SECONDS if self._as_json else LOG_SECONDS):
            return
        if self._as_json:
            print_json({"event": "progress", "stage": stage, "done": done, "total": total, **figures})
        elif now - self._last >= LOG_SECONDS:
            print(f"{stage} {done}/{total} {text}", file=sys.stderr, flush=True)
        self._last = now


def print_json(content: Mapping[str, Any]) -> None:
    """One line on stdout; what JSON has no number for becomes null."""
    print(json.dumps(_finite(content), separators=(",", ":")), flush=True)


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Names and values on stdout, the values aligned; an empty name continues the value above."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        print(f"{name:<{width}}  {value}")


def size_text(size_bytes: float) -> str:
    """`812 B`, `3.4 kB`, `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.4g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.4g} TB"


def plural(count: int, word: str) -> str:
    """`1 sample`, `1,024 samples`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _make_bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if hasattr(value, "tolist"):  # NumPy's numbers and arrays: what a manifest holds may be typed
        return _finite(value.tolist())
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
