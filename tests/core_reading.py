"""Proves that reading an archive needs the core install alone. Not a pytest file: two environments take part.

    python -m tests.core_reading write FOLDER    in the developers' environment: an archive and its decoded values
    python tests/core_reading.py read FOLDER     in one with nothing but the core: reads it in every way there is

`.ci/run` does both.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

NOT_CORE = ("ray", "compressai", "netCDF4", "h5netcdf", "s3fs", "matplotlib", "imagecodecs", "tensorboardX", "pytest")
BOUND_K = 0.05
# Between two versions of numpy and torch; far below what is recorded as a sample's error.
TOLERANCE_K = 1e-4


def write(folder: Path) -> None:
    """Train, compress and decode, and keep the values for the other environment."""
    from pipelines.compress import CompressJob, compress
    from pipelines.train import train
    from tests.conftest import TINY_CONFIG, make_fields
    from vcinr_batch.archive.archive import Archive
    from vcinr_batch.compression import QualityRequest
    from vcinr_batch.config import load_config

    folder.mkdir(parents=True)
    source, config = folder / "source.nc", folder / "tiny.yaml"
    make_fields().to_netcdf(source)
    config.write_text(TINY_CONFIG)
    bundle = train(load_config(str(config)), [str(source)], str(folder / "bundle")).bundle_url
    request = QualityRequest(level=2)
    compress(CompressJob((str(source),), bundle, str(folder / "archive"), request, shard_samples=10))
    bounded = QualityRequest(max_error=BOUND_K)
    compress(CompressJob((str(source),), bundle, str(folder / "bounded"), bounded, shard_samples=10))
    np.save(folder / "source.npy", make_fields().t2m.values)
    np.save(folder / "expected.npy", Archive.open(str(folder / "archive")).to_xarray().t2m.values)


def read(folder: Path) -> None:
    """Decode in Python and with the command, and compare."""
    there = [name for name in NOT_CORE if find_spec(name)]
    assert not there, f"not a core environment, it has {there}"
    assert int(np.__version__.split(".")[0]) >= 2, np.__version__
    import xarray

    from vcinr_batch.archive.archive import Archive

    expected = np.load(folder / "expected.npy")
    archive, restored, converted = folder / "archive", folder / "restored.zarr", folder / "converted"
    check("Archive.to_xarray", Archive.open(str(archive)).to_xarray(), expected)
    check("xarray.open_dataset", xarray.open_dataset(archive, engine="vcinr"), expected)
    vcinr("convert", str(archive), str(converted), "--container", "zarr")
    check("xarray.open_zarr of the Zarr container", xarray.open_zarr(converted), expected)
    vcinr("verify", str(archive))
    vcinr("inspect", str(archive))
    vcinr("decompress", str(archive), "--output", str(restored), "--workers", "0")
    check("vcinr decompress", xarray.open_zarr(restored), expected)
    source, bounded = np.load(folder / "source.npy"), Archive.open(str(folder / "bounded")).to_xarray()
    check(f"an error bound of {BOUND_K} K", bounded, source, BOUND_K)


def check(
    what: str,
    dataset: "xarray.Dataset",  # type: ignore[name-defined] # noqa: F821
    expected: np.ndarray,
    tolerance: float = TOLERANCE_K,
) -> None:
    difference = float(np.abs(dataset.t2m.values.astype(np.float64) - expected).max())
    print(f"{what}: {expected.shape}, off by at most {difference:.2g} K", flush=True)
    assert difference <= tolerance


def vcinr(*arguments: str) -> None:
    command = [sys.executable, "-c", "from vcinr_batch.cli import main; main()", *arguments]
    subprocess.run(command, check=True, timeout=900)


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
