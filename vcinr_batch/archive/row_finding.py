"""Where the rows of a part are, by one request: a reader makes the part's footer itself instead of fetching it."""

from collections.abc import Sequence

from vcinr_batch.archive.manifest import ArchivePart
from vcinr_batch.archive.parquet_container import PartIndex, parse_index, part_ranges
from vcinr_batch.archive.parquet_part import footer_of, index_crc32
from vcinr_batch.data.layout import Layout
from vcinr_batch.errors import CorruptBitstreamError
from vcinr_batch.storage import StorageOptions, join_url, merge_ranges, read_ranges


def find_rows(url: str, part: ArchivePart, layout: Layout, *, storage_options: StorageOptions = None) -> PartIndex:
    """What `read_index` gives, without a look at the file's own footer: by one request where there is one row group.

    A part whose footer cannot be made, since an earlier version wrote it, costs a request more. Arguments and errors as
    `read_index`.
    """
    ranges, target = part_ranges(part), join_url(url, part.path)
    front = front_ranges(ranges)
    pieces = read_ranges(target, front, storage_options=storage_options)
    if len(front) < len(ranges):
        made = with_footer(pieces, part, layout)
        pieces = made or [*pieces, *read_ranges(target, ranges[-1:], storage_options=storage_options)]
    return parse_index(pieces, part, layout)


def front_ranges(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of the `index_ranges` of a part those to fetch: not that of the footer, unless it costs no request."""
    front = list(ranges[:-1])
    return front if 0 < len(merge_ranges(front)) < len(merge_ranges(ranges)) else list(ranges)


def with_footer(pieces: Sequence[bytes], part: ArchivePart, layout: Layout) -> list[bytes] | None:
    """All that stands at the `index_ranges` of a part, from all of it but the footer; None where it has another one.

    The manifest's checksum tells, which is over both.
    """
    try:
        made = [*pieces, footer_of(pieces, part.payloads, layout)]
    except CorruptBitstreamError:
        return None
    fits = len(made[-1]) == part.bytes - part.payloads[-1][1] and index_crc32(made) == part.index_crc32
    return made if fits else None
