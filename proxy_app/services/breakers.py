"""The breakers of one worker: who is skipped because requests to it just failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from proxy_app.domain import Fleet
from proxy_app.routing import breaker, policy
from proxy_app.routing.breaker import CLOSED, Breaker, BreakerRules

log = logging.getLogger(__name__)


class Breakers:
    """Owned by: the worker's runtime; changed by what the worker's own requests saw.

    A backend that the refresher brought back since its breaker opened starts with a closed one.
    """

    def __init__(self, rules: BreakerRules, patience_s: float) -> None:
        self._rules, self._patience_s = rules, patience_s
        self._breakers: dict[int, Breaker] = {}
        self._states: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self.now: Callable[[], float] = time.monotonic

    def usable(self, tiers: Sequence[policy.Tier]) -> list[policy.Tier]:
        """The tiers without those whose breaker is open; see `policy.skip_broken`."""
        now = self.now()
        return policy.skip_broken(tiers, lambda i: not self._of(i).allows(now), lambda i: self._of(i).open_until)

    def tried(self, backend_id: int) -> None:
        current = self._of(backend_id)
        if not current.is_closed:
            self._breakers[backend_id] = breaker.tried(current, self.now(), self._patience_s)

    def succeeded(self, backend_id: int) -> None:
        if self._breakers.pop(backend_id, CLOSED).openings:
            log.info("backend %s answers again", self._names.get(backend_id, backend_id))

    def failed(self, backend_id: int, *, refused: bool = False) -> None:
        before = self._of(backend_id)
        after = breaker.failed(before, self.now(), self._rules, refused=refused)
        self._breakers[backend_id] = after
        if after.openings > before.openings:
            name = self._names.get(backend_id, backend_id)
            log.warning("backend %s is skipped for %.1f s", name, after.open_until - after.opened_at)

    def follow(self, fleet: Fleet) -> None:
        """Forget failures from before a backend's return."""
        for backend_id, member in fleet.by_id.items():
            if member.is_live and self._states.get(backend_id) == "down":
                self._breakers.pop(backend_id, None)
        self._names = {backend_id: member.backend.name for backend_id, member in fleet.by_id.items()}
        self._states = {backend_id: member.health.state for backend_id, member in fleet.by_id.items()}

    def _of(self, backend_id: int) -> Breaker:
        return self._breakers.get(backend_id, CLOSED)
