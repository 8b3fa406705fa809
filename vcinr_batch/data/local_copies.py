"""Local copies of remote files, for libraries that read nothing but local ones (classic NetCDF, GRIB)."""

import atexit
import errno
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from vcinr_batch.errors import SourceError
from vcinr_batch.storage import locate, public_url
from vcinr_batch.store_retries import ShortReadError, ask_store

_copies: dict[int, str] = {}


def local_copy(url: str, fingerprint: str, storage_options: Mapping[str, Any]) -> str:
    """Path of a file itself where it is local, else of a whole copy of it, made once in this process.

    Args:
        url: of the file.
        fingerprint: changes with its content.
        storage_options: of the file system.

    Raises:
        StoreUnavailableError: the store does not answer, or refuses the credentials.
        SourceError: no such file, or no room for the copy.
    """
    fs, path = locate(url, storage_options)
    if isinstance(fs, LocalFileSystem):
        return path
    copy = _copy_path(url, fingerprint)
    if not os.path.exists(copy):
        partial = f"{copy}.{threading.get_ident()}"
        try:
            ask_store(lambda: _download(url, storage_options, partial), url, "read", storage_options)
            os.replace(partial, copy)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial)
    return copy


def drop_copy(url: str, fingerprint: str) -> None:
    """Remove the copy of a file if this process has one; who has it open keeps reading it."""
    with suppress(FileNotFoundError):
        os.unlink(_copy_path(url, fingerprint))


def copies_folder() -> str:
    """One folder per process (a forked worker makes its own), removed at its end."""
    if os.getpid() not in _copies:
        folder = tempfile.mkdtemp(prefix="vcinr-source-")
        _copies[os.getpid()] = folder
        atexit.register(_remove_folder, os.getpid(), folder)
    return _copies[os.getpid()]


def _remove_folder(pid: int, folder: str) -> None:
    # A forked process inherits what its parent has registered.
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_path(url: str, fingerprint: str) -> str:
    name = hashlib.sha256(f"{url} {fingerprint}".encode()).hexdigest()[:32]
    return os.path.join(copies_folder(), name)


def _download(url: str, storage_options: Mapping[str, Any], target: str) -> None:
    """The whole file, or an error.

    Raises:
        ShortReadError: less came than the store says that there is.
        SourceError: no room.
    """
    fs, path = locate(url, storage_options)
    size_bytes = fs.size(path)
    try:
        fs.get_file(path, target)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        folder = os.path.dirname(target)
        raise SourceError(
            f"cannot read {public_url(url)}: no room for its {size_bytes} bytes in {folder}: set TMPDIR to another disk"
        ) from error
    if size_bytes is not None and os.path.getsize(target) != size_bytes:
        raise ShortReadError(f"{os.path.getsize(target)} of {size_bytes} bytes came")
