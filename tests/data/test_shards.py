import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from vcinr_batch.archive.manifest import check_path
from vcinr_batch.config import SampleConfig, SourceConfig
from vcinr_batch.data import shards as shards_module
from vcinr_batch.data.axes import Axis
from vcinr_batch.data.coordinates import make_grid
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.shards import Shard, halves, iter_samples, make_layout, plan_shards, shard_blocks, shard_name
from vcinr_batch.data.sources import FieldSource, open_fields
from vcinr_batch.errors import ConfigError

MakeFields = Callable[..., xarray.Dataset]


def layout_of(shape: tuple[int, ...], block_shape: tuple[int, ...]) -> Layout:
    axes = tuple(Axis(f"d{k}", np.arange(n)) for k, n in enumerate(shape))
    return Layout("v", axes, block_shape)


@pytest.fixture
def source(tmp_path: Path, make_fields: MakeFields) -> FieldSource:
    """6 hours of 3 x 4, one hole and one hour without any value."""
    fields = make_fields()
    fields.t2m.values[1, 2, 3] = np.nan
    fields.t2m.values[4] = np.nan
    fields.to_zarr(tmp_path / "a.zarr", consolidated=False)
    return open_fields(str(tmp_path / "a.zarr"), SourceConfig())


@pytest.mark.parametrize(
    ("config", "block_shape"),
    [
        ({}, (1, 3, 4)),
        ({"block": {"time": 4}}, (4, 3, 4)),
        ({"block": {"time": 99}}, (6, 3, 4)),
        ({"block": {"latitude": 2, "longitude": 2}}, (6, 2, 2)),
        ({"block": {}, "per_label": ("time", "latitude")}, (1, 1, 4)),
    ],
)
def test_a_block_spans_what_is_not_cut(
    source: FieldSource, config: dict[str, Any], block_shape: tuple[int, ...]
) -> None:
    assert make_layout(source, SampleConfig(**config)).block_shape == block_shape


def test_a_block_along_an_unknown_dimension_is_refused(source: FieldSource) -> None:
    with pytest.raises(ConfigError, match=r"sample.block names 'hour', but t2m has time, latitude, longitude"):
        make_layout(source, SampleConfig(block={"hour": 1}))


@pytest.mark.parametrize(
    ("shape", "block_shape", "shard_samples", "chunks", "expected"),
    [
        ((624, 33, 49), (1, 33, 49), 512, (24, 33, 49), [(504, 1, 1), (120, 1, 1)]),
        ((100, 8), (1, 8), 30, (1, 8), [(30, 1), (30, 1), (30, 1), (10, 1)]),
        ((100, 8), (1, 8), 30, (50, 8), [(30, 1), (30, 1), (30, 1), (10, 1)]),
        ((100, 8), (4, 8), 5, (8, 8), [(4, 1)] * 6 + [(1, 1)]),
        ((3, 10, 8), (1, 1, 4), 40, (1, 1, 1), [(2, 10, 2), (1, 10, 2)]),
        ((3, 10, 8), (1, 1, 4), 10, (1, 1, 1), [(1, 5, 2)] * 6),
        ((2, 3), (2, 3), 1, (2, 3), [(1, 1)]),
    ],
)
def test_shards_are_filled_from_the_inner_axis_and_end_with_chunks(
    shape: Any, block_shape: Any, shard_samples: int, chunks: Any, expected: list[tuple[int, ...]]
) -> None:
    shards = plan_shards(layout_of(shape, block_shape), shard_samples, chunks)
    assert [tuple(b - a for a, b in zip(s.start, s.stop, strict=True)) for s in shards] == expected


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4),
    st.integers(1, 50),
)
def test_every_block_is_in_exactly_one_shard(axes: list[tuple[int, int, int]], shard_samples: int) -> None:
    shape, lengths, chunks = zip(*axes, strict=True)
    layout = layout_of(shape, tuple(min(n, b) for n, b in zip(shape, lengths, strict=True)))
    shards = plan_shards(layout, shard_samples, chunks)
    blocks = [block for shard in shards for block in shard_blocks(shard)]
    assert len(blocks) == len(set(blocks)) == layout.sample_count
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert all(shard.sample_count == len(list(shard_blocks(shard))) <= shard_samples for shard in shards)
    assert max(blocks) == tuple(n - 1 for n in layout.block_counts)


def test_planning_millions_of_samples_takes_no_time() -> None:
    """25,000 shards of 512 samples; the allowance is for a busy machine."""
    layout = layout_of((25_000 * 512, 721, 1440), (1, 721, 1440))
    start = time.perf_counter()
    shards = plan_shards(layout, 512, (1, 721, 1440))
    assert time.perf_counter() - start < 2
    assert len(shards) == 25_000


def test_a_shard_names_its_part() -> None:
    assert shard_name(layout_of((3,), (1,)), Shard(12, (0,), (3,))) == "v-00000012"


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("air_temperature-2.m", "air_temperature-2.m-00000001"),
        ("a-b.c%d", "a-b.c~25d-00000001"),
        ("group/t[m]*?#:", "group~2ft~5bm~5d~2a~3f~23~3a-00000001"),
        ("a~25d", "a~7e25d-00000001"),
        ("..", "~2e.-00000001"),
        ("température", "temp~c3~a9rature-00000001"),
    ],
)
def test_a_part_can_be_named_after_any_variable(variable: str, expected: str) -> None:
    layout = Layout(variable, (Axis("x", np.arange(3)),), (1,))
    name = shard_name(layout, Shard(1, (0,), (3,)))
    assert name == expected
    check_path(f"parts/{name}.parquet")


def test_samples_come_in_order_with_their_values_and_gaps(source: FieldSource, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    original = shards_module.read_extent
    monkeypatch.setattr(shards_module, "read_extent", lambda *a: reads.append(a[1]) or original(*a))
    layout = make_layout(source, SampleConfig())
    grid = make_grid(layout, "auto")
    samples = list(iter_samples(source, layout, grid, Shard(0, (0, 0, 0), (5, 1, 1))))
    assert reads == [(slice(0, 5), slice(0, 3), slice(0, 4))]
    assert [str(sample.key) for sample in samples][:2] == [
        "t2m[time=2019-03-01T00:00:00]",
        "t2m[time=2019-03-01T01:00:00]",
    ]
    assert [sample.block for sample in samples] == [(t, 0, 0) for t in range(5)]
    expected = original(source, (slice(0, 6), slice(0, 3), slice(0, 4)))
    assert samples[0].mask is None
    assert np.array_equal(samples[0].values[:, 0], expected[0].ravel())
    assert samples[1].mask is not None
    assert samples[1].mask.tolist() == [True] * 11 + [False]
    assert np.array_equal(samples[1].values[:11, 0], expected[1].ravel()[:11])
    assert samples[4].mask is not None
    assert not samples[4].mask.any()
    assert all(np.isfinite(sample.values).all() for sample in samples)
    assert np.array_equal(samples[0].coordinates, grid.coordinates())


def test_tiles_over_several_hours_are_padded_at_the_edge(source: FieldSource) -> None:
    """Blocks of 4 x 2 x 3 in 6 x 3 x 4: the last one holds hours 4 and 5, the last row and the last column."""
    layout = make_layout(source, SampleConfig(block={"time": 4, "latitude": 2, "longitude": 3}))
    (shard,) = plan_shards(layout, 100, source.chunk_shape)
    samples = list(iter_samples(source, layout, make_grid(layout, "auto"), shard))
    assert len(samples) == 8
    last = samples[-1]
    assert str(last.key) == "t2m[time=2019-03-01T04:00:00+4,latitude=57.5+2,longitude=0.5+3]"
    assert last.values.shape == (24, 1)
    assert last.mask is not None
    assert np.flatnonzero(last.mask).tolist() == [6]  # hour 5; hour 4 has no value at all
    assert math.isclose(last.values[6, 0], shards_module.read_extent(source, np.s_[5:6, 2:3, 3:4])[0, 0, 0])


@pytest.mark.parametrize(
    ("start", "stop", "first_stop", "second_start"),
    [
        ((0, 0), (4, 1), (2, 1), (2, 0)),
        ((3, 0), (6, 5), (4, 5), (4, 0)),
        ((7, 2), (8, 4), (8, 3), (7, 3)),
    ],
)
def test_halves_are_the_shard_in_its_order(
    start: tuple[int, ...], stop: tuple[int, ...], first_stop: tuple[int, ...], second_start: tuple[int, ...]
) -> None:
    shard = Shard(5, start, stop)
    assert halves(shard) == (Shard(5, start, first_stop), Shard(5, second_start, stop))
    assert [block for half in halves(shard) for block in shard_blocks(half)] == list(shard_blocks(shard))
