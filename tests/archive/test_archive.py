import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from vcinr_batch.archive import archive as archive_module
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.manifest import commit_manifest
from vcinr_batch.archive.parquet_container import write_part
from vcinr_batch.data.axes import Axis
from vcinr_batch.data.layout import Layout, block_extent
from vcinr_batch.errors import (
    BitstreamError,
    BundleMismatchError,
    ConfigError,
    SampleNotFoundError,
    SourceError,
)
from vcinr_batch.storage import join_url, remove, write_bytes


def source_values(layout):
    """A different value for every place, in canonical order."""
    return np.arange(np.prod(layout.shape), dtype=np.float32).reshape(layout.shape)


def decode(rows, layout):
    """Stands for a codec: the values of `source_values`, NaN in the padding."""
    decoded = np.full((len(rows), *layout.block_shape), np.nan, np.float32)
    for values, row in zip(decoded, rows, strict=True):
        extent = block_extent(layout, row.block)
        values[tuple(slice(0, part.stop - part.start) for part in extent)] = source_values(layout)[extent]
    return decoded.reshape(len(rows), -1, 1)


def as_dataarray(layout):
    """`source_values` in canonical order, as xarray sees it."""
    times = np.datetime64("1970-01-01", "s") + layout.axes[0].values
    coordinates = {"time": times.astype("datetime64[ns]"), **{axis.name: axis.values for axis in layout.axes[1:]}}
    return xr.DataArray(source_values(layout), coordinates, layout.dims)


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    return str(tmp_path / "archive") if request.param == "local" else f"memory://{tmp_path}/archive"


def test_an_archive_tells_what_it_holds(url, archive_at):
    written = archive_at(url, rejected_blocks=((1, 0, 0),))
    archive = Archive.open(url)
    assert list(archive.keys()) == [row.key for row in written.rows]
    assert archive.rows() == written.rows
    assert archive.rejected() == written.rejected
    assert archive.bundle_bytes() == b"stands for a bundle"
    assert archive.manifest.unit == "K"


def test_the_size_counts_every_byte(tmp_path, archive_at):
    archive_at(str(tmp_path), rejected_blocks=((1, 0, 0),))
    files = {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    bundle = sum(size for path, size in files.items() if path.parent.name == "models")
    assert Archive.open(str(tmp_path)).size_bytes() == (sum(files.values()) - bundle, bundle)


@pytest.mark.parametrize(
    ("selection", "hours"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"time": "2019-03-22T04"}, [4]),
        ({"time": "2019-03-22T01..2019-03-22T03"}, [1, 2, 3]),
        ({"time": "2019-03-22"}, [0, 1, 2, 3, 4, 5]),
        ({"latitude": "50", "time": "..2019-03-22T01"}, [0, 1]),
    ],
)
def test_a_selection_finds_its_rows(selection, hours, url, archive_at):
    written = archive_at(url)
    assert Archive.open(url).rows(selection) == [written.rows[hour] for hour in hours]


def test_a_path_will_do_for_a_url(tmp_path, archive_at):
    written = archive_at(str(tmp_path / "by-path"))
    assert Archive.open(tmp_path / "by-path").rows() == written.rows
    with pytest.raises(ConfigError, match="expected a path or URL of an archive, got None"):
        Archive.open(None)


def test_a_selection_reads_only_the_parts_that_it_needs(url, archive_at):
    written = archive_at(url)
    remove(join_url(url, written.manifest.parts[0].path))
    archive = Archive.open(url)
    assert archive.rows({"time": "2019-03-22T03.."}) == written.rows[3:]
    with pytest.raises(SourceError, match=rf"{written.manifest.parts[0].path}: no such file"):
        archive.rows({"time": "2019-03-22T02"})


def test_a_damaged_part_is_named_and_the_others_still_read(url, archive_at):
    written = archive_at(url)
    write_bytes(join_url(url, written.manifest.parts[1].path), bytes(written.manifest.parts[1].bytes))
    archive = Archive.open(url)
    assert archive.rows({"time": "..2019-03-22T02"}) == written.rows[:3]
    with pytest.raises(BitstreamError, match=rf"^{written.manifest.parts[1].path}: "):
        archive.rows()


@pytest.mark.parametrize(
    ("selection", "error", "expected"),
    [
        ({"level": "850"}, ConfigError, "t2m has no dimension 'level'; it has time, latitude, longitude"),
        ({"time": "2020"}, SampleNotFoundError, "2019-03-22T00:00:00..2019-03-22T05:00:00"),
        ({"time": "yesterday"}, ConfigError, "yesterday"),
        ({"time": ""}, ConfigError, "time: an empty text"),
        ({"time": 5}, ConfigError, r"time: expected a text, a label or a range a..b, got 5 \(int\)"),
        ({"time": np.datetime64("2019-03-22")}, ConfigError, "got 2019-03-22 .datetime64"),
        ({"latitude": slice(1, 2)}, ConfigError, "latitude: expected a text"),
        ("time=2019", ConfigError, "expected a text for each dimension"),
    ],
)
def test_a_selection_that_cannot_be_is_refused(selection, error, expected, url, archive_at):
    archive_at(url)
    with pytest.raises(error, match=expected):
        Archive.open(url).select(selection)


def test_another_bundle_is_refused(url, archive_at):
    written = archive_at(url)
    write_bytes(join_url(url, written.manifest.bundle_path), b"another bundle")
    with pytest.raises(BundleMismatchError, match=f"the archive needs {written.manifest.bundle_sha256}"):
        Archive.open(url).bundle_bytes()
    remove(join_url(url, written.manifest.bundle_path))
    with pytest.raises(SourceError, match="no such file"):
        Archive.open(url).bundle_bytes()


@pytest.mark.parametrize(
    "block",
    [
        {},
        {"time": 4},
        {"time": 6, "latitude": 1, "longitude": 2},
        {"latitude": 2, "longitude": 2},
    ],
)
@pytest.mark.parametrize(
    "selection",
    [
        {},
        {"time": "2019-03-22T02"},
        {"time": "2019-03-22T01..2019-03-22T04", "longitude": "-10..-9.75"},
        {"latitude": "50.5", "longitude": "-9.5"},
    ],
)
def test_xarray_gets_the_selection_in_the_order_of_the_source(block, selection, tmp_path, layouts, row_of, manifest_of):
    layout = layouts(**block)
    stop = layout.block_counts
    rows = [row_of(layout, index) for index in np.ndindex(*stop)]
    part = write_part(rows, layout, str(tmp_path), "t2m-00000000", start=(0, 0, 0), stop=stop)
    commit_manifest(manifest_of(layout, (part,)), str(tmp_path))
    found = Archive.open(str(tmp_path)).to_xarray(selection, decode)

    expected = as_dataarray(layout).sortby("latitude")  # south to north, as in the source
    for name, text in selection.items():
        ends = [end if name == "time" else float(end) for end in text.split("..")]
        expected = expected.sel({name: slice(ends[0], ends[-1])})
    xr.testing.assert_equal(found["t2m"], expected)
    assert found["t2m"].dtype == np.float32
    assert found["t2m"].dims == ("time", "latitude", "longitude")


def test_xarray_gets_attributes_units_and_coordinates(url, archive_at):
    archive_at(url)
    found = Archive.open(url).to_xarray({"time": "2019-03-22T02"}, decode)
    assert found["t2m"].attrs == {"long_name": "2 metre temperature", "units": "K", "GRIB_paramId": 167}
    assert found.attrs == {"Conventions": "CF-1.7"}
    assert found["latitude"].attrs["units"] == "degrees_north"
    assert found["latitude"].values.tolist() == [50.0, 50.5]
    assert found["time"].values.tolist() == [np.datetime64("2019-03-22T02").astype("datetime64[ns]").astype(int)]


def test_the_unit_is_there_even_where_the_source_did_not_say(url, layouts, rows_of, manifest_of):
    layout = layouts()
    part = write_part(rows_of(layout), layout, url, "t2m-00000000", start=(0, 0, 0), stop=(6, 1, 1))
    commit_manifest(manifest_of(layout, (part,), attributes={}), url)
    assert Archive.open(url).to_xarray(decode=decode)["t2m"].attrs == {"units": "K"}


def test_rejected_samples_are_nan(url, archive_at):
    archive_at(url, rejected_blocks=((1, 0, 0), (5, 0, 0)))
    found = Archive.open(url).to_xarray(decode=decode)["t2m"]
    assert np.isnan(found.values).all(axis=(1, 2)).tolist() == [False, True, False, False, False, True]
    only = Archive.open(url).to_xarray({"time": "2019-03-22T01"}, decode)["t2m"]
    assert np.isnan(only.values).all()
    assert Archive.open(url).select({"time": "2019-03-22T01"}) == []


def test_values_are_decoded_in_batches(url, archive_at, monkeypatch):
    written = archive_at(url)
    monkeypatch.setattr(archive_module, "_BATCH_VALUES", 12)
    sizes = []

    def counting(rows, layout):
        sizes.append(len(rows))
        return decode(rows, layout)

    found = Archive.open(url).to_xarray(decode=counting)["t2m"]
    xr.testing.assert_equal(found, as_dataarray(written.layout).sortby("latitude"))
    assert sizes == [2, 2, 2]  # the second one from both parts


def test_channels_become_a_dimension(tmp_path, layouts, rows_of, manifest_of):
    layout = dataclasses.replace(layouts(), channels=2)
    part = write_part(rows_of(layout), layout, str(tmp_path), "t2m-00000000", start=(0, 0, 0), stop=(6, 1, 1))

    def decode_two(rows, _):
        return np.stack([np.full((6, 2), [row.block[0], -row.block[0]], np.float32) for row in rows])

    found = Archive(str(tmp_path), manifest_of(layout, (part,))).to_xarray(decode=decode_two)["t2m"]
    assert found.dims == ("time", "latitude", "longitude", "channel")
    assert found.values[4, 1, 2].tolist() == [4, -4]


def test_a_selection_too_large_for_memory_is_refused(tmp_path, layouts, row_of, manifest_of, monkeypatch):
    layout = layouts()
    part = write_part(
        [row_of(layout, (i, 0, 0)) for i in range(6)], layout, str(tmp_path), "a", start=(0, 0, 0), stop=(6, 1, 1)
    )
    commit_manifest(manifest_of(layout, (part,)), str(tmp_path))

    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(np, "full", no_memory)
    with pytest.raises(ConfigError, match=r"shape \(6, 2, 3, 1\), 0 GB: select less"):
        Archive.open(str(tmp_path)).to_xarray(decode=decode)


def test_an_archive_without_dimensions_holds_one_sample(tmp_path, row_of, manifest_of):
    layout = Layout("t2m", (), ())
    part = write_part([row_of(layout, ())], layout, str(tmp_path), "t2m-00000000", start=(), stop=())
    commit_manifest(manifest_of(layout, (part,)), str(tmp_path))
    found = Archive.open(str(tmp_path)).to_xarray(decode=lambda rows, _: np.full((len(rows), 1, 1), 7, np.float32))
    assert found["t2m"].item() == 7.0


def test_members_and_levels_are_dimensions_like_any_other(tmp_path, row_of, manifest_of):
    axes = (
        Axis("member", np.array(["r1", "r2"])),
        Axis("level", np.array([500, 850], np.int64), {"units": "hPa"}),
        Axis("x", np.arange(5, dtype=np.float64)),
    )
    layout = Layout("t", axes, (1, 1, 5))
    rows = [row_of(layout, index) for index in np.ndindex(2, 2, 1)]
    part = write_part(rows, layout, str(tmp_path), "t-00000000", start=(0, 0, 0), stop=(2, 2, 1))
    commit_manifest(manifest_of(layout, (part,)), str(tmp_path))
    archive = Archive.open(str(tmp_path))
    keys = [str(key) for key in archive.keys()]  # noqa: SIM118 (no mapping)
    assert keys == [
        "t[member=r1,level=500]",
        "t[member=r1,level=850]",
        "t[member=r2,level=500]",
        "t[member=r2,level=850]",
    ]
    found = archive.to_xarray({"member": "r2", "level": "850"}, decode)["t"]
    np.testing.assert_array_equal(found.values, source_values(layout)[1:, 1:])


def test_only_the_last_indexes_are_kept(tmp_path, archive_at, monkeypatch):
    written = archive_at(str(tmp_path))
    monkeypatch.setattr(archive_module, "_CACHED_INDEXES", 1)
    archive = Archive.open(str(tmp_path))
    assert archive.rows() == written.rows
    assert archive.index(written.manifest.parts[1]) is archive.index(written.manifest.parts[1])
    assert len(archive._indexes) == 1


def test_opening_and_selecting_imports_neither_torch_nor_ray(tmp_path, archive_at):
    archive_at(str(tmp_path))
    program = (
        "import sys; from vcinr_batch.archive.archive import Archive; "
        f"print(len(Archive.open({str(tmp_path)!r}).rows()), 'torch' in sys.modules, 'ray' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["6", "False", "False"]
