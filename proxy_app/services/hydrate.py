"""Show documents fetched ahead of demand: those of every live local model, and those that were asked for lately."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping

from proxy_app.domain import Fleet, ModelName, ShowKey, parse_listed, parse_name
from proxy_app.errors import CacheAway, CaravanError, InvalidModelName, ModelRequired
from proxy_app.services.documents import Documents
from proxy_app.store.cache import ShowCache

log = logging.getLogger(__name__)

Wish = tuple[ShowKey, ModelName]
# A document that could not be had is not asked for again before this.
RETRY_S = 60.0


class Hydrator:
    """A few threads that fetch what the cache lacks. Owned by: the refresher. One bad model delays only itself."""

    def __init__(self, cache: ShowCache, documents: Documents, concurrency: int, timeout_s: float) -> None:
        self._cache, self._documents, self._timeout_s = cache, documents, timeout_s
        self._queue: queue.SimpleQueue[Wish | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open: set[ShowKey] = set()
        self._failed: dict[ShowKey, float] = {}
        self._wishes: dict[ShowKey, ModelName] = {}
        self._fleet = Fleet()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"hydrate {n}", daemon=True) for n in range(concurrency)
        ]
        for thread in self._threads:
            thread.start()

    def wish(self, asked: Mapping[str, str]) -> None:
        """Keep these documents too: their keys, and the names by which they were asked for."""
        wishes = {}
        for text, given in asked.items():
            try:
                wishes[_key(text)] = parse_name(given)
            except (InvalidModelName, ModelRequired, ValueError):
                continue
        self._wishes = wishes

    def follow(self, fleet: Fleet) -> None:
        """Fetch what this Fleet has and the cache has not."""
        self._fleet = fleet
        now = time.monotonic()
        self._failed = {key: at for key, at in self._failed.items() if now - at < RETRY_S}
        if not self._threads:
            return
        wishes = self._wanted(fleet)
        try:
            digests = self._cache.digests([key for key, _ in wishes])
        except CacheAway:
            return
        for (key, name), digest in zip(wishes, digests, strict=True):
            # A cloud document is kept fresh by those who ask for it; here it only has to exist.
            wanted = fleet.digest(key.canonical) if key.space == "local" else digest
            if digest is None or digest != wanted:
                self._put(key, name)

    def is_busy(self) -> bool:
        """Is anything that was wished for still to be tried?"""
        return bool(self._open)

    def close(self) -> None:
        self._stopped = True
        for _ in self._threads:
            self._queue.put(None)

    def _wanted(self, fleet: Fleet) -> list[Wish]:
        wanted: dict[ShowKey, ModelName] = {}
        for canonical, holders in fleet.holders.items():
            if fleet.by_id[holders[0].backend_id].is_live and not holders[0].is_remote_stub:
                wanted[ShowKey("local", canonical, False)] = parse_listed(holders[0].name)
        for key, name in self._wishes.items():
            if key.space == "cloud" or ShowKey("local", key.canonical, False) in wanted:
                wanted.setdefault(key, name)
        return list(wanted.items())

    def _put(self, key: ShowKey, name: ModelName) -> None:
        with self._lock:
            if key in self._open or time.monotonic() - self._failed.get(key, float("-inf")) < RETRY_S:
                return
            self._open.add(key)
        self._queue.put((key, name))

    def _work(self) -> None:
        while not self._stopped:
            wish = self._queue.get()
            if wish is None:
                return
            try:
                self._fetch(*wish)
            except Exception:  # the top of a thread
                log.exception("hydrating %s failed", wish[0])
            finally:
                with self._lock:
                    self._open.discard(wish[0])

    def _fetch(self, key: ShowKey, name: ModelName) -> None:
        try:
            status = self._documents.fetch(key, lambda: self._fleet, name, self._timeout_s).status
            failure = "" if status == 200 else f"answered {status}"
        except CaravanError as exc:
            failure = str(exc)
        if failure:
            self._failed[key] = time.monotonic()
            log.info("the document of %s could not be had: %s", key, failure)


def _key(text: str) -> ShowKey:
    """A key from its text form `space:canonical:v|p`."""
    space, _, rest = text.partition(":")
    canonical, _, form = rest.rpartition(":")
    if space not in ("local", "cloud") or form not in ("v", "p"):
        raise ValueError(text)
    return ShowKey(space, canonical, form == "v")
