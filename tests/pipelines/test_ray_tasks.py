"""Ray as a way to call a function many times: order, errors, lost workers, and a Ray that is not ours."""

import os
import sys
from collections.abc import Iterator

import pytest

from pipelines.ray_tasks import TASKS_PER_WORKER, run_on_ray
from vcinr_batch.errors import ConfigError, SourceError, VcinrError

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def running_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("running_ray")
class TestOnARayThatRunsAlready:
    def test_every_item_is_done_once_and_ray_keeps_running(self) -> None:
        results = list(run_on_ray(lambda shared, item: shared * item, 10, range(20), workers=2))
        assert sorted(results) == [10 * item for item in range(20)]
        assert ray.is_initialized()

    def test_items_are_taken_only_as_workers_become_free(self) -> None:
        taken: list[int] = []

        def items() -> Iterator[int]:
            for item in range(40):
                taken.append(item)
                yield item

        running = run_on_ray(lambda _, item: item, None, items(), workers=2)
        next(running)
        assert len(taken) <= TASKS_PER_WORKER * 2
        running.close()
        assert len(taken) <= TASKS_PER_WORKER * 2

    def test_an_error_of_ours_comes_out_as_itself(self) -> None:
        def fail(_: None, item: int) -> int:
            raise SourceError(f"shard {item}: gone")

        with pytest.raises(SourceError, match=r"^shard 0: gone$") as caught:
            list(run_on_ray(fail, None, [0], workers=2))
        assert type(caught.value) is SourceError

    def test_any_other_error_keeps_its_kind(self) -> None:
        with pytest.raises(ZeroDivisionError):
            list(run_on_ray(lambda _, item: 1 // item, None, [0], workers=2))

    def test_a_worker_that_dies_every_time_is_named_as_lost(self) -> None:
        with pytest.raises(VcinrError, match=r"worker was lost 4 times.*run the same command again"):
            list(run_on_ray(lambda _, item: os._exit(item), None, [1], workers=2))

    def test_a_worker_that_dies_once_is_replaced(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        marker = tmp_path_factory.mktemp("marker") / "died"

        def die_once(_: None, item: int) -> int:
            if not marker.exists():
                marker.touch()
                os._exit(1)
            return item

        assert list(run_on_ray(die_once, None, [7], workers=2)) == [7]


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"vcinr-batch\[ray\].*--workers 0"):
        list(run_on_ray(lambda _, item: item, None, [1], workers=1))
