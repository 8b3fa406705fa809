"""A tiny source, a bundle trained on it and an archive, made once and shared by the tests that need a whole run."""

import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import xarray

from tests.servers.fixtures import ceph, ceph_server, faulty_proxy_server, faulty_s3, s3, s3_server

__all__ = ["ceph", "ceph_server", "faulty_proxy_server", "faulty_s3", "s3", "s3_server"]

TINY_CONFIG = """
source: {variable: t2m}
normalizer: {background: mean}
network: {modulation: none, linear_term: eof, latent_dim: 5}
meta_learning: {steps: 0}
codec: {steps: 20, quality_psnr_db: [20, 30, 40, 50]}
"""
TINY_HOURS, TINY_HEIGHT, TINY_WIDTH = 40, 8, 12


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ceph: needs Ceph's gateway (Debian: radosgw ceph-mon ceph-osd ceph-mgr)")


def make_fields(hours: int = TINY_HOURS, start: str = "2019-03-01", seed: int = 0) -> xarray.Dataset:
    """Hourly t2m on a regional grid: four drifting waves and a little noise; a linear term of five fits it well."""
    rng = np.random.default_rng(seed)
    time = np.datetime64(start, "ns") + np.arange(hours) * np.timedelta64(1, "h")
    latitude = 60.0 - 0.5 * np.arange(TINY_HEIGHT)
    longitude = -5.0 + 0.5 * np.arange(TINY_WIDTH)
    phase = np.arange(hours)[:, None, None] / 7.0
    y, x = latitude[None, :, None], longitude[None, None, :]
    values = 280.0 + 0.8 * (y - 58.0) + 3.0 * np.sin(x / 2 + phase) + 2.0 * np.cos(y + 1.7 * phase)
    values = values + 0.05 * rng.standard_normal(values.shape)
    return xarray.Dataset(
        {
            "t2m": (
                ("time", "latitude", "longitude"),
                values.astype(np.float32),
                {"units": "K", "long_name": "2 m temperature"},
            )
        },
        {
            "time": time,
            "latitude": ("latitude", latitude, {"units": "degrees_north"}),
            "longitude": ("longitude", longitude, {"units": "degrees_east"}),
        },
        {"title": "made by a test"},
    )


@pytest.fixture(autouse=True)
def own_bundles(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds a bundle that another one opened, or one in the cache of whoever runs the tests."""
    monkeypatch.setenv("VCINR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / f"cache-{secrets.token_hex(8)}"))
    if opened := sys.modules.get("vcinr_batch.bundle_cache"):
        opened.forget_bundles()


@pytest.fixture(scope="session")
def fields() -> xarray.Dataset:
    return make_fields()


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shared files lie; tests copy before they change anything."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="session")
def source_path(run_folder: Path, fields: xarray.Dataset) -> Path:
    path = run_folder / "fields.nc"
    fields.to_netcdf(path)
    return path


@pytest.fixture(scope="session")
def config_path(run_folder: Path) -> Path:
    path = run_folder / "tiny.yaml"
    path.write_text(TINY_CONFIG)
    return path


@pytest.fixture(scope="session")
def bundle_path(run_folder: Path, source_path: Path, config_path: Path) -> Path:
    from pipelines.train import train
    from vcinr_batch.config import load_config

    report = train(load_config(str(config_path)), [str(source_path)], str(run_folder / "bundle"))
    return Path(report.bundle_url)


@pytest.fixture(scope="session")
def archive_path(run_folder: Path, source_path: Path, bundle_path: Path) -> Path:
    """All 40 hours at quality 2, in 4 parts."""
    from pipelines.compress import CompressJob, compress
    from vcinr_batch.compression import QualityRequest

    output = run_folder / "archive"
    compress(CompressJob((str(source_path),), str(bundle_path), str(output), QualityRequest(level=2), shard_samples=10))
    return output


@pytest.fixture
def hours() -> xarray.Dataset:
    """As `fields`, for a test to change."""
    return make_fields()


@pytest.fixture
def write_zarr(bundle_path: Path, tmp_path: Path) -> Callable[..., Path]:
    """Compresses a dataset by `to_zarr`, at quality 2 and ten samples a chunk unless told otherwise."""

    def write(
        dataset: xarray.Dataset,
        name: str = "out.zarr",
        chunks: Mapping[str, int] | None = MappingProxyType({"time": 10}),
        **options: Any,
    ) -> Path:
        from vcinr_batch import encoding

        wanted = encoding(dataset, bundle=str(bundle_path), quality=2, chunks=chunks)
        dataset.to_zarr(tmp_path / name, encoding=wanted, zarr_format=3, **options)
        return tmp_path / name

    return write


@pytest.fixture
def copy_archive(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies an archive to where a test may damage it."""

    def copy(archive: Path) -> Path:
        return Path(shutil.copytree(archive, tmp_path / "copy"))

    return copy
