"""Sources on an S3 server over HTTP: every format, only the bytes that are needed, and what happens when it fails."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from numpy.typing import NDArray

from tests.servers.fixtures import FaultyStore
from tests.servers.object_store import ObjectStore
from vcinr_batch import storage
from vcinr_batch.config import SourceConfig
from vcinr_batch.data import stores
from vcinr_batch.data.local_copies import copies_folder
from vcinr_batch.data.sources import FieldSource, open_fields, read_extent
from vcinr_batch.errors import DamagedSourceError, SourceError, StoreUnavailableError

pytest.importorskip("s3fs")
pytest.importorskip("netCDF4")

MakeFields = Callable[..., xarray.Dataset]
WriteGrib = Callable[..., None]
KINDS = ["NETCDF4", "NETCDF3_64BIT", "zarr2", "zarr3", "grib"]


@pytest.fixture(autouse=True)
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCINR_STORE_RETRY_SECONDS", "20")


def everything(source: FieldSource) -> NDArray[np.float32]:
    return read_extent(source, tuple(slice(0, n) for n in source.shape))


def impatient(store: ObjectStore) -> dict[str, Any]:
    """Options with which botocore leaves repeating to us."""
    return {**store.storage_options, "config_kwargs": {"retries": {"total_max_attempts": 1}}}


@pytest.fixture
def upload(s3: ObjectStore, tmp_path: Path, write_grib: WriteGrib) -> Callable[[xarray.Dataset, str], str]:
    """Writes fields in some format and puts them on the server; gives their URL."""

    def put(fields: xarray.Dataset, kind: str) -> str:
        path = tmp_path / kind
        encoding: dict[str, Any] = {"chunksizes": (1, *fields.t2m.shape[1:])} if kind == "NETCDF4" else {}
        if kind == "grib":
            write_grib(path, fields.t2m.values[None, :, None], *(fields[dim].values for dim in fields.t2m.dims))
        elif kind.startswith("zarr"):
            chunks = {"t2m": {"chunks": (1, *fields.t2m.shape[1:])}}
            fields.to_zarr(path, zarr_format=int(kind[-1]), consolidated=kind == "zarr2", encoding=chunks)
        else:
            fields.to_netcdf(path, format=kind, encoding={"t2m": encoding})
        for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
            url = f"{s3.url}/{file.relative_to(tmp_path)}"
            storage.write_bytes(url, file.read_bytes(), storage_options=s3.storage_options)
        return f"{s3.url}/{kind}"

    return put


def tolerance(kind: str) -> float:
    return 5e-4 if kind == "grib" else 0.0


FAULTS: dict[str, dict[str, Any]] = {
    "a good day": {},
    "one request in five refused": {"busy_share": 0.2},
    "downloads cut short": {"cut_share": 0.25},
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_reads_the_same_on_a_good_day_and_a_bad_one(
    faulty_s3: FaultyStore, upload: Any, make_fields: MakeFields, kind: str, faults: dict[str, Any]
) -> None:
    fields = make_fields(hours=12)
    url, options = upload(fields, kind), faulty_s3.storage_options
    for name, value in faults.items():
        setattr(faulty_s3.faults, name, value)
    source = open_fields(url, SourceConfig(), options)
    assert everything(source) == pytest.approx(fields.t2m.values, abs=tolerance(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_stops_in_the_middle_is_waited_for(
    faulty_s3: FaultyStore, upload: Any, make_fields: MakeFields, kind: str
) -> None:
    fields = make_fields()
    source = open_fields(upload(fields, kind), SourceConfig(), impatient(faulty_s3))
    faulty_s3.faults.down_for(1)
    assert everything(source) == pytest.approx(fields.t2m.values, abs=tolerance(kind))


@pytest.mark.parametrize("kind", ["NETCDF4", "zarr2", "zarr3"])
def test_a_store_that_stays_away_says_nothing_about_the_data(
    faulty_s3: FaultyStore, upload: Any, make_fields: MakeFields, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VCINR_STORE_RETRY_SECONDS", "0.3")
    fields = make_fields(latitude=np.linspace(80, -80, 300), longitude=np.arange(300.0))
    url = upload(fields, kind)
    source = open_fields(url, SourceConfig(), impatient(faulty_s3))
    faulty_s3.faults.down_for(60)
    with pytest.raises(StoreUnavailableError, match=f"cannot read {url}: the store does not answer") as caught:
        everything(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "part", "kept"),
    [("NETCDF4", "", 0.5), ("NETCDF3_64BIT", "", 0.9), ("grib", "", 0.9), ("zarr3", "/t2m/c/3/0/0", 0.5)],
)
def test_bytes_that_do_not_decode_are_a_damaged_source_with_its_url(
    s3: ObjectStore, upload: Any, make_fields: MakeFields, kind: str, part: str, kept: float
) -> None:
    url = upload(make_fields(latitude=np.linspace(80, -80, 40), longitude=np.arange(50.0)), kind)
    whole = storage.read_bytes(url + part, storage_options=s3.storage_options)
    storage.write_bytes(url + part, whole[: int(kept * len(whole))], storage_options=s3.storage_options)
    with pytest.raises(DamagedSourceError, match=url) as caught:
        everything(open_fields(url, SourceConfig(), s3.storage_options))
    assert "\n" not in str(caught.value)


def test_a_chunk_that_does_not_inflate_is_damage_only_where_it_is_read(
    s3: ObjectStore, tmp_path: Path, make_fields: MakeFields
) -> None:
    fields = make_fields(hours=4, latitude=np.linspace(80, -80, 40), longitude=np.arange(50.0))
    fields.to_netcdf(tmp_path / "a.nc", encoding={"t2m": {"zlib": True, "chunksizes": (1, 40, 50)}})
    data = bytearray((tmp_path / "a.nc").read_bytes())
    for i in range(len(data) // 4 * 3, len(data) // 4 * 3 + 50):  # in the middle of the third or fourth hour's stream
        data[i] ^= 0xFF
    storage.write_bytes(f"{s3.url}/a.nc", bytes(data), storage_options=s3.storage_options)
    source = open_fields(f"{s3.url}/a.nc", SourceConfig(), s3.storage_options)
    assert np.array_equal(read_extent(source, np.s_[0:2, 0:40, 0:50]), fields.t2m.values[:2])
    with pytest.raises(DamagedSourceError, match=rf"cannot read {s3.url}/a.nc"):
        everything(source)


def test_a_missing_chunk_is_the_fill_value_by_definition(s3: ObjectStore, upload: Any, make_fields: MakeFields) -> None:
    fields = make_fields()
    url = upload(fields, "zarr3")
    storage.remove(f"{url}/t2m/c/2/0/0", storage_options=s3.storage_options)
    values = everything(open_fields(url, SourceConfig(), s3.storage_options))
    assert np.isnan(values[2]).all()
    assert np.array_equal(values[[0, 1, 3, 4, 5]], fields.t2m.values[[0, 1, 3, 4, 5]])


def test_a_missing_file_is_neither_damage_nor_the_stores_fault(s3: ObjectStore) -> None:
    with pytest.raises(SourceError, match=f"cannot read {s3.url}/gone.nc: no such file") as caught:
        open_fields(f"{s3.url}/gone.nc", SourceConfig(), s3.storage_options)
    assert type(caught.value) is SourceError


@pytest.mark.parametrize("kind", ["NETCDF4", "zarr3"])
def test_only_the_chunks_asked_for_are_fetched(
    faulty_s3: FaultyStore, upload: Any, make_fields: MakeFields, kind: str
) -> None:
    """24 chunks of 800 kB, two of them wanted: 1.6 MB, metadata beside them. Whole it would be 19 MB."""
    fields = make_fields(hours=24, latitude=np.linspace(80, -80, 400), longitude=np.arange(500.0))
    if kind == "zarr3":
        fields.t2m.encoding = {"compressors": None}
    url = upload(fields, kind)
    source = open_fields(url, SourceConfig(), faulty_s3.storage_options)
    before = faulty_s3.proxy.sent_bytes()
    assert np.array_equal(read_extent(source, np.s_[7:9, 0:400, 0:500]), fields.t2m.values[7:9])
    needed = 2 * 400 * 500 * 4
    fetched = faulty_s3.proxy.sent_bytes() - before
    print(kind, "opening", before, "reading", fetched, "of", needed, "requests", len(faulty_s3.proxy.requests))
    assert fetched <= 1.1 * needed
    assert before <= 1 << 20


@pytest.mark.parametrize("kind", ["NETCDF4", "zarr3"])
def test_two_threads_read_one_handle(faulty_s3: FaultyStore, upload: Any, make_fields: MakeFields, kind: str) -> None:
    fields = make_fields(hours=16, latitude=np.linspace(80, -80, 100), longitude=np.arange(200.0))
    source = open_fields(upload(fields, kind), SourceConfig(), faulty_s3.storage_options)
    found: dict[int, NDArray[np.float32]] = {}

    def read(start: int) -> None:
        found[start] = read_extent(source, np.s_[start : start + 8, 0:100, 0:200])

    threads = [threading.Thread(target=read, args=(start,)) for start in (0, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert np.array_equal(np.concatenate([found[0], found[8]]), fields.t2m.values)


def test_a_disk_without_room_for_a_copy_is_said_to_be_full(
    s3: ObjectStore, upload: Any, make_fields: MakeFields, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload(make_fields(), "NETCDF3_64BIT")
    fs, _ = storage.locate(url, s3.storage_options)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fs, "get_file", full)
    with pytest.raises(SourceError, match=rf"cannot read {url}: no room for its \d+ bytes in .*: set TMPDIR") as caught:
        open_fields(url, SourceConfig(), s3.storage_options)
    assert type(caught.value) is SourceError


def test_copies_go_away_with_their_handles(
    s3: ObjectStore, make_fields: MakeFields, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(copies_folder())
    others = set(folder.iterdir())
    monkeypatch.setattr(stores, "_OPEN_STORES", 2)
    for i in range(5):
        make_fields(seed=i).to_netcdf(tmp_path / f"{i}.nc", format="NETCDF3_64BIT")
        data = (tmp_path / f"{i}.nc").read_bytes()
        storage.write_bytes(f"{s3.url}/{i}.nc", data, storage_options=s3.storage_options)
        everything(open_fields(f"{s3.url}/{i}.nc", SourceConfig(), s3.storage_options))
    assert len(set(folder.iterdir()) - others) == 2
