import base64
import dataclasses
import gzip
import hashlib
import json
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

import vcinr_batch
from vcinr_batch.archive.manifest import (
    ArchivePart,
    check_path,
    commit_manifest,
    manifest_from_json,
    manifest_to_json,
    read_manifest,
)
from vcinr_batch.archive.manifest_dictionary import MANIFEST_DICTIONARY
from vcinr_batch.data.auxiliary import Auxiliary
from vcinr_batch.errors import (
    ArchiveExistsError,
    BitstreamError,
    ConfigError,
    CorruptBitstreamError,
    SourceError,
    UnsupportedFormatError,
)

SHA = "0123456789abcdef" * 4


def make_part(**changed):
    fields = {
        "path": "parts/t2m-00000000.parquet",
        "rows": 6,
        "bytes": 700,
        "sha256": SHA,
        "index_crc32": 123456789,
        "payloads": ((200, 350),),
        "start": (0, 0, 0),
        "stop": (6, 1, 1),
    }
    return ArchivePart(**{**fields, **changed})


SCALAR = {"name": "expver", "dims": [], "dtype": "text", "data": ["0001"]}
REJECTING = {
    "rows": 4,
    "rejected": 2,
    "rejected_path": "rejected/t2m-00000000.parquet",
    "rejected_bytes": 400,
    "rejected_sha256": SHA,
}


@pytest.fixture
def manifest(layouts, manifest_of):
    return manifest_of(layouts(), (make_part(),))


@pytest.fixture
def content(manifest):
    """The manifest as parsed JSON, to be spoiled."""
    return json.loads(json.dumps(manifest_to_json(manifest)))


@pytest.mark.parametrize("url", ["{tmp_path}/archive", "memory://{tmp_path}/archive"])
@pytest.mark.parametrize("changed", [{}, REJECTING])
def test_a_manifest_comes_back_as_committed(url, changed, tmp_path, layouts, manifest_of):
    url = url.format(tmp_path=tmp_path)
    manifest = manifest_of(layouts(), (make_part(**changed),))
    size = commit_manifest(manifest, url)
    found = read_manifest(url)
    for field in dataclasses.fields(manifest):
        if field.name != "layout":
            assert getattr(found, field.name) == getattr(manifest, field.name)
    assert found.layout.dims == manifest.layout.dims
    assert found.layout.block_shape == manifest.layout.block_shape
    for axis, expected in zip(found.layout.axes, manifest.layout.axes, strict=True):
        np.testing.assert_array_equal(axis.values, expected.values)
        assert axis.attributes == expected.attributes
    assert found.variable == "t2m"
    assert found.bundle_path == f"models/{manifest.bundle_sha256}.safetensors"
    assert size < 900


def test_auxiliary_variables_are_there_only_where_there_are_any(tmp_path, layouts, manifest_of):
    layout, parts = layouts(), (make_part(),)
    assert "auxiliary" not in manifest_to_json(manifest_of(layout, parts))
    grid = Auxiliary("area", ("latitude", "longitude"), np.arange(6.0).reshape(2, 3), {"units": "m2"})
    scalar = Auxiliary("expver", (), np.array("0001"))
    content = manifest_to_json(manifest_of(layout, parts, auxiliaries=(grid, scalar)))
    assert content["auxiliary"][1] == SCALAR
    commit_manifest(manifest_of(layout, parts, auxiliaries=(grid, scalar)), str(tmp_path))
    found = read_manifest(str(tmp_path))
    assert found.auxiliaries[0].values.tolist() == grid.values.tolist()
    assert manifest_to_json(found) == content


def parts_of(count):
    """As many parts of one hour each."""
    places = [{"path": f"parts/t2m-{i:08d}.parquet", "start": (i, 0, 0), "stop": (i + 1, 1, 1)} for i in range(count)]
    digests = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]
    return tuple(make_part(**place, rows=1, sha256=sha256) for place, sha256 in zip(places, digests, strict=True))


def packed_text(data):
    """The JSON that a packed manifest holds, by nothing but FORMAT.md's words and its text."""
    head = json.loads(gzip.decompress(data))
    assert list(head) == ["format", "packed", "version"]
    assert (head["format"], head["version"]) == ("vcinr-archive", 2)
    inflate = zlib.decompressobj(-15, zdict=documented_dictionary())
    text = inflate.decompress(base64.b64decode(head["packed"])).decode()
    assert inflate.eof
    return text


def documented_dictionary():
    text = Path(vcinr_batch.__file__).with_name("FORMAT.md").read_text()
    block = text.partition("<!-- dictionary: begin -->\n```\n")[2].partition("\n```\n<!-- dictionary: end -->")[0]
    return block.replace("\n", "").encode("ascii")


def test_format_md_prints_the_dictionary():
    assert documented_dictionary().decode() == MANIFEST_DICTIONARY
    digest = "c7652a97079f951028d88f13fb895b79b1f2ca6f2cdd5cc373ecf67177c6b5c8"
    assert hashlib.sha256(documented_dictionary()).hexdigest() == digest  # part of version 2: never changes


def test_a_small_manifest_is_packed_against_the_dictionary(tmp_path, manifest):
    commit_manifest(manifest, str(tmp_path))
    data = (tmp_path / "manifest.json.gz").read_bytes()
    text = packed_text(data)
    assert json.loads(text) == manifest_to_json(manifest)
    assert len(data) < 0.6 * len(gzip.compress(text.encode()))


def test_the_archive_of_another_package_without_packing_reads(tmp_path, manifest):
    content = manifest_to_json(manifest)
    for version in (1, 2):
        text = json.dumps({**content, "version": version})
        (tmp_path / "manifest.json.gz").write_bytes(gzip.compress(text.encode()))
        assert manifest_to_json(read_manifest(str(tmp_path))) == content


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ({"packed": "", "version": 1}, CorruptBitstreamError),
        ({"packed": "", "version": 2}, CorruptBitstreamError),
        ({"packed": "no base64!", "version": 2}, CorruptBitstreamError),
        ({"packed": "eJw=", "version": 2}, CorruptBitstreamError),
        ({"packed": 7, "version": 2}, CorruptBitstreamError),
        ({"packed": "", "version": 2, "unit": "K"}, CorruptBitstreamError),
        ({"packed": "", "version": 3}, UnsupportedFormatError),
    ],
)
def test_what_is_packed_wrongly_is_refused(head, expected, tmp_path):
    text = json.dumps({"format": "vcinr-archive", **head})
    (tmp_path / "manifest.json.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(expected, match=r"^manifest of "):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize("text", [bytes(65 << 20), b"[" * 100_000, b'{"packed":""}'])
def test_a_packed_manifest_is_inflated_in_bounded_memory_and_only_once(text, tmp_path):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=MANIFEST_DICTIONARY.encode())
    packed = base64.b64encode(deflate.compress(text) + deflate.flush()).decode()
    head = json.dumps({"format": "vcinr-archive", "packed": packed, "version": 2})
    (tmp_path / "manifest.json.gz").write_bytes(gzip.compress(head.encode()))
    with pytest.raises(BitstreamError if text[:1] != b"{" else UnsupportedFormatError, match=r"^manifest of "):
        read_manifest(str(tmp_path))


def test_a_large_manifest_is_plain_json_under_gzip(tmp_path, layouts, manifest_of):
    manifest = manifest_of(layouts(200), parts_of(200))
    commit_manifest(manifest, str(tmp_path))
    text = gzip.decompress((tmp_path / "manifest.json.gz").read_bytes()).decode()
    assert text.startswith('{"attributes":{"GRIB_paramId":167,')
    assert json.loads(text)["format"] == "vcinr-archive"
    assert json.loads(text)["version"] == 2
    assert manifest_to_json(read_manifest(str(tmp_path))) == manifest_to_json(manifest)
    assert json.loads(text)["parts"][7] == {
        "path": "parts/t2m-00000007.parquet",
        "rows": 1,
        "bytes": 700,
        "sha256": hashlib.sha256(b"7").hexdigest(),
        "crc32": 123456789,
        "payloads": [[200, 350]],
        "start": [7, 0, 0],
        "stop": [8, 1, 1],
    }


def test_bytes_are_a_pure_function_of_the_content(tmp_path, manifest, monkeypatch):
    commit_manifest(manifest, str(tmp_path / "a"))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    reordered = dataclasses.replace(manifest, attributes=dict(reversed(manifest.attributes.items())))
    commit_manifest(reordered, str(tmp_path / "b"))
    first, second = ((tmp_path / name / "manifest.json.gz").read_bytes() for name in "ab")
    assert first == second
    assert first[4:8] == bytes(4)  # gzip's modification time


def test_attributes_come_back_with_their_types(tmp_path, layouts, manifest_of):
    attributes = {"valid_range": np.array([1, 2], np.int16), "scale": np.float32(0.5), "who": b"x", "list": (1, None)}
    encoding = {"dtype": "float32", "_FillValue": np.float32(np.nan)}
    url = str(tmp_path)
    commit_manifest(manifest_of(layouts(), (make_part(),), attributes=attributes, encoding=encoding), url)
    found = read_manifest(url)
    assert found.attributes["valid_range"].dtype == np.int16
    assert found.attributes["valid_range"].tolist() == [1, 2]
    assert type(found.attributes["scale"]) is np.float32
    assert {**found.attributes, "valid_range": 0} == {"valid_range": 0, "scale": 0.5, "who": "x", "list": [1, None]}
    assert type(found.encoding["_FillValue"]) is np.float32
    assert np.isnan(found.encoding["_FillValue"])


@pytest.mark.parametrize("url", ["{tmp_path}/archive", "memory://{tmp_path}/archive"])
def test_a_manifest_is_replaced_only_where_that_is_asked_for(url, tmp_path, manifest):
    url = url.format(tmp_path=tmp_path)
    commit_manifest(manifest, url)
    other = dataclasses.replace(manifest, unit="degC")
    with pytest.raises(ArchiveExistsError, match=r"manifest\.json\.gz exists already"):
        commit_manifest(other, url)
    assert read_manifest(url).unit == "K"
    commit_manifest(other, url, overwrite=True)
    assert read_manifest(url).unit == "degC"


def test_no_manifest_no_archive(tmp_path):
    for url in (str(tmp_path), str(tmp_path / "nowhere"), "memory://nowhere"):
        with pytest.raises(SourceError, match=r"^no archive at .* \(no manifest\.json\.gz\)$"):
            read_manifest(url)


def test_every_flipped_byte_of_a_manifest_is_found_or_does_not_matter(tmp_path, manifest):
    commit_manifest(manifest, str(tmp_path))
    path = tmp_path / "manifest.json.gz"
    data, expected, unnoticed = path.read_bytes(), manifest_to_json(manifest), []
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ 0xFF]) + data[i + 1 :])
        try:
            found = read_manifest(str(tmp_path))
        except BitstreamError:
            continue
        assert manifest_to_json(found) == expected
        unnoticed.append(i)
    # Time, flags for the compressor and operating system: gzip says that nothing depends on them.
    assert set(unnoticed) <= set(range(4, 10))


def test_every_truncation_of_a_manifest_is_found(tmp_path, manifest):
    commit_manifest(manifest, str(tmp_path))
    path = tmp_path / "manifest.json.gz"
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(BitstreamError, match=r"^manifest of "):
            read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "cut off after 0 bytes"),
        (b"{}", "damaged gzip"),
        (gzip.compress(b"not json", mtime=0), "is not JSON"),
        (gzip.compress(b"\xff\xfe", mtime=0), "is not JSON"),
        (gzip.compress(b"[" * 100_000, mtime=0), "is not JSON"),
        (gzip.compress(b"1" * 5000, mtime=0), "is not JSON"),
        (gzip.compress(bytes(65 << 20), mtime=0), "more than 67108864 bytes"),
    ],
)
def test_what_is_no_manifest_is_refused_in_bounded_memory(data, expected, tmp_path):
    (tmp_path / "manifest.json.gz").write_bytes(data)
    with pytest.raises(BitstreamError, match=expected):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "value", "error", "expected"),
    [
        (["format"], "zarr", UnsupportedFormatError, "format is 'zarr', expected 'vcinr-archive'"),
        (["version"], 3, UnsupportedFormatError, "format version 3; this package reads versions 1 and 2"),
        (["version"], True, UnsupportedFormatError, "format version True"),
        (["container"], "hdf5", UnsupportedFormatError, "container 'hdf5'; this version reads 'parquet' and 'zarr'"),
        (["container"], "zarr", CorruptBitstreamError, "the part of a Zarr archive, but its chunk is t2m/c/0/0/0"),
        (["bundle"], "../" * 21 + "x", CorruptBitstreamError, "not a SHA-256"),
        (["bundle"], SHA.upper(), CorruptBitstreamError, "not a SHA-256"),
        (["bundle"], SHA + "\n", CorruptBitstreamError, "not a SHA-256"),
        (["unit"], 7, CorruptBitstreamError, "unit must be a text"),
        (["sources"], "a.nc", CorruptBitstreamError, "must be lists"),
        (["sources"], [1], CorruptBitstreamError, "sources must be a text"),
        (["parts"], {}, CorruptBitstreamError, "must be lists"),
        (["parts"], [], CorruptBitstreamError, "the parts have 0 samples, the layout 6"),
        (["parts"], ["x"], CorruptBitstreamError, "expected a part as a JSON object"),
        (["source_bits"], 0, CorruptBitstreamError, "source_bits must be an integer from 1"),
        (["source_bits"], 16.0, CorruptBitstreamError, "source_bits must be an integer"),
        (["attributes"], [], CorruptBitstreamError, "attributes"),
        (["layout", "channels"], 4, UnsupportedFormatError, "samples of 4 channels"),
        (["attributes"], {"a": {"dtype": "<f4", "data": [[1]]}}, CorruptBitstreamError, "attributes: attribute 'a'"),
        (["layout"], None, CorruptBitstreamError, "layout"),
        (["surprise"], 1, CorruptBitstreamError, "unknown key 'surprise'"),
        (["auxiliary"], {}, CorruptBitstreamError, "list of at most 64 auxiliary variables"),
        (["auxiliary"], ["x"], CorruptBitstreamError, "expected an auxiliary variable as a JSON object"),
        (["auxiliary"], [{"name": "crs"}], CorruptBitstreamError, "an auxiliary variable lacks 'data'"),
        (["auxiliary"], [{**SCALAR, "dims": ["level"]}], CorruptBitstreamError, "'expver': expected some of time, l"),
        (["auxiliary"], [{**SCALAR, "name": "../expver"}], CorruptBitstreamError, "not the name of an auxiliary"),
        (["auxiliary"], [SCALAR, SCALAR], CorruptBitstreamError, "'expver' is taken already"),
        (["parts", 0, "path"], "../../etc/passwd", CorruptBitstreamError, "not a path inside an archive"),
        (["parts", 0, "path"], "/etc/passwd", CorruptBitstreamError, "not a path inside an archive"),
        (["parts", 0, "path"], "s3://bucket/x", CorruptBitstreamError, "not a path inside an archive"),
        (["parts", 0, "path"], 5, CorruptBitstreamError, "path must be a text"),
        (["parts", 0, "rows"], 5, CorruptBitstreamError, "5 rows and 0 rejected samples, but its shard has 6"),
        (["parts", 0, "rows"], -1, CorruptBitstreamError, "rows of parts/t2m-00000000.parquet must be an integer"),
        (["parts", 0, "bytes"], "700", CorruptBitstreamError, "size of parts/t2m-00000000.parquet must be an integer"),
        (["parts", 0, "sha256"], SHA[:-1], CorruptBitstreamError, "not a SHA-256"),
        (["parts", 0, "crc32"], 2**32, CorruptBitstreamError, "crc32 of"),
        (["parts", 0, "payloads"], [[1, 2, 3]], CorruptBitstreamError, "list of byte ranges"),
        (["parts", 0, "payloads"], [[-1, 2]], CorruptBitstreamError, "payloads of .* integer from 0"),
        (["parts", 0, "start"], [0, 0], CorruptBitstreamError, "start of .* list of 3"),
        (["parts", 0, "start"], [-1, 0, 0], CorruptBitstreamError, "start of .* integer from 0"),
        (["parts", 0, "stop"], [7, 1, 1], CorruptBitstreamError, "but its shard has 7"),
        (["parts", 0, "stop"], [3, 2, 1], CorruptBitstreamError, r"to \(3, 2, 1\) is not within \(6, 1, 1\) blocks"),
        (["parts", 0, "rejected"], {"rows": 1}, CorruptBitstreamError, "a rejected table lacks"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(path, value, error, expected, content):
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(error, match=expected):
        manifest_from_json(content)


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, {"format": []}, [{"format": "vcinr-archive"}]])
def test_other_json_is_refused(value):
    with pytest.raises(UnsupportedFormatError, match="expected 'vcinr-archive'"):
        manifest_from_json(value)


def test_samples_too_large_for_any_memory_are_refused(content):
    axes = content["layout"]["axes"]
    for axis in axes[1:]:
        axis["labels"] = {"dtype": "float64", "start": 0.0, "step": 1e-7, "count": 100_000}
        axis.pop("source_labels", None)
    content["layout"]["block"] = [1, 100_000, 100_000]
    with pytest.raises(CorruptBitstreamError, match="samples of 10000000000 points; at most 16777216 are read"):
        manifest_from_json(content)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/../b",
        "./a",
        "C:a",
        "a\\b",
        "s3://a",
        "a*",
        "a?",
        "a[b]",
        "a%2e",
        "a#b",
        "a\0",
        "a\n",
    ],
)
def test_a_path_that_may_leave_the_archive_is_refused(path):
    with pytest.raises(ConfigError, match="not a path inside an archive"):
        check_path(path)
    with pytest.raises(ConfigError, match="not a path inside an archive"):
        make_part(path=path)


@pytest.mark.parametrize("path", ["a", "parts/t2m-00000000.parquet", "parts/2 m temperature (K).parquet", "a/..b"])
def test_a_path_inside_the_archive_is_accepted(path):
    check_path(path)


@pytest.mark.parametrize(
    "changed",
    [
        {**REJECTING, "rejected_path": None},
        {**REJECTING, "rejected_sha256": None},
        {"rejected_path": "rejected/x.parquet"},
        {**REJECTING, "rows": 6},
        {**REJECTING, "rejected_path": "../x"},
    ],
)
def test_a_part_that_contradicts_itself_cannot_be_made(changed):
    with pytest.raises(ConfigError):
        make_part(**changed)


def test_parts_that_overlap_cannot_be_committed(layouts, manifest_of):
    half = {"rows": 3, "stop": (3, 1, 1)}
    with pytest.raises(ConfigError, match="the parts have 6 samples, the layout 6"):
        manifest_of(layouts(), (make_part(**half), make_part(**half, path="parts/b.parquet")))


def test_25000_parts_come_back_at_less_than_70_bytes_each(tmp_path, layouts, manifest_of):
    layout = layouts(hours=25_000)
    digests = np.random.default_rng(0).bytes(32 * 25_000).hex()
    parts = tuple(
        make_part(
            path=f"parts/t2m-{i:08d}.parquet",
            rows=1,
            bytes=1000 + i % 700,
            start=(i, 0, 0),
            stop=(i + 1, 1, 1),
            sha256=digests[64 * i : 64 * i + 64],
            index_crc32=zlib.crc32(digests[64 * i : 64 * i + 64].encode()),
        )
        for i in range(25_000)
    )
    size = commit_manifest(manifest_of(layout, parts), str(tmp_path))
    assert read_manifest(str(tmp_path)).parts == parts
    assert size / 25_000 < 70
