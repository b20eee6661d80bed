"""The limits of keys in Redis: right for any number of workers and machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import redis

from proxy_app.domain import KeyLimits
from proxy_app.store.redis import RedisGate, Script, unix_now

_LIMITS = Script("limits")
# How long a request is under way without being renewed: what a crashed worker had reserved comes back after that.
TTL_S = 60.0
DAY_S = 86400
# The arguments of a call that lets nobody in.
_NOBODY: list[str | int] = ["", 0, 0, 0, *[""] * 6]


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to one request.

    Args:
        refused_by: the limit's name; "" where it was let in.
        wait_s: when it may be tried again.
        requests_left, tokens_left: None where there is no such limit.
    """

    refused_by: str = ""
    wait_s: float = 0.0
    requests_left: int | None = None
    tokens_left: int | None = None


@dataclass(frozen=True, slots=True)
class Reserved:
    """A request that was let in. `day`: of its counters, UTC, since 1970."""

    key_id: str
    request: str
    tokens: int
    limits: KeyLimits
    day: int

    @property
    def member(self) -> str:
        """What is stored of it: all that its end has to know."""
        return f"{self.request} {self.tokens} {self.day} {self.limits.tpm or 0}"


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that is over, and what it really used."""

    reserved: Reserved
    tokens: int
    gpu_ms: int


class LimitStore:
    """Raises: CacheAway: from every method."""

    def __init__(self, gate: RedisGate, prefix: str) -> None:
        self._gate, self._prefix = gate, prefix

    def admit(self, wanted: Reserved, ended: Sequence[Ended] = ()) -> Admission:
        """One call for all limits of a key.

        Args:
            ended: requests of the same key that are over: they are settled first, in the same call.
        """
        limits = wanted.limits
        gpu_ms = None if limits.gpu is None else limits.gpu * 1000
        numbers = (limits.rpm, limits.burst or 0, limits.concurrent, limits.tpm, limits.tpd, gpu_ms)
        args = [wanted.member, int(TTL_S * 1000), wanted.day, wanted.tokens, *("" if n is None else n for n in numbers)]
        for one in ended:
            args += (one.reserved.member, one.tokens, one.gpu_ms)
        answer = self._gate.call(_LIMITS, self._keys(wanted), args)
        refused, wait_ms, requests, tokens = answer
        return Admission(refused.decode(), wait_ms / 1000, _left(requests), _left(tokens))

    def settle(self, ended: Sequence[Ended]) -> None:
        """End requests that were let in, all in one round trip; one that is told twice changes nothing."""
        calls = [(self._keys(one.reserved), [*_NOBODY, one.reserved.member, one.tokens, one.gpu_ms]) for one in ended]
        self._gate.run(lambda client: _LIMITS.many(client, calls))

    def renew(self, reserved: Iterable[Reserved]) -> None:
        """Say that requests are still under way."""
        members = [(self._keys(one)[1], one.member) for one in reserved]
        if members:
            self._gate.run(partial(_prolong, members))

    def _keys(self, reserved: Reserved) -> list[str]:
        # Braces: one script's keys have to share a slot of a Redis Cluster.
        root = "{%s:%s}:limit" % (self._prefix, reserved.key_id)
        return [root, f"{root}:now"]


def _prolong(members: Sequence[tuple[str, str]], client: redis.Redis) -> None:
    # By Redis' own clock, as all times in there: machines differ.
    until_ms = (client.time()[0] + TTL_S) * 1000
    pipeline = client.pipeline(transaction=False)
    for key, member in members:
        pipeline.zadd(key, {member: until_ms}, xx=True)
    pipeline.execute()


def today() -> int:
    return int(unix_now()) // DAY_S


def _left(number: int) -> int | None:
    return None if number < 0 else number
