"""Opens one NetCDF, Zarr or GRIB store on any fsspec URL as a lazy xarray dataset; knows each format's quirks."""

import atexit
import gc
import importlib.util
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import xarray
from fsspec.implementations.local import LocalFileSystem
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from vcinr_batch.data.local_copies import drop_copy, local_copy
from vcinr_batch.data.netcdf3 import netcdf3_size_bytes
from vcinr_batch.data.ranged_file import RangedFile
from vcinr_batch.data.zarr_chunks import CheckedChunks
from vcinr_batch.data.zarr_listing import zarr_fingerprint
from vcinr_batch.errors import DamagedSourceError, SourceError, VcinrError
from vcinr_batch.storage import exists, locate, public_url
from vcinr_batch.store_retries import ask_store, is_transient, store_error, without_secrets

Result = TypeVar("Result")
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
        StoreUnavailableError: the store does not answer, or refuses the credentials.
        SourceError: nothing is there, or it is neither NetCDF nor Zarr nor GRIB.
    """
    head = ask_store(lambda: _head(url, storage_options), url, "read", storage_options)
    for magic, store_format in _MAGIC:
        if head is not None and head.startswith(magic):
            return StoreFile(url, store_format, _fingerprint(url, storage_options))
    root = url.rstrip("/")
    if any(exists(_inside(root, marker), storage_options=storage_options) for marker in _ZARR_MARKERS):
        return StoreFile(url, "zarr", _zarr_fingerprint(url, storage_options))
    if head is None and not exists(url, storage_options=storage_options):
        raise SourceError(f"cannot read {public_url(url)}: no such file")
    if head is None:
        raise SourceError(
            f"{public_url(url)} is a directory but no Zarr store; for files in it write a pattern like *.nc"
        )
    raise SourceError(f"{public_url(url)} is not a NetCDF, Zarr or GRIB file{'' if head else ': it is empty'}")


def open_store(file: StoreFile, storage_options: Mapping[str, Any]) -> xarray.Dataset:
    """The store as a dataset that reads values only when asked; kept open and shared within this process.

    Raises:
        StoreUnavailableError: the store does not answer, or refuses the credentials.
        DamagedSourceError: truncated, or its metadata does not decode.
        SourceError: unreadable, or an extra is not installed.
    """
    return read_store(file, storage_options, lambda dataset: dataset)


def read_store(file: StoreFile, storage_options: Mapping[str, Any], read: Callable[[xarray.Dataset], Result]) -> Result:
    """What a function reads from an open store, tried again with a fresh handle while the store fails.

    Where bytes do not decode, too, but once: a bad line may look like a damaged file.

    Args:
        file: what `find_store` gives.
        storage_options: of the file system.
        read: reads from the dataset; may be called several times.

    Raises:
        StoreUnavailableError: the store does not answer, or refuses the credentials.
        DamagedSourceError: bytes arrive, but do not decode.
        SourceError: unreadable otherwise, changed since `find_store`, or an extra is not installed.
    """

    def attempt() -> Result:
        try:
            result = read(_opened(file, storage_options))
        except (VcinrError, MemoryError):
            raise
        except Exception as error:
            if is_transient(error):
                raise
            raise _read_error(error, file.url) from error
        if file.format != "zarr":  # of a Zarr store it takes a listing: `check_unchanged` at the end of a job
            check_unchanged(file, storage_options)
        return result

    def ask() -> Result:
        return ask_store(attempt, file.url, "read", storage_options, before_retry=lambda: _forget(file))

    try:
        return ask()
    except DamagedSourceError:
        _forget(file)
        return ask()


def local_path(file: StoreFile, storage_options: Mapping[str, Any]) -> str:
    """Path of a file itself where it is local, else of a copy that lives at most as long as this process.

    Raises:
        StoreUnavailableError: the store does not answer, or refuses the credentials.
        SourceError: no such file, or no room for the copy.
    """
    return local_copy(file.url, file.fingerprint, storage_options)


def check_unchanged(file: StoreFile, storage_options: Mapping[str, Any]) -> None:
    """Raise where a store is not the one that was found.

    Format libraries read zeros past the end of a file that was cut while it was open, a chunk that is gone counts as
    missing values, and elsewhere two versions mix.

    Raises:
        StoreUnavailableError: the store does not answer.
        SourceError: it is another one, or gone.
    """
    look = _zarr_fingerprint if file.format == "zarr" else _fingerprint
    if file.fingerprint and look(file.url, storage_options) != file.fingerprint:
        raise SourceError(
            f"{public_url(file.url)} was changed or removed while it was being read; run the command again"
        )


def require_extra(module: str, extra: str) -> None:
    """Raise a `SourceError` that names the extra unless the module is installed."""
    if not _installed(module):
        raise SourceError(f"reading this file needs {module}: pip install 'vcinr-batch[{extra}]'")


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Turns whatever a store or a format library raises into one line that names the URL.

    Raises:
        StoreUnavailableError: the store failed.
        DamagedSourceError: bytes do not decode.
        SourceError: in place of any other exception.
    """
    # netCDF4, h5py, zarr, eccodes and the file systems each have exceptions of their own, with no base in common.
    try:
        yield
    except (VcinrError, MemoryError):
        raise
    except Exception as error:
        raise _read_error(error, url) from error


def _read_error(error: Exception, url: str) -> SourceError:
    """One line of ours: the store's failure, a missing file, no room, or else bytes that do not decode."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, SourceError):  # one of ours that a format library has wrapped
            return link
        link = link.__cause__ or link.__context__
    if is_transient(error):
        return store_error(error, url, "read")
    message = f"cannot read {public_url(url)}: {_cause(error)}"
    # The NetCDF library has error numbers of its own, below zero; h5py's errors have none.
    from_system = isinstance(error, OSError) and (error.errno or 0) > 0
    known = isinstance(error, FileNotFoundError | PermissionError | ImportError | NotImplementedError)
    return SourceError(message) if from_system or known else DamagedSourceError(message)


def _head(url: str, storage_options: Mapping[str, Any]) -> bytes | None:
    """The first bytes; None where there is no such file."""
    fs, path = locate(url, storage_options)
    fs.invalidate_cache()
    try:
        return bytes(fs.cat_file(path, start=0, end=_HEAD_BYTES))
    except (FileNotFoundError, IsADirectoryError) as error:
        if is_transient(error):
            raise
        return None


def _inside(root: str, name: str) -> str:
    """URL of a file in a folder; in a chain like `zip://a::s3://b/x.zip` the folder is the first link's."""
    first, *rest = root.split("::")
    return "::".join([f"{first.rstrip('/')}/{name}" if "://" in first or not rest else f"{first}://{name}", *rest])


def _fingerprint(url: str, storage_options: Mapping[str, Any]) -> str:
    """What changes with the content; empty where the file system cannot tell."""

    def look() -> str:
        fs, path = locate(url, storage_options)
        try:
            if isinstance(fs, LocalFileSystem):
                status = os.stat(path)
                return f"{status.st_size}-{status.st_mtime_ns}"  # of a file that is only linked or moved the same
            fs.invalidate_cache()
            return str(fs.ukey(path))
        except (OSError, NotImplementedError) as error:
            if is_transient(error):
                raise
            return ""

    return ask_store(look, url, "look up", storage_options)


def _zarr_fingerprint(url: str, storage_options: Mapping[str, Any]) -> str:
    """As `_fingerprint`, of metadata and chunks."""

    def look() -> str:
        fs, path = locate(url, storage_options)
        try:
            return zarr_fingerprint(_zarr_store(url, storage_options), fs, path)
        except Exception as error:  # opening it as a dataset says what is wrong with it
            if is_transient(error):
                raise
            return ""

    return ask_store(look, url, "look up", storage_options)


def _opened(file: StoreFile, storage_options: Mapping[str, Any]) -> xarray.Dataset:
    with _handles_lock:
        if file in _handles:
            _handles.move_to_end(file)
            return _handles[file]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = _OPENERS[file.format](file, storage_options)
    with _handles_lock:
        _handles[file] = dataset
        evicted = list(_handles)[:-_OPEN_STORES]
    _forget(*evicted)
    return dataset


def _forget(*files: StoreFile) -> None:
    """Drop handles, and copies that no other handle reads; whoever still reads from a handle keeps it alive."""
    with _handles_lock:
        dropped = [_handles.pop(file, None) for file in files]
        in_use = {(file.url, file.fingerprint) for file in _handles}
    for file in files:
        if file.format in ("netcdf3", "grib") and (file.url, file.fingerprint) not in in_use:
            drop_copy(file.url, file.fingerprint)
    if any(file.format == "hdf5" for file in files):
        # Handles of h5py lie in reference cycles, and releasing one takes h5py's lock. If that were left to a
        # collection in fsspec's thread while this one, holding the lock, waits for its bytes, both would wait forever.
        del dropped
        gc.collect()


def _after_fork() -> None:
    """A forked process has neither the threads nor the locks that open handles rely on."""
    global _handles_lock
    _handles_lock = threading.Lock()
    _handles.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _open_netcdf3(file: StoreFile, storage_options: Mapping[str, Any]) -> xarray.Dataset:
    require_extra("netCDF4", "netcdf")
    path = local_path(file, storage_options)
    with open(path, "rb") as stream:
        expected, size_bytes = netcdf3_size_bytes(stream), os.path.getsize(path)
    if size_bytes < expected:
        raise DamagedSourceError(f"{public_url(file.url)} is truncated: {size_bytes} of {expected} bytes")
    return xarray.open_dataset(path, engine="netcdf4", **_DECODING)


def _open_hdf5(file: StoreFile, storage_options: Mapping[str, Any]) -> xarray.Dataset:
    fs, _ = locate(file.url, storage_options)
    if not isinstance(fs, LocalFileSystem) and _installed("h5netcdf") and _installed("h5py"):
        stream: Any = RangedFile(file.url, storage_options)
        return xarray.open_dataset(stream, engine="h5netcdf", **_DECODING)
    require_extra("netCDF4", "netcdf")
    path = local_path(file, storage_options)
    return xarray.open_dataset(path, engine="netcdf4", **_DECODING)


def _open_zarr(file: StoreFile, storage_options: Mapping[str, Any]) -> xarray.Dataset:
    store: Any = CheckedChunks(_zarr_store(file.url, storage_options))  # xarray takes any store of Zarr's
    return xarray.open_dataset(store, engine="zarr", **_DECODING)


def _zarr_store(url: str, storage_options: Mapping[str, Any]) -> Store:
    fs, path = locate(url, storage_options)
    if isinstance(fs, LocalFileSystem):
        return LocalStore(path, read_only=True)
    store = FsspecStore.from_url(url, storage_options=dict(storage_options), read_only=True)
    if hasattr(store.fs, "retries"):
        # Of one chunk; botocore repeats each request as well. Reading as a whole is repeated by `read_store`.
        store.fs.retries = 2
    return store


def _open_grib(file: StoreFile, storage_options: Mapping[str, Any]) -> xarray.Dataset:
    require_extra("cfgrib", "grib")
    options = {"indexpath": "", "errors": "raise", "filter_by_keys": dict(file.grib_filter)}
    path = local_path(file, storage_options)
    return xarray.open_dataset(path, engine="cfgrib", backend_kwargs=options, **_DECODING)


_OPENERS = {"netcdf3": _open_netcdf3, "hdf5": _open_hdf5, "zarr": _open_zarr, "grib": _open_grib}


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _cause(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "permission denied"
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(message.split())[:_CAUSE_CHARACTERS]
    return f"{type(error).__name__}: {without_secrets(public_url(text))}" if text else type(error).__name__
