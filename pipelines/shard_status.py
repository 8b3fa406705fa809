"""What became of each shard of a running or unfinished job, as small JSON objects beside the parts.

`<archive>/status/<run identity>/run.json` says how many shards there are, `<shard name>.json` beside it what became of
one of them; where an archive is to be replaced, `replaced/` beside them holds its manifest. They are removed once the
new manifest is there; what a killed job leaves lets the same command go on. Like all that comes from storage they are
checked when they are read, and a shard whose object does not read, or whose files are not what it says, is redone.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipelines.compress_plan import CompressPlan
from pipelines.shard_work import ShardResult
from pipelines.status_json import MAX_STATUS_BYTES, ShardStatus, State, status_from_json, status_to_json
from vcinr_batch import __version__
from vcinr_batch.archive.manifest import FORMAT_VERSION, MANIFEST_NAME, ArchivePart
from vcinr_batch.data.layout import layout_to_json
from vcinr_batch.data.shards import Shard, shard_name
from vcinr_batch.errors import SourceError, VcinrError
from vcinr_batch.storage import (
    StorageOptions,
    exists,
    join_url,
    locate,
    public_url,
    read_bytes,
    sha256_hex,
    write_bytes,
)
from vcinr_batch.store_retries import ask_store

__all__ = [
    "ShardStatus",
    "State",
    "UnfinishedRun",
    "file_sizes",
    "find_unfinished",
    "finished_results",
    "has_begun",
    "named_files",
    "other_runs",
    "read_statuses",
    "remove_statuses",
    "replaced_archive",
    "run_identity",
    "whole_parts",
    "write_run",
    "write_status",
]

STATUS_FOLDER = "status"
RUN_NAME = "run.json"
REPLACED_FOLDER = "replaced"
READERS = 32
"""Objects read at a time: a store takes tens of milliseconds for each, whatever its size."""

_IDENTITY = re.compile(r"[0-9a-f]{12}")
_OBJECT_NAME = re.compile(r"[A-Za-z0-9._~-]+\.json")


@dataclass(frozen=True)
class UnfinishedRun:
    """A job whose manifest is not there."""

    identity: str
    done: int
    """Shards."""
    failed: int
    """Shards that were given up."""
    shards: int | None
    """In all; None where the run's own object does not read."""

    def __str__(self) -> str:
        total = "" if self.shards is None else f" of {self.shards:,}"
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"unfinished: {self.done:,}{total} shards done{failed}; run the same command again"


def run_identity(plan: CompressPlan, shards: Sequence[Shard]) -> str:
    """12 hexadecimal digits that are the same for two runs which would write the same bytes.

    They depend on the layout, the source's files with what the store says of their content (ETag, time of change), the
    bundle, the request, the shards and the version of this package; not on workers, credentials or the archive's place.
    """
    source = plan.source
    content = {
        "version": [FORMAT_VERSION, __version__],
        "layout": layout_to_json(plan.layout),
        "files": [[public_url(file.url), file.fingerprint, file.format, file.grib_filter] for file in source.files],
        "unit": source.unit,
        "bundle": plan.bundle_sha256,
        "request": asdict(plan.request),
        "shards": [[shard.start, shard.stop] for shard in shards],
    }
    if plan.container != "parquet":
        content["container"] = plan.container
    return sha256_hex(json.dumps(content, sort_keys=True).encode())[:12]


def write_run(plan: CompressPlan, identity: str, shards: Sequence[Shard]) -> None:
    """Say how many shards a run has; written by the driver before the first of them.

    Raises:
        SourceError: the place cannot be written.
    """
    content = {"format": "vcinr-run", "version": 1, "variable": plan.layout.variable, "shards": len(shards)}
    url = join_url(_folder(plan.output, identity), RUN_NAME)
    write_bytes(url, json.dumps(content, sort_keys=True).encode(), storage_options=plan.storage_options)


def has_begun(plan: CompressPlan, identity: str) -> bool:
    """Whether a run has left its own object: it is the last one to be removed.

    Raises:
        SourceError: the store cannot be asked.
    """
    return exists(join_url(_folder(plan.output, identity), RUN_NAME), storage_options=plan.storage_options)


def replaced_archive(plan: CompressPlan, identity: str) -> str:
    """URL of the folder for a copy of the manifest that the run is about to replace."""
    return join_url(_folder(plan.output, identity), REPLACED_FOLDER)


def write_status(plan: CompressPlan, identity: str, status: ShardStatus) -> None:
    """Put what became of a shard where the next run looks, in place of what was there.

    Raises:
        SourceError: the place cannot be written.
    """
    data = json.dumps(status_to_json(status, plan.storage_options), sort_keys=True).encode()
    url = join_url(_folder(plan.output, identity), f"{status.shard}.json")
    write_bytes(url, data, storage_options=plan.storage_options)


def read_statuses(plan: CompressPlan, identity: str) -> dict[str, ShardStatus]:
    """What became of the shards of a run, by shard name, from one listing and many reads at a time.

    Objects that are too large, do not parse or contradict themselves are left out.

    Raises:
        SourceError: the folder cannot be listed.
    """
    folder = _folder(plan.output, identity)
    contents = _read_objects(folder, plan.storage_options)
    contents.pop(RUN_NAME, None)
    found = {}
    for name, data in contents.items():
        status = status_from_json(data, name.removesuffix(".json"), plan.layout)
        if status is not None:
            found[status.shard] = status
    return found


def other_runs(plan: CompressPlan, identity: str) -> list[str]:
    """Identities of the other unfinished runs at the place of an archive.

    Raises:
        SourceError: the place cannot be listed.
    """
    return [other for other in _identities(plan.output, plan.storage_options) if other != identity]


def remove_statuses(plan: CompressPlan, identity: str, shards: Iterable[Shard]) -> None:
    """Remove the objects that a run has written and nothing else; its own is the last to go.

    A folder that is a link is somebody else's and stays as it is, and so does a directory with an object's name.

    Raises:
        SourceError: one cannot be removed.
    """
    folder, options = _folder(plan.output, identity), plan.storage_options
    names = {f"{shard_name(plan.layout, shard)}.json" for shard in shards}

    def clear() -> None:
        fs, path = locate(folder, options)
        path = path.rstrip("/")
        if any(_is_link(fs, above) for above in (path, path.rsplit("/", 1)[0])):
            return
        there = {name for name, entry in _entries(fs, path).items() if entry["type"] == "file"}
        _remove_files(fs, [f"{path}/{name}" for name in sorted(names & there)])
        replaced = f"{path}/{REPLACED_FOLDER}"
        if not _is_link(fs, replaced) and MANIFEST_NAME in _entries(fs, replaced):
            _remove_files(fs, [f"{replaced}/{MANIFEST_NAME}"])
        if RUN_NAME in there:
            _remove_files(fs, [f"{path}/{RUN_NAME}"])
        fs.invalidate_cache()
        for left in (replaced, path, path.rsplit("/", 1)[0]):
            _remove_empty(fs, left)

    ask_store(clear, folder, "remove", options)


def finished_results(plan: CompressPlan, identity: str, shards: Sequence[Shard]) -> dict[int, ShardResult]:
    """Results of the shards that need not be done again, by shard index.

    Those are done according to their status object, and their part and rejected table have the right size and SHA-256:
    one listing of each folder, then every such file is read.

    Raises:
        SourceError: a folder cannot be listed, or a file that is there cannot be read.
    """
    statuses = read_statuses(plan, identity)
    if not any(status.state == "done" for status in statuses.values()):
        return {}
    sizes = {
        f"{folder}/{name}": size
        for folder in ("parts", "rejected")
        for name, size in file_sizes(join_url(plan.output, folder), plan.storage_options).items()
    }
    found = {}
    for shard in shards:
        status = statuses.get(shard_name(plan.layout, shard))
        if status is None or status.state != "done" or status.part is None or status.figures is None:
            continue
        box = (status.part.start, status.part.stop)
        # The chunks of a Zarr array are in as many folders as it has axes and labels: they are just read.
        known = sizes if plan.container == "parquet" else {**sizes, status.part.path: status.part.bytes}
        if box == (shard.start, shard.stop) and is_present(status.part, known):
            found[shard.index] = ShardResult(shard.index, status.part, status.figures, status.rejected_examples)
    whole = whole_parts(plan, [result.part for result in found.values()])
    return {index: result for (index, result), is_whole in zip(found.items(), whole, strict=True) if is_whole}


def whole_parts(plan: CompressPlan, parts: Sequence[ArchivePart]) -> list[bool]:
    """For each part whether its bytes and those of its rejected table are those that it says; reads all of them.

    Raises:
        SourceError: a file that is there cannot be read.
    """
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda part: _is_whole(plan, part), parts))


def named_files(url: str, storage_options: StorageOptions = None) -> frozenset[str]:
    """Paths that any status object of any unfinished run at the place of an archive names, relative to it.

    Raises:
        SourceError: the place cannot be listed.
    """
    found = set[str]()
    for identity in _identities(url, storage_options):
        for data in _read_objects(_folder(url, identity), storage_options).values():
            part = _parsed(data).get("part")
            table = part.get("rejected") if isinstance(part, dict) else None
            found |= {
                str(content["path"]) for content in (part, table) if isinstance(content, dict) and "path" in content
            }
    return frozenset(found)


def find_unfinished(url: str, storage_options: StorageOptions = None) -> UnfinishedRun | None:
    """The furthest of the unfinished runs at the place of an archive; None where there is none.

    Raises:
        SourceError: the place cannot be listed.
    """
    runs = []
    for identity in _identities(url, storage_options):
        contents = _read_objects(_folder(url, identity), storage_options)
        run = _parsed(contents.pop(RUN_NAME, b""))
        shards = run.get("shards")
        states = [_parsed(data).get("state") for data in contents.values()]
        total = shards if isinstance(shards, int) and shards >= 0 else None
        runs.append(UnfinishedRun(identity, states.count("done"), states.count("failed"), total))
    return max(runs, key=lambda run: run.done, default=None)


def is_present(part: ArchivePart, sizes: Mapping[str, int]) -> bool:
    """Whether a part and its rejected table are there with the right size, of files by their path in the archive."""
    tables = {} if part.rejected_path is None else {part.rejected_path: part.rejected_bytes}
    return all(sizes.get(path) == size for path, size in {part.path: part.bytes, **tables}.items())


def file_sizes(folder: str, storage_options: StorageOptions) -> dict[str, int]:
    """Size of each file directly inside a folder, by its name; from one listing, empty where there is no folder.

    Raises:
        SourceError: the store is forbidden or unreachable.
    """
    entries = _list(folder, storage_options)
    return {name: int(entry["size"] or 0) for name, entry in entries.items() if entry["type"] == "file"}


def _is_whole(plan: CompressPlan, part: ArchivePart) -> bool:
    """Whether the bytes of a part and its rejected table are those that its status says."""
    for path, sha256 in ((plan.part_path(part), part.sha256), (part.rejected_path, part.rejected_sha256)):
        if path is None:
            continue
        try:
            data = read_bytes(join_url(plan.output, path), storage_options=plan.storage_options)
        except SourceError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return False
            raise
        if sha256_hex(data) != sha256:
            return False
    return True


def _folder(output: str, identity: str) -> str:
    if not _IDENTITY.fullmatch(identity):
        raise ValueError(f"not a run identity: {identity[:40]!r}")
    return join_url(output, STATUS_FOLDER, identity)


def _identities(url: str, storage_options: StorageOptions) -> list[str]:
    return sorted(name for name in _list(join_url(url, STATUS_FOLDER), storage_options) if _IDENTITY.fullmatch(name))


def _list(folder: str, storage_options: StorageOptions) -> dict[str, Mapping[str, Any]]:
    """What the store says of everything directly inside a folder, by name."""
    return ask_store(lambda: _entries(*locate(folder, storage_options)), folder, "list", storage_options)


def _entries(fs: Any, path: str) -> dict[str, Mapping[str, Any]]:
    fs.invalidate_cache()
    try:
        entries = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]: entry for entry in entries}


def _read_objects(folder: str, storage_options: StorageOptions) -> dict[str, bytes]:
    """All objects of a folder by name; too large ones and those that vanish meanwhile are left out."""
    sizes = file_sizes(folder, storage_options)
    names = sorted(name for name, size in sizes.items() if _OBJECT_NAME.fullmatch(name) and size <= MAX_STATUS_BYTES)

    def read(name: str) -> bytes:
        try:
            return read_bytes(join_url(folder, name), 0, MAX_STATUS_BYTES + 1, storage_options=storage_options)
        except SourceError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return b""
            raise

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(names, pool.map(read, names), strict=True))


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_link(fs: Any, folder: str) -> bool:
    return isinstance(fs, LocalFileSystem) and os.path.islink(folder)


def _remove_files(fs: Any, paths: list[str]) -> None:
    """Many at a time where the store can; what is gone already (another driver of the same run) is fine."""
    if isinstance(fs, LocalFileSystem):
        for path in paths:
            with suppress(FileNotFoundError):
                fs.rm_file(path)
    elif paths:
        with suppress(FileNotFoundError):
            fs.rm(paths)


def _remove_empty(fs: Any, folder: str) -> None:
    """Remove a folder if nothing is in it; object stores have none."""
    try:
        if fs.isdir(folder) and not fs.ls(folder):
            fs.rmdir(folder)
    except (OSError, VcinrError):
        return  # another run's objects arrived in it meanwhile
