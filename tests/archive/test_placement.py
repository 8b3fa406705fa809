import numpy as np
import pytest

from vcinr_batch.archive.placement import Placement

SHAPE, BLOCK = (7, 5), (3, 2)
PLACES = {
    "all": range(7),
    "backwards": range(6, -1, -1),
    "a few": (4, 1, 6),
    "one": (5,),
    "one twice": (2, 2),
    "every second one": (0, 2, 4, 6),
    "a run that turns": (1, 2, 1),
    "both ends of blocks": (2, 3, 5, 6),
}


@pytest.mark.parametrize("first", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("second", [range(5), range(4, -1, -1), (3, 0, 3)], ids=["all", "backwards", "some"])
def test_blocks_land_where_their_labels_are_shown(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    padded = np.full((9, 6, 1), np.nan, np.float32)
    padded[:7, :5, 0] = np.arange(35).reshape(SHAPE)
    places = [np.array(first, np.int64), np.array(second, np.int64)]
    np.testing.assert_array_equal(put_all(places, BLOCK, padded), padded[np.ix_(*places)])


def put_all(places: list[np.ndarray], block_shape: tuple[int, ...], padded: np.ndarray) -> np.ndarray:
    """All blocks of an array [*axes, C] that hold any of the places, in an order of no meaning, into an empty one."""
    counts = [n // length for n, length in zip(padded.shape, block_shape, strict=False)]
    blocks = np.array(list(np.ndindex(*counts)), np.int64)
    for k, (along, length) in enumerate(zip(places, block_shape, strict=True)):
        blocks = blocks[np.isin(blocks[:, k], along // length)]
    blocks = np.random.default_rng(0).permutation(blocks)
    extents = [tuple(slice(i * n, (i + 1) * n) for i, n in zip(block, block_shape, strict=True)) for block in blocks]
    values = np.full((*map(len, places), padded.shape[-1]), -1, np.float32)
    Placement(places, block_shape).put(blocks, np.stack([padded[extent] for extent in extents]), values)
    return values


@pytest.mark.parametrize("block_shape", [(1, 4, 1, 3), (1, 1, 4, 3), (2, 1, 4, 1), (1, 2, 1, 3), (6, 4, 4, 3)])
@pytest.mark.parametrize("order", ["as they are", "turned", "shuffled", "some twice", "a few"])
def test_blocks_of_one_label_land_together_wherever_their_axes_are(block_shape: tuple[int, ...], order: str) -> None:
    padded = np.arange(6 * 4 * 4 * 3 * 2, dtype=np.float32).reshape(6, 4, 4, 3, 2)
    rng = np.random.default_rng(1)
    ways = {
        "as they are": np.arange,
        "turned": lambda n: np.arange(n)[::-1],
        "shuffled": rng.permutation,
        "some twice": lambda n: rng.integers(0, n, n + 1),
        "a few": lambda n: np.arange(n)[1 : n - 1 : 2],
    }
    places = [ways[order](n).astype(np.int64) for n in padded.shape[:-1]]
    np.testing.assert_array_equal(put_all(places, block_shape, padded), padded[np.ix_(*places)])


def test_an_archive_without_axes_has_one_place() -> None:
    values = np.zeros(1, np.float32)
    Placement([], ()).put(np.zeros((1, 0), np.int64), np.array([[7]], np.float32), values)
    assert values.tolist() == [7]
