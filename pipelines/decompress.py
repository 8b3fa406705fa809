"""Restores an archive, or a selection of it, into a NetCDF file or a Zarr store, region by region, here or on Ray.

Memory is bounded whatever the size: a process holds one region, and the driver what a few regions make.
"""

import contextlib
import functools
import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from pipelines.output_place import check_place, check_space, is_zarr, netcdf_place, read_marker, writing
from pipelines.ray_session import ray_session
from pipelines.ray_tasks import run_on_ray
from pipelines.restore_netcdf import netcdf_engine, netcdf_variable, read_region
from pipelines.restore_progress import Progress, progress_of
from pipelines.restore_regions import (
    NETCDF_REGION_VALUES,
    ZARR_REGION_VALUES,
    ArchiveSelection,
    OpenSelection,
    Region,
    begin,
    chunk_shape,
    open_selection,
    plan_regions,
)
from pipelines.restore_zarr import (
    ROOT_METADATA,
    WrittenRegion,
    ZarrTarget,
    chunk_path,
    region_chunks,
    store_files,
    write_region,
)
from pipelines.zarr_place import finish, taken_over, zarr_place
from vcinr_batch.errors import ConfigError, SourceError
from vcinr_batch.storage import StorageOptions, check_url, exists, public_url, sha256_hex

AUTO_RAY_VALUES = 1 << 26
"""Selections of fewer values (256 MiB) are decoded in this process: starting Ray would take longer."""

Shared = TypeVar("Shared")
Result = TypeVar("Result")


@dataclass(frozen=True)
class DecompressReport:
    """What `decompress` wrote."""

    output: str
    variable: str
    shape: Mapping[str, int]
    """Length by dimension."""
    samples: int
    """Decoded."""
    rejected: int
    """Samples of the selection that the archive does not hold; NaN in the output."""
    output_bytes: int
    seconds: float


@dataclass(frozen=True, eq=False)
class _Restore:
    """One restore: what, where to, and on whom."""

    source: ArchiveSelection
    opened: OpenSelection
    output: str
    overwrite: bool
    workers: int
    """0: this process."""
    address: str | None
    report: Callable[[Region | None], None]
    storage_options: StorageOptions = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.opened.selection.shape

    @property
    def chunk(self) -> tuple[int, ...]:
        layout = self.opened.archive.layout
        channels = () if layout.channels == 1 else (layout.channels,)
        return chunk_shape(self.shape, (*layout.block_shape, *channels))

    @property
    def digest(self) -> str:
        """Of all that the output's bytes depend on."""
        wanted = [self.source.manifest_sha256, sorted(self.source.select.items()), self.chunk]
        return sha256_hex(json.dumps(wanted).encode())


def decompress(
    archive_url: str,
    output: str,
    select: Mapping[str, str] | None = None,
    overwrite: bool = False,
    storage_options: StorageOptions = None,
    *,
    workers: int | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> DecompressReport:
    """Write a selection of an archive to a NetCDF (`.nc`) or Zarr (`.zarr`, version 3) output.

    Nobody sees half an output: it is renamed or uploaded when it is complete, or its metadata are written last. A
    restore to Zarr that was killed is completed by the same call. The bytes do not depend on the workers.

    Args:
        archive_url: of the archive.
        output: URL or path; its ending tells the format.
        select: a label, partial time or inclusive range `a..b` per dimension; None is everything.
        overwrite: replace an output of the same kind that is there: a file, or a Zarr store.
        storage_options: of the archive's and of the output's file system.
        workers: Ray workers; 0 decodes in this process, without Ray; None takes 0 for small selections, else the CPUs
            of the cluster or of this machine.
        address: of a Ray cluster, as in `ray_session`.
        progress: called after every region.

    Raises:
        ArchiveExistsError: the output is there, and `overwrite` is off or what is there is something else.
        ConfigError: an empty URL, another ending, no such dimension, or an extra that is not installed.
        SampleNotFoundError: the archive has none of the labels.
        SourceError, BitstreamError, UnsupportedFormatError, BundleMismatchError: the archive cannot be read, or the
            output cannot be written.
        VcinrError: a worker was lost again and again.
    """
    started = time.monotonic()
    check_url(archive_url, "archive")
    check_url(output, "output")
    to_zarr = is_zarr(output)
    if not to_zarr:
        netcdf_engine()
    source = begin(archive_url, select, storage_options)
    opened = open_selection(source)
    stored, rejected = opened.archive.sample_count(opened.selection)
    show = progress_of(opened, stored, rejected, progress)
    with _workers(workers, address, math.prod(opened.selection.shape)) as count:
        job = _Restore(source, opened, output, overwrite, count, address, show, storage_options)
        check_place(output, overwrite, storage_options, job.digest)
        show(None)
        output_bytes = _restore_zarr(job) if to_zarr else _restore_netcdf(job)
    return DecompressReport(
        output=public_url(output),
        variable=opened.archive.manifest.variable,
        shape=dict(zip(opened.selection.dims, opened.selection.shape, strict=True)),
        samples=stored,
        rejected=rejected,
        output_bytes=output_bytes,
        seconds=time.monotonic() - started,
    )


@contextmanager
def _workers(wanted: int | None, address: str | None, values: int) -> Iterator[int]:
    """How many Ray workers there are, while Ray runs; 0 without Ray.

    Raises:
        ConfigError: a negative number, or as `ray_session`.
    """
    if wanted is not None and wanted < 0:
        raise ConfigError(f"workers must be 0 or more, got {wanted}")
    if wanted is None and not address and (values < AUTO_RAY_VALUES or importlib.util.find_spec("ray") is None):
        wanted = 0
    if wanted == 0:
        yield 0
        return
    with ray_session(address, wanted or os.cpu_count() or 1) as ray:
        yield wanted or max(1, int(ray.cluster_resources().get("CPU", 1)))


def _run(
    job: _Restore, function: Callable[[Shared, Region], Result], shared: Shared, values: int
) -> Generator[Result, None, None]:
    """The function's results for all regions, in the order in which they are done."""
    regions = plan_regions(job.shape, job.chunk, values)
    if not job.workers:
        return (function(shared, region) for region in regions)
    return run_on_ray(function, shared, regions, job.workers, job.address)


def _restore_zarr(job: _Restore) -> int:
    """Returns the bytes of the store."""
    files = store_files(job.opened, job.shape, job.chunk)
    variable, options = job.opened.archive.layout.variable, dict(job.storage_options or {})
    metadata = files[f"{variable}/{ROOT_METADATA}"].decode()
    written = 0
    with zarr_place(job.output, job.digest, job.overwrite, options) as place:
        target = ZarrTarget(
            job.source, place.store, variable, metadata, job.chunk, place.resumed, place.marker, options
        )
        with closing(_run(job, write_region, target, ZARR_REGION_VALUES)) as results:
            for result in results:
                _check_visible(job, target, result)
                if not result.is_there:
                    raise taken_over(place)
                place.has_chunks = True
                written += result.bytes
                job.report(result.region)
        chunks = functools.partial(_chunk_paths, variable, job)
        return written + finish(place, files, chunks, written)


def _chunk_paths(variable: str, job: _Restore) -> Iterator[tuple[str, ...]]:
    whole = Region((0,) * len(job.shape), job.shape)
    return (chunk_path(variable, index) for index in region_chunks(whole, job.chunk))


def _check_visible(job: _Restore, target: ZarrTarget, result: WrittenRegion) -> None:
    """Make sure that what a worker wrote is here: a path of its own machine, or its own memory, would lose it."""
    if not job.workers:
        return
    if result.is_there:
        first = next(iter(region_chunks(result.region, target.chunk)))
        is_seen = exists(target.chunk_url(first), storage_options=target.storage_options)
    else:  # what this process wrote is not there for the worker
        is_seen = read_marker(target.store, target.storage_options) != target.marker
    if not is_seen:
        raise SourceError(
            f"cannot write {public_url(job.output)}: what the workers write there is not seen here; "
            "take a place that all machines share, or --workers 0"
        )


def _restore_netcdf(job: _Restore) -> int:
    """Returns the bytes of the file."""
    with netcdf_place(job.output, job.digest, job.overwrite, job.storage_options) as path:
        check_space(path.parent, 4 * math.prod(job.shape), job.output)
        with contextlib.ExitStack() as stack:
            with writing(job.output):
                write = stack.enter_context(netcdf_variable(job.opened, job.shape, path, netcdf_engine()))
            results = stack.enter_context(closing(_run(job, read_region, job.source, NETCDF_REGION_VALUES)))
            for result in results:
                with writing(job.output):
                    write(result)
                job.report(result.region)
                del result  # else two regions would be held while the next one is decoded
            with writing(job.output):
                stack.close()
        return path.stat().st_size
