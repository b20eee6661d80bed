"""The limits of keys in Redis: right for any number of workers and machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import redis

from proxy_app.domain import KeyLimits
from proxy_app.store.redis import RedisGate, Script, unix_now

_LIMITS = Script("limits")
# How long a request is under way without being renewed: what a crashed worker had reserved comes back after that.
TTL_S = 60.0
# The arguments of a call that lets nobody in.
_NOBODY = [""] * 8 + [0]


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
    """A request that was let in. `day`: of its counters, UTC."""

    key_id: str
    member: str
    tokens: int
    limits: KeyLimits
    day: str


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
            ended: requests of the same key and day that are over: they are settled first, in the same call.
        """
        limits = wanted.limits
        gpu_ms = None if limits.gpu is None else limits.gpu * 1000
        numbers = (limits.rpm, limits.burst or 0, limits.concurrent, limits.tpm, limits.tpd, gpu_ms)
        args = [wanted.member, int(TTL_S * 1000), *("" if n is None else n for n in numbers), wanted.tokens]
        for one in ended:
            args += _settled(one)
        answer = self._gate.run(lambda client: _LIMITS(client, self._keys(wanted), args))
        refused, wait_ms, requests, tokens = answer
        return Admission(refused.decode(), wait_ms / 1000, _left(requests), _left(tokens))

    def settle(self, ended: Sequence[Ended]) -> None:
        """End requests that were let in, all in one round trip; one that is told twice changes nothing."""
        calls = [(self._keys(one.reserved), [*_NOBODY, *_settled(one)]) for one in ended]
        self._gate.run(lambda client: _LIMITS.many(client, calls))

    def renew(self, reserved: Iterable[Reserved]) -> None:
        """Say that requests are still under way."""
        until_ms = int((unix_now() + TTL_S) * 1000)
        for one in reserved:
            key, member = self._keys(one)[2], f"{one.member} {one.tokens}"
            self._gate.run(partial(_prolong, key, member, until_ms))

    def _keys(self, reserved: Reserved) -> list[str]:
        # Braces: one script's keys have to share a slot of a Redis Cluster.
        root = "{%s:%s}:limit" % (self._prefix, reserved.key_id)
        return [
            f"{root}:rpm",
            f"{root}:tpm",
            f"{root}:now",
            f"{root}:tokens:{reserved.day}",
            f"{root}:gpu:{reserved.day}",
        ]


def _settled(one: Ended) -> list[str | int]:
    limits = one.reserved.limits
    flags = ["1" if limit is not None else "" for limit in (limits.tpd, limits.gpu)]
    per_minute = "" if limits.tpm is None else limits.tpm
    return [one.reserved.member, one.reserved.tokens, one.tokens, one.gpu_ms, per_minute, *flags]


def _prolong(key: str, member: str, until_ms: int, client: redis.Redis) -> None:
    client.zadd(key, {member: until_ms}, xx=True)
    client.pexpire(key, int(TTL_S * 2000))


def today() -> str:
    return datetime.now(UTC).strftime("%Y%m%d")


def _left(number: int) -> int | None:
    return None if number < 0 else number
