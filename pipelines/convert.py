"""Turns an archive of Parquet files into one of Zarr chunks and back: objects are copied, nothing is decoded or fitted.

Every file is checked against its SHA-256 on the way. The manifest is written last, so that a conversion that did not
come to its end is no archive; the same command completes it and copies only what is not there yet.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipelines.archive_output import manifest_files, refuse_existing
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.manifest import CONTAINERS, MANIFEST_NAME, Manifest, commit_manifest, read_manifest
from vcinr_batch.archive.zarr_container import ROOT_METADATA, as_parquet, as_zarr, zarr_files, zarr_paths
from vcinr_batch.errors import (
    ArchiveExistsError,
    ConfigError,
    CorruptBitstreamError,
    TruncatedBitstreamError,
    VcinrError,
)
from vcinr_batch.storage import (
    StorageOptions,
    check_url,
    exists,
    join_url,
    locate,
    public_url,
    read_bytes,
    remove,
    sha256_hex,
    size_bytes,
    write_bytes,
)

COPIERS = 8
"""Files copied at a time."""

Progress = Callable[[str, int, int], None]
"""Called with what is going on (`check`, `convert`), how many files are done, and how many there are."""


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did."""

    archive: str
    output: str
    container: str
    variable: str
    parts: int
    samples: int
    rejected: int
    copied: int
    """Files that were copied; the rest was there from an earlier run."""
    kept: int
    bytes: int
    """Of all files of the new archive, its metadata included."""
    seconds: float


@dataclass(frozen=True)
class _File:
    """One file to copy."""

    source: str
    """Path in the archive."""
    target: str
    """Path in the output."""
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Job:
    archive: str
    output: str
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)


def convert(
    archive_url: str,
    output_url: str,
    container: str,
    overwrite: bool = False,
    storage_options: StorageOptions = None,
    progress: Progress = lambda *_: None,
) -> ConvertReport:
    """Write the archive again in another container: the same rows, the same bundle, the same tables, bit by bit.

    Args:
        archive_url: of the archive, which is only read.
        output_url: of the new one.
        container: `zarr` or `parquet`.
        overwrite: replace an archive at the output. One of Parquet files is whole until the new one is; one of Zarr
            chunks is removed first, once the whole source was found undamaged.
        storage_options: of both file systems.
        progress: called now and then.

    Raises:
        ConfigError: an unknown container, the one that the archive has already, the archive's own place as the output,
            or an archive that cannot be a Zarr array: `as_zarr`.
        ArchiveExistsError: there is an archive at the output, or another Zarr group, which is never replaced.
        SourceError: a file is missing or unreachable, or the output cannot be written.
        BitstreamError, UnsupportedFormatError, BundleMismatchError: a file is damaged, which it names, or of a later
            version.
    """
    began, options = time.monotonic(), dict(storage_options or {})
    job = _Job(archive_url, output_url, options)
    _check_request(job, container)
    archive = Archive.open(archive_url, options)
    if archive.manifest.container == container:
        raise ConfigError(f"{public_url(archive_url)} is an archive in the container {container!r} already")
    manifest = as_zarr(archive.manifest) if container == "zarr" else as_parquet(archive.manifest)
    metadata = zarr_files(manifest) if container == "zarr" else {}
    if not overwrite:
        refuse_existing(output_url, options)
    old = _old_manifest(job)
    _refuse_foreign(job, metadata, old)
    files, bundle = list(_files(archive.manifest, manifest)), archive.bundle_bytes()
    if old is not None and "zarr" in (old.container, container):
        # The names of its chunks say nothing of their content: it cannot stay whole while it is replaced.
        for _ in _each(files, lambda file: _read_checked(job, file), lambda done: progress("check", done, len(files))):
            pass
        for name in (MANIFEST_NAME, ROOT_METADATA):
            remove(join_url(output_url, name), storage_options=options)
    write_bytes(join_url(output_url, manifest.bundle_path), bundle, storage_options=options)
    copies = _each(files, lambda file: _copy(job, file), lambda done: progress("convert", done, len(files)))
    copied = sum(copies)
    for path, data in metadata.items():
        write_bytes(join_url(output_url, path), data, storage_options=options)
    manifest_size = commit_manifest(manifest, output_url, overwrite=overwrite, storage_options=options)
    if old is not None:
        _remove_replaced(job, old, manifest, frozenset(metadata))
    return ConvertReport(
        archive=public_url(archive_url),
        output=public_url(output_url),
        container=container,
        variable=manifest.variable,
        parts=len(manifest.parts),
        samples=sum(part.rows for part in manifest.parts),
        rejected=sum(part.rejected for part in manifest.parts),
        copied=copied,
        kept=len(files) - copied,
        bytes=sum(file.bytes for file in files) + len(bundle) + sum(map(len, metadata.values())) + manifest_size,
        seconds=time.monotonic() - began,
    )


def _check_request(job: _Job, container: str) -> None:
    if container not in CONTAINERS:
        raise ConfigError(f"container {container!r}: expected {' or '.join(CONTAINERS)}")
    check_url(job.output, "output")
    places = []
    for url in (job.archive, job.output):
        fs, path = locate(url, job.storage_options)
        places.append((type(fs), path.rstrip("/")))
    if places[0] == places[1]:
        raise ConfigError(f"output {public_url(job.output)}: the archive itself; a conversion needs another place")


def _old_manifest(job: _Job) -> Manifest | None:
    """Of the archive at the output.

    Raises:
        SourceError, BitstreamError, UnsupportedFormatError: there is one that cannot be read.
    """
    if not exists(join_url(job.output, MANIFEST_NAME), storage_options=job.storage_options):
        return None
    try:
        return read_manifest(job.output, storage_options=job.storage_options)
    except VcinrError as error:
        raise type(error)(f"{error}; remove it by hand, or take another place") from error


def _refuse_foreign(job: _Job, metadata: Mapping[str, bytes], old: Manifest | None) -> None:
    """Make sure that a Zarr group at the output is an archive of ours, or what a killed conversion has left."""
    url = join_url(job.output, ROOT_METADATA)
    if old is not None or not exists(url, storage_options=job.storage_options):
        return
    if read_bytes(url, storage_options=job.storage_options) != metadata.get(ROOT_METADATA):
        raise ArchiveExistsError(
            f"there is another Zarr group at {public_url(job.output)}, which is not replaced; take another place"
        )


def _files(source: Manifest, target: Manifest) -> Iterator[_File]:
    """All files but bundle and metadata, tables of rejected samples before the part that they belong to."""
    for before, after in zip(source.parts, target.parts, strict=True):
        if before.rejected_path is not None and after.rejected_path is not None:
            yield _File(before.rejected_path, after.rejected_path, before.rejected_bytes, str(before.rejected_sha256))
        yield _File(before.path, after.path, before.bytes, before.sha256)


def _each(files: Sequence[_File], call: Callable[[_File], bool], report: Callable[[int], None]) -> Iterator[bool]:
    """What a call gives for each file, several at a time; the first failure ends it."""
    with _stopping_early() as pool:
        for done, result in enumerate(pool.map(call, files), 1):
            report(done)
            yield result


@contextmanager
def _stopping_early() -> Iterator[ThreadPoolExecutor]:
    """A pool that does nothing more of what waits once something has failed."""
    pool = ThreadPoolExecutor(COPIERS, thread_name_prefix="vcinr-convert")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _copy(job: _Job, file: _File) -> bool:
    """Copy a file unless it is there; whether it was copied."""
    target = join_url(job.output, file.target)
    if exists(target, storage_options=job.storage_options):
        is_whole = size_bytes(target, storage_options=job.storage_options) == file.bytes
        if is_whole and sha256_hex(read_bytes(target, storage_options=job.storage_options)) == file.sha256:
            return False
    write_bytes(target, _checked_bytes(job, file), storage_options=job.storage_options)
    return True


def _read_checked(job: _Job, file: _File) -> bool:
    _checked_bytes(job, file)
    return True


def _checked_bytes(job: _Job, file: _File) -> bytes:
    """The file's bytes.

    Raises:
        SourceError, BitstreamError: they are missing, or not those that the manifest means; names the file.
    """
    data = read_bytes(join_url(job.archive, file.source), 0, file.bytes + 1, storage_options=job.storage_options)
    if len(data) < file.bytes:
        raise TruncatedBitstreamError(f"{file.source}: {len(data)} bytes, expected {file.bytes}; see vcinr repair")
    if sha256_hex(data) != file.sha256:
        raise CorruptBitstreamError(f"{file.source}: its SHA-256 is not the one in the manifest; see vcinr repair")
    return data


def _remove_replaced(job: _Job, old: Manifest, new: Manifest, metadata: frozenset[str]) -> None:
    """Remove what the replaced archive named and the new one does not. Bundles stay: others may use them."""
    gone = manifest_files(old) - manifest_files(new) - {old.bundle_path}
    if old.container == "zarr":
        gone |= set(zarr_paths(job.output, old, job.storage_options))
    for path in sorted(gone - metadata):
        remove(join_url(job.output, path), storage_options=job.storage_options)
