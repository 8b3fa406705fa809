"""From the text of a key back to the block it names."""

from collections.abc import Iterator

import numpy as np
import pytest

from vcinr_batch.archive.sample_lookup import find_blocks
from vcinr_batch.data.axes import Axis
from vcinr_batch.data.layout import Layout, sample_key
from vcinr_batch.errors import SampleNotFoundError


@pytest.fixture
def layout() -> Layout:
    """Six hours, two levels by name, tiles of 2 latitudes (the last one cut), whole longitudes."""
    axes = (
        Axis("time", np.arange(6) * 3600, {"units": "seconds since 2019-03-01", "calendar": "standard"}),
        Axis("level", np.array(["a=b,[c]", "top..1"])),
        Axis("latitude", np.array([50.5, 50.25, 50.0]), {"units": "degrees_north"}),
        Axis("longitude", np.array([0.0, 1, 2]), {"units": "degrees_east"}),
    )
    return Layout("t2m", axes, (1, 1, 2, 3))


def all_blocks(layout: Layout) -> Iterator[tuple[int, ...]]:
    yield from np.ndindex(*layout.block_counts)


def test_every_block_is_found_by_its_key_and_by_its_text(layout: Layout) -> None:
    blocks = list(all_blocks(layout))[::-1]
    keys = [sample_key(layout, block) for block in blocks]
    assert find_blocks(layout, keys).tolist() == [list(block) for block in blocks]
    assert find_blocks(layout, map(str, keys)).tolist() == [list(block) for block in blocks]
    assert find_blocks(layout, []).shape == (0, 4)


@pytest.mark.parametrize(
    "text",
    [
        "t2m",
        "msl[time=2019-03-01T00:00:00,level=top..1,latitude=50.5+2]",
        "t2m[time=2019-03-01T00:00:00,level=top..1]",
        "t2m[level=top..1,time=2019-03-01T00:00:00,latitude=50.5+2]",
        "t2m[time=2019-03-01T00:30:00,level=top..1,latitude=50.5+2]",
        "t2m[time=2019-03-01T00,level=top..1,latitude=50.5+2]",
        "t2m[time=2019-03-01T00:00:00,level=nowhere,latitude=50.5+2]",
        "t2m[time=2019-03-01T00:00:00,level=top..1,latitude=50.25+2]",
        "t2m[time=2019-03-01T00:00:00,level=top..1,latitude=50.5+3]",
        "t2m[time=2019-03-01T00:00:00,level=top..1,latitude=50.5]",
        "t2m[time=..,level=top..1,latitude=50.5+2]",
        "t2m[time=noon,level=top..1,latitude=north+2]",
    ],
)
def test_a_text_that_names_no_block_is_not_found(layout: Layout, text: str) -> None:
    with pytest.raises(SampleNotFoundError) as caught:
        find_blocks(layout, [text])
    assert f"no sample {text!r}" in str(caught.value)
    assert "keys run from t2m[time=2019-03-01T00:00:00" in str(caught.value)
