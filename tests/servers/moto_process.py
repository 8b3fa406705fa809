"""moto's S3 server as a child process: `python moto_process.py` prints its port and ends when its stdin does.

So it goes away with the process that started it, however that ends.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STOP_SECONDS = 10


@contextmanager
def moto_server() -> Iterator[str]:
    """A server on a free loopback port, stopped at the end; gives its endpoint URL."""
    command = [sys.executable, str(Path(__file__).resolve())]
    environment = {**os.environ, "MOTO_S3_CUSTOM_ENDPOINTS": ""}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            if not port:
                raise RuntimeError(f"moto's server did not start: {' '.join(command)}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.stdin.close()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _serve() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    _serve()
