"""The place of an archive while it is written: refuse, start, and clear away what is not part of it."""

import re

from vcinr_batch.archive.manifest import MANIFEST_NAME, Manifest
from vcinr_batch.errors import ArchiveExistsError
from vcinr_batch.storage import StorageOptions, exists, join_url, list_urls, public_url, remove, write_bytes

# What this package writes into an archive; anything else is not ours to remove.
_OUR_FILES = {
    "parts": re.compile(r".+-\d{8}\.parquet"),
    "rejected": re.compile(r".+-\d{8}\.parquet"),
    "models": re.compile(r"[0-9a-f]{64}\.safetensors"),
}
# A killed run's temporary file is named after the file it was to become.
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")


def refuse_existing(output: str, storage_options: StorageOptions) -> None:
    """Make sure that there is no archive yet.

    Raises:
        ArchiveExistsError: there is one.
    """
    if exists(join_url(output, MANIFEST_NAME), storage_options=storage_options):
        raise ArchiveExistsError(
            f"there is an archive at {public_url(output)}; pass --overwrite to replace it, or take another place"
        )


def start_archive(output: str, bundle_name: str, bundle_data: bytes, storage_options: StorageOptions) -> None:
    """Put the bundle where the workers and all readers find it. An old archive ends here: its manifest goes first,
    so that nobody takes old and new parts for a whole.

    Raises:
        SourceError: the place cannot be written.
    """
    manifest_url = join_url(output, MANIFEST_NAME)
    if exists(manifest_url, storage_options=storage_options):
        remove(manifest_url, storage_options=storage_options)
    write_bytes(join_url(output, "models", bundle_name), bundle_data, storage_options=storage_options)


def manifest_files(manifest: Manifest) -> set[str]:
    """Paths of all files that a manifest names."""
    tables = {part.rejected_path for part in manifest.parts if part.rejected_path}
    return {part.path for part in manifest.parts} | tables | {manifest.bundle_path}


def remove_stale(output: str, keep: set[str], storage_options: StorageOptions) -> None:
    """Remove what an older archive, or a killed run with other shards, left at this place.

    Args:
        output: URL of the archive.
        keep: paths inside it.
        storage_options: of its file system.

    Raises:
        SourceError: a file cannot be removed.
    """
    for folder, ours in _OUR_FILES.items():
        for url in list_urls(join_url(output, folder), storage_options=storage_options):
            name = url.rsplit("/", 1)[-1]
            if ours.fullmatch(_TEMPORARY.sub(r"\1", name)) and f"{folder}/{name}" not in keep:
                remove(url, storage_options=storage_options)
