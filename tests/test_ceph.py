"""What only a real store checks: signatures, conditions of writes, races. Ceph's gateway, started from its packages."""

from pathlib import Path

import numpy as np
import pytest
import xarray

from tests.servers.fixtures import wrong_secret
from tests.servers.object_store import ObjectStore
from tests.test_s3_storage import race
from vcinr_batch import storage
from vcinr_batch.config import SourceConfig
from vcinr_batch.data.sources import open_fields, read_extent
from vcinr_batch.errors import ArchiveExistsError, StoreUnavailableError

pytest.importorskip("s3fs")
pytestmark = pytest.mark.ceph


def test_a_wrong_secret_is_refused_in_one_line_without_it(ceph: ObjectStore) -> None:
    wrong = wrong_secret(ceph)
    with pytest.raises(StoreUnavailableError, match="permission denied: the store refuses these credentials") as caught:
        storage.write_bytes(f"{ceph.url}/x", b"1", storage_options=wrong.storage_options)
    shown = str(caught.value) + repr(caught.value)
    assert "\n" not in str(caught.value)
    assert wrong.secret not in shown
    assert wrong.key not in shown
    assert ceph.keys() == []


def test_a_file_is_created_once(ceph: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two writers have both seen that nothing is there: the condition of the write decides."""
    options, url = ceph.storage_options, f"{ceph.url}/x"
    storage.create_bytes(url, b"first", storage_options=options)
    with pytest.raises(ArchiveExistsError):
        storage.create_bytes(url, b"second", storage_options=options)
    monkeypatch.setattr(storage, "exists", lambda *_, **__: False)
    with pytest.raises(ArchiveExistsError):
        storage.create_bytes(url, b"second", storage_options=options)
    assert storage.read_bytes(url, storage_options=options) == b"first"


def test_of_eight_racers_one_wins(ceph: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "exists", lambda *_, **__: False)
    wins = race(ceph, 8)
    assert wins == [storage.read_bytes(f"{ceph.url}/x", storage_options=ceph.storage_options)]


@pytest.mark.parametrize("name", ["fields.nc", "fields.zarr"])
def test_a_source_comes_back_as_it_was(ceph: ObjectStore, tmp_path: Path, fields: xarray.Dataset, name: str) -> None:
    path, options = tmp_path / name, ceph.storage_options
    if name.endswith(".nc"):
        fields.to_netcdf(path)
    else:
        fields.to_zarr(path, consolidated=False)
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        storage.create_bytes(f"{ceph.url}/{file.relative_to(tmp_path)}", file.read_bytes(), storage_options=options)
    source = open_fields(f"{ceph.url}/{name}", SourceConfig(), options)
    assert np.array_equal(read_extent(source, tuple(slice(0, n) for n in source.shape)), fields.t2m.values)


def test_an_archive_reads_from_the_store(ceph: ObjectStore, archive_path: Path) -> None:
    from vcinr_batch.archive.archive import Archive

    for file in (file for file in archive_path.rglob("*") if file.is_file()):
        url = f"{ceph.url}/archive/{file.relative_to(archive_path)}"
        storage.create_bytes(url, file.read_bytes(), storage_options=ceph.storage_options)
    remote = Archive.open(f"{ceph.url}/archive", storage_options=ceph.storage_options)
    local = Archive.open(str(archive_path))
    assert len(remote.select()) == len(local.select()) > 0
