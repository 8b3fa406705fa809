"""The root of an archive: what it holds, where it came from, and its parts. Written last: no manifest, no archive."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vcinr_batch.archive.chunk_grid import check_chunk_keys
from vcinr_batch.archive.manifest_packing import MAX_BYTES, PACKED_KEY, pack_json, unpack_content, unpack_json
from vcinr_batch.data.attributes_json import attributes_from_json, attributes_to_json
from vcinr_batch.data.auxiliary import Auxiliary, auxiliaries_from_json, auxiliaries_to_json
from vcinr_batch.data.axis_json import checked_int, checked_object
from vcinr_batch.data.layout import MAX_POINTS, Layout, layout_from_json, layout_to_json
from vcinr_batch.errors import ConfigError, CorruptBitstreamError, SourceError, UnsupportedFormatError
from vcinr_batch.storage import StorageOptions, create_bytes, join_url, public_url, read_bytes, write_bytes

MANIFEST_NAME = "manifest.json.gz"
FORMAT_NAME = "vcinr-archive"
FORMAT_VERSION = 2
"""The version written."""
READ_VERSIONS = (1, 2)

CONTAINERS = ("parquet", "zarr")

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ArchivePart:
    """One file of rows, from one shard."""

    path: str
    """Relative to the archive."""
    rows: int
    bytes: int
    sha256: str
    index_crc32: int
    """CRC-32 of the file without its payloads: what `read_index` reads."""
    payloads: tuple[tuple[int, int], ...]
    """Byte range of the payloads of every row group."""
    start: tuple[int, ...]
    """The shard: blocks [start, stop) along every axis."""
    stop: tuple[int, ...]
    rejected: int = 0
    """Samples of the shard that are not among the rows."""
    rejected_path: str | None = None
    rejected_bytes: int = 0
    rejected_sha256: str | None = None

    def __post_init__(self) -> None:
        for path in (self.path, *([self.rejected_path] if self.rejected_path is not None else [])):
            check_path(path)
        if self.rows + self.rejected != self.sample_count:
            raise ConfigError(
                f"{self.path}: {self.rows} rows and {self.rejected} rejected samples, "
                f"but its shard has {self.sample_count} samples"
            )
        if (self.rejected > 0) != (self.rejected_path is not None) or (self.rejected > 0) != bool(self.rejected_sha256):
            raise ConfigError(f"{self.path}: {self.rejected} rejected samples, in the table {self.rejected_path}")

    @property
    def sample_count(self) -> int:
        """Samples of the shard."""
        return math.prod(stop - start for start, stop in zip(self.start, self.stop, strict=True))


@dataclass(frozen=True, eq=False)
class Manifest:
    """What an archive holds. Checked on construction: the parts' shards must add up to the layout."""

    layout: Layout
    unit: str
    attributes: Mapping[str, Any]
    dataset_attributes: Mapping[str, Any]
    encoding: Mapping[str, Any]
    """How the source stored the values: dtype, scale_factor, add_offset, _FillValue."""
    source_bits: int
    """Bits per value in the source as delivered."""
    source_names: tuple[str, ...]
    """File names, without their folders."""
    bundle_sha256: str
    quality: Mapping[str, Any]
    """What was asked for, e.g. `{"quality": 7}` or `{"target_psnr": 40.0}`."""
    parts: tuple[ArchivePart, ...]
    generator: str
    """Who wrote it, e.g. `vcinr-batch 0.1.0`."""
    container: str = field(default="parquet")
    """One of `CONTAINERS`: what the parts lie in, as files of any name or as the chunks of a Zarr array."""
    auxiliaries: tuple[Auxiliary, ...] = ()
    """Variables that go with the values: coordinates that are no axes, grid mappings."""

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.bundle_sha256):
            raise ConfigError(f"not a SHA-256 in hexadecimal: {self.bundle_sha256[:80]!r}")
        counts = self.layout.block_counts
        for part in self.parts:
            inside = len(part.start) == len(part.stop) == len(counts) and all(
                0 <= start < stop <= count for start, stop, count in zip(part.start, part.stop, counts, strict=True)
            )
            if not inside:
                raise ConfigError(f"{part.path}: shard {part.start} to {part.stop} is not within {counts} blocks")
        found = sum(part.sample_count for part in self.parts)
        if found != self.layout.sample_count or len({part.start for part in self.parts}) != len(self.parts):
            raise ConfigError(f"the parts have {found} samples, the layout {self.layout.sample_count}")
        if self.container not in CONTAINERS:
            raise ConfigError(f"container {self.container[:40]!r}; known are {', '.join(CONTAINERS)}")
        if self.container == "zarr":
            check_chunk_keys(self.layout, self.parts)

    @property
    def variable(self) -> str:
        return self.layout.variable

    @property
    def bundle_path(self) -> str:
        """Relative to the archive."""
        return f"models/{self.bundle_sha256}.safetensors"


def commit_manifest(
    manifest: Manifest, url: str, *, overwrite: bool = False, storage_options: StorageOptions = None
) -> int:
    """Write the manifest of the archive at `url`, which makes it one; everything it names must be there already.

    Args:
        manifest: what the archive holds.
        url: of the archive.
        overwrite: replace the manifest that is there, in one step.
        storage_options: of the file system.

    Returns:
        Its size in bytes, which are a pure function of the manifest.

    Raises:
        ArchiveExistsError: a manifest is there, and `overwrite` is not set.
        SourceError: the place cannot be written.
    """
    data = manifest_data(manifest)
    write = write_bytes if overwrite else create_bytes
    write(join_url(url, MANIFEST_NAME), data, storage_options=storage_options)
    return len(data)


def manifest_data(manifest: Manifest) -> bytes:
    """The bytes of the manifest's file, a pure function of the manifest."""
    return pack_json(manifest_to_json(manifest))


def read_manifest(url: str, *, storage_options: StorageOptions = None) -> Manifest:
    """The manifest of the archive at `url`. Reads and inflates 64 MiB at most.

    Raises:
        SourceError: no archive there, or it cannot be read.
        UnsupportedFormatError: another format, or a version that this package does not read.
        TruncatedBitstreamError, CorruptBitstreamError: damaged or not a manifest.
    """
    try:
        data = read_bytes(join_url(url, MANIFEST_NAME), 0, MAX_BYTES + 1, storage_options=storage_options)
    except SourceError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise SourceError(f"no archive at {public_url(url)} (no {MANIFEST_NAME})") from error
        raise
    return parse_manifest(data, f"manifest of {public_url(url)}")


def parse_manifest(data: bytes, name: str) -> Manifest:
    """Mirror of `manifest_data`, for bytes that anyone may have written; inflates 64 MiB at most.

    Args:
        data: of the file.
        name: of the file, for messages.

    Raises:
        UnsupportedFormatError: another format, or a version that this package does not read.
        TruncatedBitstreamError, CorruptBitstreamError: damaged or not a manifest.
    """
    try:
        content = unpack_json(data)
        _check_version(content)
        if content["version"] >= FORMAT_VERSION and PACKED_KEY in content:
            content = unpack_content(content)
        return manifest_from_json(content)
    except (CorruptBitstreamError, UnsupportedFormatError) as error:
        raise type(error)(f"{name}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CorruptBitstreamError(f"{name} is not JSON: {error}") from error


def manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest as plain JSON values."""
    content = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "generator": manifest.generator,
        "layout": layout_to_json(manifest.layout),
        "unit": manifest.unit,
        "attributes": attributes_to_json(manifest.attributes),
        "dataset_attributes": attributes_to_json(manifest.dataset_attributes),
        "encoding": attributes_to_json(manifest.encoding),
        "source_bits": manifest.source_bits,
        "sources": list(manifest.source_names),
        "bundle": manifest.bundle_sha256,
        "quality": attributes_to_json(manifest.quality),
        "container": manifest.container,
        "parts": [part_to_json(part) for part in manifest.parts],
    }
    if manifest.auxiliaries:
        content["auxiliary"] = auxiliaries_to_json(manifest.auxiliaries)
    return content


def manifest_from_json(content: Any) -> Manifest:
    """Mirror of `manifest_to_json`, for JSON that anyone may have written.

    Raises:
        UnsupportedFormatError: another format, or a version that this package does not read.
        CorruptBitstreamError: not a manifest, it contradicts itself, or it points out of its archive.
    """
    _check_version(content)
    text_keys = {"generator", "unit", "bundle", "container"}
    object_keys = {"attributes", "dataset_attributes", "encoding", "quality"}
    other_keys = {"format", "version", "layout", "source_bits", "sources", "parts"}
    fields = checked_object(content, "a manifest", text_keys | object_keys | other_keys, {"auxiliary"})
    texts = {key: _checked_text(fields[key], key) for key in text_keys}
    objects = {key: attributes_from_json(fields[key], key) for key in object_keys}
    if texts["container"] not in CONTAINERS:
        known = " and ".join(map(repr, CONTAINERS))
        raise UnsupportedFormatError(f"container {texts['container'][:40]!r}; this version reads {known}")
    if not isinstance(fields["sources"], list) or not isinstance(fields["parts"], list):
        raise CorruptBitstreamError("sources and parts must be lists")
    layout = layout_from_json(fields["layout"])
    if layout.channels != 1:
        raise UnsupportedFormatError(
            f"samples of {layout.channels} channels; this version reads fields, of one channel"
        )
    if layout.points_per_sample > MAX_POINTS:
        raise CorruptBitstreamError(f"samples of {layout.points_per_sample} points; at most {MAX_POINTS} are read")
    try:
        return Manifest(
            layout=layout,
            unit=texts["unit"],
            attributes=objects["attributes"],
            dataset_attributes=objects["dataset_attributes"],
            encoding=objects["encoding"],
            source_bits=checked_int(fields["source_bits"], "source_bits", 1, 1024),
            source_names=tuple(_checked_text(name, "sources") for name in fields["sources"]),
            bundle_sha256=texts["bundle"],
            quality=objects["quality"],
            parts=tuple(part_from_json(part, len(layout.axes)) for part in fields["parts"]),
            generator=texts["generator"],
            container=texts["container"],
            auxiliaries=auxiliaries_from_json(fields.get("auxiliary", []), layout),
        )
    except ConfigError as error:
        raise CorruptBitstreamError(str(error)) from error


def part_to_json(part: ArchivePart) -> dict[str, Any]:
    """A part as plain JSON values."""
    content = {
        "path": part.path,
        "rows": part.rows,
        "bytes": part.bytes,
        "sha256": part.sha256,
        "crc32": part.index_crc32,
        "payloads": [list(span) for span in part.payloads],
        "start": list(part.start),
        "stop": list(part.stop),
    }
    if part.rejected:
        table = {"rows": part.rejected, "path": part.rejected_path, "bytes": part.rejected_bytes}
        content["rejected"] = {**table, "sha256": part.rejected_sha256}
    return content


def part_from_json(content: Any, dims: int) -> ArchivePart:
    """Mirror of `part_to_json`, for JSON that anyone may have written.

    Args:
        content: what `json.loads` gave.
        dims: axes of the layout.

    Raises:
        CorruptBitstreamError: not a part.
        ConfigError: it contradicts itself, or points out of its archive.
    """
    keys = {"path", "rows", "bytes", "sha256", "crc32", "payloads", "start", "stop"}
    fields = checked_object(content, "a part", keys, {"rejected"})
    path = _checked_text(fields["path"], "path")
    rejected: dict[str, Any] = {}
    if "rejected" in fields:
        table = checked_object(fields["rejected"], "a rejected table", {"rows", "path", "bytes", "sha256"})
        rejected = {
            "rejected": checked_int(table["rows"], f"rejected samples of {path}", 1, 2**62),
            "rejected_path": _checked_text(table["path"], "path"),
            "rejected_bytes": checked_int(table["bytes"], f"size of the rejected table of {path}", 1, 2**62),
            "rejected_sha256": _checked_sha256(table["sha256"]),
        }
    return ArchivePart(
        path=path,
        rows=checked_int(fields["rows"], f"rows of {path}", 0, 2**31),
        bytes=checked_int(fields["bytes"], f"size of {path}", 1, 2**62),
        sha256=_checked_sha256(fields["sha256"]),
        index_crc32=checked_int(fields["crc32"], f"crc32 of {path}", 0, 2**32 - 1),
        payloads=_checked_spans(fields["payloads"], f"payloads of {path}"),
        start=_checked_indices(fields["start"], dims, f"start of {path}"),
        stop=_checked_indices(fields["stop"], dims, f"stop of {path}"),
        **rejected,
    )


def check_path(path: str) -> None:
    """Raise unless the path stays inside the archive on every store and every system.

    Raises:
        ConfigError: absolute, with a scheme, a drive, a backslash, an empty part, `.` or `..`.
    """
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") for part in parts) or re.search(r"[\x00-\x1f\x7f\\:*?\[\]%#]", path):
        raise ConfigError(f"not a path inside an archive: {path[:120]!r}")


def _check_version(content: Any) -> None:
    found = (content.get("format"), content.get("version")) if isinstance(content, dict) else (None, None)
    if found[0] != FORMAT_NAME:
        raise UnsupportedFormatError(f"format is {str(found[0])[:40]!r}, expected {FORMAT_NAME!r}")
    if type(found[1]) is not int or found[1] not in READ_VERSIONS:
        versions = " and ".join(map(str, READ_VERSIONS))
        raise UnsupportedFormatError(f"format version {str(found[1])[:40]}; this package reads versions {versions}")


def _checked_text(content: Any, what: str) -> str:
    if not isinstance(content, str):
        raise CorruptBitstreamError(f"{what} must be a text, got {str(content)[:40]!r}")
    return content


def _checked_sha256(content: Any) -> str:
    if not isinstance(content, str) or not _SHA256.fullmatch(content):
        raise CorruptBitstreamError(f"not a SHA-256 in hexadecimal: {str(content)[:80]!r}")
    return content


def _checked_indices(content: Any, dims: int, what: str) -> tuple[int, ...]:
    if not isinstance(content, list) or len(content) != dims:
        raise CorruptBitstreamError(f"{what} must be a list of {dims} block indices")
    return tuple(checked_int(index, what, 0, 2**31) for index in content)


def _checked_spans(content: Any, what: str) -> tuple[tuple[int, int], ...]:
    if not isinstance(content, list) or any(not isinstance(span, list) or len(span) != 2 for span in content):
        raise CorruptBitstreamError(f"{what} must be a list of byte ranges")
    return tuple((checked_int(a, what, 0, 2**62), checked_int(b, what, 0, 2**62)) for a, b in content)
