import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from vcinr_batch.config import SourceConfig
from vcinr_batch.data import stores
from vcinr_batch.data.sources import open_fields, read_extent
from vcinr_batch.data.stores import find_store, open_store
from vcinr_batch.errors import SourceError

pytest.importorskip("netCDF4")

MakeFields = Callable[..., xarray.Dataset]
WriteGrib = Callable[..., None]
InMemory = Callable[[Path], str]


def write(fields: xarray.Dataset, path: Path, kind: str, write_grib: WriteGrib) -> None:
    if kind == "grib":
        write_grib(path, fields.t2m.values[None, :, None], *(fields[dim].values for dim in fields.t2m.dims))
    elif kind.startswith("zarr"):
        fields.to_zarr(path, zarr_format=int(kind[-1]), consolidated=kind == "zarr2")
    else:
        fields.to_netcdf(path, format=kind)


KINDS = [
    ("NETCDF3_CLASSIC", "netcdf3"),
    ("NETCDF3_64BIT", "netcdf3"),
    ("NETCDF4", "hdf5"),
    ("zarr2", "zarr"),
    ("zarr3", "zarr"),
    ("grib", "grib"),
]


@pytest.mark.parametrize(("kind", "store_format"), KINDS)
@pytest.mark.parametrize("remote", [False, True])
def test_every_format_opens_from_disk_and_from_a_store(
    tmp_path: Path,
    make_fields: MakeFields,
    write_grib: WriteGrib,
    in_memory: InMemory,
    kind: str,
    store_format: str,
    remote: bool,
) -> None:
    fields = make_fields()
    path = tmp_path / "fields"
    write(fields, path, kind, write_grib)
    file = find_store(in_memory(path) if remote else str(path), {})
    assert file.format == store_format
    dataset = open_store(file, {})
    assert dataset.t2m.values == pytest.approx(fields.t2m.values, abs=5e-4 if kind == "grib" else 0)
    assert np.array_equal(dataset.time.values, fields.time.values)
    assert [p.name for p in tmp_path.iterdir()] == ["fields"], "nothing is written beside the source"


@pytest.mark.parametrize("kind", ["NETCDF3_CLASSIC", "NETCDF4", "grib"])
@pytest.mark.parametrize("kept", [0, 3, 6, 0.5, -7])
@pytest.mark.parametrize("remote", [False, True])
def test_a_truncated_file_is_one_line_with_its_url(
    tmp_path: Path,
    make_fields: MakeFields,
    write_grib: WriteGrib,
    in_memory: InMemory,
    kind: str,
    kept: float,
    remote: bool,
) -> None:
    path = tmp_path / "cut.bin"
    write(make_fields(hours=5), path, kind, write_grib)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    url = in_memory(path) if remote else str(path)
    with pytest.raises(SourceError) as caught:
        open_store(find_store(url, {}), {})
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("# nothing")
    for url, problem in (
        (tmp_path / "missing.nc", "no such file"),
        (tmp_path / "readme.md", "is not a NetCDF, Zarr or GRIB file"),
        (tmp_path, "no Zarr store"),
        ("memory://nowhere/at/all.zarr", "no such file"),
    ):
        with pytest.raises(SourceError, match=problem) as caught:
            find_store(str(url), {})
        assert str(url) in str(caught.value)


def test_a_password_in_the_url_is_not_shown() -> None:
    with pytest.raises(SourceError) as caught:
        find_store("nosuchprotocol://user:secret@host/file.nc", {})
    assert "secret" not in str(caught.value)


def test_a_rewritten_file_is_not_read_from_the_old_handle(tmp_path: Path, make_fields: MakeFields) -> None:
    path = tmp_path / "a.nc"
    for seed in (1, 2):
        fields = make_fields(seed=seed)
        path.unlink(missing_ok=True)
        fields.to_netcdf(path)
        os.utime(path, (time.time(), time.time() + seed))
        assert np.array_equal(open_store(find_store(str(path), {}), {}).t2m.values, fields.t2m.values)


def test_handles_stay_open_up_to_a_limit(
    tmp_path: Path, make_fields: MakeFields, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_OPEN_STORES", 2)
    files = []
    for seed in range(3):
        make_fields(seed=seed).to_netcdf(tmp_path / f"{seed}.nc")
        files.append(find_store(str(tmp_path / f"{seed}.nc"), {}))
    first = open_store(files[0], {})
    assert open_store(files[0], {}) is first
    opened = [open_store(file, {}) for file in files]
    assert open_store(files[0], {}) is not first
    assert opened[0].t2m.shape == first.t2m.shape == (6, 3, 4), "an evicted handle still reads"


@pytest.mark.parametrize(
    ("kind", "missing", "extra"),
    [
        ("NETCDF3_CLASSIC", ["netCDF4"], "netcdf"),
        ("NETCDF4", ["netCDF4", "h5netcdf"], "netcdf"),
        ("grib", ["cfgrib"], "grib"),
    ],
)
def test_a_missing_extra_is_named(
    tmp_path: Path,
    make_fields: MakeFields,
    write_grib: WriteGrib,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    missing: list[str],
    extra: str,
) -> None:
    path = tmp_path / "fields"
    write(make_fields(), path, kind, write_grib)
    find_spec: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name))
    with pytest.raises(SourceError, match=rf"pip install 'vcinr-batch\[{extra}\]'"):
        open_store(find_store(str(path), {}), {})


@pytest.mark.parametrize("file_format", ["NETCDF3_64BIT", "NETCDF4"])
def test_a_file_that_is_cut_while_it_is_open_is_an_error_and_never_zeros(tmp_path: Path, file_format: str) -> None:
    path = tmp_path / "t.nc"
    values = np.random.default_rng(0).standard_normal((50, 30, 40)).astype(np.float32) + 5
    axes = {"time": np.arange(50), "y": np.arange(30), "x": np.arange(40)}
    dataset = xarray.Dataset({"t": (("time", "y", "x"), values, {"units": "K"})}, axes)
    dataset.to_netcdf(path, format=file_format, engine="netcdf4")
    source = open_fields(str(path), SourceConfig(variable="t"))
    hours = (slice(0, 50), slice(None), slice(None))
    np.testing.assert_array_equal(read_extent(source, (slice(0, 1), *hours[1:]))[0], values[0])
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(SourceError, match=r"t\.nc"):
        read_extent(source, hours)
