"""The refresher: polls every backend, and is the only writer of what was learned.

Threads: one per backend for the health probe, one per backend for `/api/ps` (which may block on a healthy server), a
few that hydrate. They hand their results to the main loop through a queue; the main loop alone writes. All waits end
at once when `stop` is called, and threads that hang in a poll are daemons: they hold nobody up.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from proxy_app.domain import Backend, Fleet, Health, Holding
from proxy_app.errors import CacheAway, Fenced, RegistryAway, RegistryDamaged, UpstreamTimeout
from proxy_app.routing.health import Verdict, judge
from proxy_app.services.admin.events import state_event
from proxy_app.services.fleet import build
from proxy_app.services.hydrate import Hydrator
from proxy_app.services.poller import News, Poller, holdings_of, prober_of
from proxy_app.services.role import Role
from proxy_app.services.stopping import StopFlag
from proxy_app.settings import Settings
from proxy_app.store.cache import ShowCache
from proxy_app.store.events import Event, EventStore
from proxy_app.store.redis import unix_now
from proxy_app.store.registry import Learned, Registry

log = logging.getLogger(__name__)

BEAT_S = 1.0
# Documents that nobody asked for within this time are not hydrated at start.
ASKED_S = 7 * 86400
SWEEP_S = 30.0
# `--once` gives hydration this long, and looks this often whether it is over.
HYDRATE_ALL_S = 60.0
LOOK_S = 0.05
# How often it looks whether somebody wishes for a poll; idle, with its beats, it takes 0.3 % of a core.
WISH_S = 0.1


@dataclass(slots=True)
class _Known:
    """What the main loop last wrote of one backend."""

    verdict: Verdict = field(default_factory=Verdict)
    health: Health = field(default_factory=Health)
    tags: str | None = None
    loaded: str | None = None
    forgotten: bool = False


class Refresher:
    """Owned by: the `caravan refresh` process. Its loop is the one writer of health, models and loaded models."""

    def __init__(
        self, settings: Settings, registry: Registry, role: Role, cache: ShowCache, hydrator: Hydrator
    ) -> None:
        self._settings, self._registry, self._role = settings, registry, role
        self._cache, self._hydrator = cache, hydrator
        self._news: queue.SimpleQueue[News | None] = queue.SimpleQueue()
        self._pollers: dict[int, Poller] = {}
        self._known: dict[int, _Known] = {}
        self._fleet = Fleet()
        self._unwritten: dict[int, Learned] = {}
        self._events: list[Event] = []
        self._polls = False
        self._beat_s = 0.0
        self._swept_s = 0.0
        self._complaint = ""
        self._seen = -1
        self._granted: dict[int, int] = {}
        self._stopping = StopFlag()

    def stop(self) -> None:
        """End `run` at once; safe in a signal handler."""
        self._stopping.set()
        self._news.put(None)

    def run(self) -> None:
        """Poll and write until `stop`.

        Raises:
            Fenced: another process has taken the role.
            RegistryDamaged: the registry is no database any more.
        """
        self._polls = self._settings.poll_interval_s > 0
        self._follow_backends()
        try:
            while not self._stopping.is_set():
                self._round(self._await_news())
        finally:
            for poller in self._pollers.values():
                poller.stop()
            self._hydrator.close()

    def once(self) -> None:
        """One round for cron: every backend is asked once, one answer decides, and the cache is hydrated."""
        self._settings = replace(self._settings, fall=1, rise=1)
        self._follow_backends()
        threads = [
            threading.Thread(target=self._ask_once, args=(poller,), daemon=True) for poller in self._pollers.values()
        ]
        for thread in threads:
            thread.start()
        patience_s = 3 * self._settings.poll_timeout_s
        self._wait_while(lambda: any(thread.is_alive() for thread in threads), patience_s)
        self._round(self._collect(0))
        self._wait_while(self._hydrator.is_busy, HYDRATE_ALL_S)
        self._hydrator.close()
        if self._unwritten:
            raise RegistryAway(self._complaint)

    def _wait_while(self, busy: Callable[[], bool], patience_s: float) -> None:
        """Wait for work in other threads, but never against a stop."""
        deadline = time.monotonic() + patience_s
        while busy() and time.monotonic() < deadline and not self._stopping.wait(LOOK_S):
            pass

    def _ask_once(self, poller: Poller) -> None:
        prober = prober_of(poller.backend, self._settings)
        try:
            self._news.put(poller.probe(prober))
            self._news.put(poller.ask_loaded(prober))
        finally:
            prober.close()

    def _await_news(self) -> list[News]:
        """The news of one beat; wishes for a poll are passed on meanwhile."""
        deadline = time.monotonic() + BEAT_S
        while True:
            self._pass_wishes_on()
            gathered = self._collect(WISH_S)
            if gathered or time.monotonic() > deadline or self._stopping.is_set():
                return gathered

    def _pass_wishes_on(self) -> None:
        try:
            seen = self._registry.data_version()
            wishes = self._registry.wishes() if seen != self._seen else {}
        except RegistryAway:
            # The round that follows says so.
            return
        self._seen = seen
        for backend_id, number in wishes.items():
            if backend_id in self._pollers:
                self._pollers[backend_id].wish(number)

    def _grant_wishes(self, gathered: list[News]) -> None:
        """Tell whoever waits for a poll that what it brought is written."""
        # Of several polls of one backend, the last of those that were wished for counts.
        fresh = {
            news.backend_id: news.wished
            for news in sorted(gathered, key=lambda news: news.wished)
            if news.wished > self._granted.get(news.backend_id, 0)
        }
        if fresh:
            self._registry.grant(self._role.epoch, fresh)
            self._granted.update(fresh)

    def _collect(self, timeout_s: float) -> list[News]:
        """The news that came: the first within the time limit, and all that came with it."""
        gathered: list[News] = []
        try:
            first = self._news.get(timeout=timeout_s) if timeout_s else self._news.get_nowait()
            while True:
                if first is not None:
                    gathered.append(first)
                first = self._news.get_nowait()
        except queue.Empty:
            return gathered

    def _round(self, gathered: list[News]) -> None:
        """Weigh the news, write what changed, beat. A registry that cannot be written is tried again next time."""
        if self._registry.is_replaced:
            raise RegistryDamaged(f"the registry {self._registry.path} was replaced or removed")
        try:
            for learned in [*map(self._weigh, gathered + self._hung()), *self._forgotten()]:
                self._note(learned)
            self._write()
            self._note_events()
            self._grant_wishes(gathered)
            self._beat()
            self._follow_backends()
            self._sweep()
            self._complaint = ""
        except RegistryDamaged:
            # It does not heal: whoever runs us begins anew.
            raise
        except RegistryAway as exc:
            if str(exc) != self._complaint:
                log.error("%s", exc)
            self._complaint = str(exc)
        except Fenced:
            raise
        except Exception:  # one poisoned answer must not end the refresher
            log.exception("a round failed")

    def _write(self) -> None:
        """Write what was learned, each backend by itself: what cannot be written of one must not stop the others."""
        for backend_id, learned in list(self._unwritten.items()):
            try:
                self._registry.learn(self._role.epoch, [learned])
            except (RegistryAway, Fenced):
                raise
            except Exception:  # one poisoned answer must not end the refresher
                log.exception("what backend %s said cannot be written", backend_id)
            del self._unwritten[backend_id]

    def _note_events(self) -> None:
        if self._events:
            EventStore(self._registry).add(self._events)
            self._events = []

    def _note(self, learned: Learned) -> None:
        """Add to what has to be written; it stays there until the registry took it."""
        before = self._unwritten.get(learned.backend_id, Learned(learned.backend_id))
        merged = Learned(
            learned.backend_id,
            health=learned.health or before.health,
            holdings=before.holdings if learned.holdings is None else learned.holdings,
            loaded=before.loaded if learned.loaded is None else learned.loaded,
        )
        if merged != Learned(learned.backend_id):
            self._unwritten[learned.backend_id] = merged

    def _beat(self) -> None:
        """Beat about once a second, however many polls end."""
        if time.monotonic() - self._beat_s >= BEAT_S * 0.8:
            self._role.beat()
            self._beat_s = time.monotonic()

    def _hung(self) -> list[News]:
        """Probes that wait far beyond their time limit (an answer that trickles byte by byte) count as failed."""
        limit = self._settings.poll_timeout_s * 2 + self._settings.connect_timeout_s
        now = time.monotonic()
        return [
            News(p.backend.id, p.backend.url, error=str(UpstreamTimeout("the probe hangs")))
            for p in self._pollers.values()
            if p.hung_s(now) > limit
        ]

    def _weigh(self, news: News) -> Learned:
        """What a poll changed."""
        poller = self._pollers.get(news.backend_id)
        if poller is None or poller.backend.url != news.url:
            return Learned(news.backend_id)
        known = self._known.setdefault(news.backend_id, _Known())
        return Learned(
            news.backend_id,
            health=self._weigh_health(known, news) if news.is_probe else None,
            holdings=self._weigh_tags(known, news),
            loaded=self._weigh_loaded(known, news),
        )

    def _weigh_health(self, known: _Known, news: News) -> Health | None:
        rules = {"fall": self._settings.fall, "rise": self._settings.rise}
        known.verdict = judge(known.verdict, probe_ok=news.error is None, **rules)
        old = known.health
        state = known.verdict.state
        new = Health(
            state=state,
            since=old.since if old.state == state else unix_now(),
            version=news.version or old.version,
            cloud_disabled=old.cloud_disabled if news.cloud_disabled is None else news.cloud_disabled,
            latency_s=old.latency_s,
            error=news.error if state == "down" else None,
            cloud_source=news.cloud_source or old.cloud_source,
            recommendations=news.recommendations or old.recommendations,
        )
        if new == old:
            return None
        if new.state != old.state:
            name = self._pollers[news.backend_id].backend.name
            level = logging.WARNING if state == "down" else logging.INFO
            log.log(level, "backend %s is %s%s", name, state, f": {news.error}" if news.error else "")
            self._events.append(state_event(name, state, news.error))
            new = replace(new, latency_s=news.latency_s)
        known.health = new
        return new

    def _weigh_tags(self, known: _Known, news: News) -> tuple[Holding, ...] | None:
        if news.tags is None:
            return None
        text = json.dumps(news.tags, sort_keys=True)
        if text == known.tags:
            return None
        known.tags, known.forgotten = text, False
        return holdings_of(news.backend_id, news.tags)

    def _weigh_loaded(self, known: _Known, news: News) -> tuple[Mapping[str, Any], ...] | None:
        if news.loaded is None:
            return None
        text = json.dumps(news.loaded, sort_keys=True)
        if text == known.loaded:
            return None
        known.loaded = text
        return tuple(news.loaded)

    def _forgotten(self) -> list[Learned]:
        """Backends that have been down for so long that what they held is forgotten."""
        gone = []
        for backend_id, known in self._known.items():
            down = known.health.state == "down"
            if down and not known.forgotten and unix_now() - known.health.since > self._settings.forget_after_s:
                known.forgotten, known.tags, known.loaded = True, None, None
                gone.append(Learned(backend_id, holdings=(), loaded=()))
        return gone

    def _follow_backends(self) -> None:
        """Where the registry's catalogue moved: read it, start and stop pollers, hydrate."""
        if self._registry.generation()[0] == self._fleet.generation[0]:
            return
        before = self._fleet
        self._fleet = build(self._registry.snapshot(self._settings.fleet), before)
        self._prune(before)
        self._warn_of_drift(before)
        for member in self._fleet.members:
            if member.health.state == "unknown":
                # It may have the number of one that was removed since the last look: nothing of that is stored now.
                self._known.pop(member.backend.id, None)
            # Go on from what an earlier refresher wrote.
            self._known.setdefault(member.backend.id, _Known(Verdict(member.health.state), member.health))
        wanted = {member.backend.id: member.backend for member in self._fleet.members}
        self._stop_pollers(wanted)
        for backend_id, backend in wanted.items():
            if backend_id not in self._pollers:
                self._pollers[backend_id] = Poller(backend, self._settings, self._news.put)
                if self._polls:
                    self._pollers[backend_id].start()
        self._hydrator.follow(self._fleet)

    def _stop_pollers(self, wanted: Mapping[int, Backend]) -> None:
        """Stop those whose backend is gone, or is asked otherwise now."""
        for backend_id, poller in list(self._pollers.items()):
            fresh = wanted.get(backend_id)
            if fresh is not None and poller.asks_as(fresh):
                continue
            poller.stop()
            del self._pollers[backend_id]
            if fresh is None or fresh.url != poller.backend.url:
                self._known.pop(backend_id, None)

    def _warn_of_drift(self, before: Fleet) -> None:
        known = before.drifted()
        for name, backends in self._fleet.drifted().items():
            if known.get(name) != backends:
                log.warning("%s differs from the preferred one on %s: pull it again there", name, ", ".join(backends))

    def _prune(self, before: Fleet) -> None:
        """Drop the documents of models that nobody holds any more. What was never seen here may be others'."""
        try:
            self._cache.drop(before.holders.keys() - self._fleet.holders.keys())
        except CacheAway:
            log.debug("not pruned; the least recently used make room in time")

    def _sweep(self) -> None:
        """Now and then: look for documents that got lost, remember what was asked for."""
        if time.monotonic() - self._swept_s < SWEEP_S:
            return
        self._swept_s = time.monotonic()
        before = unix_now() - ASKED_S
        try:
            asked = self._cache.take_asked()
        except CacheAway:
            asked = {}
        self._registry.note_asked(self._role.epoch, asked, before)
        self._hydrator.wish(self._registry.asked(before))
        self._hydrator.follow(self._fleet)
