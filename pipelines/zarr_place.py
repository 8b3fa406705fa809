"""A Zarr store under construction: where its chunks go meanwhile, and how it comes to its place.

On a file system a folder beside the output, of one process at a time, which is renamed. On an object store, which
cannot rename, the place itself where nothing is there: chunks without metadata are no store. Where a store is to be
replaced, a prefix beside it, from which the store copies when all is there: a restore that fails costs nothing.

An object store has no locks: a marker says whose the place is. Another run may share it or take it over, so nothing is
removed there because of an error, chunks are written only under the own marker, and metadata only when a listing shows
exactly the own chunks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.output_place import (
    MARKER,
    check_place,
    local_path,
    locked_folder,
    read_marker,
    root_files,
    writing,
)
from pipelines.restore_listing import holds_files, list_contents
from pipelines.restore_moves import bring_back, clear_store, copy_chunks, discard_folder, empty_store, move_store
from vcinr_batch.errors import ArchiveExistsError, SourceError, StoreUnavailableError, VcinrError
from vcinr_batch.storage import StorageOptions, exists, join_url, public_url, read_bytes, remove, write_bytes

Chunks = Callable[[], Iterable[tuple[str, ...]]]
"""Gives the paths of all chunks of a store."""
_MIXED = "mixed"
"""Marks a store that several restores wrote to: nobody goes on with it."""


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
    """Whether another run of the same restore left chunks in it, or is still writing them."""
    has_chunks: bool = False
    """Set this when a run of the same command would have less to do."""
    storage_options: StorageOptions = field(default=None, repr=False)

    @property
    def marker(self) -> str:
        """Under which chunks may be written; empty in a locked folder."""
        return "" if self.folder else self.digest


@contextmanager
def zarr_place(output: str, digest: str, overwrite: bool, storage_options: StorageOptions) -> Iterator[ZarrPlace]:
    """A store under construction, which `finish` brings to its place.

    On a file system an error removes it, unless the same command may well succeed: then what is done is kept for it. On
    an object store it always stays for the same command: another run may be writing it, too.

    Args:
        output: URL that ends with .zarr.
        digest: of what is restored: only the very same restore goes on with what another run left.
        overwrite: replace a store that is there.

    Raises:
        ArchiveExistsError: another process is writing the same output, or it is there.
        SourceError: the place cannot be written.
    """
    target = local_path(output, storage_options)
    if target is None:
        check_place(output, overwrite, storage_options, digest)  # again: a run that shared the place may have finished
        store = _remote_store(output, digest, storage_options)
        resumed = read_marker(store, storage_options) == digest
        if not resumed:
            empty_store(store, digest, storage_options)
        yield ZarrPlace(output, digest, overwrite, store, None, resumed, storage_options=storage_options)
        return
    with locked_folder(target, digest) as folder:
        with writing(output):
            bring_back(folder, target)
        resumed = read_marker(str(folder), storage_options) == digest
        place = ZarrPlace(output, digest, overwrite, str(folder / "output"), folder, resumed, resumed, storage_options)
        if resumed:
            check_place(output, overwrite, storage_options)  # what came back may be in the way
        try:
            if not resumed:
                clear_store(place.store, storage_options)
                write_bytes(str(folder / MARKER), digest.encode())
            yield place
        except BaseException as error:
            if not (place.has_chunks and _may_succeed_later(error)):
                discard_folder(folder, target)
            raise
        discard_folder(folder, target)


def finish(place: ZarrPlace, files: Mapping[str, bytes], chunks: Chunks, chunk_bytes: int) -> int:
    """Complete a store whose chunks are all there, and bring it to its place.

    Where another run of the very same restore has done so meanwhile, there is nothing left to do.

    Args:
        place: from `zarr_place`.
        files: all other files by path, in the order in which to write them: the root's metadata last.
        chunks: of the store.
        chunk_bytes: of all of them together.

    Returns:
        Bytes of `files`.

    Raises:
        ArchiveExistsError: something appeared at the output meanwhile, or another run took the place over.
        SourceError: the place cannot be written, or chunks are missing from it.
    """
    if place.folder is not None:
        _finish_folder(place, place.folder, files, chunks, chunk_bytes)
    elif read_marker(place.store, place.storage_options) == place.digest:
        _finish_store(place, files, chunks, chunk_bytes)
    elif not _is_complete(place, files, chunks, chunk_bytes):
        raise taken_over(place)
    return sum(map(len, files.values()))


def taken_over(place: ZarrPlace) -> ArchiveExistsError:
    """For a run that does not find its marker any more."""
    return ArchiveExistsError(
        f"another run has completed or taken over {public_url(place.output)} meanwhile: this one leaves it as it is"
    )


def _finish_folder(
    place: ZarrPlace, folder: Path, files: Mapping[str, bytes], chunks: Chunks, chunk_bytes: int
) -> None:
    check_place(place.output, place.overwrite, place.storage_options)
    with writing(place.output):
        for path in list_contents(place.store, chunks(), files, place.storage_options).foreign:
            Path(place.store, path).unlink(missing_ok=True)  # temporary files of killed workers
    _check_contents(place, place.store, files, chunks, chunk_bytes)
    _write_files(place, place.store, files)
    with writing(place.output):
        move_store(Path(place.store), Path(folder.parent, Path(place.output).name), folder / "replaced")


def _finish_store(place: ZarrPlace, files: Mapping[str, bytes], chunks: Chunks, chunk_bytes: int) -> None:
    options = place.storage_options
    check_place(place.output, place.overwrite, options, place.digest)
    if not place.overwrite:
        _check_root(place, files)
    _check_contents(place, place.store, files, chunks, chunk_bytes)
    if place.store != place.output:
        empty_store(place.output, place.digest, options)
        copy_chunks(place.store, place.output, chunks(), options)
        _check_contents(place, place.output, files, chunks, chunk_bytes)
        remove(join_url(place.store, MARKER), storage_options=options)  # tells runs that share it
    _write_files(place, place.output, files)
    remove(join_url(place.output, MARKER), storage_options=options)
    clear_store(_beside(place.output, place.digest), options)


def _write_files(place: ZarrPlace, store: str, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        write_bytes(join_url(store, *path.split("/")), content, storage_options=place.storage_options)


def _check_contents(place: ZarrPlace, store: str, files: Mapping[str, bytes], chunks: Chunks, chunk_bytes: int) -> None:
    """Make sure that a store holds all that was written to it and nothing else."""
    found, output = list_contents(store, chunks(), files, place.storage_options), public_url(place.output)
    if found.missing:
        raise SourceError(
            f"cannot complete {output}: {len(found.missing)} of its chunks were removed meanwhile, "
            f"the first {found.missing[0]}: run the same command again"
        )
    if not found.foreign and found.chunk_bytes == chunk_bytes:
        return
    if place.folder is None:  # else the same command would take these chunks for its own
        write_bytes(join_url(store, MARKER), _MIXED.encode(), storage_options=place.storage_options)
    what = found.foreign[0] if found.foreign else f"chunks of {found.chunk_bytes} bytes instead of {chunk_bytes}"
    raise ArchiveExistsError(
        f"cannot complete {output}: another run has written to it meanwhile ({what}): "
        "when that has ended, run again with --overwrite"
    )


def _check_root(place: ZarrPlace, files: Mapping[str, bytes]) -> None:
    """Make sure that nobody made a store of their own of the place."""
    for url in root_files(place.output, place.storage_options):
        if read_bytes(url, storage_options=place.storage_options) != files.get(url.rpartition("/")[2]):
            raise ArchiveExistsError(f"{public_url(url)} appeared meanwhile; pass --overwrite, or take another place")


def _is_complete(place: ZarrPlace, files: Mapping[str, bytes], chunks: Chunks, chunk_bytes: int) -> bool:
    """Whether the very same store is at the output already."""
    output, options = place.output, place.storage_options
    if read_marker(output, options) is not None or not root_files(output, options):
        return False
    found = list_contents(output, chunks(), files, options)
    is_same = not found.missing and not found.foreign and found.chunk_bytes == chunk_bytes
    return is_same and holds_files(output, files, options)


def _may_succeed_later(error: BaseException) -> bool:
    """An interruption, a store that does not answer, or lost workers (the only plain `VcinrError`)."""
    return isinstance(error, KeyboardInterrupt | StoreUnavailableError) or type(error) is VcinrError


def _remote_store(output: str, digest: str, storage_options: StorageOptions) -> str:
    """The place itself, where nothing is there or an unfinished restore; else one beside it."""
    if not exists(output, storage_options=storage_options):
        return output
    marker, beside = read_marker(output, storage_options), _beside(output, digest)
    is_unfinished = marker is not None and not root_files(output, storage_options)
    # All may be in the one beside it already: a run was killed when it began to copy.
    is_free = is_unfinished and read_marker(beside, storage_options) != digest
    return output if marker == digest or is_free else beside


def _beside(output: str, digest: str) -> str:
    parent, _, name = output.rstrip("/").rpartition("/")
    return join_url(parent, f".vcinr-{name}-{digest[:12]}")
