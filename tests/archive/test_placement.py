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
    placement = Placement(places, BLOCK)
    values = np.full((len(first), len(second), 1), -1, np.float32)
    for block in np.ndindex(3, 3):
        if all((along // length == i).any() for along, length, i in zip(places, BLOCK, block, strict=True)):
            extent = tuple(slice(i * length, (i + 1) * length) for i, length in zip(block, BLOCK, strict=True))
            placement.put(block, padded[extent], values)
    np.testing.assert_array_equal(values, padded[np.ix_(*places)])


def test_an_archive_without_axes_has_one_place() -> None:
    values = np.zeros(1, np.float32)
    Placement([], ()).put((), np.array([7], np.float32), values)
    assert values.tolist() == [7]
