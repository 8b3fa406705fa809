"""Restores an archive at points or on another grid: CSV, NetCDF or Zarr, in this process."""

import math
import time
from collections.abc import Mapping

import numpy as np

from pipelines.answer_files import CSV_SUFFIX, Answer, Progress, write_answer
from pipelines.decompress import DecompressReport
from pipelines.output_place import check_place, is_zarr
from pipelines.restore_netcdf import netcdf_engine
from pipelines.station_points import geographic_axes, read_points
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.query import make_query
from vcinr_batch.archive.selection import make_selection
from vcinr_batch.data.axes import Axis
from vcinr_batch.data.interpolation import Floats, goes_round
from vcinr_batch.errors import ConfigError
from vcinr_batch.storage import StorageOptions, check_url, public_url

_MAX_LABELS = 1_000_000
"""Along each dimension of a grid asked for by its spacing."""
_LEAST_SPACING_DEG = 1e-9


def decompress_points(
    archive_url: str,
    output: str,
    points_url: str,
    select: Mapping[str, str] | None = None,
    overwrite: bool = False,
    storage_options: StorageOptions = None,
    progress: Progress | None = None,
) -> DecompressReport:
    """Write the values at points to a CSV file (one line per sample and point), a NetCDF file or a Zarr store.

    Args:
        archive_url: of the archive.
        output: URL or path that ends with .csv, .nc or .zarr.
        points_url: of a CSV file, see `read_points`.
        select: as `Archive.select` takes it.
        overwrite: replace an output of the same kind.
        storage_options: of all these file systems.
        progress: called after every piece.

    Raises:
        ArchiveExistsError: the output is there.
        ConfigError: as `read_points`, as `make_query`, or an output of another kind.
        SampleNotFoundError, SourceError, BitstreamError, UnsupportedFormatError, BundleMismatchError: as `decompress`.
    """
    _check_output(archive_url, output, also=CSV_SUFFIX)
    archive = Archive.open(archive_url, storage_options)
    points = read_points(points_url, archive.layout, storage_options)
    query = make_query(archive.layout, select or {}, points.as_arrays(archive.layout))
    answer = Answer(archive, query, output, overwrite, progress or _no_progress, points.columns, storage_options)
    return _write(answer, select)


def decompress_grid(
    archive_url: str,
    output: str,
    spacing_deg: float,
    select: Mapping[str, str] | None = None,
    overwrite: bool = False,
    storage_options: StorageOptions = None,
    progress: Progress | None = None,
) -> DecompressReport:
    """Write the values on a regular grid (at multiples of the spacing, over the archive's extent) to NetCDF or Zarr.

    Args:
        archive_url: of the archive.
        output: URL or path that ends with .nc or .zarr.
        spacing_deg: between latitudes and between longitudes.
        select: as `Archive.select` takes it; not of latitude and longitude.
        overwrite: replace an output of the same kind.
        storage_options: of the archive's and of the output's file system.
        progress: called after every piece.

    Raises:
        ArchiveExistsError: the output is there.
        ConfigError: no such spacing, as `make_query`, or an output of another kind.
        SampleNotFoundError, SourceError, BitstreamError, UnsupportedFormatError, BundleMismatchError: as `decompress`.
    """
    _check_output(archive_url, output)
    archive = Archive.open(archive_url, storage_options)
    labels = {axis.name: grid_labels(axis, spacing_deg) for axis in geographic_axes(archive.layout)}
    query = make_query(archive.layout, select or {}, labels)
    answer = Answer(archive, query, output, overwrite, progress or _no_progress, storage_options=storage_options)
    return _write(answer, select)


def grid_labels(axis: Axis, spacing_deg: float) -> Floats:
    """The multiples of a spacing within an axis, in the source's direction and convention.

    Raises:
        ConfigError: not a positive number, or one that makes no grid or too large a one.
    """
    if not (math.isfinite(spacing_deg) and spacing_deg >= _LEAST_SPACING_DEG):
        raise ConfigError(f"a grid needs a spacing of more than 0 degrees, got {spacing_deg:g}")
    is_round = goes_round(axis)
    source = axis.values if axis.source_values is None or not is_round else axis.source_values
    low, high = float(source.min()), float(source.min()) + 360.0 if is_round else float(source.max())
    first, last = math.ceil(low / spacing_deg - 1e-6), math.floor(high / spacing_deg + 1e-6)
    if is_round and (last - first) * spacing_deg > 360.0 - 1e-6 * spacing_deg:
        last -= 1  # the first meridian again
    if not 1 <= last - first + 1 <= _MAX_LABELS:
        raise ConfigError(
            f"a grid of {spacing_deg:g} degrees has {max(last - first + 1, 0)} labels along {axis.name} "
            f"({axis.values[0]:g} to {axis.values[-1]:g}); 1 to {_MAX_LABELS} are possible"
        )
    labels: Floats = np.round(np.arange(first, last + 1) * spacing_deg, 9)
    original = axis.values if axis.source_values is None else axis.source_values
    return labels[::-1] if axis.is_latitude and original[0] > original[-1] else labels


def _check_output(archive_url: str, output: str, also: str = "") -> None:
    check_url(archive_url, "archive")
    check_url(output, "output")
    if also and output.endswith(also):
        return
    if output.endswith(CSV_SUFFIX):
        raise ConfigError(f"output {output!r}: .csv is for --points; a grid goes to .nc or .zarr")
    if not is_zarr(output):
        netcdf_engine()


def _write(answer: Answer, select: Mapping[str, str] | None) -> DecompressReport:
    started = time.monotonic()
    check_place(answer.output, answer.overwrite, answer.storage_options, answer.digest)
    stored, rejected = answer.archive.sample_count(make_selection(answer.archive.layout, select))
    output_bytes = write_answer(answer)
    return DecompressReport(
        output=public_url(answer.output),
        variable=answer.archive.manifest.variable,
        shape=answer.sizes,
        samples=stored,
        rejected=rejected,
        output_bytes=output_bytes,
        seconds=time.monotonic() - started,
    )


def _no_progress(done: int, total: int) -> None:
    pass
