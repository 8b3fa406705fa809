"""How an output is cut: chunks of whole blocks, regions of whole chunks, each place in exactly one region."""

import numpy as np
import pytest

from pipelines.restore_regions import CHUNK_VALUES, chunk_shape, plan_regions
from pipelines.restore_zarr import region_chunks


@pytest.mark.parametrize(
    ("shape", "block", "chunk"),
    [
        ((350_640, 37, 721, 1440), (1, 1, 721, 1440), (1, 1, 721, 1440)),  # one field of 0.25 degrees: 4.2 MB
        ((350_640, 721, 1440), (24, 32, 32), (24, 32, 1344)),  # 1024^2 / (24 * 32) = 1365 columns, 42 blocks of 32
        ((20_000, 37, 57), (1, 37, 57), (497, 37, 57)),  # 1024^2 / (37 * 57) = 497.2
        ((3, 37, 57), (1, 37, 57), (3, 37, 57)),
        ((5, 4096, 4096), (1, 4096, 4096), (1, 4096, 4096)),  # a block is never cut
        ((2,), (8,), (2,)),
        ((), (), ()),
    ],
    ids=["fields", "tiles", "small fields", "few fields", "large fields", "cut block", "no dimension"],
)
def test_a_chunk_is_whole_blocks_of_about_4_mib(
    shape: tuple[int, ...], block: tuple[int, ...], chunk: tuple[int, ...]
) -> None:
    assert chunk_shape(shape, block) == chunk
    assert np.prod(chunk) <= max(CHUNK_VALUES, np.prod(block))


@pytest.mark.parametrize("values", [1, 50, 300, 10_000])
@pytest.mark.parametrize(("shape", "chunk"), [((11, 7, 5), (2, 3, 5)), ((4,), (4,)), ((), ())])
def test_regions_cover_each_place_once_and_each_chunk_belongs_to_one(
    shape: tuple[int, ...], chunk: tuple[int, ...], values: int
) -> None:
    places, chunks = np.zeros(shape, int), list[tuple[int, ...]]()
    for region in plan_regions(shape, chunk, values):
        places[region.slices] += 1
        chunks += region_chunks(region, chunk)
        assert np.prod(region.shape) <= max(values, np.prod(chunk))
    assert (places == 1).all()
    expected = list(np.ndindex(*(-(-n // c) for n, c in zip(shape, chunk, strict=True))))
    assert sorted(chunks) == expected
