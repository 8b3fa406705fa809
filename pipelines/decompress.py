"""Decompresses a selection of an archive into one NetCDF or Zarr file; decodes only what it needs."""

import importlib.util
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from vcinr_batch.archive.archive import Archive
from vcinr_batch.data.layout import Layout, axis_index
from vcinr_batch.errors import ArchiveExistsError, ConfigError, SourceError, VcinrError
from vcinr_batch.storage import (
    StorageOptions,
    check_url,
    exists,
    is_file_url,
    join_url,
    public_url,
    read_bytes,
    write_bytes,
)

if TYPE_CHECKING:
    import xarray

Writer = Callable[["xarray.Dataset", Path], None]

_ZARR_SUFFIX = ".zarr"
_ZARR_ROOT = "zarr.json"
_ZARR_ROOTS = (_ZARR_ROOT, ".zgroup")  # of version 3, of version 2
_NETCDF_ENGINES = {"netcdf4": "netCDF4", "h5netcdf": "h5netcdf"}


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


def decompress(
    archive_url: str,
    output: str,
    select: Mapping[str, str] | None = None,
    overwrite: bool = False,
    storage_options: StorageOptions = None,
) -> DecompressReport:
    """Write a selection of an archive to a NetCDF (`.nc`) or Zarr (`.zarr`, version 3) output.

    Nobody sees half an output: on a file system it is written beside its place and renamed, elsewhere it is uploaded
    when it is complete, a Zarr store's root metadata last.

    Args:
        archive_url: of the archive.
        output: URL or path; its ending tells the format.
        select: a label, partial time or inclusive range `a..b` per dimension; None is everything.
        overwrite: replace an output of the same kind that is there: a file, or a Zarr store.
        storage_options: of the archive's and of the output's file system.

    Raises:
        ArchiveExistsError: the output is there, and `overwrite` is off or what is there is something else.
        ConfigError: an empty URL, another ending, no such dimension, a selection that does not fit into memory, or an
            extra that is not installed.
        SampleNotFoundError: the archive has none of the labels.
        SourceError, BitstreamError, UnsupportedFormatError, BundleMismatchError: the archive cannot be read, or the
            output cannot be written.
    """
    started = time.monotonic()
    check_url(archive_url, "archive")
    check_url(output, "output")
    writer = _writer(output)
    _check_place(output, overwrite, storage_options)
    archive = Archive.open(archive_url, storage_options)
    chosen = sum(len(rows.positions) for rows in archive.select(select))
    with _output_folder(output, storage_options) as folder:
        dataset = archive.to_xarray(select)
        with _writing(output):
            writer(dataset, folder / "output")
        # Again: decoding may have taken hours.
        _check_place(output, overwrite, storage_options)
        output_bytes = _bring_to_place(folder, output, storage_options)
    variable = archive.manifest.variable
    return DecompressReport(
        output=public_url(output),
        variable=variable,
        shape={str(dim): size for dim, size in dataset[variable].sizes.items()},
        samples=chosen,
        rejected=_block_count(archive.layout, select or {}) - chosen,
        output_bytes=output_bytes,
        seconds=time.monotonic() - started,
    )


def _writer(output: str) -> Writer:
    suffix = Path(output.rstrip("/")).suffix
    if suffix == _ZARR_SUFFIX:
        return _write_zarr
    if suffix in (".nc", ".nc4"):
        return _write_netcdf
    raise ConfigError(f"output {output!r}: expected a name that ends with .nc or .zarr")


def _check_place(output: str, overwrite: bool, storage_options: StorageOptions) -> None:
    """Make sure that nothing is at the output, or with `overwrite` nothing but what this command writes there.

    Raises:
        ArchiveExistsError: says what is there.
    """
    if not exists(output, storage_options=storage_options):
        return
    place = public_url(output)
    if not overwrite:
        raise ArchiveExistsError(f"{place} is there already; pass --overwrite, or take another place")
    is_file = is_file_url(output, storage_options=storage_options)
    if not output.rstrip("/").endswith(_ZARR_SUFFIX):
        if not is_file:
            raise ArchiveExistsError(f"{place} is a directory and not a file: --overwrite does not replace it")
    elif is_file:
        raise ArchiveExistsError(f"{place} is a file and not a Zarr store: --overwrite does not replace it")
    elif not any(exists(join_url(output, name), storage_options=storage_options) for name in _ZARR_ROOTS):
        raise ArchiveExistsError(
            f"{place} is a directory without {' or '.join(_ZARR_ROOTS)}, no Zarr store: --overwrite does not replace it"
        )


def _write_netcdf(dataset: "xarray.Dataset", path: Path) -> None:
    engine = next((e for e, module in _NETCDF_ENGINES.items() if importlib.util.find_spec(module)), None)
    if engine is None:
        raise ConfigError("writing NetCDF needs netCDF4 or h5netcdf: pip install 'vcinr-batch[netcdf]'")
    plain = dataset.copy()
    plain.attrs = _netcdf_attributes(plain.attrs)
    for variable in plain.variables.values():
        variable.attrs = _netcdf_attributes(variable.attrs)
    # NaN is no fill value of a coordinate: CF forbids missing labels. What else a coordinate brings along (units,
    # calendar, dtype) goes with it: to_netcdf's encoding would replace a variable's own.
    encoding: dict[Any, Any] = {name: {**plain[name].encoding, "_FillValue": None} for name in plain.coords}
    plain.to_netcdf(path, engine=engine, format="NETCDF4", encoding=encoding)  # type: ignore[call-overload]


def _write_zarr(dataset: "xarray.Dataset", path: Path) -> None:
    dataset.to_zarr(path, mode="w-", zarr_format=3, consolidated=False)


def _netcdf_attributes(attributes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Attributes as NetCDF can hold them: texts, numbers and lists of one of them; anything else as JSON."""
    return {
        name: value if isinstance(value, np.ndarray | np.generic) or _is_plain(value) else json.dumps(value)
        for name, value in attributes.items()
    }


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    numbers = [isinstance(item, int | float) and not isinstance(item, bool) for item in items]
    return bool(items) and (all(numbers) or all(isinstance(item, str) for item in items))


@contextmanager
def _output_folder(output: str, storage_options: StorageOptions) -> Iterator[Path]:
    """A temporary folder, on the output's own file system so that a rename suffices; gone afterwards.

    Made before anything is decoded: a place that cannot be written shows at once.
    """
    target = _local_path(output, storage_options)
    with _writing(output):
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".vcinr-", dir=None if target is None else target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _bring_to_place(folder: Path, output: str, storage_options: StorageOptions) -> int:
    """Move or upload what was written into the folder; returns its size in bytes."""
    finished = folder / "output"
    files = [finished] if finished.is_file() else sorted(p for p in finished.rglob("*") if p.is_file())
    total = sum(file.stat().st_size for file in files)
    target = _local_path(output, storage_options)
    if target is None:
        _upload(files, finished, output, storage_options)
    else:
        with _writing(output):
            _move(finished, target, folder / "replaced")
    return total


def _local_path(output: str, storage_options: StorageOptions) -> Path | None:
    fs, path = fsspec.core.url_to_fs(output, **dict(storage_options or {}))
    return Path(path) if isinstance(fs, LocalFileSystem) else None


@contextmanager
def _writing(output: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, VcinrError):
            raise
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SourceError(f"cannot write {public_url(output)}: {' '.join(text.split())[:200]}") from error


def _move(finished: Path, target: Path, replaced: Path) -> None:
    if target.is_file() and finished.is_file():
        os.replace(finished, target)
        return
    # A directory cannot be replaced in one step: the old one goes aside, and comes back should the new one fail.
    if target.exists():
        os.rename(target, replaced)
    try:
        os.rename(finished, target)
    except OSError:
        if replaced.exists():
            os.rename(replaced, target)
        raise


def _upload(files: list[Path], finished: Path, output: str, storage_options: StorageOptions) -> None:
    if finished.is_file():
        write_bytes(output, read_bytes(str(finished)), storage_options=storage_options)
        return
    fs, path = fsspec.core.url_to_fs(output, **dict(storage_options or {}))
    if exists(output, storage_options=storage_options):
        fs.rm(path, recursive=True)
    # Without its root metadata a store is none.
    for file in sorted(files, key=lambda file: file == finished / _ZARR_ROOT):
        url = join_url(output, *file.relative_to(finished).parts)
        write_bytes(url, read_bytes(str(file)), storage_options=storage_options)


def _block_count(layout: Layout, select: Mapping[str, str]) -> int:
    """Blocks that hold something of a selection."""
    counts = [
        len(np.unique(axis_index(axis, select[axis.name]) // length)) if axis.name in select else count
        for axis, length, count in zip(layout.axes, layout.block_shape, layout.block_counts, strict=True)
    ]
    return math.prod(counts)
