"""The record of a training run: every step once, on local files and object stores, resumed or not."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX.event_file_writer import EventsWriter  # type: ignore[import-untyped]

from tests.servers.object_store import ObjectStore
from vcinr_batch.errors import SourceError
from vcinr_batch.storage import list_urls, read_bytes
from vcinr_batch.training.metrics_log import MetricsLog


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any] | None]:
    """URL of a folder and the options of its file system."""
    if request.param == "local":
        return str(tmp_path / "training"), None
    store: ObjectStore = request.getfixturevalue("s3")
    return f"{store.url}/training", store.storage_options


def lines_at(place: tuple[str, dict[str, Any] | None]) -> list[tuple[str, int, float | None]]:
    data = read_bytes(f"{place[0]}/metrics.jsonl", storage_options=place[1])
    lines = [json.loads(line) for line in data.decode().splitlines()]
    return [(line["stage"], line["step"], line["loss"]) for line in lines]


def events_at(place: tuple[str, dict[str, Any] | None], folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: by tag its steps and values."""
    folder.mkdir()
    for url in list_urls(f"{place[0]}/tensorboard", storage_options=place[1]):
        (folder / url.rsplit("/", 1)[-1]).write_bytes(read_bytes(url, storage_options=place[1]))
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_resumed_run_goes_on_without_a_step_twice(place: tuple[str, dict[str, Any] | None], tmp_path: Path) -> None:
    """Killed after step 3 was logged, resumed from a checkpoint of step 1."""
    log = MetricsLog(*place)
    for step in (1, 2, 3):
        log.record("meta-learning", step, 4, {"loss": 1 / step})
    resumed = MetricsLog(*place, resume=True)
    for step in (2, 3, 4):
        resumed.record("meta-learning", step, 4, {"loss": 2.0})
    resumed.record("codec", 1, 2, {"loss": 0.5})
    resumed.close()
    losses = [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]
    assert lines_at(place) == [*(("meta-learning", *pair) for pair in losses), ("codec", 1, 0.5)]
    assert events_at(place, tmp_path / "events") == {"meta-learning/loss": losses, "codec/loss": [(1, 0.5)]}


def test_a_new_run_replaces_the_log_of_an_older_one(place: tuple[str, dict[str, Any] | None], tmp_path: Path) -> None:
    for steps, resume in (((1, 2, 3), False), ((2,), False)):
        log = MetricsLog(*place, resume=resume)
        for step in steps:
            log.record("meta-learning", step, 3, {"loss": float(step)})
        log.close()
    assert lines_at(place) == [("meta-learning", 2, 2.0)]
    assert events_at(place, tmp_path / "events") == {"meta-learning/loss": [(2, 2.0)]}


def test_the_codec_is_trained_again_after_a_kill_in_it(place: tuple[str, dict[str, Any] | None]) -> None:
    log = MetricsLog(*place)
    for stage, step in (("meta-learning", 5), ("codec", 1), ("codec", 2)):
        log.record(stage, step, 9, {"loss": 1.0})
    resumed = MetricsLog(*place, resume=True)
    resumed.record("codec", 1, 9, {"loss": 2.0})
    assert lines_at(place) == [("meta-learning", 5, 1.0), ("codec", 1, 2.0)]


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    place = (str(tmp_path), None)
    log = MetricsLog(*place)
    log.record("codec", 1, 2, {"loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage":"codec","st')
    MetricsLog(*place, resume=True).record("codec", 2, 2, {"loss": 2.0})
    assert lines_at(place) == [("codec", 1, 1.0), ("codec", 2, 2.0)]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    place = (str(tmp_path), None)
    MetricsLog(*place).record("meta-learning", 1, 2, {"loss": float("nan")})
    assert lines_at(place) == [("meta-learning", 1, None)]


@pytest.mark.parametrize("method", ["flush", "close"])
def test_events_that_cannot_be_written_are_an_error_of_ours(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = MetricsLog(str(tmp_path))
    log.record("codec", 1, 3, {"loss": 1.0})
    monkeypatch.setattr(EventsWriter, method, no_room)
    calls = {"flush": lambda: log.record("codec", 2, 3, {"loss": 1.0}), "close": log.close}
    with pytest.raises(SourceError, match=r"^cannot write .*tensorboard: No space left on device$"):
        calls[method]()


def test_a_folder_for_events_that_cannot_be_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(SourceError, match=r"^cannot write "):
        MetricsLog(str(tmp_path)).record("codec", 1, 3, {"loss": 1.0})


def test_of_two_that_train_the_same_at_a_time_the_lines_are_one_s(place: tuple[str, dict[str, Any] | None]) -> None:
    logs = [MetricsLog(*place), MetricsLog(*place)]
    for step in (1, 2):
        for log in logs:
            log.record("codec", step, 3, {"loss": float(step)})
    assert lines_at(place) == [("codec", 1, 1.0), ("codec", 2, 2.0)]
