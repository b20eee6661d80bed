"""A change that went through Caravan is in the next listing of every worker: its end is held until it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path

from proxy_app.domain import Backend
from proxy_app.errors import RegistryAway
from proxy_app.services.sightings import Sightings
from proxy_app.store.registry import Registry
from proxy_app.store.threads import NativeThread

log = logging.getLogger(__name__)

# The longest that the end of a change is held.
HOLD_S = 2.0
LOOK_S = 0.02
# How long a wish waits for the refresher's own writing: a thread waits, not the hub.
BUSY_S = 0.5


class Visibility:
    """Asks the refresher to look at what was changed, and waits until the workers know.

    Owned by: the worker's runtime. It has a connection to the registry of its own, on a native thread.
    """

    def __init__(self, data_dir: Path, sightings: Sightings) -> None:
        self._data_dir, self._sightings = data_dir, sightings
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
        self._wait(lambda: self._sightings.reach(generation), deadline)

    def close(self) -> None:
        self._sightings.close()
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
        self._registry = registry or Registry(self._data_dir, BUSY_S)
        return self._registry
