"""A Zarr store under construction: where its chunks go meanwhile, and how it comes to its place.

On a file system a folder beside the output, which is renamed. On an object store, which cannot rename, the place itself
where nothing is there: chunks without metadata are no store. Where a store is to be replaced, a prefix beside it, from
which the store copies when all is there: a restore that fails costs nothing.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.output_place import MARKER, check_place, local_path, locked_folder, read_marker, root_files, writing
from vcinr_batch.errors import StoreUnavailableError, VcinrError
from vcinr_batch.storage import StorageOptions, exists, join_url, locate, remove, write_bytes
from vcinr_batch.store_retries import ask_store

_REPLACING = "replacing"
"""Marks a store of which the old files are not all gone yet."""
_COPIED_AT_ONCE = 64


@dataclass
class ZarrPlace:
    """A store under construction."""

    output: str
    digest: str
    overwrite: bool
    store: str
    """URL where its files are written."""
    folder: Path | None
    """Of `store` and its marker, on a file system."""
    resumed: bool
    """Whether a run that was killed left chunks in it."""
    has_chunks: bool = False
    """Set this when a run of the same command would have less to do."""
    storage_options: StorageOptions = field(default=None, repr=False)


@contextmanager
def zarr_place(output: str, digest: str, overwrite: bool, storage_options: StorageOptions) -> Iterator[ZarrPlace]:
    """A store under construction, which `finish` brings to its place.

    An error removes it, unless the same command may well succeed: then what is done is kept for it.

    Args:
        output: URL that ends with .zarr.
        digest: of what is restored: only the very same restore goes on with what another run left.
        overwrite: replace a store that is there.

    Raises:
        ArchiveExistsError: another process is writing the same output.
        SourceError: the place cannot be written.
    """
    target = local_path(output, storage_options)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(locked_folder(target, digest)) if target else None
        store = str(folder / "output") if folder else _remote_store(output, digest, storage_options)
        resumed = read_marker(str(folder or store), storage_options) == digest
        place = ZarrPlace(output, digest, overwrite, store, folder, resumed, storage_options=storage_options)
        try:
            if not resumed:
                _clear(store, storage_options)
                write_bytes(join_url(str(folder or store), MARKER), digest.encode(), storage_options=storage_options)
            yield place
        except BaseException as error:
            if not (place.has_chunks and _may_succeed_later(error)):
                with contextlib.suppress(Exception):  # the error that is on its way says more
                    shutil.rmtree(folder, ignore_errors=True) if folder else _clear(store, storage_options)
            raise
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def finish(place: ZarrPlace, files: Mapping[str, bytes], chunks: Iterable[tuple[str, ...]]) -> int:
    """Complete a store whose chunks are all there, and bring it to its place.

    Args:
        place: from `zarr_place`.
        files: all other files by path, in the order in which to write them: the root's metadata last.
        chunks: paths of all chunks.

    Returns:
        Bytes of `files`.

    Raises:
        ArchiveExistsError: something appeared at the output meanwhile.
        SourceError: the place cannot be written.
    """
    check_place(place.output, place.overwrite, place.storage_options, place.digest)
    if place.folder is None and place.store != place.output:
        _copy_over(place, chunks)
        store = place.output
    else:
        store = place.store
    for path, content in files.items():
        write_bytes(join_url(store, *path.split("/")), content, storage_options=place.storage_options)
    if place.folder is not None:
        with writing(place.output):
            _move(Path(place.store), Path(place.folder.parent, Path(place.output).name), place.folder / "replaced")
    else:
        remove(join_url(store, MARKER), storage_options=place.storage_options)
        _clear(_beside(place.output, place.digest), place.storage_options)
    return sum(map(len, files.values()))


def _may_succeed_later(error: BaseException) -> bool:
    """An interruption, a store that does not answer, or lost workers (the only plain `VcinrError`)."""
    return isinstance(error, KeyboardInterrupt | StoreUnavailableError) or type(error) is VcinrError


def _remote_store(output: str, digest: str, storage_options: StorageOptions) -> str:
    """The place itself, where nothing is there or an unfinished restore; else one beside it."""
    has_root = bool(root_files(output, storage_options))
    if not exists(output, storage_options=storage_options):
        return output
    marker = read_marker(output, storage_options)
    return output if marker == digest or (marker is not None and not has_root) else _beside(output, digest)


def _beside(output: str, digest: str) -> str:
    parent, _, name = output.rstrip("/").rpartition("/")
    return join_url(parent, f".vcinr-{name}-{digest[:12]}")


def _clear(store: str, storage_options: StorageOptions, keep: str | None = None) -> None:
    """Remove everything under a URL but one file of that name."""
    fs, path = locate(store, storage_options)

    def clear() -> None:
        fs.invalidate_cache()
        if keep is None:
            if fs.exists(path):
                fs.rm(path, recursive=True)
        elif names := [name for name in fs.find(path) if name.rpartition("/")[2] != keep]:
            fs.rm(names)

    ask_store(clear, store, "remove", storage_options)


def _copy_over(place: ZarrPlace, chunks: Iterable[tuple[str, ...]]) -> None:
    """Remove the old store, its root first so that nobody opens half of it, and let the store copy the new chunks."""
    options = place.storage_options
    marker = join_url(place.output, MARKER)
    write_bytes(marker, _REPLACING.encode(), storage_options=options)
    for url in root_files(place.output, options):
        remove(url, storage_options=options)
    _clear(place.output, options, keep=MARKER)
    write_bytes(marker, place.digest.encode(), storage_options=options)
    fs, _ = locate(place.output, options)
    waiting = iter(chunks)
    while some := list(islice(waiting, _COPIED_AT_ONCE)):
        ask_store(partial(_copy, fs, place.store, place.output, some), place.output, "write", options)


def _copy(fs: Any, source: str, target: str, paths: Sequence[tuple[str, ...]]) -> None:
    """Let the store copy files; nothing of them passes through this machine."""
    old, new = ([fs._strip_protocol(join_url(base, *path)) for path in paths] for base in (source, target))
    fs.copy(old, new)


def _move(finished: Path, target: Path, replaced: Path) -> None:
    # A directory cannot be replaced in one step: the old one goes aside, and comes back should the new one fail.
    if target.exists():
        os.rename(target, replaced)
    try:
        os.rename(finished, target)
    except OSError:
        if replaced.exists():
            os.rename(replaced, target)
        raise
