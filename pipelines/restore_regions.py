"""A restore cut into regions: disjoint boxes of the output, each decoded on its own, here or on a worker.

The cut is a pure function of the selection, so that the output's bytes do not depend on who decodes what.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.archive.archive import Archive, Decode
from vcinr_batch.archive.manifest import MANIFEST_NAME
from vcinr_batch.archive.selection import Selection, make_selection
from vcinr_batch.errors import SourceError
from vcinr_batch.storage import StorageOptions, join_url, public_url, read_bytes, sha256_hex

CHUNK_VALUES = 1 << 20
"""Of a Zarr chunk: 4 MiB of float32. One field of 0.25 degrees (721 x 1440) is a chunk."""
ZARR_REGION_VALUES = 1 << 22
"""Decoded at once for Zarr: 16 MiB."""
NETCDF_REGION_VALUES = 1 << 21
"""Decoded at once for NetCDF: 8 MiB, which travel from the worker to the driver."""


@dataclass(frozen=True)
class Region:
    """A box of the output."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))


@dataclass(frozen=True)
class ArchiveSelection:
    """What to decode: small enough to go along with every region."""

    url: str
    manifest_sha256: str
    """So that workers notice when the archive is replaced under them."""
    select: Mapping[str, str]
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class OpenSelection:
    """The same opened, once per process."""

    archive: Archive
    selection: Selection

    @functools.cached_property
    def decode(self) -> Decode:
        """Decodes rows; the driver of a restore on workers never asks for it, and does without the bundle and torch."""
        return self.archive.decoder()


_opened: dict[tuple[str, str, str], OpenSelection] = {}


def chunk_shape(shape: Sequence[int], block: Sequence[int]) -> tuple[int, ...]:
    """The shape of a chunk: whole blocks, as many as fit into 4 MiB, the innermost axis first; at least one.

    Args:
        shape: of the output.
        block: that one sample covers; cut at the end of an axis.
    """
    return _grow(tuple(min(b, n) for b, n in zip(block, shape, strict=True)), shape, CHUNK_VALUES)


def plan_regions(shape: Sequence[int], chunk: Sequence[int], values: int) -> Iterator[Region]:
    """Disjoint regions of whole chunks that cover the output, row-major; about `values` values each, or one chunk."""
    region = _grow(tuple(chunk), shape, values)
    for start in itertools.product(*(range(0, n, step) for n, step in zip(shape, region, strict=True))):
        yield Region(start, tuple(min(a + r, n) for a, r, n in zip(start, region, shape, strict=True)))


def region_count(shape: Sequence[int], chunk: Sequence[int], values: int) -> int:
    """How many regions `plan_regions` yields."""
    return math.prod(math.ceil(n / step) for n, step in zip(shape, _grow(tuple(chunk), shape, values), strict=True))


def begin(url: str, select: Mapping[str, str] | None, storage_options: StorageOptions) -> ArchiveSelection:
    """Open an archive for a restore.

    Raises:
        SourceError, BitstreamError, UnsupportedFormatError: there is no archive, or its manifest is damaged or later.
    """
    archive, options = Archive.open(url, storage_options), dict(storage_options or {})
    source = ArchiveSelection(url, _manifest_digest(url, options), dict(select or {}), options)
    _keep(source, archive)
    return source


def decode_region(source: ArchiveSelection, region: Region) -> NDArray[np.float32]:
    """The values of a region, in the shape of the region; NaN where there is none.

    Raises:
        SourceError: a part is missing or unreachable, or the archive is no longer the one that the restore began with.
        BitstreamError, UnsupportedFormatError, BundleMismatchError: a part or the bundle is damaged or a later one.
    """
    opened = open_selection(source)
    dims = len(opened.selection.places)
    from vcinr_batch.compression import one_thread  # imports torch, which the driver of workers does not need

    # Sums, and so a value's last bit, may depend on how many threads there are.
    with one_thread():
        values = opened.archive.values(opened.selection.piece(region.slices[:dims]), opened.decode)
    return values[..., region.slices[dims]] if len(region.start) > dims else values[..., 0]


def open_selection(source: ArchiveSelection) -> OpenSelection:
    """This process's open archive and selection.

    Raises:
        ConfigError, SampleNotFoundError: as `Archive.select`.
        SourceError, BitstreamError, UnsupportedFormatError: as `decode_region`.
    """
    if (found := _opened.get(_name(source))) is not None:
        return found
    archive = Archive.open(source.url, source.storage_options)
    if _manifest_digest(source.url, source.storage_options) != source.manifest_sha256:
        raise SourceError(f"{public_url(source.url)} was replaced while it was being restored: run it again")
    return _keep(source, archive)


def _keep(source: ArchiveSelection, archive: Archive) -> OpenSelection:
    _opened.clear()
    _opened[_name(source)] = OpenSelection(archive, make_selection(archive.layout, source.select))
    return _opened[_name(source)]


def _name(source: ArchiveSelection) -> tuple[str, str, str]:
    return source.url, source.manifest_sha256, repr(sorted(source.select.items()))


def _manifest_digest(url: str, storage_options: StorageOptions) -> str:
    return sha256_hex(read_bytes(join_url(url, MANIFEST_NAME), storage_options=storage_options))


def _grow(shape: tuple[int, ...], limit: Sequence[int], values: int) -> tuple[int, ...]:
    """Multiples of a shape along every axis, cut at the limit, of at most `values` values; the innermost axis first."""
    grown = list(shape)
    for k in reversed(range(len(grown))):
        grown[k] = min(limit[k], grown[k] * max(1, values // math.prod(grown)))
    return tuple(grown)
