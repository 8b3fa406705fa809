"""vcinr-batch: a distributed batch compressor for large scientific archives.

The names below are the public interface; they load on first use, so that `import vcinr_batch` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Archive": "vcinr_batch.archive.archive",
    "Bundle": "vcinr_batch.bundle",
    "load_bundle": "vcinr_batch.bundle",
    "QualityRequest": "vcinr_batch.quality_request",
    "check_layout": "vcinr_batch.compression",
    "compress_samples": "vcinr_batch.compression",
    "decompress_rows": "vcinr_batch.compression",
    "commit": "vcinr_batch.archive.zarr_commit",
    "encoding": "vcinr_batch.zarr_encoding",
    "open_bundle": "vcinr_batch.compression",
    "RunConfig": "vcinr_batch.config",
    "load_config": "vcinr_batch.config",
    "Sample": "vcinr_batch.data.samples",
    "SampleKey": "vcinr_batch.data.samples",
    "open_fields": "vcinr_batch.data.sources",
    "VcinrError": "vcinr_batch.errors",
    "train_bundle": "vcinr_batch.training.bundle_training",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vcinr_batch' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
