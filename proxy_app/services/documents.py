"""Show documents: fetched from a holder once for everybody, and stored.

The same code serves a client's miss in a worker, the refresh behind a served cloud document, and the refresher's
hydration; a token in Redis lets one of them at a time ask for one document.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from proxy_app.dialects.ollama import show_body
from proxy_app.domain import Backend, Digest, Fleet, ModelName, ShowEntry, ShowKey
from proxy_app.errors import CacheAway, Unavailable, UpstreamError
from proxy_app.routing.retry import Verdict, weigh
from proxy_app.store.cache import ShowCache
from proxy_app.store.redis import unix_now
from proxy_app.upstream.client import Call, Limits, UpstreamClient

log = logging.getLogger(__name__)

# A worker that dies while it fetches leaves its token behind for at most this long.
TOKEN_TTL_MS = 2000
RENEW_S = 0.5
WAIT_STEP_S = 0.015
LONGEST_DOCUMENT = 64 << 20
FleetNow = Callable[[], Fleet]
_JSON_HEADERS = (("Content-Type", "application/json"),)


# Cloud documents have none.
NO_DIGEST = Digest("")


@dataclass(frozen=True, slots=True)
class Document:
    """A backend's answer to a show request; only a 200 is ever stored."""

    status: int
    body: bytes = field(repr=False)
    digest: Digest = NO_DIGEST

    def as_entry(self) -> ShowEntry:
        return ShowEntry(self.digest, unix_now(), self.body)


@dataclass(frozen=True, slots=True)
class Source:
    """One backend that may be asked, the digest it lists, and the spelling it knows the model by."""

    backend: Backend
    digest: Digest
    model: str


def sources(fleet: Fleet, name: ModelName) -> list[Source]:
    """Who can be asked for a model's document, best first."""
    if name.is_cloud:
        live = [member for member in fleet.members if member.is_live and member.allows_cloud]
        return [Source(member.backend, NO_DIGEST, name.given) for member in live]
    holders = fleet.live_holders(name.canonical)
    return [Source(fleet.by_id[h.backend_id].backend, h.digest, h.name) for h in holders]


class Documents:
    """Fetches documents. Owned by: a process's runtime; no state of its own but the two clients."""

    def __init__(self, cache: ShowCache, upstream: UpstreamClient, connect_s: float) -> None:
        self._cache, self._upstream, self._connect_s = cache, upstream, connect_s

    def fetch(
        self, key: ShowKey, fleet_now: FleetNow, name: ModelName, timeout_s: float, *, fresh: bool = False
    ) -> Document:
        """Get a document that is not cached: from a holder, or from whoever is just fetching it.

        Args:
            fleet_now: gives the Fleet of the moment.
            fresh: ask a holder even if a document with the current digest is stored.

        Raises:
            Unavailable: no holder gave an answer.
        """
        wanted = fleet_now().digest(key.canonical) if key.space == "local" else None
        token = "%032x" % random.getrandbits(128)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if self._cache.take_flight(key, token, TOKEN_TTL_MS):
                    break
                found = self._wait(key, wanted, deadline)
            except CacheAway:
                # One flight per worker is what is left.
                return self.fetch_alone(key, fleet_now, name, timeout_s)
            if found is not None:
                return Document(200, found.body, found.digest)
        with self._holding(key, token):
            found = None if fresh else self._stored(key, wanted)
            return (
                Document(200, found.body, found.digest)
                if found
                else self._ask_and_store(key, fleet_now, name, timeout_s)
            )

    def fetch_alone(self, key: ShowKey, fleet_now: FleetNow, name: ModelName, timeout_s: float) -> Document:
        """Get a document from a holder and store it nowhere: Redis is away, and each try of it costs its budget.

        Raises:
            Unavailable: see `ask`.
        """
        return self.ask(sources(fleet_now(), name), lambda source: show_body(source.model, key.verbose), timeout_s)

    def ask(self, candidates: Sequence[Source], make_body: Callable[[Source], bytes], timeout_s: float) -> Document:
        """Ask the candidates in turn until one gives an answer that means something.

        Raises:
            Unavailable: none did.
        """
        kept: Document | None = None
        turns = list(candidates)
        while turns:
            source = turns.pop(0)
            answer = self._ask_one(source, make_body(source), timeout_s)
            verdict = _weigh(answer, source)
            if verdict is Verdict.PASS and answer is not None:
                return answer
            if verdict is Verdict.MISSING and kept is None and len(candidates) == 1:
                # The only holder is asked once more: Ollama at times does not find what it lists (its issue 18447).
                turns.append(source)
            if verdict is not Verdict.MISCONFIGURED:
                kept = kept or answer
        if kept is None:
            raise Unavailable("no backend that holds the model could be reached")
        return kept

    def _ask_and_store(self, key: ShowKey, fleet_now: FleetNow, name: ModelName, timeout_s: float) -> Document:
        answer = self.fetch_alone(key, fleet_now, name, timeout_s)
        # What the fleet holds may have changed meanwhile: a document of yesterday's digest is nobody's any more.
        current = key.space == "cloud" or fleet_now().digest(key.canonical) == answer.digest
        if answer.status == 200 and current:
            self._store(key, answer)
        return answer

    def _ask_one(self, source: Source, body: bytes, timeout_s: float) -> Document | None:
        call = Call("POST", "/api/show", body, _JSON_HEADERS)
        limits = Limits(self._connect_s, timeout_s, timeout_s)
        try:
            answer = self._upstream.send(source.backend, call, limits)
            try:
                text = answer.read_up_to(LONGEST_DOCUMENT, within_s=timeout_s)
                return Document(answer.status, text, source.digest) if answer.is_complete else None
            finally:
                answer.close()
        except UpstreamError as exc:
            log.info("show of %s: %s", source.model, exc)
            return None

    def _store(self, key: ShowKey, answer: Document) -> None:
        try:
            self._cache.put(key, answer.as_entry())
        except CacheAway as exc:
            log.debug("not stored: %s", exc)

    def _stored(self, key: ShowKey, wanted: Digest | None) -> ShowEntry | None:
        try:
            entry = self._cache.get(key)
        except CacheAway:
            return None
        return entry if entry is not None and wanted in (None, entry.digest) else None

    def _wait(self, key: ShowKey, wanted: Digest | None, deadline: float) -> ShowEntry | None:
        """Wait while somebody else fetches; None when they gave up, died, or time is up."""
        while self._cache.is_flying(key):
            if time.monotonic() > deadline:
                raise Unavailable("the model's document is still being fetched")
            time.sleep(WAIT_STEP_S)
        return self._stored(key, wanted)

    @contextmanager
    def _holding(self, key: ShowKey, token: str) -> Iterator[None]:
        """Keep the token alive while its holder works, and give it back."""
        done = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(key, token, done), name="flight", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            done.set()
            try:
                self._cache.release_flight(key, token)
            except CacheAway:
                log.debug("the token of %s was not given back; it expires", key)

    def _keep(self, key: ShowKey, token: str, done: threading.Event) -> None:
        while not done.wait(RENEW_S):
            try:
                self._cache.renew_flight(key, token, TOKEN_TTL_MS)
            except CacheAway:
                return


def _weigh(answer: Document | None, source: Source) -> Verdict:
    if answer is None:
        return Verdict.FAILED
    return weigh(answer.status, answer.body, is_listed=source.digest != NO_DIGEST)
