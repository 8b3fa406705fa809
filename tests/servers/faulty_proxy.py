"""An HTTP proxy in front of an S3 server that fails on demand, and counts what passes through it."""

import http.client
import http.server
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>'
    b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
)
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


@dataclass(frozen=True)
class Request:
    """One request that reached the proxy."""

    method: str
    path: str
    range: str
    """Of a ranged read, e.g. `bytes=0-511`; else empty."""
    sent_bytes: int
    """Of the body that went back."""
    status: int
    """0 where the connection was closed without an answer."""


@dataclass
class Faults:
    """What goes wrong from now on; change it at any time. All shares are between 0 and 1."""

    seed: int = 0
    busy_share: float = 0.0
    """Of requests that are answered with 503 SlowDown. Decided by the request and how often it was made before, so
    that it does not depend on the order in which concurrent requests arrive."""
    busy_next: int = 0
    """So many next requests are answered with 503."""
    busy_status: int = 503
    cut_share: float = 0.0
    """Of downloads that end in the middle."""
    cut_next: int = 0
    """So many next downloads end in the middle."""
    cut_above_bytes: int = 0
    """Only longer downloads are cut."""
    lose_answers_next: int = 0
    """So many next uploads arrive, but the connection is closed before the answer."""
    delay_seconds: float = 0.0
    only: str = ""
    """Only requests whose path contains this text fail."""
    down_until: float = 0.0
    """Of `time.monotonic`: connections are closed at once."""

    def down_for(self, seconds: float) -> None:
        """The server is gone for a while, starting now."""
        self.down_until = time.monotonic() + seconds

    def is_down(self) -> bool:
        return time.monotonic() < self.down_until


@dataclass
class FaultyProxy:
    """A running proxy. `faults` says what goes wrong, `requests` what has been asked for."""

    endpoint_url: str
    target: str
    """host:port of the real server."""
    faults: Faults = field(default_factory=Faults)
    requests: list[Request] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """By what happened: passed, busy, cut, lost, down."""
    _seen: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self) -> None:
        """No faults, nothing counted."""
        with self._lock:
            self.faults = Faults()
            self.requests = []
            self.counts = Counter()
            self._seen = Counter()

    def sent_bytes(self, path_part: str = "") -> int:
        """Bytes of bodies that went back for paths that contain a text."""
        with self._lock:
            return sum(request.sent_bytes for request in self.requests if path_part in request.path)

    def decide(self, method: str, path: str, byte_range: str) -> str:
        """What happens to a request: pass, busy, down, cut (its download), lose (its answer)."""
        with self._lock:
            faults = self.faults
            if faults.is_down():
                return "down"
            if faults.only not in path:
                return "pass"
            if _take(faults, "busy_next"):
                return "busy"
            identity = f"{faults.seed} {method} {path.split('?')[0]} {byte_range}"
            self._seen[identity] += 1
            share = zlib.crc32(f"{identity} {self._seen[identity]}".encode()) / 2**32
            if share < faults.busy_share:
                return "busy"
            if method == "GET" and share < faults.busy_share + faults.cut_share:
                return "cut"
            if method in ("PUT", "POST") and _take(faults, "lose_answers_next"):
                return "lose"
            return "pass"

    def cuts(self, size_bytes: int, decision: str) -> bool:
        """Whether a download of this size ends in the middle."""
        with self._lock:
            if size_bytes <= max(self.faults.cut_above_bytes, 1):
                return False
            return decision == "cut" or _take(self.faults, "cut_next")

    def note(self, what: str, request: Request) -> None:
        with self._lock:
            self.counts[what] += 1
            self.requests.append(request)


@contextmanager
def faulty_proxy(target_url: str) -> Iterator[FaultyProxy]:
    """A proxy on a free loopback port, in threads of this process."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.proxy = FaultyProxy(f"http://127.0.0.1:{server.server_port}", urlsplit(target_url).netloc)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: FaultyProxy

    def verify_request(self, *_: Any) -> bool:
        return not self.proxy.faults.is_down()

    def handle_error(self, *_: Any) -> None:
        pass  # a client that went away is no news here


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        proxy, byte_range = self.server.proxy, self.headers.get("Range", "")
        body = self._body()
        decision = proxy.decide(self.command, self.path, byte_range)
        time.sleep(proxy.faults.delay_seconds)
        if decision == "down":
            self._hang_up(decision)
        elif decision == "busy":
            self._answer(proxy.faults.busy_status, [("Content-Type", "application/xml")], _SLOW_DOWN, decision)
        else:
            self._forward(body, decision)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _forward(self, body: bytes, decision: str) -> None:
        connection = http.client.HTTPConnection(self.server.proxy.target, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        try:
            connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            response = connection.getresponse()
            data, kept = response.read(), response.getheaders()
            length = response.getheader("Content-Length", str(len(data)))
        finally:
            connection.close()
        if decision == "lose":
            self._hang_up("lost")
            return
        kept = [(name, value) for name, value in kept if name.lower() not in _HOP_BY_HOP]
        is_download = self.command == "GET" and response.status in (200, 206)
        if is_download and self.server.proxy.cuts(len(data), decision):
            self._answer(response.status, kept, data, "cut", length)
        else:
            self._answer(response.status, kept, data, "passed", length)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, what: str, length: str | None = None
    ) -> None:
        if self.command == "HEAD" and what == "busy":
            data = b""
        shown = data[: len(data) // 2] if what == "cut" else data
        self._note(what, len(shown), status)
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(shown)
        if what == "cut":
            self._close()

    def _hang_up(self, what: str) -> None:
        self._note(what, 0, 0)
        self._close()

    def _close(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def _note(self, what: str, sent_bytes: int, status: int) -> None:
        request = Request(self.command, self.path, self.headers.get("Range", ""), sent_bytes, status)
        self.server.proxy.note(what, request)


def _take(faults: Faults, counter: str) -> bool:
    """One less of a counted fault; false where none is left."""
    left = getattr(faults, counter)
    if left <= 0:
        return False
    setattr(faults, counter, left - 1)
    return True
