"""Values that are made once, however many coroutines of however many event loops ask for them at the same time."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Value = TypeVar("Value")


class _AbandonedError(Exception):
    """Whoever was making a value was cancelled: somebody else has to make it."""


class SingleFlight(Generic[Value]):
    """Keeps the values asked for last. A failure is told to all who wait for it and not kept."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._guard = threading.Lock()
        self._values: OrderedDict[str, Future[Value]] = OrderedDict()

    async def get(self, key: str, make: Callable[[], Awaitable[Value]]) -> Value:
        """The value of a key; calls `make` where it is not there and nobody else is making it.

        Raises:
            whatever `make` raises.
        """
        while True:
            with self._guard:
                found = self._values.get(key)
                if found is None:
                    mine = self._values[key] = Future[Value]()
                self._values.move_to_end(key)
            if found is None:
                return await self._make(key, mine, make)
            try:
                # Shielded: one who does not wait any longer must not cancel it for the others.
                return await asyncio.shield(asyncio.wrap_future(found))
            except _AbandonedError:
                continue

    async def _make(self, key: str, future: Future[Value], make: Callable[[], Awaitable[Value]]) -> Value:
        try:
            value = await make()
        except BaseException as error:
            with self._guard:
                self._values.pop(key, None)
            future.set_exception(error if isinstance(error, Exception) else _AbandonedError())
            raise
        with self._guard:
            for old in [name for name, other in self._values.items() if other.done()][: -self._size or None]:
                del self._values[old]
        future.set_result(value)
        return value
