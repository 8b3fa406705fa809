"""Dask's chunks follow the parts, in whatever order the source shows its labels."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vcinr_batch.archive import xarray_chunks
from vcinr_batch.archive.manifest import ArchivePart
from vcinr_batch.archive.selection import make_selection
from vcinr_batch.archive.xarray_chunks import preferred_chunks
from vcinr_batch.data.axes import make_axis
from vcinr_batch.data.layout import Layout

TIME = {"units": "hours since 2019-01-01"}
SOUTH_TO_NORTH = -45.0 + 10 * np.arange(10)
WEST_FIRST = -180.0 + 30 * np.arange(12)  # canonical: 0, 30, ..., 330
FROM_WEST_30 = -30.0 + 30 * np.arange(12)


def layout_of(labels: dict[str, Sequence[float]], block: dict[str, int]) -> Layout:
    axes = tuple(make_axis(name, np.asarray(values), TIME if name == "time" else {}) for name, values in labels.items())
    return Layout("t", axes, tuple(block.get(axis.name, len(axis)) for axis in axes))


def parts_of(layout: Layout, cuts: dict[str, list[int]]) -> list[ArchivePart]:
    """The grid of parts that begin at the given blocks, and at 0."""
    spans = []
    for axis, count in zip(layout.axes, layout.block_counts, strict=True):
        ends = [0, *cuts.get(axis.name, []), count]
        spans.append(list(itertools.pairwise(ends)))
    return [part_at([span[i] for span, i in zip(spans, index, strict=True)]) for index in np.ndindex(*map(len, spans))]


def part_at(span: list[tuple[int, int]]) -> ArchivePart:
    start, stop = zip(*span, strict=True)
    count = int(np.prod([b - a for a, b in span]))
    return ArchivePart(f"parts/{start}".replace(" ", ""), count, 1, "0" * 64, 0, (), start, stop)


def chunks_of(layout: Layout, parts: list[ArchivePart]) -> dict[str, Any]:
    return preferred_chunks(layout, parts, make_selection(layout, None))


@pytest.mark.parametrize(
    ("labels", "block", "cuts", "expected"),
    [
        pytest.param(np.arange(40), 1, [10, 20, 30], 10, id="equal parts"),
        pytest.param(np.arange(37), 1, [10, 20, 30], 10, id="a shorter last part"),
        pytest.param(np.arange(37), 4, [5], 20, id="blocks of several hours"),
        pytest.param(np.arange(37), 4, [3, 5], (12, 8, 17), id="parts of different lengths"),
        pytest.param(np.arange(37), 1, [], 37, id="one part"),
        pytest.param(np.arange(37)[::-1], 4, [5], (17, 20), id="latest first"),
        pytest.param(np.arange(36)[::-1], 4, [3, 6], 12, id="latest first, equal parts"),
        pytest.param(
            np.arange(36).reshape(2, 18).T.ravel(), 4, [3, 6], 12, id="in no order: chunks touch several parts"
        ),
    ],
)
def test_a_chunk_is_what_a_part_holds(labels: Any, block: int, cuts: list[int], expected: Any) -> None:
    layout = layout_of({"time": labels, "x": np.arange(5.0)}, {"time": block})
    assert chunks_of(layout, parts_of(layout, {"time": cuts})) == {"time": expected, "x": 5}


@pytest.mark.parametrize(
    ("name", "labels", "block", "cuts", "expected"),
    [
        pytest.param("latitude", SOUTH_TO_NORTH, 3, [2], (4, 6), id="south to north"),
        pytest.param("latitude", SOUTH_TO_NORTH[::-1], 3, [2], 6, id="north to south"),
        pytest.param("longitude", WEST_FIRST, 3, [2], 6, id="rolled by half"),
        pytest.param("longitude", FROM_WEST_30, 3, [2], (1, 6, 5), id="rolled by one"),
    ],
)
def test_chunks_of_space_follow_the_parts(name: str, labels: Any, block: int, cuts: list[int], expected: Any) -> None:
    layout = layout_of({"time": np.arange(4), name: labels}, {"time": 1, name: block})
    assert chunks_of(layout, parts_of(layout, {name: cuts}))[name] == expected


@pytest.mark.parametrize("labels", [np.arange(37), np.arange(37)[::-1]], ids=["ascending", "descending"])
@pytest.mark.parametrize("most_bytes", [1, 300, 1000, 10**6])
def test_a_large_part_is_cut_at_its_samples(labels: Any, most_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xarray_chunks, "CHUNK_BYTES", most_bytes)
    layout = layout_of({"time": labels, "x": np.arange(8.0)}, {"time": 2, "x": 4})
    parts = parts_of(layout, {"time": [8]})
    found = chunks_of(layout, parts)
    shown = make_selection(layout, None)
    lengths = [
        [found[name]] * (n // found[name]) + [n % found[name]] * bool(n % found[name])
        if isinstance(found[name], int)
        else list(found[name])
        for name, n in zip(layout.dims, layout.shape, strict=True)
    ]
    assert [sum(along) for along in lengths] == [37, 8]
    assert max(lengths[0]) * max(lengths[1]) * 4 <= max(most_bytes, 2 * 4 * 4)
    edges = np.cumsum(lengths[0])[:-1]
    blocks = shown.places[0] // 2
    assert (blocks[edges] != blocks[edges - 1]).all()  # no sample is decoded for two chunks
    of_part = blocks >= 8
    ends = np.flatnonzero(of_part[1:] != of_part[:-1]) + 1
    assert set(ends.tolist()) <= set(edges.tolist())  # no chunk needs two parts


def test_parts_that_are_no_grid_leave_the_chunks_to_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of({"time": np.arange(4), "x": np.arange(4.0)}, {"time": 1, "x": 1})
    columns = [(0, 1), (1, 2), (2, 3), (3, 4)]
    parts = [part_at([(i, i + 1), (0, 4)]) for i in range(3)] + [part_at([(3, 4), column]) for column in columns]
    assert chunks_of(layout, parts) == {"time": 4, "x": 4}
    monkeypatch.setattr(xarray_chunks, "CHUNK_BYTES", 4 * 8)
    assert chunks_of(layout, parts) == {"time": 2, "x": 4}
