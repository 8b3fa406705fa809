"""Makes a damaged archive whole again: only what is missing or damaged is done anew from the source."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipelines.archive_output import check_present, manifest_files, old_files, remove_replaced
from pipelines.compress_plan import CompressPlan, WorkerOptions
from pipelines.shard_engine import ShardFailure, run_shards
from pipelines.shard_status import file_sizes, named_files
from vcinr_batch.archive.manifest import (
    MANIFEST_NAME,
    ArchivePart,
    Manifest,
    commit_manifest,
    read_manifest,
)
from vcinr_batch.bundle import find_bundle, parse_bundle
from vcinr_batch.compression import QualityRequest, check_layout, open_bundle
from vcinr_batch.data.shards import Shard
from vcinr_batch.data.sources import FieldSource
from vcinr_batch.errors import (
    ArchiveExistsError,
    BitstreamError,
    BundleMismatchError,
    ConfigError,
    CorruptBitstreamError,
    SourceError,
)
from vcinr_batch.part_verification import Findings, OpenArchive, verify_part
from vcinr_batch.quality_request import request_from_json
from vcinr_batch.storage import join_url, public_url, read_bytes, remove, sha256_hex, write_bytes
from vcinr_batch.verification import axis_differences, open_original

READERS = 8
"""Files looked at a time."""

_INDEX = re.compile(r"-(\d{8})-[0-9a-f]{12}\.parquet$")

Progress = Callable[[str, int, int], None]
"""Called with what is going on (`check`, `repair`), how many parts are done, and how many there are."""


@dataclass(frozen=True)
class RepairJob:
    """What a user asks for."""

    archive: str
    sources: tuple[str, ...] = ()
    """URLs and patterns of what the archive was made of; not looked at where no part is damaged."""
    bundle: str | None = None
    """URL of a copy of the archive's bundle, for where that is lost."""
    member_pattern: str | None = None
    accept_changed: bool = False
    """Put parts into the archive that came out with other bytes than the lost ones."""
    workers: WorkerOptions = field(default_factory=WorkerOptions)
    storage_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RepairReport:
    """What `repair` found and did."""

    url: str
    parts: int
    damage: tuple[str, ...]
    """One line for each file that was missing or damaged."""
    restored: int
    """Parts with the very bytes that the manifest names."""
    bundle_restored: bool
    changed: tuple[str, ...]
    """Names of shards that came out with other bytes; in the archive only with `accept_changed`."""
    accepted: bool
    """The changed parts are in the archive, under a new manifest."""
    seconds: float

    @property
    def is_good(self) -> bool:
        """Nothing is missing or damaged any more."""
        return not self.changed or self.accepted


def repair(job: RepairJob, progress: Progress | None = None) -> RepairReport:
    """Redo what is missing or damaged with the manifest's own bundle, quality and shards; leave all else alone.

    A redone part has the bytes that the manifest names, unless the source is not what it was, or another kind of
    machine or version rounds differently. Such a part is left out, unless the job accepts it: then it is compared with
    the source, each error at most the recorded one, and the manifest is replaced by one that names it. A repair that
    was killed is completed by the same call.

    Of a Zarr archive the chunks of the variable are done again, not Zarr's metadata and coordinates, and a chunk that
    came out with other bytes cannot be accepted: it would replace one that a manifest names.

    Raises:
        SourceError: no archive; the source cannot be read, is another one's, or was not given; the bundle is lost and
            no copy given; parts could not be redone.
        BitstreamError, UnsupportedFormatError: the manifest is damaged or of another version.
        BundleMismatchError: the bundle given is another one.
        ArchiveExistsError: another run replaced the archive meanwhile.
        ConfigError: changed chunks of a Zarr archive are to be accepted.
    """
    started = time.monotonic()
    manifest, manifest_sha256 = _read_manifest(job)
    if job.accept_changed and manifest.container == "zarr":
        raise ConfigError(
            f"{public_url(job.archive)} is a Zarr archive, which takes only chunks with the very bytes that its "
            "manifest names: repair it without --accept-changed, or compress its source again in another place"
        )
    bundle_damage = _damage(job, manifest.bundle_path, None, manifest.bundle_sha256)
    damaged = _damaged_parts(job, manifest, progress)
    if bundle_damage:
        _restore_bundle(job, manifest, bundle_damage)
    redone = _redo(job, manifest, list(damaged), progress) if damaged else {}
    changed = {index: part for index, part in redone.items() if part != manifest.parts[index]}
    if changed and job.accept_changed:
        _commit(job, manifest, manifest_sha256, changed)
    return RepairReport(
        url=public_url(job.archive),
        parts=len(manifest.parts),
        damage=(*([bundle_damage] if bundle_damage else []), *(line for lines in damaged.values() for line in lines)),
        restored=len(redone) - len(changed),
        bundle_restored=bool(bundle_damage),
        changed=tuple(changed[index].path.split("/")[-1] for index in sorted(changed)),
        accepted=bool(changed) and job.accept_changed,
        seconds=time.monotonic() - started,
    )


def _read_manifest(job: RepairJob) -> tuple[Manifest, str]:
    """The manifest and its digest."""
    try:
        manifest = read_manifest(job.archive, storage_options=job.storage_options)
        return manifest, _manifest_sha256(job)
    except BitstreamError as error:
        raise type(error)(
            f"{error}; nothing can be repaired without a manifest: put a copy of {MANIFEST_NAME} back, or compress the "
            "source again with --overwrite"
        ) from error


def _damaged_parts(job: RepairJob, manifest: Manifest, progress: Progress | None) -> dict[int, list[str]]:
    """What is wrong with the parts, by their place in the manifest; every file is read."""

    def look(part: ArchivePart) -> list[str]:
        found = [_damage(job, part.path, part.bytes, part.sha256)]
        if part.rejected_path is not None and part.rejected_sha256 is not None:
            found.append(_damage(job, part.rejected_path, part.rejected_bytes, part.rejected_sha256))
        return [line for line in found if line]

    damaged, total = dict[int, list[str]](), len(manifest.parts)
    with ThreadPoolExecutor(READERS) as pool:
        for index, lines in enumerate(pool.map(look, manifest.parts)):
            if lines:
                damaged[index] = lines
            if progress:
                progress("check", index + 1, total)
    return damaged


def _damage(job: RepairJob, path: str, size: int | None, sha256: str) -> str:
    """What is wrong with a file, in a line; empty where nothing is. A store that does not answer is no damage."""
    try:
        data = read_bytes(join_url(job.archive, path), storage_options=job.storage_options)
    except SourceError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return f"{path}: missing"
        if isinstance(error.__cause__, IsADirectoryError):
            return f"{path}: a directory, not a file"
        raise
    if size is not None and len(data) != size:
        return f"{path}: {len(data)} bytes, the manifest says {size}"
    return "" if sha256_hex(data) == sha256 else f"{path}: its SHA-256 is not the one that the manifest says"


def _restore_bundle(job: RepairJob, manifest: Manifest, damage: str) -> None:
    if job.bundle is None:
        raise SourceError(f"{damage}; give a copy with --bundle (SHA-256 {manifest.bundle_sha256})")
    url = find_bundle(job.bundle, job.storage_options)
    data = read_bytes(url, storage_options=job.storage_options)
    if sha256_hex(data) != manifest.bundle_sha256:
        raise BundleMismatchError(
            f"{public_url(url)} has the SHA-256 {sha256_hex(data)[:16]}..., "
            f"the archive needs {manifest.bundle_sha256[:16]}..."
        )
    check_layout(parse_bundle(data, manifest.bundle_sha256, url), manifest.layout, manifest.unit)
    write_bytes(join_url(job.archive, manifest.bundle_path), data, storage_options=job.storage_options)


def _redo(
    job: RepairJob, manifest: Manifest, places: Sequence[int], progress: Progress | None
) -> dict[int, ArchivePart]:
    """The parts at these places of the manifest done again, by place."""
    plan = _plan(job, manifest, _open_source(job, manifest))
    shards = [_shard(place, part) for place, part in enumerate(manifest.parts)]
    place_of = {shards[place].index: place for place in places}
    there = _files_there(job)
    redone, failures = dict[int, ArchivePart](), list[ShardFailure]()
    with closing(run_shards(plan, [shards[place] for place in places], job.workers, None)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, ShardFailure):
                failures.append(outcome)
                continue
            place = place_of[outcome.index]
            redone[place] = _in_its_place(job, manifest.parts[place], outcome.part)
            if manifest.container == "zarr" and outcome.part.path not in there:
                # Done beside the chunks, so that one with other bytes never gets among them.
                remove(join_url(job.archive, outcome.part.path), storage_options=job.storage_options)
            if progress:
                progress("repair", len(redone), len(places))
    if not job.accept_changed:
        _remove_changed(job, redone, there)
    if failures:
        first = manifest.parts[place_of[failures[0].shard.index]].path
        raise SourceError(
            f"{len(failures)} of {len(places)} damaged parts could not be redone, the first is {first}: "
            f"{failures[0].errors[-1]}; run the same command again"
        )
    return redone


def _open_source(job: RepairJob, manifest: Manifest) -> FieldSource:
    """The source with the archive's selection.

    Raises:
        SourceError: none given, or not the archive's.
    """
    if not job.sources:
        raise SourceError("parts are missing or damaged: give the source of the archive with --source")
    source = open_original(job.archive, job.sources, job.member_pattern, job.storage_options)
    differences = axis_differences(manifest.layout, source.axes)
    if source.unit != manifest.unit:
        differences.append(f"unit: the archive has {manifest.unit!r}, the source {source.unit!r}")
    if differences:
        raise SourceError(f"{public_url(job.sources[0])} is not what the archive was made of: {differences[0]}")
    return source


def _plan(job: RepairJob, manifest: Manifest, source: FieldSource) -> CompressPlan:
    bundle_url = join_url(job.archive, manifest.bundle_path)
    return CompressPlan(
        source=source,
        layout=manifest.layout,
        output=job.archive,
        bundle_sha256=manifest.bundle_sha256,
        bundle_url=bundle_url,
        request=_request(manifest.quality),
        storage_options=job.storage_options,
    )


def _request(quality: Mapping[str, Any]) -> QualityRequest:
    try:
        return request_from_json(quality)
    except ConfigError as error:
        raise CorruptBitstreamError(f"the manifest asks for no quality: {error}"[:300]) from error


def _shard(place: int, part: ArchivePart) -> Shard:
    """The shard that a part was made of; its number is in the part's name."""
    found = _INDEX.search(part.path)
    return Shard(int(found[1]) if found else place, part.start, part.stop)


def _in_its_place(job: RepairJob, lost: ArchivePart, redone: ArchivePart) -> ArchivePart:
    """The lost part, where the redone one has its bytes; they may still be under another name."""
    same = (redone.sha256, redone.rejected_sha256) == (lost.sha256, lost.rejected_sha256)
    if not same or redone == lost:
        return redone
    for name, wanted in ((redone.path, lost.path), (redone.rejected_path, lost.rejected_path)):
        if name is not None and wanted is not None and name != wanted:
            data = read_bytes(join_url(job.archive, name), storage_options=job.storage_options)
            write_bytes(join_url(job.archive, wanted), data, storage_options=job.storage_options)
    return lost


def _files_there(job: RepairJob) -> frozenset[str]:
    return frozenset(
        f"{folder}/{name}"
        for folder in ("parts", "rejected")
        for name in file_sizes(join_url(job.archive, folder), job.storage_options)
    )


def _remove_changed(job: RepairJob, redone: Mapping[int, ArchivePart], there: frozenset[str]) -> None:
    """Remove the files that this repair has written and nobody names.

    The manifest is read again: another repair may have accepted the very part that this one leaves out.
    """
    named = old_files(job.archive, job.storage_options)
    if not named:
        return
    kept = named | there | named_files(job.archive, job.storage_options)
    for part in redone.values():
        for path in (part.path, part.rejected_path):
            if path is not None and path not in kept:
                remove(join_url(job.archive, path), storage_options=job.storage_options)


def _commit(job: RepairJob, manifest: Manifest, manifest_sha256: str, changed: Mapping[int, ArchivePart]) -> None:
    """Replace the manifest by one that names the changed parts, once they have been compared with the source."""
    options = job.storage_options
    parts = tuple(changed.get(place, part) for place, part in enumerate(manifest.parts))
    renewed = replace(manifest, parts=parts)
    _check_changed(job, renewed, list(changed.values()))
    if _manifest_sha256(job) != manifest_sha256:
        name = public_url(job.archive)
        raise ArchiveExistsError(f"another run replaced the archive at {name} meanwhile; run the same command again")
    commit_manifest(renewed, job.archive, overwrite=True, storage_options=options)
    remove_replaced(job.archive, manifest_files(manifest), options)
    check_present(job.archive, renewed, options)  # another repair that left these parts out may have removed them


def _check_changed(job: RepairJob, manifest: Manifest, parts: Sequence[ArchivePart]) -> None:
    bundle_data = read_bytes(join_url(job.archive, manifest.bundle_path), storage_options=job.storage_options)
    opened = open_bundle(parse_bundle(bundle_data, manifest.bundle_sha256, manifest.bundle_path))
    archive = OpenArchive(job.archive, manifest, opened, _open_source(job, manifest), job.storage_options)
    found, seen = Findings(), np.zeros(manifest.layout.sample_count, np.uint16)
    for part in parts:
        verify_part(archive, part, seen, found)
    if found.count:
        raise SourceError(f"a redone part does not stand up to the source: {found.problems[0]}")


def _manifest_sha256(job: RepairJob) -> str:
    return sha256_hex(read_bytes(join_url(job.archive, MANIFEST_NAME), storage_options=job.storage_options))
