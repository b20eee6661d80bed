"""A change that went through Caravan is in the next listing of every worker: its end is held until it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from proxy_app.domain import Backend
from proxy_app.errors import RegistryAway
from proxy_app.services.desk import RegistryDesk
from proxy_app.services.sightings import Sightings

log = logging.getLogger(__name__)

# The longest that the end of a change is held.
HOLD_S = 2.0
LOOK_S = 0.02
# How long after one poll the next one is asked for: a server that is freeing memory needs some tenths of a second.
AGAIN_S = 0.3
# How long a wish waits for the refresher's own writing: a thread waits, not the hub.
BUSY_S = 0.5


@contextmanager
def _in_time() -> Iterator[float]:
    """Until when something is waited for; where the registry is away, nothing is."""
    try:
        yield time.monotonic() + HOLD_S
    except RegistryAway as exc:
        log.warning("a change may be seen late: %s", exc)


class Visibility:
    """Asks the refresher to look at what was changed, and waits until the workers know.

    Owned by: the worker's runtime.
    """

    def __init__(self, data_dir: Path, sightings: Sightings) -> None:
        self._sightings = sightings
        self._desk = RegistryDesk(data_dir, BUSY_S)

    def hold(self, changed: Collection[Backend]) -> None:
        """Wait until all workers know what these backends hold now; after two seconds, go on without."""
        with _in_time() as deadline:
            if changed and self._wait_for_poll([backend.id for backend in changed], deadline):
                self._wait_for_workers(deadline)

    def watch(self, backend_id: int, is_seen: Callable[[], bool]) -> None:
        """Have a backend asked, again and again, until something is seen; after two seconds, go on without.

        Args:
            is_seen: does this worker know by now? The others do when this returns.
        """
        with _in_time() as deadline:
            while self._wait_for_poll([backend_id], deadline):
                if self._wait(is_seen, min(deadline, time.monotonic() + AGAIN_S)):
                    return self._wait_for_workers(deadline)

    def spread(self) -> None:
        """Wait until all workers know what the registry says now; after two seconds, go on without."""
        with _in_time() as deadline:
            self._wait_for_workers(deadline)

    def close(self) -> None:
        self._sightings.close()
        self._desk.close()

    def _wait_for_workers(self, deadline: float) -> None:
        generation = self._desk.run(lambda registry: registry.generation())
        self._wait(lambda: self._sightings.reach(generation), deadline)

    def _wait_for_poll(self, backends: list[int], deadline: float) -> bool:
        wished = self._desk.run(lambda registry: registry.wish(backends))
        return self._wait(lambda: self._desk.run(lambda registry: registry.are_granted(wished)), deadline)

    def _wait(self, is_there: Callable[[], bool], deadline: float) -> bool:
        while not is_there():
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_S)
        return True
