import functools
import http.server
import os
import threading
import zipfile

import fsspec
import pytest

from vcinr_batch import storage
from vcinr_batch.errors import ArchiveExistsError, ConfigError, SourceError, StoreUnavailableError


@pytest.fixture(params=["local", "memory"])
def base(request, tmp_path):
    """A folder URL on a file system with rename, and on one that is like an object store."""
    if request.param == "local":
        yield str(tmp_path / "folder")
        return
    yield f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").store.clear()


def test_bytes_come_back_as_written(base):
    url = storage.join_url(base, "a", "b.bin")
    storage.write_bytes(url, b"first")
    storage.write_bytes(url, b"second one")
    assert storage.read_bytes(url) == b"second one"
    assert storage.size_bytes(url) == 10


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (None, None, b"0123456789"),
        (0, 4, b"0123"),
        (3, 5, b"34"),
        (8, 99, b"89"),
        (7, None, b"789"),
        (None, 2, b"01"),
        (5, 5, b""),
        (6, 5, b""),
    ],
)
def test_a_range_reads_like_a_slice(base, start, stop, expected):
    url = storage.join_url(base, "x")
    storage.write_bytes(url, b"0123456789")
    assert storage.read_bytes(url, start, stop) == expected


@pytest.mark.parametrize("gap", [0, 1, 1 << 14, (1 << 14) + 1, 1 << 17])
def test_many_ranges_come_back_in_the_order_asked_for_however_they_are_fetched(base, gap):
    data = os.urandom(3 * gap + 400)
    url = storage.join_url(base, "x")
    storage.write_bytes(url, data)
    ranges = [(2 * gap + 200, 2 * gap + 300), (0, 100), (50, 120), (7, 7), (gap + 100, gap + 200), (0, 100)]
    assert storage.read_ranges(url, ranges) == [data[a:b] for a, b in ranges]
    assert storage.read_ranges(url, []) == []


def test_a_range_past_the_end_comes_back_short_so_that_the_caller_can_tell(base):
    url = storage.join_url(base, "x")
    storage.write_bytes(url, b"0123456789")
    assert storage.read_ranges(url, [(8, 12), (0, 2)]) == [b"89", b"01"]


def test_create_refuses_to_replace(base):
    url = storage.join_url(base, "x")
    storage.create_bytes(url, b"first")
    with pytest.raises(ArchiveExistsError, match="exists already") as caught:
        storage.create_bytes(url, b"second")
    assert isinstance(caught.value, FileExistsError)
    assert storage.read_bytes(url) == b"first"


def test_of_sixteen_racing_creators_on_one_machine_one_wins(tmp_path):
    url, wins = str(tmp_path / "x"), []

    def race(i):
        try:
            storage.create_bytes(url, bytes([i]))
            wins.append(i)
        except ArchiveExistsError:
            pass

    threads = [threading.Thread(target=race, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert storage.read_bytes(url) == bytes(wins)


def test_listing_gives_the_files_of_a_folder_or_the_matches_of_a_pattern_sorted(base):
    for name in ("b.nc", "a.nc", "c.txt", "deeper/d.nc"):
        storage.write_bytes(storage.join_url(base, name), b"1")
    prefix = storage.list_urls(base)[0].removesuffix("/a.nc")

    def names(urls):
        return [url.removeprefix(prefix + "/") for url in urls]

    assert names(storage.list_urls(base)) == ["a.nc", "b.nc", "c.txt"]
    assert names(storage.list_urls(base + "/*.nc")) == ["a.nc", "b.nc"]
    assert names(storage.list_urls(base + "/**/*.nc")) == ["a.nc", "b.nc", "deeper/d.nc"]
    assert names(storage.list_urls(base + "/c.txt")) == ["c.txt"]
    assert storage.list_urls(base + "/*.grib") == storage.list_urls(base + "/nowhere") == []
    assert storage.read_bytes(storage.list_urls(base)[2]) == b"1"


def test_listed_local_paths_stay_paths_and_urls_stay_urls(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    assert storage.list_urls(str(tmp_path)) == [f"{tmp_path}/a"]
    assert storage.list_urls(f"file://{tmp_path}") == [f"file://{tmp_path}/a"]
    assert storage.list_urls(f"simplecache::file://{tmp_path}/*") == [f"simplecache::file://{tmp_path}/a"]


def test_a_pattern_inside_a_zip_lists_urls_that_can_be_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as file:
        file.writestr("x/a.txt", "in the zip")
    urls = storage.list_urls(f"zip://x/*.txt::file://{tmp_path}/z.zip")
    assert [storage.read_bytes(url) for url in urls] == [b"in the zip"]


def test_removing_twice_is_fine(base):
    url = storage.join_url(base, "x")
    storage.write_bytes(url, b"1")
    assert storage.exists(url)
    storage.remove(url)
    storage.remove(url)
    assert not storage.exists(url)


def test_a_write_that_fails_leaves_the_old_content_and_no_temporary_file(tmp_path, monkeypatch):
    target = tmp_path / "x"
    target.write_bytes(b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SourceError, match=r"cannot write .*x: No space left on device"):
        storage.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda base: storage.read_bytes(f"{base}/nothing"), r"cannot read .*/nothing: no such file$"),
        (lambda base: storage.read_ranges(f"{base}/nothing", [(0, 1)]), r"cannot read .*/nothing: no such file$"),
        (lambda base: storage.size_bytes(f"{base}/nothing"), r"cannot look up .*/nothing: no such file$"),
        (lambda _: storage.read_bytes("nosuchscheme://bucket/x"), "Protocol not known: nosuchscheme"),
        (lambda _: storage.exists("nosuchscheme://bucket/x"), "Protocol not known: nosuchscheme"),
        (lambda _: storage.list_urls("nosuchscheme://bucket/x"), "Protocol not known: nosuchscheme"),
        (lambda _: storage.write_bytes("nosuchscheme://bucket/x", b""), "Protocol not known: nosuchscheme"),
        (lambda _: storage.remove("nosuchscheme://bucket/x"), "Protocol not known: nosuchscheme"),
    ],
)
def test_what_goes_wrong_is_one_line_with_url_and_cause(base, call, expected):
    with pytest.raises(SourceError, match=expected) as caught:
        call(base)
    assert "\n" not in str(caught.value)


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(SourceError, match="it is a directory"):
        storage.read_bytes(str(tmp_path))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://user:secret@host/a", "s3://host/a"),
        ("https://h/a?X-Amz-Signature=secret", "https://h/a"),
        ("simplecache::ftp://user:secret@h/a@b", "simplecache::ftp://h/a@b"),
        ("s3://bucket/a?.nc", "s3://bucket/a?.nc"),
        ("/plain/path@x", "/plain/path@x"),
    ],
)
def test_credentials_are_not_shown(url, shown):
    assert storage.public_url(url) == shown


def test_credentials_do_not_come_back_through_the_cause():
    with pytest.raises(SourceError) as caught:
        storage.read_bytes("nosuch+user:secret://user:secret@host/x")
    assert "user:secret@" not in str(caught.value)
    with pytest.raises(SourceError) as caught:
        storage.read_bytes("s3://user:secret@host/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("s3://b/a", "parts", "x"), "s3://b/a/parts/x"),
        (("s3://b/a/", "x"), "s3://b/a/x"),
        (("/tmp/a/", "x"), "/tmp/a/x"),
        (("/", "x"), "/x"),
        (("relative", "x"), "relative/x"),
        (("s3://b/a",), "s3://b/a"),
    ],
)
def test_urls_join_with_one_slash(parts, expected):
    assert storage.join_url(*parts) == expected


@pytest.mark.parametrize("empty", ["", " ", "s3://", "file:///", " memory:// "])
def test_an_empty_url_is_no_place(empty):
    with pytest.raises(ConfigError, match="expected a path or URL"):
        storage.join_url(empty, "manifest.json.gz")
    with pytest.raises(ConfigError, match="expected a path or URL"):
        storage.write_bytes(empty, b"x")


def test_a_file_is_told_from_a_directory_and_from_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    found = [storage.is_file_url(str(tmp_path / name)) for name in ("file", ".", "nothing")]
    assert found == [True, False, False]


def test_digest_is_the_published_sha256():
    # FIPS 180-2, appendix B.1.
    assert storage.sha256_hex(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


class _WithoutRanges(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def http_base(tmp_path):
    """A web server that ignores ranges, as Python's own does."""
    handler = functools.partial(_WithoutRanges, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_web_server_that_ignores_ranges_does_not_mislead(http_base, tmp_path):
    pytest.importorskip("aiohttp")
    (tmp_path / "x").write_bytes(bytes(range(200)))
    assert storage.read_bytes(f"{http_base}/x", 10, 20) == bytes(range(10, 20))
    assert storage.read_ranges(f"{http_base}/x", [(150, 160), (3, 5)]) == [bytes(range(150, 160)), b"\x03\x04"]
    with pytest.raises(SourceError, match="no such file"):
        storage.read_ranges(f"{http_base}/gone", [(0, 5)])


def test_an_unreachable_server_is_said_to_be_so_after_the_window(monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("VCINR_STORE_RETRY_SECONDS", "0.3")
    with pytest.raises(StoreUnavailableError, match=r"cannot read http://127\.0\.0\.1:1/x: "):
        storage.read_bytes("http://127.0.0.1:1/x")
