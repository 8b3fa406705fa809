"""What lies in a store under construction, from one listing, against what belongs there."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipelines.output_place import MARKER
from vcinr_batch.storage import StorageOptions, join_url, locate, read_bytes
from vcinr_batch.store_retries import ask_store


@dataclass(frozen=True)
class Contents:
    """Of a store, the difference to what belongs there."""

    missing: tuple[str, ...]
    """Paths of chunks."""
    foreign: tuple[str, ...]
    """Paths of files that are neither chunks nor metadata of this store."""
    chunk_bytes: int
    """Of all its chunks."""


def list_contents(
    store: str, chunks: Iterable[tuple[str, ...]], files: Mapping[str, bytes], storage_options: StorageOptions
) -> Contents:
    """List a store once (about 1 kB of memory per chunk of 4 MiB) and compare the names.

    Args:
        store: URL.
        chunks: paths of all its chunks.
        files: its other files by path; they need not be there yet.

    Raises:
        SourceError: the store cannot be listed.
    """
    found = _sizes(store, storage_options)
    missing, total = [], 0
    for path in map("/".join, chunks):
        size = found.pop(path, None)
        total += size or 0
        if size is None:
            missing.append(path)
    return Contents(tuple(missing), tuple(sorted(found.keys() - files.keys() - {MARKER})), total)


def holds_files(store: str, files: Mapping[str, bytes], storage_options: StorageOptions) -> bool:
    """Whether a store has all these files with these very bytes.

    Raises:
        SourceError: one of them is missing, or cannot be read.
    """
    urls = {join_url(store, *path.split("/")): content for path, content in files.items()}
    return all(read_bytes(url, storage_options=storage_options) == content for url, content in urls.items())


def _sizes(store: str, storage_options: StorageOptions) -> dict[str, int]:
    """Sizes in bytes by path within the store."""
    fs, base = locate(store, storage_options)

    def find() -> dict[str, int]:
        fs.invalidate_cache()
        found = {name: int(entry["size"] or 0) for name, entry in fs.find(base, detail=True).items()}
        fs.invalidate_cache()  # else it would keep the whole listing
        return found

    prefix = base.rstrip("/") + "/"
    return {name.removeprefix(prefix): size for name, size in ask_store(find, store, "list", storage_options).items()}
