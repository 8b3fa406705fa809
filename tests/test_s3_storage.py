"""The storage functions over HTTP against an S3 server, and against one that fails."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.servers.fixtures import FaultyStore
from tests.servers.object_store import ObjectStore
from vcinr_batch import storage
from vcinr_batch.errors import ArchiveExistsError, SourceError, StoreUnavailableError

pytest.importorskip("s3fs")

DATA = bytes(range(256)) * 400


def impatient(store: ObjectStore) -> dict[str, Any]:
    """Options with which botocore leaves repeating to us."""
    return {**store.storage_options, "config_kwargs": {"retries": {"total_max_attempts": 1}, "read_timeout": 2}}


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how long a failing store is asked again."""
    return lambda seconds: monkeypatch.setenv("VCINR_STORE_RETRY_SECONDS", str(seconds))


def test_the_storage_functions_work_over_http(s3: ObjectStore) -> None:
    options, url = s3.storage_options, f"{s3.url}/a/b.bin"
    assert not storage.exists(url, storage_options=options)
    storage.write_bytes(url, DATA, storage_options=options)
    storage.write_bytes(f"{s3.url}/a/deeper/c.bin", b"c", storage_options=options)
    assert storage.read_bytes(url, storage_options=options) == DATA
    assert storage.read_bytes(url, 5, 9, storage_options=options) == DATA[5:9]
    assert storage.read_bytes(url, len(DATA) - 3, len(DATA) + 9, storage_options=options) == DATA[-3:]
    assert storage.read_ranges(url, [(90000, 90010), (0, 3)], storage_options=options) == [DATA[90000:90010], DATA[:3]]
    assert storage.size_bytes(url, storage_options=options) == len(DATA)
    assert storage.exists(f"{s3.url}/a", storage_options=options)
    assert not storage.is_file_url(f"{s3.url}/a", storage_options=options)
    assert storage.list_urls(f"{s3.url}/a", storage_options=options) == [url]
    assert storage.list_urls(f"{s3.url}/**/*.bin", storage_options=options) == [url, f"{s3.url}/a/deeper/c.bin"]
    storage.remove(url, storage_options=options)
    storage.remove(url, storage_options=options)
    assert s3.keys() == ["a/deeper/c.bin"]


FAULTS: dict[str, dict[str, Any]] = {
    "one request in five refused": {"busy_share": 0.2},
    "one download in three cut short": {"cut_share": 0.33},
    "500": {"busy_next": 2, "busy_status": 500},
    "429": {"busy_next": 2, "busy_status": 429},
    "503 twice": {"busy_next": 2},
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS.keys())
def test_nothing_is_lost_on_a_store_that_fails_now_and_then(faulty_s3: FaultyStore, faults: dict[str, Any]) -> None:
    options = impatient(faulty_s3)
    for name, value in faults.items():
        setattr(faulty_s3.faults, name, value)
    faulty_s3.faults.seed = 7
    for i in range(8):
        url = f"{faulty_s3.url}/{i}"
        storage.create_bytes(url, DATA[i:], storage_options=options)
        assert storage.read_bytes(url, storage_options=options) == DATA[i:]
        assert storage.read_bytes(url, 10, 1000, storage_options=options) == DATA[i + 10 : i + 1000]
        ranges = [(start, start + 50) for start in range(0, 90000, 30000)]
        expected = [DATA[i + start : i + stop] for start, stop in ranges]
        assert storage.read_ranges(url, ranges, storage_options=options) == expected
    assert len(storage.list_urls(faulty_s3.url, storage_options=options)) == 8
    assert faulty_s3.proxy.counts["busy"] + faulty_s3.proxy.counts["cut"] >= 2


def test_a_store_that_stops_for_a_while_is_waited_for(faulty_s3: FaultyStore) -> None:
    options = impatient(faulty_s3)
    storage.write_bytes(f"{faulty_s3.url}/x", DATA, storage_options=options)
    faulty_s3.faults.down_for(1.5)
    assert storage.read_bytes(f"{faulty_s3.url}/x", storage_options=options) == DATA
    faulty_s3.faults.down_for(1.5)
    storage.create_bytes(f"{faulty_s3.url}/y", DATA, storage_options=options)
    assert faulty_s3.keys() == ["x", "y"]


CALLS: dict[str, Callable[[str, dict[str, Any]], Any]] = {
    "read": lambda url, options: storage.read_bytes(url, storage_options=options),
    "read a range": lambda url, options: storage.read_bytes(url, 1, 5, storage_options=options),
    "read ranges": lambda url, options: storage.read_ranges(url, [(0, 5)], storage_options=options),
    "write": lambda url, options: storage.write_bytes(url, b"x", storage_options=options),
    "create": lambda url, options: storage.create_bytes(url, b"x", storage_options=options),
    "exists": lambda url, options: storage.exists(url, storage_options=options),
    "is a file": lambda url, options: storage.is_file_url(url, storage_options=options),
    "list": lambda url, options: storage.list_urls(url, storage_options=options),
    "glob": lambda url, options: storage.list_urls(f"{url}/*", storage_options=options),
    "size": lambda url, options: storage.size_bytes(url, storage_options=options),
    "remove": lambda url, options: storage.remove(url, storage_options=options),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_store_that_stays_away_is_never_taken_for_an_empty_one(
    faulty_s3: FaultyStore, window: Callable[[float], None], call: Callable[[str, dict[str, Any]], Any]
) -> None:
    window(0.3)
    faulty_s3.faults.down_for(60)
    with pytest.raises(
        StoreUnavailableError, match=rf"{faulty_s3.url}/x.*: the store does not answer properly: "
    ) as caught:
        call(f"{faulty_s3.url}/x", impatient(faulty_s3))
    assert "\n" not in str(caught.value)


def test_a_lost_answer_to_a_create_is_not_taken_for_somebody_elses_file(faulty_s3: FaultyStore) -> None:
    options, url = impatient(faulty_s3), f"{faulty_s3.url}/x"
    faulty_s3.faults.lose_answers_next = 1
    storage.create_bytes(url, b"ours", storage_options=options)
    assert faulty_s3.proxy.counts["lost"] == 1
    with pytest.raises(ArchiveExistsError):
        storage.create_bytes(url, b"ours", storage_options=options)


def race(store: ObjectStore, racers: int) -> list[bytes]:
    """Bytes of those that were told that they created the file, having all started at once."""
    wins: list[bytes] = []
    ready = threading.Barrier(racers)

    def run(data: bytes) -> None:
        ready.wait()
        try:
            storage.create_bytes(f"{store.url}/x", data, storage_options=store.storage_options)
            wins.append(data)
        except ArchiveExistsError:
            pass

    threads = [threading.Thread(target=run, args=(bytes([i]),)) for i in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wins


def test_of_two_racers_one_wins(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen that nothing is there: only the condition of the write itself is left to decide."""
    monkeypatch.setattr(storage, "exists", lambda *_, **__: False)
    wins = race(s3, 2)
    assert wins == [storage.read_bytes(f"{s3.url}/x", storage_options=s3.storage_options)]


def test_nothing_is_visible_of_an_upload_in_parts_that_fails(
    faulty_s3: FaultyStore, window: Callable[[float], None]
) -> None:
    """s3fs sends 100 MiB and more in parts of 50 MiB."""
    window(0)
    data, url = bytes(100 << 20), f"{faulty_s3.url}/large"
    faulty_s3.faults.only = "partNumber=2"
    faulty_s3.faults.busy_share = 1.0
    with pytest.raises(StoreUnavailableError):
        storage.write_bytes(url, data, storage_options=impatient(faulty_s3))
    assert faulty_s3.keys() == faulty_s3.unfinished_uploads() == []
    faulty_s3.proxy.reset()
    storage.create_bytes(url, data, storage_options=impatient(faulty_s3))
    assert storage.size_bytes(url, storage_options=impatient(faulty_s3)) == len(data)
    with pytest.raises(ArchiveExistsError):
        storage.create_bytes(url, data, storage_options=impatient(faulty_s3))


@pytest.mark.parametrize("where", ["variables", "profile"])
def test_credentials_and_endpoint_come_from_the_usual_places(
    s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "variables":
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
    else:
        _write_profile(tmp_path, monkeypatch, s3)
    storage.write_bytes(f"{s3.url}/x", b"1", storage_options=_uncached(where))
    assert s3.keys() == ["x"]


def _write_profile(folder: Path, monkeypatch: pytest.MonkeyPatch, store: ObjectStore) -> None:
    for name in store.environment:
        monkeypatch.delenv(name, raising=False)
    (folder / "credentials").write_text(
        f"[lab]\naws_access_key_id = {store.key}\naws_secret_access_key = {store.secret}\n"
    )
    (folder / "config").write_text(f"[profile lab]\nregion = us-east-1\nendpoint_url = {store.endpoint_url}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")


def _uncached(label: str) -> dict[str, Any]:
    """fsspec keeps a file system per options: different ones make it look at the environment again."""
    return {"config_kwargs": {"user_agent_extra": label, "retries": {"total_max_attempts": 1}}}


def test_without_credentials_one_line_says_so(s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata service of a cloud machine is asked, too: where there is none that takes a second or two."""
    for name in (*s3.environment, "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreUnavailableError, match="no credentials found"):
        storage.read_bytes(f"{s3.url}/x", storage_options=_uncached("none"))
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreUnavailableError, match=r"the profile that AWS_PROFILE .* does not exist"):
        storage.read_bytes(f"{s3.url}/x", storage_options=_uncached("nobody"))


@pytest.mark.parametrize(
    ("name", "problem"), [("x", "no such file"), ("../no-such-bucket-here/x", "no such (file|bucket)")]
)
def test_what_is_not_there_is_said_at_once(s3: ObjectStore, name: str, problem: str) -> None:
    url = f"{s3.url}/x" if name == "x" else "s3://no-such-bucket-here/x"
    with pytest.raises(SourceError, match=f"{url}: {problem}$") as caught:
        storage.read_bytes(url, storage_options=s3.storage_options)
    assert not isinstance(caught.value, StoreUnavailableError)


def test_credentials_in_the_address_of_an_endpoint_are_not_shown(window: Callable[[float], None]) -> None:
    window(0)
    options = {
        "key": "key-canary",
        "secret": "secret-canary",
        "token": "token-canary",
        "client_kwargs": {"endpoint_url": "http://user-canary:password-canary@127.0.0.1:1/?X-Amz-Signature=canary"},
        "config_kwargs": {"retries": {"total_max_attempts": 1}},
    }
    with pytest.raises(SourceError) as caught:
        storage.read_bytes("s3://bucket/x", storage_options=options)
    assert "canary" not in str(caught.value) + repr(caught.value)
