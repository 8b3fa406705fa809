"""The place of an archive while it is written: refuse, start, and clear away what a replaced archive leaves."""

import contextlib

from vcinr_batch.archive.manifest import MANIFEST_NAME, Manifest, manifest_data, read_manifest
from vcinr_batch.errors import ArchiveExistsError, ConfigError, SourceError, VcinrError
from vcinr_batch.storage import StorageOptions, exists, join_url, list_urls, public_url, read_bytes, remove, write_bytes

# Where an archive's files are; a manifest comes from storage and may name anything inside its folder.
_FOLDERS = ("parts", "rejected", "models")


def refuse_existing(output: str, storage_options: StorageOptions) -> None:
    """Make sure that there is no archive yet.

    Raises:
        ArchiveExistsError: there is one.
    """
    if exists(join_url(output, MANIFEST_NAME), storage_options=storage_options):
        raise ArchiveExistsError(
            f"there is an archive at {public_url(output)}; pass --overwrite to replace it, or take another place"
        )


def refuse_zarr(output: str, storage_options: StorageOptions) -> None:
    """Make sure that no Zarr archive is at a place where another is to be written; only `convert` replaces those.

    Raises:
        ConfigError: there is one.
    """
    container = ""
    with contextlib.suppress(VcinrError):  # no archive, or one that says nothing any more
        container = read_manifest(output, storage_options=storage_options).container
    if container == "zarr":
        raise ConfigError(
            f"{public_url(output)} is a Zarr archive, which compress does not replace: take another "
            "place, or let vcinr convert --overwrite put the new archive here"
        )


def old_files(output: str, storage_options: StorageOptions) -> frozenset[str]:
    """Paths of the files of the archive that is there; none where there is no archive or its manifest is unreadable."""
    with contextlib.suppress(VcinrError):
        return manifest_files(read_manifest(output, storage_options=storage_options))
    return frozenset()


def start_archive(output: str, bundle_name: str, bundle_data: bytes, storage_options: StorageOptions) -> None:
    """Put the bundle where the workers and all readers find it. An archive that is there stays whole: all files but the
    manifest are named by their content.

    Raises:
        SourceError: the place cannot be written.
    """
    write_bytes(join_url(output, "models", bundle_name), bundle_data, storage_options=storage_options)


def manifest_files(manifest: Manifest) -> frozenset[str]:
    """Paths of all files that a manifest names."""
    tables = {part.rejected_path for part in manifest.parts if part.rejected_path}
    return frozenset({part.path for part in manifest.parts} | tables | {manifest.bundle_path})


def check_present(output: str, manifest: Manifest, storage_options: StorageOptions) -> None:
    """Make sure that all files of an archive are there: a run that replaced the same old archive meanwhile has removed
    those that this one has in common with it.

    Raises:
        SourceError: a file is not there.
    """
    folders = (list_urls(join_url(output, folder), storage_options=storage_options) for folder in _FOLDERS)
    found = {"/".join(url.rsplit("/", 2)[-2:]) for urls in folders for url in urls}
    missing = sorted(manifest_files(manifest) - found)
    if missing:
        raise SourceError(
            f"{public_url(output)}: another run removed {missing[0]} meanwhile; run the same command again"
        )


def remember_replaced(output: str, manifest: Manifest, place: str, storage_options: StorageOptions) -> frozenset[str]:
    """Put the manifest that is about to be replaced aside, so that a run which dies right after replacing it can still
    remove its files.

    Args:
        output: URL of the archive.
        manifest: the new one; where it is there already, what was put aside before stays.
        place: URL of the folder for the old one.
        storage_options: of the file system.

    Returns:
        Paths of the files of the archive that is there; none where its manifest is unreadable.

    Raises:
        SourceError: the place cannot be written.
    """
    found = old_files(output, storage_options)
    if found:
        data = read_bytes(join_url(output, MANIFEST_NAME), storage_options=storage_options)
        if data != manifest_data(manifest):
            write_bytes(join_url(place, MANIFEST_NAME), data, storage_options=storage_options)
    return found


def remove_replaced(output: str, old: frozenset[str], storage_options: StorageOptions) -> None:
    """Remove the files of an archive that was replaced, except those that the archive there now has too.

    Anything else at this place, files of killed runs included, is not known to be ours and stays. So do bundles: an
    archive written beside `models/` shares that folder with the bundles that were trained there.

    Args:
        output: URL of the archive.
        old: from `old_files`, before the new manifest was committed.
        storage_options: of its file system.

    Raises:
        SourceError: a file cannot be removed.
    """
    # Read again rather than remembered: another run may have replaced the archive since.
    kept = old_files(output, storage_options)
    if not kept:
        return
    for path in sorted(old - kept):
        if path.split("/")[0] in ("parts", "rejected"):
            remove(join_url(output, path), storage_options=storage_options)
