"""Sources whose names are those of an archive's own folders: Parquet takes them all, Zarr refuses them at once."""

from pathlib import Path

import numpy as np
import pytest
import xarray

from pipelines.compress import CompressJob, compress
from pipelines.convert import convert
from pipelines.decompress import decompress
from pipelines.train import train
from tests.conftest import TINY_CONFIG, make_fields
from vcinr_batch.archive.archive import Archive
from vcinr_batch.compression import QualityRequest
from vcinr_batch.config import load_config
from vcinr_batch.errors import ConfigError
from vcinr_batch.verification import verify_archive

HOURS = 24


def source_of(kind: str) -> xarray.Dataset:
    """Auxiliary variables, the variable or the sample dimension have names of folders."""
    fields = make_fields(HOURS)
    if kind == "auxiliaries":
        return fields.assign_coords(
            models=((), np.int32(3)), parts=("time", np.arange(HOURS)), rejected=((), 0.5), status=((), "final")
        )
    return fields.rename({"t2m": kind} if kind in ("models", "status") else {"time": kind})


@pytest.fixture(scope="module", params=["auxiliaries", "models", "status", "parts", "rejected"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def archive(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(kind)
    source_of(kind).to_netcdf(folder / "source.nc")
    variable = kind if kind in ("models", "status") else "t2m"
    blocks = f"sample: {{block: {{{kind}: 1}}}}\n" if kind in ("parts", "rejected") else ""
    (folder / "tiny.yaml").write_text(TINY_CONFIG.replace("t2m", variable) + blocks)
    sources = (str(folder / "source.nc"),)
    bundle = train(load_config(str(folder / "tiny.yaml")), list(sources), str(folder / "bundle")).bundle_url
    compress(CompressJob(sources, bundle, str(folder / "archive"), QualityRequest(level=3)))
    return folder / "archive"


def test_the_parquet_container_takes_them(archive: Path, tmp_path: Path) -> None:
    assert verify_archive(str(archive), None).is_good
    variable = Archive.open(str(archive)).layout.variable
    with (
        xarray.open_dataset(archive.parent / "source.nc") as expected,
        xarray.open_dataset(archive, engine="vcinr") as found,
    ):
        xarray.testing.assert_identical(found.drop_vars(variable), expected.drop_vars(variable))
        decompress(str(archive), str(tmp_path / "out.zarr"), workers=0)
        with xarray.open_zarr(tmp_path / "out.zarr") as restored:
            xarray.testing.assert_equal(restored[variable].load(), found[variable].load())


def test_a_conversion_to_zarr_says_what_to_do_and_writes_nothing(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'(models|parts|rejected|status)' cannot be .* keep this one in Parquet"):
        convert(str(archive), str(tmp_path / "zarr"), "zarr")
    assert list(tmp_path.iterdir()) == []
