"""Running requests of all workers, shown through Redis while somebody looks, and those that somebody ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from proxy_app.store.redis import BIG_BYTES, RedisGate

# How long after its last question somebody is taken to look; a page asks every second or two.
LOOKED_S = 5.0
# How long a list is good for: a worker that shows none for so long is gone, or stuck.
SHOWN_S = 3.0
# How long workers can find what is to be ended.
CANCELLED_S = 30.0


class RunningBoard:
    """What workers show of their running requests. Owned by: the worker's runtime; the state is Redis's.

    Raises: CacheAway: from every method.
    """

    def __init__(self, gate: RedisGate, prefix: str) -> None:
        self._gate = gate
        self._root = "{%s}:running" % prefix
        self._looked, self._workers = f"{self._root}:looked", f"{self._root}:workers"
        self._cancelled = f"{self._root}:cancelled"

    def look(self) -> bool:
        """Say that somebody looks; tells whether somebody did already."""
        before = self._gate.run(lambda client: client.set(self._looked, 1, px=_ms(LOOKED_S), get=True))
        return before is not None

    def asked(self) -> tuple[bool, list[str]]:
        """Does somebody look? And the ids of what is to be ended, by whoever has it."""
        is_looked, ids = self._together(("EXISTS", self._looked), ("SMEMBERS", self._cancelled))
        return bool(is_looked), [each.decode() for each in ids]

    def show(self, worker: str, shown: bytes) -> None:
        """Show what a worker works on."""
        self._together(
            ("SADD", self._workers, worker),
            ("PEXPIRE", self._workers, _ms(2 * SHOWN_S)),
            ("SET", self._list_of(worker), shown, "PX", _ms(SHOWN_S)),
            big=len(shown) > BIG_BYTES,
        )

    def hide(self, worker: str) -> None:
        """The worker ends."""
        self._together(("SREM", self._workers, worker), ("DEL", self._list_of(worker)))

    def shown(self, without: str) -> list[bytes]:
        """What all workers but one show."""
        workers = [each.decode() for each in self._gate.run(lambda client: client.smembers(self._workers))]
        keys = [self._list_of(worker) for worker in workers if worker != without]
        # Nobody knows how long they are together.
        found = self._gate.run(lambda client: client.mget(keys), big=True) if keys else []
        return [each for each in found if each is not None]

    def cancel(self, run_id: str) -> None:
        """Have a request ended by whoever has it."""
        self._together(("SADD", self._cancelled, run_id), ("PEXPIRE", self._cancelled, _ms(CANCELLED_S)))

    def take(self, run_ids: Sequence[str]) -> None:
        """Say that they are ended."""
        self._gate.run(lambda client: client.srem(self._cancelled, *run_ids))

    def is_taken(self, run_id: str) -> bool:
        return not self._gate.run(lambda client: client.sismember(self._cancelled, run_id))

    def _list_of(self, worker: str) -> str:
        return f"{self._root}:{worker}"

    def _together(self, *commands: tuple[Any, ...], big: bool = False) -> list[Any]:
        """Several commands in one round trip."""

        def call(client: redis.Redis) -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
            return pipeline.execute()

        answers: list[Any] = self._gate.run(call, big=big)
        return answers


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
