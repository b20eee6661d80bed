"""Open breakers, shared between all workers through Redis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from proxy_app.store.redis import RedisGate, Script

_SHARE = Script("share_breakers")
# A breaker that nobody tries again is forgotten some time after it might have been.
KEPT_S = 60.0


@dataclass(frozen=True, slots=True)
class Opened:
    """An open breaker. Args: openings: in a row. left_s: until somebody may try (negative: since)."""

    openings: int
    left_s: float


class BreakerBoard:
    """What workers know of each other's breakers. Owned by: the worker's runtime; the state is Redis's."""

    def __init__(self, gate: RedisGate, prefix: str) -> None:
        self._gate = gate
        self._key = "{%s}:breakers" % prefix

    def exchange(self, opened: Mapping[str, Opened], closed: Iterable[str]) -> dict[str, Opened]:
        """Tell of changes, and return all that are open.

        Raises:
            CacheAway: Redis cannot be used now.
        """
        args: list[str | int] = [int(KEPT_S * 1000), len(opened)]
        for name, breaker in opened.items():
            args += [name, breaker.openings, int(breaker.left_s * 1000)]
        args += closed
        flat = self._gate.call(_SHARE, [self._key], args)
        triples = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        return {name.decode(): Opened(int(openings), int(left_ms) / 1000) for name, openings, left_ms in triples}
