"""Who is in flight where: leases in Redis with an expiry, so that a crashed worker's requests fade away.

A lease is a member of its backend's sorted set, scored by its expiry. Where there is a choice between equal
backends, one
script picks the one with the fewest in flight and takes the lease in the same step. Otherwise the lease is written
behind the request, in batches; one that ends before its batch goes out is never written.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

import redis

from proxy_app.errors import CacheAway
from proxy_app.store.redis import RedisGate, Script

log = logging.getLogger(__name__)

_LEASE, _KEEP = Script("lease"), Script("keep_leases")
TTL_S = 30.0
RENEW_S = 10.0
# How long a lease may be unknown to other workers; more would batch better, less would balance better.
BATCH_S = 0.02


class Lease:
    """The right to one in-flight request at a backend; `release` is idempotent."""

    __slots__ = ("_keeper", "backend_id", "member")

    def __init__(self, keeper: LeaseKeeper, backend_id: int, member: str) -> None:
        self._keeper: LeaseKeeper | None = keeper
        self.backend_id = backend_id
        self.member = member

    def release(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper._release(self)


class LeaseKeeper:
    """One worker's leases.

    Owned by: the worker's runtime. Its thread writes, prolongs and ends leases; request code only
    changes sets in memory.
    """

    def __init__(self, gate: RedisGate, prefix: str) -> None:
        self._gate = gate
        self._root = "{%s}:inflight" % prefix
        self._lock = threading.Lock()
        self._live: dict[str, int] = {}
        self._unwritten: dict[str, int] = {}
        self._ended: dict[str, int] = {}
        self._counts: Counter[int] = Counter()
        self._turn = random.randrange(1 << 16)
        self._wake = threading.Event()
        self._stopping = False
        self._renewed_s = time.monotonic()
        self._thread = threading.Thread(target=self._keep, name="leases", daemon=True)
        self._thread.start()

    def take(self, backend_ids: Sequence[int]) -> Lease:
        """Take a lease on the one of equal backends that has the fewest in flight."""
        member = "%032x" % random.getrandbits(128)
        chosen = backend_ids[0] if len(backend_ids) == 1 else self._choose(backend_ids, member)
        lease = Lease(self, chosen, member)
        with self._lock:
            self._live[member] = chosen
            self._counts[chosen] += 1
            if len(backend_ids) == 1:
                self._unwritten[member] = chosen
        self._wake.set()
        return lease

    def in_flight(self, backend_id: int) -> int:
        """This worker's own count."""
        return self._counts[backend_id]

    @property
    def is_shared(self) -> bool:
        """Do workers know of each other's leases now?"""
        return not self._gate.is_away

    def totals(self, backend_ids: Sequence[int]) -> dict[int, int]:
        """How many requests of all workers are in flight at each backend; of this one alone while Redis is away."""
        try:
            return dict(zip(backend_ids, self._gate.run(partial(self._count, backend_ids)), strict=True))
        except CacheAway:
            return {backend_id: self._counts[backend_id] for backend_id in backend_ids}

    def close(self) -> None:
        """End this worker's leases and stop the thread."""
        with self._lock:
            self._ended |= self._live
            self._live = {}
        self._stopping = True
        self._wake.set()
        self._thread.join(2)

    def _count(self, backend_ids: Sequence[int], client: redis.Redis) -> list[int]:
        seconds, micros = client.time()
        now_ms = seconds * 1000 + micros // 1000
        with client.pipeline(transaction=False) as pipe:
            for backend_id in backend_ids:
                pipe.zcount(self._key(backend_id), f"({now_ms}", "+inf")
            return list(pipe.execute())

    def _choose(self, backend_ids: Sequence[int], member: str) -> int:
        self._turn += 1
        keys = [self._key(backend_id) for backend_id in backend_ids]
        args = [member, int(TTL_S * 1000), self._turn % len(keys) + 1]
        try:
            return backend_ids[int(self._gate.call(_LEASE, keys, args)) - 1]
        except CacheAway:
            start = self._turn % len(backend_ids)
            turned = [*backend_ids[start:], *backend_ids[:start]]
            return min(turned, key=self._counts.__getitem__)

    def _release(self, lease: Lease) -> None:
        with self._lock:
            if self._live.pop(lease.member, None) is not None:
                self._counts[lease.backend_id] -= 1
                if self._unwritten.pop(lease.member, None) is None:
                    self._ended[lease.member] = lease.backend_id
        self._wake.set()

    def _keep(self) -> None:
        while not self._stopping:
            # Nothing in flight: sleep until there is.
            self._wake.wait(RENEW_S if self._live else None)
            self._wake.clear()
            if not self._stopping:
                time.sleep(BATCH_S)
            try:
                self._write()
            except Exception:  # the top of a thread
                log.exception("leases could not be written")

    def _write(self) -> None:
        with self._lock:
            renew = time.monotonic() - self._renewed_s >= RENEW_S
            kept = dict(self._live) if renew else self._unwritten
            ended, self._ended, self._unwritten = self._ended, {}, {}
            if renew:
                self._renewed_s = time.monotonic()
        for backend_id in {*kept.values(), *ended.values()}:
            keep = [member for member, at in kept.items() if at == backend_id]
            end = [member for member, at in ended.items() if at == backend_id]
            self._write_backend(backend_id, keep, end)

    def _write_backend(self, backend_id: int, keep: list[str], end: list[str]) -> None:
        args = [int(TTL_S * 1000), len(keep), *keep, *end]
        try:
            self._gate.call(_KEEP, [self._key(backend_id)], args)
        except CacheAway:
            # What was not ended expires; what was not written is in this worker's own counts.
            log.debug("leases of backend %s were not written", backend_id)

    def _key(self, backend_id: int) -> str:
        return f"{self._root}:{backend_id}"
