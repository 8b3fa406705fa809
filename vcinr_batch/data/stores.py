"""Opens one NetCDF, Zarr or GRIB store on any fsspec URL as a lazy xarray dataset; knows each format's quirks."""

import atexit
import hashlib
import importlib.util
import os
import shutil
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import fsspec
import xarray
from fsspec.implementations.local import LocalFileSystem

from vcinr_batch.data.netcdf3 import netcdf3_size_bytes
from vcinr_batch.errors import SourceError, VcinrError
from vcinr_batch.storage import public_url

StoreFormat = Literal["netcdf3", "hdf5", "zarr", "grib"]
_MAGIC: tuple[tuple[bytes, StoreFormat], ...] = ((b"CDF", "netcdf3"), (b"\x89HDF\r\n\x1a\n", "hdf5"), (b"GRIB", "grib"))
_ZARR_MARKERS = ("zarr.json", ".zmetadata", ".zgroup")
_HEAD_BYTES = 512
_OPEN_STORES = 64
_CAUSE_CHARACTERS = 200
# Times are decoded, durations stay numbers; bounds and grid mappings are coordinates and no variables to choose from.
_DECODING: dict[str, Any] = {"decode_timedelta": False, "decode_coords": "all", "cache": False}


@dataclass(frozen=True)
class StoreFile:
    """One store, and which of its variables."""

    url: str
    format: StoreFormat
    fingerprint: str
    """Changes with the content where the store tells, so that a handle kept open is not used for a newer file."""
    grib_filter: tuple[tuple[str, str], ...] = ()
    """GRIB: keys of the messages to look at."""


_handles: "OrderedDict[StoreFile, xarray.Dataset]" = OrderedDict()
_handles_lock = threading.Lock()
# h5netcdf cannot close its files any more when the interpreter is already being taken down.
atexit.register(_handles.clear)


def find_store(url: str, storage_options: Mapping[str, Any]) -> StoreFile:
    """What kind of store a URL is, by its first bytes or by Zarr's metadata files.

    Raises:
        SourceError: nothing is there, or it is neither NetCDF nor Zarr nor GRIB.
    """
    with reading(url):
        fs, path = fsspec.core.url_to_fs(url, **storage_options)
        fs.invalidate_cache()
        head = _head(fs, path)
        for magic, store_format in _MAGIC:
            if head is not None and head.startswith(magic):
                return StoreFile(url, store_format, _fingerprint(fs, path))
        if any(fs.exists(f"{path.rstrip('/')}/{marker}") for marker in _ZARR_MARKERS):
            return StoreFile(url, "zarr", _fingerprint(fs, path))
        if head is None and not fs.exists(path):
            raise FileNotFoundError(path)
    if head is None:
        raise SourceError(
            f"{public_url(url)} is a directory but no Zarr store; for files in it write a pattern like *.nc"
        )
    raise SourceError(f"{public_url(url)} is not a NetCDF, Zarr or GRIB file{'' if head else ': it is empty'}")


def open_store(file: StoreFile, storage_options: Mapping[str, Any]) -> xarray.Dataset:
    """The store as a dataset that reads values only when asked; kept open and shared within this process.

    Raises:
        SourceError: unreadable or truncated, or an extra is not installed.
    """
    with _handles_lock:
        if file in _handles:
            _handles.move_to_end(file)
            return _handles[file]
    with reading(file.url), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = _OPENERS[file.format](file, storage_options)
    with _handles_lock:
        _handles[file] = dataset
        while len(_handles) > _OPEN_STORES:
            _handles.popitem(last=False)  # whoever still reads from it keeps it alive
    return dataset


def local_path(file: StoreFile, storage_options: Mapping[str, Any]) -> str:
    """Path of a file itself where it is local, else of a copy that lives as long as this process."""
    fs, path = fsspec.core.url_to_fs(file.url, **storage_options)
    if isinstance(fs, LocalFileSystem):
        return str(path)
    name = hashlib.sha256(f"{file.url} {file.fingerprint}".encode()).hexdigest()[:32]
    copy = os.path.join(_copies_folder(), name)
    if not os.path.exists(copy):
        partial = f"{copy}.{threading.get_ident()}"
        fs.get_file(path, partial)
        os.replace(partial, copy)
    return copy


def require_extra(module: str, extra: str) -> None:
    """Raise a `SourceError` that names the extra unless the module is installed."""
    if not _installed(module):
        raise SourceError(f"reading this file needs {module}: pip install 'vcinr-batch[{extra}]'")


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Turns whatever a store or a format library raises into one line that names the URL.

    Raises:
        SourceError: in place of any other exception.
    """
    # netCDF4, h5py, zarr, eccodes and the file systems each have exceptions of their own, with no base in common.
    try:
        yield
    except (VcinrError, MemoryError):
        raise
    except Exception as error:
        raise SourceError(f"cannot read {public_url(url)}: {_cause(error)}") from error


def _head(fs: Any, path: str) -> bytes | None:
    """The first bytes; None where there is no such file."""
    try:
        return bytes(fs.cat_file(path, start=0, end=_HEAD_BYTES))
    except (FileNotFoundError, IsADirectoryError):
        return None


def _fingerprint(fs: Any, path: str) -> str:
    """What changes with the content; empty where the file system cannot tell. Opening says why if it is unreachable."""
    try:
        return str(fs.ukey(path))
    except (OSError, NotImplementedError):
        return ""


def _open_netcdf3(file: StoreFile, storage_options: Mapping[str, Any]) -> xarray.Dataset:
    require_extra("netCDF4", "netcdf")
    path = local_path(file, storage_options)
    with open(path, "rb") as stream:
        expected, size_bytes = netcdf3_size_bytes(stream), os.path.getsize(path)
    if size_bytes < expected:
        raise SourceError(f"{public_url(file.url)} is truncated: {size_bytes} of {expected} bytes")
    return xarray.open_dataset(path, engine="netcdf4", **_DECODING)


def _open_hdf5(file: StoreFile, storage_options: Mapping[str, Any]) -> xarray.Dataset:
    fs, path = fsspec.core.url_to_fs(file.url, **storage_options)
    if not isinstance(fs, LocalFileSystem) and _installed("h5netcdf") and _installed("h5py"):
        return xarray.open_dataset(fs.open(path, "rb"), engine="h5netcdf", **_DECODING)
    require_extra("netCDF4", "netcdf")
    path = local_path(file, storage_options)
    return xarray.open_dataset(path, engine="netcdf4", **_DECODING)


def _open_zarr(file: StoreFile, storage_options: Mapping[str, Any]) -> xarray.Dataset:
    fs, path = fsspec.core.url_to_fs(file.url, **storage_options)
    if isinstance(fs, LocalFileSystem):
        return xarray.open_dataset(path, engine="zarr", **_DECODING)
    options = dict(storage_options) or None
    return xarray.open_dataset(file.url, engine="zarr", storage_options=options, **_DECODING)


def _open_grib(file: StoreFile, storage_options: Mapping[str, Any]) -> xarray.Dataset:
    require_extra("cfgrib", "grib")
    options = {"indexpath": "", "errors": "raise", "filter_by_keys": dict(file.grib_filter)}
    path = local_path(file, storage_options)
    return xarray.open_dataset(path, engine="cfgrib", backend_kwargs=options, **_DECODING)


_OPENERS = {"netcdf3": _open_netcdf3, "hdf5": _open_hdf5, "zarr": _open_zarr, "grib": _open_grib}


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


_copies: dict[int, str] = {}


def _copies_folder() -> str:
    """One folder per process (a forked worker makes its own), removed at its end."""
    if os.getpid() not in _copies:
        folder = tempfile.mkdtemp(prefix="vcinr-source-")
        _copies[os.getpid()] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _copies[os.getpid()]


def _cause(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "permission denied"
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(message.split())[:_CAUSE_CHARACTERS]
    return f"{type(error).__name__}: {public_url(text)}" if text else type(error).__name__
