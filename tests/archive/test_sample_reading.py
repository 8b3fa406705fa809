"""`Archive.read`: samples by their keys, in the order asked for."""

from typing import Any

import numpy as np
import pytest

from tests.archive.made_up_values import decode
from vcinr_batch.archive import archive as archive_module
from vcinr_batch.archive.archive import Archive
from vcinr_batch.data.layout import Layout, sample_key
from vcinr_batch.errors import ConfigError, SampleNotFoundError, SourceError

BLOCKS = [(0, 1, 1), (2, 0, 0), (0, 0, 0), (1, 1, 1), (2, 1, 0)]


@pytest.fixture
def layout(layouts: Any) -> Layout:
    """Five hours of 3 x 4 points in blocks of 2 x 2 x 3, of which the last along every axis are padded."""
    return layouts(5, 3, 4, time=2, latitude=2, longitude=3)


@pytest.fixture
def archive(layout: Layout, archive_at: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Archive:
    archive_at(str(tmp_path / "archive"), layout, rejected_blocks=((1, 0, 1),))
    monkeypatch.setattr(Archive, "decoder", lambda _: decode)
    return Archive.open(str(tmp_path / "archive"))


def expected(layout: Layout, blocks: list[tuple[int, ...]]) -> np.ndarray:
    class Row:
        def __init__(self, block: tuple[int, ...]) -> None:
            self.block = block

    return decode([Row(block) for block in blocks], layout).reshape(len(blocks), *layout.block_shape)


@pytest.mark.parametrize("blocks", [BLOCKS, BLOCKS[::-1], BLOCKS[:1], [*BLOCKS, *BLOCKS[1:3]]])
@pytest.mark.parametrize("as_text", [False, True])
def test_samples_come_in_the_order_of_their_keys(
    archive: Archive, layout: Layout, blocks: list[tuple[int, ...]], as_text: bool
) -> None:
    keys = [sample_key(layout, block) for block in blocks]
    found = archive.read(map(str, keys) if as_text else keys)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected(layout, blocks))


def test_all_keys_of_an_archive_can_be_read_in_batches(
    archive: Archive, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counted(rows: Any, layout: Layout) -> np.ndarray:
        sizes.append(len(rows))
        return decode(rows, layout)

    monkeypatch.setattr(Archive, "decoder", lambda _: counted)
    monkeypatch.setattr(archive_module, "_BATCH_VALUES", 4 * layout.points_per_sample)
    keys = list(archive.keys())
    assert len(keys) == 11
    blocks = [block for block in np.ndindex(3, 2, 2) if block != (1, 0, 1)]
    np.testing.assert_array_equal(archive.read(keys), expected(layout, blocks))
    assert sizes == [4, 4, 3]


def test_one_key_may_stand_alone(archive: Archive, layout: Layout) -> None:
    key = sample_key(layout, (2, 1, 1))
    np.testing.assert_array_equal(archive.read(key), expected(layout, [(2, 1, 1)]))
    np.testing.assert_array_equal(archive.read(str(key)), expected(layout, [(2, 1, 1)]))


def test_no_keys_give_no_samples_and_read_nothing(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Archive, "decoder", lambda _: pytest.fail("nothing to decode"))
    monkeypatch.setattr(Archive, "index", lambda *_: pytest.fail("nothing to read"))
    assert archive.read([]).shape == (0, 2, 2, 3)


def test_only_the_parts_of_the_keys_are_read(archive: Archive, layout: Layout) -> None:
    archive.read([sample_key(layout, (0, 1, 1))])
    assert list(archive._indexes) == [archive.manifest.parts[0].path]


def test_a_rejected_sample_is_named_and_nothing_is_decoded(
    archive: Archive, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = sample_key(layout, (1, 0, 1))
    monkeypatch.setattr(Archive, "decoder", lambda _: lambda *_: pytest.fail("decoded before all keys were found"))
    with pytest.raises(SampleNotFoundError) as caught:
        archive.read([sample_key(layout, (0, 0, 0)), key])
    assert str(caught.value.args[0]) == f"{key}: rejected when the archive was made"


@pytest.mark.parametrize(
    "key", ["t2m", "t2m[time=2019-03-22T01:00:00+2,latitude=50+2,longitude=-10+3]", "", "t2m[time"]
)
def test_what_is_no_key_of_it_is_not_found(archive: Archive, layout: Layout, key: str) -> None:
    with pytest.raises(SampleNotFoundError, match="its keys run from"):
        archive.read([sample_key(layout, (0, 0, 0)), key])


@pytest.mark.parametrize("key", [7, None, b"t2m"])
def test_what_is_no_text_is_no_key(archive: Archive, layout: Layout, key: Any) -> None:
    with pytest.raises(ConfigError, match="expected a sample key or its text, got"):
        archive.read([sample_key(layout, (0, 0, 0)), key])


@pytest.mark.parametrize("keys", [None, 3, {"time": "2019-03-22T00"}])
def test_a_selection_or_no_keys_at_all_are_refused_in_one_line(archive: Archive, keys: Any) -> None:
    with pytest.raises(ConfigError, match="expected sample keys or their texts") as caught:
        archive.read(keys)
    assert "\n" not in str(caught.value)


def test_a_part_that_is_gone_is_named(archive: Archive, layout: Layout, tmp_path: Any) -> None:
    (tmp_path / "archive" / archive.manifest.parts[0].path).unlink()
    assert archive.read(sample_key(layout, (2, 0, 0))).shape == (1, 2, 2, 3)
    with pytest.raises(SourceError, match=archive.manifest.parts[0].path):
        archive.read(sample_key(layout, (0, 0, 0)))
