"""Where a restore goes: what may be replaced there, what a NetCDF file is written to, and errors of writing."""

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fsspec.implementations.local import LocalFileSystem

from vcinr_batch.archive.manifest import MANIFEST_NAME
from vcinr_batch.console import size_text
from vcinr_batch.errors import ArchiveExistsError, ConfigError, SourceError, VcinrError
from vcinr_batch.storage import StorageOptions, exists, is_file_url, join_url, locate, public_url, read_bytes
from vcinr_batch.store_retries import ask_store

MARKER = ".vcinr-restore"
"""In a Zarr store under construction: the digest of what is being restored into it."""
ZARR_SUFFIX = ".zarr"
_NETCDF_SUFFIXES = (".nc", ".nc4")
_ZARR_ROOTS = ("zarr.json", ".zgroup")  # of version 3, of version 2
_UPLOAD_PIECE_BYTES, _UPLOADS_AT_ONCE = 16 << 20, 4


def is_zarr(output: str) -> bool:
    """Whether the output is to be a Zarr store; else it is a NetCDF file.

    Raises:
        ConfigError: its name tells neither.
    """
    suffix = Path(output.rstrip("/")).suffix
    if suffix not in (ZARR_SUFFIX, *_NETCDF_SUFFIXES):
        raise ConfigError(f"output {output!r}: expected a name that ends with .nc or .zarr")
    return suffix == ZARR_SUFFIX


def check_place(output: str, overwrite: bool, storage_options: StorageOptions, digest: str = "") -> None:
    """Make sure that nothing is at the output, or nothing but what this command writes there and may replace.

    Args:
        output: URL.
        overwrite: whether an output of the same kind may be replaced.
        digest: of the restore; its own unfinished store may always be completed.

    Raises:
        ArchiveExistsError: says what is there.
    """
    if not exists(output, storage_options=storage_options):
        return
    place, is_file = public_url(output), is_file_url(output, storage_options=storage_options)
    to_zarr = output.rstrip("/").endswith(ZARR_SUFFIX)
    marker = read_marker(output, storage_options) if to_zarr and not is_file else None
    if marker is not None and marker == digest:
        return
    if not overwrite:
        what = f"{place} (an unfinished restore of something else)" if marker is not None else place
        raise ArchiveExistsError(f"{what} is there already; pass --overwrite, or take another place")
    if not to_zarr:
        if not is_file:
            raise ArchiveExistsError(f"{place} is a directory and not a file: --overwrite does not replace it")
    elif is_file:
        raise ArchiveExistsError(f"{place} is a file and not a Zarr store: --overwrite does not replace it")
    elif exists(join_url(output, MANIFEST_NAME), storage_options=storage_options):
        raise ArchiveExistsError(f"{place} is an archive, whose decoded values do not replace it; take another place")
    elif marker is None and not root_files(output, storage_options):
        raise ArchiveExistsError(
            f"{place} is a directory without {' or '.join(_ZARR_ROOTS)}, no Zarr store: --overwrite does not replace it"
        )


def root_files(output: str, storage_options: StorageOptions) -> list[str]:
    """URLs of the files that make a directory a Zarr store."""
    urls = [join_url(output, name) for name in _ZARR_ROOTS]
    return [url for url in urls if exists(url, storage_options=storage_options)]


def read_marker(store: str, storage_options: StorageOptions) -> str | None:
    """What a store under construction says about itself; None where it is not under construction."""
    url = join_url(store, MARKER)
    if not exists(url, storage_options=storage_options):
        return None
    return read_bytes(url, storage_options=storage_options).decode(errors="replace")


def local_path(output: str, storage_options: StorageOptions) -> Path | None:
    """The path of an output on a file system; None elsewhere."""
    fs, path = locate(output, storage_options)
    return Path(path) if isinstance(fs, LocalFileSystem) else None


@contextmanager
def locked_folder(target: Path, digest: str) -> Iterator[Path]:
    """A folder beside the output, of the same name for the same restore and of one process at a time.

    It stays; `remove_folder` removes it. A folder that a killed run left is taken over.

    Raises:
        ArchiveExistsError: another process is writing the same output.
        SourceError: the folder cannot be made.
    """
    folder = target.parent / f".vcinr-{target.name}-{digest[:12]}"
    with writing(str(target)), contextlib.ExitStack() as stack:
        lock = None
        while lock is None:
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # its owner has just removed it
                lock = _lock(folder / "lock", target)
        stack.enter_context(lock)
        kept = stack.pop_all()
    with kept:
        yield folder


def _lock(path: Path, target: Path) -> IO[bytes] | None:
    """The file, locked; None where its owner removed it between opening and locking: it would lock nobody out."""
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(open(path, "wb"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArchiveExistsError(f"another run is writing {target}") from error
        if not os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
            return None
        stack.pop_all()
        return lock


def remove_folder(folder: Path) -> None:
    """Remove what `locked_folder` gave, in one step for others: what they make under its name meanwhile stays."""
    gone = folder.with_name(f"{folder.name}-{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def netcdf_place(output: str, digest: str, overwrite: bool, storage_options: StorageOptions) -> Iterator[Path]:
    """A path to write a NetCDF file to, which comes to its place when the context ends without an error.

    Beside the output on a file system; else in the system's temporary folder, and then uploaded piece by piece.

    Raises:
        ArchiveExistsError: as `locked_folder`, or something appeared at the output meanwhile.
        SourceError: the place cannot be written.
    """
    target = local_path(output, storage_options)
    with contextlib.ExitStack() as stack:
        if target is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vcinr-")))
        else:
            folder = stack.enter_context(locked_folder(target, digest))
            stack.callback(remove_folder, folder)
        yield folder / "output"
        # Again: decoding may have taken hours.
        check_place(output, overwrite, storage_options)
        if target is None:
            _upload(folder / "output", output, storage_options)
        else:
            with writing(output):
                os.replace(folder / "output", target)


@contextmanager
def writing(output: str) -> Iterator[None]:
    """Turns whatever goes wrong while an output is written into one SourceError that names it."""
    try:
        yield
    except VcinrError:
        raise
    except Exception as error:  # botocore's, HDF5's and Zarr's own ones among them
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SourceError(
            f"cannot write {public_url(output)}: {public_url(' '.join(text.split()))[:200] or type(error).__name__}"
        ) from error


def check_space(folder: Path, needed_bytes: int, output: str) -> None:
    """Make sure that a file fits on its disk before hours go into it.

    Raises:
        SourceError: says how much is missing.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise SourceError(
            f"cannot write {public_url(output)}: No space left on device: "
            f"it takes {size_text(needed_bytes)}, {size_text(free)} are free in {folder}"
        )


def _upload(path: Path, output: str, storage_options: StorageOptions) -> None:
    """Send a file in pieces; the object appears when the last one has arrived."""
    fs, target = locate(output, storage_options)
    is_s3 = "s3" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)
    pieces: dict[str, Any] = {"chunksize": _UPLOAD_PIECE_BYTES, "max_concurrency": _UPLOADS_AT_ONCE} if is_s3 else {}
    ask_store(lambda: fs.put_file(str(path), target, **pieces), output, "write", storage_options)
