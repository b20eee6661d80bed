"""Model loads as one worker sees them: how long they take, and who waits for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cachetools import LRUCache

from proxy_app.domain import Fleet, Pair
from proxy_app.errors import ClientGone
from proxy_app.routing.patience import Patience, learn
from proxy_app.upstream.aside import Aside
from proxy_app.upstream.client import Limits
from proxy_app.upstream.stream import Upstream

# Far more than a fleet has; each costs some hundred bytes.
REMEMBERED = 10_000


class Loads:
    """Owned by: the worker's runtime; changed by what the worker's own requests saw.

    Args:
        finishes: may a load whose client left go on for others who wait for it?
    """

    def __init__(self, connect_s: float, idle_s: float, patience: Patience, finishes: bool) -> None:
        self._connect_s, self._idle_s, self._patience, self._finishes = connect_s, idle_s, patience, finishes
        self._learned: LRUCache[Pair, float] = LRUCache(REMEMBERED)
        self._waiting: Counter[Pair] = Counter()
        self._orphans: dict[Pair, list[Aside[Upstream]]] = {}

    def limits(self, fleet: Fleet, pair: Pair, *, may_load: bool) -> Limits:
        """How long an attempt may wait.

        Args:
            may_load: it is a model that the backend itself runs.
        """
        is_cold = may_load and not is_warm(fleet, pair)
        load_s = self._patience.allowance_s(self._learned.get(pair, 0.0)) if is_cold else 0.0
        return Limits(self._connect_s, self._patience.warm_s + load_s, self._idle_s, load_s)

    def learn(self, fleet: Fleet, pair: Pair, took_s: float) -> None:
        """An attempt has got its first byte: where the model was not loaded, that is about how long its load takes."""
        if not is_warm(fleet, pair):
            self._learned[pair] = learn(self._learned.get(pair, 0.0), took_s)

    def send(self, pair: Pair, limits: Limits, send: Callable[[], Upstream]) -> Upstream:
        """Send a request; where it loads the model, it may outlive its client for others who wait.

        Raises:
            As `send`.
        """
        if not (self._finishes and limits.load_s):
            return send()
        with self._counted(pair):
            aside = Aside(send)
            try:
                aside.wait()
                self._drop(self._orphans.pop(pair, []))
                return aside.result()
            except ClientGone:
                self._orphans.setdefault(pair, []).append(aside)
                # Its own answer shows that the model is there; nobody will read it.
                aside.when_over(lambda: self._drop([aside]))
                raise
            except BaseException:
                self._drop([aside])
                raise

    @contextmanager
    def _counted(self, pair: Pair) -> Iterator[None]:
        self._waiting[pair] += 1
        try:
            yield
        finally:
            self._waiting[pair] -= 1
            if not self._waiting[pair]:
                del self._waiting[pair]
                self._drop(self._orphans.pop(pair, []))

    def _drop(self, orphans: list[Aside[Upstream]]) -> None:
        """Nobody waits for the load any more, or it is done: what nobody reads is closed."""
        for aside in orphans:
            aside.cancel()
            if aside.value is not None:
                aside.value.close()


def is_warm(fleet: Fleet, pair: Pair) -> bool:
    """Had the backend the model loaded at the last poll?"""
    return pair[0] in fleet.warm.get(pair[1], ())
