"""Native threads for what would block a whole gevent hub: SQLite waits inside C code.

In a process without gevent the call is simply made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gevent import monkey
from gevent.threadpool import ThreadPool

T = TypeVar("T")


class NativeThread:
    """One native thread that makes calls in order, so that a SQLite connection has one user.

    Owned by: whoever made it; built after the fork.
    """

    def __init__(self) -> None:
        self._pool = ThreadPool(1) if monkey.is_module_patched("threading") else None

    def run(self, call: Callable[[], T]) -> T:
        """Make the call and wait for it, while other greenlets go on."""
        if self._pool is None:
            return call()
        result: T = self._pool.apply(call)
        return result

    def close(self) -> None:
        if self._pool is not None:
            self._pool.kill()
