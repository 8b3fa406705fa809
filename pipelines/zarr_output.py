"""The place of a Zarr archive while it is written: who may write there, and what makes its chunks an archive.

The key of a chunk says nothing of its content, so that two different runs would replace each other's chunks. The first
one puts its identity into `status/zarr.json`, created only if absent, and any other is refused until the archive is
there. Drivers and workers of the same run write the same bytes; machines that round differently do not, which is why
all chunks are read once more before they are named by a manifest.
"""

import json
from collections.abc import Sequence

from pipelines.compress_plan import CompressPlan, made_up_part, make_manifest
from pipelines.shard_status import STATUS_FOLDER, other_runs, whole_parts
from vcinr_batch.archive.manifest import MANIFEST_NAME, ArchivePart, Manifest
from vcinr_batch.data.shards import Shard
from vcinr_batch.errors import ArchiveExistsError, SourceError
from vcinr_batch.storage import (
    StorageOptions,
    create_bytes,
    exists,
    join_url,
    public_url,
    read_bytes,
    remove,
    write_bytes,
)

CLAIM_NAME = "zarr.json"
ROOT_METADATA = "zarr.json"
"""As in `zarr_container`, which imports zarr."""


def metadata_files(manifest: Manifest) -> dict[str, bytes]:
    """Zarr's metadata and coordinates by path, in the order in which to write them; none for a Parquet archive."""
    if manifest.container != "zarr":
        return {}
    from vcinr_batch.archive.zarr_container import zarr_files

    return zarr_files(manifest)


def refuse_replacing(output: str, storage_options: StorageOptions) -> None:
    """Make sure that there is no archive yet: of chunks that replace others one by one, no reader could tell which.

    Raises:
        ArchiveExistsError: there is one.
    """
    if exists(join_url(output, MANIFEST_NAME), storage_options=storage_options):
        raise ArchiveExistsError(
            f"there is an archive at {public_url(output)}, and a Zarr archive is not written over another: take "
            "another place, or compress to Parquet elsewhere and let vcinr convert --overwrite replace this one"
        )


def claim_output(plan: CompressPlan, shards: Sequence[Shard], identity: str) -> None:
    """Make the place of a Zarr archive this run's, and keep a Parquet archive from the place of another Zarr archive.

    Raises:
        ArchiveExistsError: another run is writing there or has not come to its end, there is an archive meanwhile, or
            another Zarr group.
        SourceError: the place cannot be read or written.
    """
    url, data, options = _claim(plan), json.dumps({"run": identity}).encode(), plan.storage_options
    if plan.container == "parquet":
        if exists(url, storage_options=options):
            raise _taken(plan)
        return
    _refuse_foreign_group(plan, shards)
    if other_runs(plan, identity):
        raise _taken(plan)
    try:
        create_bytes(url, data, storage_options=options)
    except ArchiveExistsError as error:
        if read_bytes(url, storage_options=options) != data:
            raise _taken(plan) from error
    try:
        # A run that was there first gives its claim back only when its manifest is written.
        refuse_replacing(plan.output, options)
    except ArchiveExistsError:
        release_output(plan)
        raise


def release_output(plan: CompressPlan) -> None:
    """Give the place of a Zarr archive back; for when its manifest is there.

    Raises:
        SourceError: the claim cannot be removed.
    """
    if plan.container == "zarr":
        remove(_claim(plan), storage_options=plan.storage_options)


def write_metadata(plan: CompressPlan, manifest: Manifest, parts: list[ArchivePart]) -> int:
    """All that Zarr needs beside the chunks, once every chunk has been read and found to be what it should be; the
    root's metadata last. Does nothing for a Parquet archive.

    Args:
        plan: of the run.
        manifest: of the archive to be.
        parts: as the workers gave them.

    Returns:
        Bytes of these files.

    Raises:
        SourceError: a chunk is not what its worker wrote, or the place cannot be written.
    """
    files, options = metadata_files(manifest), plan.storage_options
    if not files:
        return 0
    for part, is_whole in zip(parts, whole_parts(plan, parts), strict=True):
        if not is_whole:
            raise SourceError(
                f"{public_url(plan.output)}: {plan.part_path(part)} was changed or removed meanwhile; "
                "run the same command again"
            )
    for path, data in files.items():
        write_bytes(join_url(plan.output, path), data, storage_options=options)
    return sum(map(len, files.values()))


def _refuse_foreign_group(plan: CompressPlan, shards: Sequence[Shard]) -> None:
    """Make sure that a Zarr group at the output is what a killed run of the same job has left."""
    url, options = join_url(plan.output, ROOT_METADATA), plan.storage_options
    if not exists(url, storage_options=options):
        return
    # Zarr's metadata say nothing of what is in the chunks.
    files = metadata_files(make_manifest(plan, [made_up_part(plan, shard) for shard in shards]))
    if read_bytes(url, storage_options=options) != files[ROOT_METADATA]:
        raise ArchiveExistsError(
            f"there is another Zarr group at {public_url(plan.output)}, which is not replaced; take another place"
        )


def _claim(plan: CompressPlan) -> str:
    return join_url(plan.output, STATUS_FOLDER, CLAIM_NAME)


def _taken(plan: CompressPlan) -> ArchiveExistsError:
    return ArchiveExistsError(
        f"another run with other settings is writing to {public_url(plan.output)} or did not come to its end, and "
        "chunks of a Zarr archive would mix: finish that one, remove what it left, or take another place"
    )
