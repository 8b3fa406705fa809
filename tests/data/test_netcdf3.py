import io
import struct
from pathlib import Path

import numpy as np
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st

from vcinr_batch.data.netcdf3 import netcdf3_size_bytes

netcdf4 = pytest.importorskip("netCDF4")


@pytest.mark.parametrize("file_format", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"])
@pytest.mark.parametrize("record_variables", [0, 1, 2])
@pytest.mark.parametrize("records", [0, 1, 3])
def test_the_library_writes_files_of_that_size(
    tmp_path: Path, file_format: str, record_variables: int, records: int
) -> None:
    """The file may only be longer by the padding of its last value to four bytes."""
    path = tmp_path / "a.nc"
    with netcdf4.Dataset(path, "w", format=file_format) as file:
        file.createDimension("time", None)
        file.createDimension("x", 5)
        file.title = "odd"
        fixed = file.createVariable("fixed", "f8", ("x",))
        fixed[:] = np.arange(5)
        fixed.units = "K"
        for i in range(record_variables):
            file.createVariable(f"r{i}", "i2", ("time", "x"))[:records] = np.ones((records, 5))
    size_bytes = path.stat().st_size
    with path.open("rb") as stream:
        expected = netcdf3_size_bytes(stream)
    assert size_bytes - 4 < expected <= size_bytes


def test_every_cut_within_the_header_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    xarray.Dataset({"t": ("x", np.arange(3.0))}).to_netcdf(path, format="NETCDF3_CLASSIC")
    data = path.read_bytes()
    header_bytes = len(data) - 3 * 8
    for length in range(header_bytes):
        with pytest.raises(EOFError):
            netcdf3_size_bytes(io.BytesIO(data[:length]))
    assert netcdf3_size_bytes(io.BytesIO(data[:header_bytes])) == len(data)


@given(
    st.sampled_from([1, 2, 5]), st.lists(st.one_of(st.sampled_from([0, 1, 2, 10, 11, 12]), st.integers(0, 2**32 - 1)))
)
def test_any_fields_are_a_size_or_an_error(version: int, fields: list[int]) -> None:
    try:
        size_bytes = netcdf3_size_bytes(
            io.BytesIO(b"CDF" + bytes([version]) + struct.pack(f">{len(fields)}I", *fields))
        )
    except (EOFError, KeyError, IndexError, ValueError, OverflowError):
        return
    assert size_bytes > 0
