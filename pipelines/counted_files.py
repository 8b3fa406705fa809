"""A file system that counts: local files as `counted://`, and what would be the requests to an object store."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

PROTOCOL = "counted"
Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Asked:
    """One request to a store."""

    kind: str
    path: str
    bytes: int
    """That came."""


class CountedFileSystem(LocalFileSystem):  # type: ignore[misc]
    """Local files, with a record of what was asked of any of its kind in this process."""

    protocol = PROTOCOL
    asked: ClassVar[list[Asked]] = []

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return LocalFileSystem._strip_protocol(os.fspath(path).removeprefix(f"{PROTOCOL}://"))

    def unstrip_protocol(self, name: str) -> str:
        return f"{PROTOCOL}://{self._strip_protocol(name)}"

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        try:
            data: bytes = LocalFileSystem().cat_file(self._strip_protocol(path), start, end, **kwargs)
        except OSError:
            self.asked.append(Asked("get, nothing there", path, 0))
            raise
        self.asked.append(Asked("get", path, len(data)))
        return data

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        self.asked.append(Asked("head", path, 0))
        found: dict[str, Any] = LocalFileSystem().info(self._strip_protocol(path), **kwargs)
        return found

    def exists(self, path: str, **kwargs: Any) -> bool:
        self.asked.append(Asked("head", path, 0))
        return bool(LocalFileSystem().exists(self._strip_protocol(path), **kwargs))

    def isfile(self, path: str) -> bool:
        self.asked.append(Asked("head", path, 0))
        return bool(LocalFileSystem().isfile(self._strip_protocol(path)))

    def isdir(self, path: str) -> bool:
        self.asked.append(Asked("list", path, 0))
        return bool(LocalFileSystem().isdir(self._strip_protocol(path)))

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> Any:
        self.asked.append(Asked("list", path, 0))
        return LocalFileSystem().ls(self._strip_protocol(path), detail=detail, **kwargs)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Any:
        size = os.path.getsize(path) if "r" in mode else 0
        self.asked.append(Asked("open", path, size))
        return super()._open(path, mode, block_size, **kwargs)


def counted_url(path: str) -> str:
    """A local path on the file system that counts."""
    fsspec.register_implementation(PROTOCOL, CountedFileSystem, clobber=True)
    return f"{PROTOCOL}://{os.path.abspath(path)}"


def count(call: Callable[[Argument], Result], argument: Argument) -> tuple[list[Asked], Result]:
    """What a call asks of the file system that counts, and its result."""
    CountedFileSystem.asked.clear()
    result = call(argument)
    return list(CountedFileSystem.asked), result
