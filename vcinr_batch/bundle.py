"""Bundle: all that a decoder needs, one immutable safetensors file named by its SHA-256. No pickle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from vcinr_batch.config import RunConfig, parse_config
from vcinr_batch.data.coordinates import Grid, grid_from_json, grid_to_json
from vcinr_batch.data.layout import MAX_POINTS
from vcinr_batch.data.normalization import Normalizer, normalizer_from_arrays, normalizer_to_arrays
from vcinr_batch.errors import (
    ConfigError,
    CorruptBitstreamError,
    SourceError,
    UnsupportedFormatError,
)
from vcinr_batch.storage import StorageOptions, join_url, list_urls, read_bytes, sha256_hex, write_bytes

BUNDLE_VERSION = 1
_HEADER = "vcinr-bundle"

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained decoder, and the encoder that belongs to it.

    Two bundles are the same if their digests are.
    """

    sha256: str
    config: RunConfig
    """The run that trained it."""
    grid: Grid
    normalizer: Normalizer
    network: Arrays
    """Weights of the shared network, by parameter name."""
    codec: Arrays
    """Transforms and frozen tables."""
    report: Mapping[str, Any]
    """Figures of the training run, for `vcinr inspect`."""

    @property
    def variable(self) -> str:
        return self.normalizer.variable

    @property
    def file_name(self) -> str:
        return f"{self.sha256}.safetensors"

    @property
    def quality_psnr_db(self) -> tuple[float, ...]:
        """PSNR that the validation samples reached at each quality level; the nominal one if that is not recorded."""
        nominal = self.config.codec.quality_psnr_db
        try:
            measured = tuple(float(level["psnr_db"]) for level in self.report["codec"]["levels"])
        except (KeyError, TypeError, ValueError):
            return nominal
        return measured if len(measured) == len(nominal) else nominal


def make_bundle(
    config: RunConfig, grid: Grid, normalizer: Normalizer, network: Arrays, codec: Arrays, report: Mapping[str, Any]
) -> tuple[Bundle, bytes]:
    """A bundle and its file's bytes, which are a pure function of the arguments.

    The bundle is the one that the bytes hold: without the source's selection in its config.
    """
    normalizer_json, normalizer_arrays = normalizer_to_arrays(normalizer)
    header = {
        "version": BUNDLE_VERSION,
        # The source's place is not part of the decoder.
        "config": config.model_dump(mode="json", exclude={"source": {"select", "member_pattern"}}),
        "grid": grid_to_json(grid),
        "normalizer": normalizer_json,
        "report": dict(report),
    }
    groups: dict[str, Arrays] = {"normalizer": normalizer_arrays, "network": network, "codec": codec}
    tensors = {
        f"{group}/{name}": np.asarray(array, order="C")
        for group, arrays in groups.items()
        for name, array in arrays.items()
    }
    metadata = {_HEADER: json.dumps(header, sort_keys=True, separators=(",", ":"))}
    data = safetensors.numpy.save(tensors, metadata)
    return parse_bundle(data, sha256_hex(data)), data


def save_bundle(data: bytes, directory: str, storage_options: StorageOptions = None) -> str:
    """Write a bundle's bytes to `<directory>/<sha256>.safetensors` and return that URL."""
    url = join_url(directory, f"{sha256_hex(data)}.safetensors")
    write_bytes(url, data, storage_options=storage_options)
    return url


def find_bundle(url: str, storage_options: StorageOptions = None) -> str:
    """The URL of a bundle file: `url` itself, or the only bundle in that directory.

    Raises:
        SourceError: nothing there, or a directory with no bundle or several.
    """
    if url.endswith(".safetensors"):
        return url
    found = [name for name in list_urls(url, storage_options=storage_options) if name.endswith(".safetensors")]
    if len(found) != 1:
        raise SourceError(f"{url}: expected one bundle (<sha256>.safetensors), found {len(found)}")
    return found[0]


def load_bundle(url: str, storage_options: StorageOptions = None) -> Bundle:
    """Read a bundle file, or the only one in a directory, and check it against the digest in its name.

    Raises:
        SourceError: missing or unreachable.
        CorruptBitstreamError: truncated, edited or renamed.
        UnsupportedFormatError: of another format version.
    """
    url = find_bundle(url, storage_options)
    return parse_bundle(read_bytes(url, storage_options=storage_options), _expected_digest(url), url)


def parse_bundle(data: bytes, expected_sha256: str, name: str = "bundle") -> Bundle:
    """Check untrusted bytes and return the bundle they hold.

    Raises:
        CorruptBitstreamError, UnsupportedFormatError: as `load_bundle`.
    """
    actual = sha256_hex(data)
    if actual != expected_sha256:
        raise CorruptBitstreamError(
            f"{name}: truncated, edited or renamed: its SHA-256 should be {expected_sha256[:16]}..., "
            f"the bytes there have {actual[:16]}..."
        )
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_HEADER])
        if header["version"] != BUNDLE_VERSION:
            raise UnsupportedFormatError(
                f"{name}: bundle version {header['version']}, this package reads {BUNDLE_VERSION}"
            )
        groups: dict[str, dict[str, NDArray[Any]]] = {"normalizer": {}, "network": {}, "codec": {}}
        for key, array in safetensors.numpy.load(data).items():
            group, _, array_name = key.partition("/")
            groups[group][array_name] = array
        grid = grid_from_json(header["grid"])
        if grid.point_count > MAX_POINTS:
            raise CorruptBitstreamError(f"{name}: a sample of {grid.point_count} points, the limit is {MAX_POINTS}")
        config = parse_config(header["config"], name)
        normalizer = normalizer_from_arrays(header["normalizer"], groups["normalizer"])
        return Bundle(actual, config, grid, normalizer, groups["network"], groups["codec"], dict(header["report"]))
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, CorruptBitstreamError | UnsupportedFormatError):
            raise
        cause = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        raise CorruptBitstreamError(f"{name}: not a vcinr bundle ({cause})") from error


def _expected_digest(url: str) -> str:
    stem = url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".safetensors")
    if len(stem) != 64 or any(letter not in "0123456789abcdef" for letter in stem):
        raise CorruptBitstreamError(
            f"{url}: a bundle is named by its SHA-256 (64 hexadecimal digits); this file was renamed"
        )
    return stem
