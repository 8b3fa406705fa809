"""What is shown to people and to machines, and when."""

import json
import math

import numpy as np
import pytest

from vcinr_batch import console
from vcinr_batch.console import ProgressDisplay, plural, print_json, print_pairs, size_text

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be changed in place."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_machines_get_a_line_a_second_and_the_last_one(capsys: Capture, clock: list[float]) -> None:
    with ProgressDisplay(as_json=True) as display:
        for second, done in ((0.5, 1), (1.0, 2), (1.5, 3), (2.0, 4), (2.1, 5)):
            clock[0] = 100.0 + second
            display.show("verify", done, 5, {"problems": 0})
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["done"] for line in lines] == [2, 4, 5]
    assert lines[0] == {"event": "progress", "stage": "verify", "done": 2, "total": 5, "problems": 0}
    assert err == ""


def test_a_log_gets_a_line_now_and_then_and_none_for_a_short_run(capsys: Capture, clock: list[float]) -> None:
    with ProgressDisplay(as_json=False) as display:
        for seconds, done in ((29, 1), (31, 2), (40, 3), (62, 4), (63, 5)):
            clock[0] = 100.0 + seconds
            display.show("compress", done, 5, {}, "1.5 MB/s")
    assert capsys.readouterr() == ("", "compress 2/5 1.5 MB/s\ncompress 4/5 1.5 MB/s\n")


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    with ProgressDisplay(as_json=False) as display:
        display.show("codec", 3, 10, {"loss": 0.5}, "loss 0.5")
        display.show("codec", 10, 10, {"loss": 0.25}, "loss 0.25")
        bar = display._bar
        assert bar is not None
        (task,) = bar.tasks
        assert (task.description, task.completed, task.total, task.fields["text"]) == ("codec", 10, 10, "loss 0.25")
    assert bar.live.is_started is False
    assert capsys.readouterr().out == ""


def test_numbers_that_json_lacks_become_null(capsys: Capture) -> None:
    print_json({"psnr": math.inf, "nested": {7: [math.nan, 1.5]}, "pair": (1, "a")})
    assert json.loads(capsys.readouterr().out) == {"psnr": None, "nested": {"7": [None, 1.5]}, "pair": [1, "a"]}


def test_numpy_s_numbers_become_plain_ones(capsys: Capture) -> None:
    print_json({"quality": np.int32(7), "range": np.array([1.5, np.inf], np.float32)})
    assert json.loads(capsys.readouterr().out) == {"quality": 7, "range": [1.5, None]}


def test_values_are_aligned(capsys: Capture) -> None:
    print_pairs([("a", "1"), ("long", "2"), ("", "3")])
    assert capsys.readouterr().out == "a     1\nlong  2\n      3\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (3456, "3.456 kB"), (1.2e6, "1.2 MB"), (5e13, "50 TB")],
)
def test_sizes_are_decimal(size: float, text: str) -> None:
    assert size_text(size) == text


def test_counts_are_words() -> None:
    assert (plural(1, "sample"), plural(1024, "sample"), plural(0, "row")) == ("1 sample", "1,024 samples", "0 rows")
