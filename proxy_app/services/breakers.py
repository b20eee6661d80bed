"""The breakers of one worker: who is skipped because requests to it just failed.

A backend has one breaker for what is wrong with all of it (no connection, connections that are lost), and one for
each model: a model that cannot run must not take the others with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from cachetools import LRUCache

from proxy_app.domain import Fleet, Pair
from proxy_app.errors import CacheAway
from proxy_app.routing import breaker, policy
from proxy_app.routing.breaker import CLOSED, Breaker, BreakerRules
from proxy_app.store.board import BreakerBoard, Opened

log = logging.getLogger(__name__)

Key = int | Pair
# A client may ask for cloud models of any name; a fleet has far fewer that fail.
REMEMBERED = 10_000
# How long other workers may not know of it; each look costs Redis about 0.1 ms.
SHARE_S = 0.5
# A bad answer is remembered this many times as long as a breaker stays open at first.
SUSPECT_TIMES = 12


class Breakers:
    """Owned by: the worker's runtime; changed by what the worker's own requests saw, and by what others tell.

    A backend that the refresher brought back since its breaker opened starts with a closed one.
    """

    def __init__(self, rules: BreakerRules) -> None:
        self._rules = rules
        self._breakers: LRUCache[Key, Breaker] = LRUCache(REMEMBERED)
        self._suspects: LRUCache[Pair, float] = LRUCache(REMEMBERED)
        self._states: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self._changed: set[Key] = set()
        self._shared: set[Key] = set()
        self.now: Callable[[], float] = time.monotonic

    def usable(self, tiers: Sequence[policy.Tier], model: str) -> list[policy.Tier]:
        """The tiers without those whose breaker is open; see `policy.skip_broken`."""
        if not self._breakers:
            return list(tiers)
        return policy.skip_broken(
            tiers,
            lambda i: not self.allows((i, model)),
            lambda i: max(self._of(key).open_until for key in (i, (i, model))),
        )

    def allows(self, pair: Pair) -> bool:
        """May a request go to that backend now?"""
        now = self.now()
        return all(self._of(key).allows(now) for key in (pair[0], pair)) if self._breakers else True

    def state(self, backend_id: int) -> Literal["closed", "open", "half-open"]:
        """Of what is wrong with all of a backend, as this worker knows it."""
        current = self._of(backend_id)
        if current.is_closed:
            return "closed"
        return "half-open" if current.allows(self.now()) else "open"

    def unsuspected(self, tiers: Sequence[policy.Tier], model: str) -> list[policy.Tier]:
        """The tiers without those whose last answer for the model, if it is not long ago, was no good."""
        since = self.now() - SUSPECT_TIMES * self._rules.open_s
        left = (tuple(i for i in tier if self._suspects.get((i, model), since) <= since) for tier in tiers)
        return [tier for tier in left if tier]

    def tried(self, pair: Pair, within_s: float) -> None:
        """A request is on its way: no other one goes through a half-open breaker until it has reported.

        Args:
            within_s: when it will have reported in any case.
        """
        if self._breakers:
            self._let_through(pair, within_s)

    def reported(self, pair: Pair) -> None:
        """That request is over, or its answer has begun: the next one may go."""
        if self._breakers:
            self._let_through(pair, 0.0)

    def answered(self, pair: Pair) -> None:
        """A good answer has begun: nothing is wrong with the backend; whether the model can is known at its end."""
        self._suspects.pop(pair, None)
        if self._breakers:
            self._close(pair[0])
            self.reported(pair)

    def succeeded(self, pair: Pair) -> None:
        """A good answer has ended well."""
        self._suspects.pop(pair, None)
        if self._breakers:
            self._close(pair[0])
            self._close(pair)

    def busy(self, pair: Pair) -> None:
        """It had no room: load, not sickness, but no place for everybody's second attempt either."""
        self._suspects[pair] = self.now()

    def failed(self, pair: Pair) -> None:
        """It gave a 5xx, or an answer that broke off, for this model."""
        self._suspects[pair] = self.now()
        self._fail(pair, refused=False)

    def lost(self, pair: Pair, *, refused: bool = False) -> None:
        """The backend itself did not answer: whatever the model, it would not have."""
        self._suspects[pair] = self.now()
        self._fail(pair[0], refused=refused)

    def follow(self, fleet: Fleet) -> None:
        """Forget failures from before a backend's return."""
        back = {i for i, member in fleet.by_id.items() if member.is_live and self._states.get(i) == "down"}
        for key in [key for key in self._breakers if (key if isinstance(key, int) else key[0]) in back]:
            self._breakers.pop(key, None)
            self._changed.add(key)
        for pair in [pair for pair in self._suspects if pair[0] in back]:
            self._suspects.pop(pair, None)
        self._names = {backend_id: member.backend.name for backend_id, member in fleet.by_id.items()}
        self._states = {backend_id: member.health.state for backend_id, member in fleet.by_id.items()}

    def share(self, board: BreakerBoard) -> None:
        """Tell other workers what changed here, and follow what changed there.

        Raises:
            CacheAway: nobody can be told now.
        """
        changed, self._changed = self._changed, set()
        names = {self._label(key): key for key in changed}
        now = self.now()
        opened = {
            name: Opened(current.openings, current.open_until - now)
            for name, key in names.items()
            if not (current := self._of(key)).is_closed
        }
        try:
            self._adopt(board.exchange(opened, [name for name in names if name not in opened]), now)
        except CacheAway:
            self._changed |= changed
            raise

    def _adopt(self, told: Mapping[str, Opened], now: float) -> None:
        ids = {name: backend_id for backend_id, name in self._names.items()}
        keys = {key: opened for name, opened in told.items() if (key := _key(name, ids)) is not None}
        for key, opened in keys.items():
            current = self._of(key)
            if key not in self._changed and now + opened.left_s > current.open_until + SHARE_S:
                self._breakers[key] = Breaker(self._rules.failures, opened.openings, now, now + opened.left_s)
        for key in self._shared - keys.keys() - self._changed:
            self._breakers.pop(key, None)
        self._shared = set(keys)

    def _fail(self, key: Key, *, refused: bool) -> None:
        before = self._of(key)
        after = breaker.failed(before, self.now(), self._rules, refused=refused)
        self._breakers[key] = after
        if after.opened_at > before.opened_at:
            log.warning("%s is skipped for %.1f s", self._title(key), after.open_until - after.opened_at)
            self._changed.add(key)

    def _let_through(self, pair: Pair, within_s: float) -> None:
        for key in (pair[0], pair):
            current = self._of(key)
            if not current.is_closed:
                self._breakers[key] = breaker.tried(current, self.now(), within_s)

    def _close(self, key: Key) -> None:
        if self._breakers.pop(key, CLOSED).openings:
            log.info("%s answers again", self._title(key))
            self._changed.add(key)

    def _title(self, key: Key) -> str:
        backend_id, model = (key, "") if isinstance(key, int) else key
        backend = f"backend {self._names.get(backend_id, backend_id)}"
        return f"{model} on {backend}" if model else backend

    def _label(self, key: Key) -> str:
        """A key as other machines read it too: the numbers of backends are each registry's own."""
        backend_id, model = (key, "") if isinstance(key, int) else key
        return f"{self._names.get(backend_id, backend_id)} {model}".strip()

    def _of(self, key: Key) -> Breaker:
        return self._breakers.get(key, CLOSED)


def _key(label: str, ids: Mapping[str, int]) -> Key | None:
    name, _, model = label.partition(" ")
    backend_id = ids.get(name)
    if backend_id is None:
        return None
    return (backend_id, model) if model else backend_id


class Sharing:
    """A thread that keeps one worker's breakers and everybody else's in step. Owned by: the worker's runtime."""

    def __init__(self, breakers: Breakers, board: BreakerBoard) -> None:
        self._breakers, self._board = breakers, board
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="breakers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(2)

    def _run(self) -> None:
        while not self._stop.wait(SHARE_S):
            try:
                self._breakers.share(self._board)
            except CacheAway:
                log.debug("breakers are not shared: Redis is away")
            except Exception:  # the top of a thread
                log.exception("breakers could not be shared")
