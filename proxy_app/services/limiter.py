"""Limits of keys: asked for before a request is worked on, settled when it is over, whatever happened."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from cachetools import LRUCache

from proxy_app.dialects.usage import sane
from proxy_app.domain import Caller, KeyLimits
from proxy_app.errors import CacheAway, Limited
from proxy_app.routing.meter import Metered, meter
from proxy_app.store.limits import DAY_S, Admission, Ended, LimitStore, Reserved, today
from proxy_app.store.redis import unix_now

log = logging.getLogger(__name__)

RENEW_S = 20.0
# The next request of a key settles those before it; where none comes within this time, a thread does.
BATCH_S = 0.02
# A client that sends one request after the other is quicker than the thread that settles them.
LOOKS = 5
LOOK_S = 0.02
REMEMBERED = 10_000
# What is settled in one round trip, and beside a request that is let in.
AT_ONCE, BESIDES = 500, 20
# What an answer is taken to cost until it is known, where the request does not say how long it may be.
USUAL_TOKENS = 256
# What each running request is taken to cost, as in limits.lua.
GUESSED_GPU_S = 1
# A longer body is a picture or a recording, and its length says nothing of its tokens; and no answer becomes as long as
# some clients allow it to be.
MOST_GUESSED = 32_768

_WORDS = {
    "rpm": "requests per minute",
    "concurrent": "place for another request at the same time",
    "tpm": "tokens per minute",
    "tpd": "tokens per day",
    "gpu": "GPU seconds per day",
}


@dataclass(slots=True)
class Ticket:
    """A request that was let in; `settle` is idempotent.

    Args:
        left: what is left after it, for the answer's headers.
        guess: tokens that the question was taken to cost.
    """

    limiter: Limiter
    reserved: Reserved | None
    left: Admission
    guess: int = 0
    is_local: bool = False
    is_over: bool = field(default=False)

    def settle(self, tokens: int = 0, gpu_ms: int = 0) -> None:
        if not self.is_over:
            self.is_over = True
            self.limiter.end(self, tokens, gpu_ms)


def limit_headers(limits: KeyLimits, left: Admission) -> list[tuple[str, str]]:
    """What OpenAI's clients read of it, and the draft's own form (draft-ietf-httpapi-ratelimit-headers-11)."""
    found: list[tuple[str, str]] = []
    kinds = (("requests", limits.rpm, left.requests_left), ("tokens", limits.tpm, left.tokens_left))
    for kind, limit, remaining in kinds:
        if limit is not None and remaining is not None:
            found += [(f"x-ratelimit-limit-{kind}", str(limit)), (f"x-ratelimit-remaining-{kind}", str(remaining))]
    if limits.rpm is not None and left.requests_left is not None:
        quota = limits.rpm + (limits.burst or 0)
        found += [("RateLimit-Policy", f'"rpm";q={quota};w=60'), ("RateLimit", f'"rpm";r={left.requests_left}')]
    return found


class Limiter:
    """One worker's way to the limits.

    Owned by: the worker's runtime. Its thread settles and renews; request code makes one call to Redis. Where Redis is
    away, the worker keeps to its share: each limit, divided by the number of workers.
    """

    def __init__(self, store: LimitStore, workers: int) -> None:
        self._store, self._workers = store, workers
        self._live: dict[str, Reserved] = {}
        self._ended: dict[str, list[Ended]] = {}
        self._local_tat: LRUCache[tuple[str, str], float] = LRUCache(REMEMBERED)
        self._local_now: Counter[str] = Counter()
        self._spent: defaultdict[tuple[str, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._keep, name="limits", daemon=True)
        self._thread.start()

    def admit(self, caller: Caller, body_bytes: int, length: int | None = None) -> Ticket:
        """Let a request in.

        Args:
            body_bytes: of the request, from which its tokens are guessed.
            length: tokens that the answer may have, where the request says it.

        Raises:
            Limited: which limit refuses it, and for how long.
        """
        limits = caller.limits
        if not limits.counts:
            return Ticket(self, None, Admission())
        guess = min(body_bytes // 4, MOST_GUESSED) if limits.counts_work else 0
        tokens = guess + min(length or USUAL_TOKENS, MOST_GUESSED) if limits.counts_work else 0
        wanted = Reserved(caller.key_id or "anonymous", "%032x" % random.getrandbits(128), tokens, limits, today())
        admission, is_local = self._asked(wanted)
        for _ in range(LOOKS):
            if admission.refused_by != "concurrent":
                break
            # The one before may be over, and its place be given back in this moment.
            time.sleep(LOOK_S)
            admission, is_local = self._asked(wanted)
        if admission.refused_by:
            wait_s = max(1, math.ceil(admission.wait_s))
            raise Limited(_WORDS[admission.refused_by], wait_s, limit_headers(limits, admission))
        if not is_local:
            self._live[wanted.request] = wanted
        return Ticket(self, wanted, admission, guess, is_local)

    def _asked(self, wanted: Reserved) -> tuple[Admission, bool]:
        """The answer to a request, and whether this worker gave it on its own."""
        of_key = self._ended.get(wanted.key_id, [])
        ended, of_key[:BESIDES] = of_key[:BESIDES], []
        try:
            return self._store.admit(wanted, ended), False
        except CacheAway as exc:
            if exc.__cause__ is not None:
                # It was asked, and may have let it in all the same, too late for us to hear of it.
                ended.append(Ended(wanted, 0, 0))
                self._wake.set()
            self._note_ended(*ended)
            return self._admit_alone(wanted), True

    def _note_ended(self, *ended: Ended) -> None:
        """Have it settled; what is settled twice counts once."""
        for one in ended:
            of_key = self._ended.setdefault(one.reserved.key_id, [])
            if len(of_key) < REMEMBERED:
                of_key.append(one)

    def end(self, ticket: Ticket, tokens: int, gpu_ms: int) -> None:
        """End a request; called by its ticket, once."""
        reserved = ticket.reserved
        if reserved is None:
            return
        if reserved.limits.counts_work:
            before = self._spent[reserved.key_id, reserved.day]
            self._spent[reserved.key_id, reserved.day] = before[0] + tokens, before[1] + gpu_ms
        if ticket.is_local:
            self._local_now[reserved.key_id] -= 1
            return
        self._live.pop(reserved.request, None)
        self._note_ended(Ended(reserved, sane(tokens), sane(gpu_ms)))
        self._wake.set()

    def close(self) -> None:
        """Settle what has ended, and stop."""
        self._stopping = True
        self._wake.set()
        self._thread.join(2)

    def _admit_alone(self, wanted: Reserved) -> Admission:
        limits, key_id, now = wanted.limits, wanted.key_id, time.monotonic()
        if limits.concurrent is not None and self._local_now[key_id] >= math.ceil(limits.concurrent / self._workers):
            return Admission("concurrent", 1.0)
        spent = self._spent[key_id, wanted.day]
        running_s = self._local_now[key_id] * GUESSED_GPU_S
        days = ("tpd", limits.tpd, spent[0], 0), ("gpu", limits.gpu, spent[1] / 1000, running_s)
        for name, limit, used, running in days:
            if limit is not None and used + running >= limit / self._workers:
                return Admission(name, _until_midnight_s() if used >= limit / self._workers else 1.0)
        meters = [("rpm", limits.rpm, limits.burst or 0, 1), ("tpm", limits.tpm, 0, wanted.tokens)]
        metered = {
            name: self._meter_alone((key_id, name), limit, more, now)
            for name, limit, *more in meters
            if limit is not None
        }
        refused = next((name for name, found in metered.items() if found.wait_s), "")
        if refused:
            return Admission(refused, metered[refused].wait_s)
        for name, found in metered.items():
            self._local_tat[key_id, name] = found.tat_s
        self._local_now[key_id] += 1
        return Admission()

    def _meter_alone(self, key: tuple[str, str], limit: int, more: list[int], now: float) -> Metered:
        """This worker's own meter: its share of a limit. Args: more: burst and cost."""
        burst, cost = more
        if not limit:
            return Metered(0.0, 60.0, 0)
        return meter(self._local_tat.get(key, 0.0), now, limit / self._workers, burst / self._workers, cost)

    def _keep(self) -> None:
        renewed_s = time.monotonic()
        while True:
            self._wake.wait(RENEW_S)
            self._wake.clear()
            if not self._stopping:
                time.sleep(BATCH_S)
            try:
                self._settle()
                if time.monotonic() - renewed_s >= RENEW_S:
                    renewed_s = time.monotonic()
                    self._store.renew(list(self._live.values()))
            except CacheAway:
                log.debug("limits are settled later: Redis is away")
            except Exception:  # the top of a thread
                log.exception("limits could not be settled")
            if self._stopping:
                return

    def _settle(self) -> None:
        taken, self._ended = self._ended, {}
        ended = [one for of_key in taken.values() for one in of_key]
        try:
            for start in range(0, len(ended), AT_ONCE):
                self._store.settle(ended[start : start + AT_ONCE])
        except CacheAway:
            # What cannot be told now is told later.
            self._note_ended(*ended)
            raise


def _until_midnight_s() -> float:
    return DAY_S - unix_now() % DAY_S
