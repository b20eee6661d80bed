"""Native threads for what would block a whole gevent hub: SQLite waits inside C code.

In a process without gevent the call is simply made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from gevent import monkey
from gevent.threadpool import ThreadPool

T = TypeVar("T")


class _Made(Generic[T]):
    """A call that was made. What it raised is kept: gevent's pool would print it as nobody's."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._error: BaseException | None = None
        try:
            self._value = call()
        except BaseException as exc:  # `result` raises it
            self._error = exc

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value


class NativeThread:
    """One native thread that makes calls in order, so that a SQLite connection has one user.

    Owned by: whoever made it; built after the fork.
    """

    def __init__(self) -> None:
        self._pool = ThreadPool(1) if monkey.is_module_patched("threading") else None

    def run(self, call: Callable[[], T]) -> T:
        """Make the call and wait for it, while other greenlets go on. Raises: what the call raises."""
        if self._pool is None:
            return call()
        made: _Made[T] = self._pool.apply(_Made, (call,))
        return made.result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.kill()
