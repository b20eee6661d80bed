"""The registry for request code: on a native thread, so that no wait for a lock holds the hub up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from proxy_app.store.registry import Registry
from proxy_app.store.threads import NativeThread

T = TypeVar("T")


class RegistryDesk:
    """A connection to the registry and the thread that uses it, opened when it is first needed.

    Owned by: whoever made it; built after the fork.

    Args:
        busy_s: how long a call waits for another process's write lock.
    """

    def __init__(self, data_dir: Path, busy_s: float) -> None:
        self._data_dir, self._busy_s = data_dir, busy_s
        self._native = NativeThread()
        self._registry: Registry | None = None

    def run(self, call: Callable[[Registry], T]) -> T:
        """Make a call and wait for it. Raises: RegistryAway, and what the call raises."""
        return self._native.run(lambda: call(self._open()))

    def close(self) -> None:
        if self._registry is not None:
            self._native.run(self._registry.close)
        self._native.close()

    def _open(self) -> Registry:
        """On the native thread."""
        registry = self._registry
        if registry is not None and registry.is_replaced:
            registry.close()
            registry = None
        self._registry = registry or Registry(self._data_dir, self._busy_s)
        return self._registry
