"""How a Zarr store is emptied, copied and moved so that the only copy of anything stays."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.output_place import MARKER, remove_folder, root_files
from vcinr_batch.storage import StorageOptions, exists, join_url, locate, remove, write_bytes
from vcinr_batch.store_retries import ask_store

_REPLACING = "replacing"
"""Marks a store of which the old files are not all gone yet."""
_COPIED_AT_ONCE = 64


def empty_store(store: str, digest: str, storage_options: StorageOptions) -> None:
    """Make a place this restore's: remove all that is there, the root first so that nobody opens half of it.

    The marker is there all the time: who writes there sees at once that the place is not theirs any more.
    """
    marker = join_url(store, MARKER)
    if exists(store, storage_options=storage_options):
        write_bytes(marker, _REPLACING.encode(), storage_options=storage_options)
        for url in root_files(store, storage_options):
            remove(url, storage_options=storage_options)
        clear_store(store, storage_options, keep=MARKER)
    write_bytes(marker, digest.encode(), storage_options=storage_options)


def clear_store(store: str, storage_options: StorageOptions, keep: str | None = None) -> None:
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


def copy_chunks(source: str, target: str, chunks: Iterable[tuple[str, ...]], storage_options: StorageOptions) -> None:
    """Let the store copy chunks from one place to another.

    Raises:
        SourceError: one of them is not there, or cannot be written.
    """
    fs, _ = locate(target, storage_options)
    waiting = iter(chunks)
    while some := list(islice(waiting, _COPIED_AT_ONCE)):
        ask_store(partial(_copy, fs, source, target, some), target, "write", storage_options)


def _copy(fs: Any, source: str, target: str, paths: Sequence[tuple[str, ...]]) -> None:
    """Let the store copy files; nothing of them passes through this machine."""
    old, new = ([fs._strip_protocol(join_url(base, *path)) for path in paths] for base in (source, target))
    fs.copy(old, new)


def move_store(finished: Path, target: Path, replaced: Path) -> None:
    """Rename a store to its place.

    A directory cannot be replaced in one step: the old one goes aside, and comes back should the new one not come.

    Raises:
        OSError: one of them cannot be renamed.
    """
    try:
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)  # of a run that was killed after it had moved the new one
            os.rename(target, replaced)
        os.rename(finished, target)
    except BaseException:
        bring_back(replaced.parent, target)
        raise


def bring_back(folder: Path, target: Path) -> None:
    """Put the old store back where the run that was about to replace it stopped half way."""
    if (folder / "replaced").exists() and not target.exists():
        os.rename(folder / "replaced", target)


def discard_folder(folder: Path, target: Path) -> None:
    """Remove the folder, but never the only copy of the old store."""
    with contextlib.suppress(OSError):  # the error that is on its way says more
        bring_back(folder, target)
        remove_folder(folder)
