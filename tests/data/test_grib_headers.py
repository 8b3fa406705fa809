from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vcinr_batch.data.grib_headers import grib_bits_per_value, grib_variables
from vcinr_batch.data.stores import StoreFile, find_store
from vcinr_batch.errors import SourceError

TIMES = np.datetime64("2019-03-01", "ns") + np.arange(3) * np.timedelta64(6, "h")


@pytest.fixture
def file(tmp_path: Path, write_grib: Callable[..., None]) -> StoreFile:
    path = tmp_path / "a.grib"
    values = np.random.default_rng(0).normal(280, 5, (1, 3, 1, 3, 4))
    write_grib(path, values, TIMES, [60, 59, 58], [0, 1, 2, 3])
    write_grib(path, values, TIMES, [60, 59, 58], [0, 1, 2, 3], [850], short_name="t", append=True)
    write_grib(path, 0 * values, TIMES, [60, 59, 58], [0, 1, 2, 3], short_name="sp", append=True)
    return find_store(str(path), {})


def test_variables_have_the_names_that_cfgrib_gives_them(file: StoreFile) -> None:
    assert grib_variables(file, {}) == ["sp", "t", "t2m"]


@pytest.mark.parametrize(
    ("key", "name", "bits"), [("cfVarName", "t2m", 16), ("shortName", "t", 16), ("shortName", "sp", 0)]
)
def test_bits_are_those_of_the_variable(file: StoreFile, key: str, name: str, bits: int) -> None:
    """A constant field needs none."""
    assert grib_bits_per_value(replace(file, grib_filter=((key, name),)), {}) == bits


def test_a_truncated_file_is_an_error(file: StoreFile) -> None:
    path = Path(file.url)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SourceError, match=r"cannot read .*a.grib"):
        grib_variables(file, {})
