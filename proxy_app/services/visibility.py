"""A change that went through Caravan is in the next listing of every worker: its end is held until it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path

from proxy_app.domain import Backend
from proxy_app.errors import RegistryAway
from proxy_app.services.fleet import FleetReloader
from proxy_app.store.registry import Registry
from proxy_app.store.threads import NativeThread

log = logging.getLogger(__name__)

# The longest that the end of a change is held.
HOLD_S = 2.0
LOOK_S = 0.02
# What a worker needs to build a Fleet once it has seen that the registry moved.
BUILD_S = 0.05


class Visibility:
    """Asks the refresher to look at what was changed, and waits until the workers know.

    Owned by: the worker's runtime. It has a connection to the registry of its own, on a native thread.

    Args:
        reload_s: how often each worker looks at the registry.
    """

    def __init__(self, data_dir: Path, reloader: FleetReloader, reload_s: float) -> None:
        self._data_dir, self._reloader, self._reload_s = data_dir, reloader, reload_s
        self._native = NativeThread()
        self._registry: Registry | None = None

    def hold(self, changed: Collection[Backend]) -> None:
        """Wait until all workers know what these backends hold now; after two seconds, go on without."""
        deadline = time.monotonic() + HOLD_S
        try:
            if not changed or not self._wait_for_poll([backend.id for backend in changed], deadline):
                return
            generation = self._native.run(lambda: self._open().generation())
        except RegistryAway as exc:
            log.warning("a change may be seen late: %s", exc)
            return
        if self._wait(lambda: self._reloader.fleet.generation >= generation, deadline):
            # The other workers look as often as this one.
            time.sleep(min(self._reload_s + BUILD_S, max(0.0, deadline - time.monotonic())))

    def close(self) -> None:
        if self._registry is not None:
            self._native.run(self._registry.close)
        self._native.close()

    def _wait_for_poll(self, backends: list[int], deadline: float) -> bool:
        wished = self._native.run(lambda: self._open().wish(backends))
        return self._wait(lambda: self._native.run(lambda: self._open().are_granted(wished)), deadline)

    def _wait(self, is_there: Callable[[], bool], deadline: float) -> bool:
        while not is_there():
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_S)
        return True

    def _open(self) -> Registry:
        """On the native thread."""
        registry = self._registry
        if registry is not None and registry.is_replaced:
            registry.close()
            registry = None
        self._registry = registry or Registry(self._data_dir)
        return self._registry
