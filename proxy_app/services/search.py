"""One request looking for a backend that answers: attempts, what their answers mean, and who is asked next.

Nothing reaches the client before an answer's first chunk is there and is not an error. What may be repeated, and when,
is all here and in `routing.retry`: before the first byte went to the client an inference request changes nothing, so
it may go to the next backend; after it, never.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial

from proxy_app.dialects.endings import is_ended, is_error, is_possible, is_stream, record_end
from proxy_app.dialects.errors import message_of
from proxy_app.dialects.inference import InferenceRoute
from proxy_app.domain import Caller, Fleet, Pair
from proxy_app.errors import (
    AllFailed,
    BadAnswer,
    ConnectionLost,
    Deserting,
    Hidden,
    RequestError,
    Truncated,
    Unreachable,
    UpstreamError,
)
from proxy_app.routing import policy
from proxy_app.routing.retry import Verdict, weigh
from proxy_app.services.breakers import Breakers
from proxy_app.services.fleet import is_live
from proxy_app.services.loads import Loads
from proxy_app.services.relayed import Answer, Client, RelayBody, Trace, with_length
from proxy_app.services.retries import RetryBudget
from proxy_app.store.leases import Lease, LeaseKeeper
from proxy_app.upstream.aside import Interruptible
from proxy_app.upstream.client import Call, Limits, UpstreamClient
from proxy_app.upstream.headers import to_client
from proxy_app.upstream.records import LastRecord
from proxy_app.upstream.stream import Upstream

log = logging.getLogger(__name__)

# Answers up to this are read whole, so that one that is cut fails over.
WHOLE_BYTES = 1 << 20
# Enough of an error answer to compare and to pass on.
ERROR_BYTES = 256 << 10
# A first record longer than this is no error record.
RECORD_BYTES = 64 << 10

# Why an attempt failed, for people: by the code of its error, and by what its answer means.
_REASONS = {
    "unreachable": "could not be reached",
    "connection_lost": "broke the connection",
    "upstream_timeout": "did not begin to answer in time",
    "truncated": "broke off before its answer had begun",
    "silent": "fell silent before its answer had begun",
}
_VERDICTS = {
    Verdict.BUSY: "was busy",
    Verdict.FAILED: "failed",
    Verdict.MISSING: "had lost the model",
    Verdict.MISCONFIGURED: "refused Caravan",
}


@dataclass(frozen=True, slots=True)
class Parts:
    """What all searches of a worker share. Owned by: the worker's runtime."""

    upstream: UpstreamClient
    breakers: Breakers
    leases: LeaseKeeper
    loads: Loads
    budget: RetryBudget
    max_attempts: int


@dataclass(frozen=True, slots=True)
class Asking:
    """What is asked, and by whom.

    Args:
        length: how many tokens the answer may have, where the request says it.
        unloads: it only ends the model's stay in memory.
        hides_usage: the backend was asked for the usage, and the client did not ask for it.
    """

    route: InferenceRoute
    call: Call
    client: Client
    caller: Caller
    length: int | None = None
    unloads: bool = False
    hides_usage: bool = False


@dataclass(slots=True)
class _Attempt:
    """One attempt. `is_handed_over`: its answer streams, and whoever streams it gives back what it holds.

    `waiting`: lets it be given up while nothing has gone out.
    """

    lease: Lease
    model: str
    limits: Limits
    upstream: Upstream | None = None
    is_handed_over: bool = False
    waiting: Interruptible = field(default_factory=Interruptible)

    @property
    def pair(self) -> Pair:
        return self.lease.backend_id, self.model

    def give_back(self) -> None:
        self.lease.release()
        if self.upstream is not None:
            self.upstream.close()


@dataclass(slots=True)
class _Kept:
    """A backend's own error answer, shown if nobody does better. `is_whole`: all of its body is there."""

    pair: Pair
    verdict: Verdict
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes
    is_whole: bool

    @property
    def said(self) -> tuple[int, str]:
        return self.status, message_of(self.body)


@dataclass(slots=True)
class Search:
    """One request's search. Owned by: the request; `run` is called once.

    Args:
        tiers: who may be asked, best first.
        model: the canonical name, or the path of a route without models.
        is_listed: the Fleet says that these backends host the model.
    """

    parts: Parts
    asking: Asking
    fleet: Fleet
    trace: Trace
    tiers: list[policy.Tier]
    model: str
    is_listed: bool = False
    kept: list[_Kept] = field(default_factory=list)
    tried: set[int] = field(default_factory=set)
    current: _Attempt | None = None

    def follow(self, fleet: Fleet) -> None:
        """Take notice of a new Fleet. Where the backend that is asked has gone down, and another one is left, that one
        is asked instead: a machine that hangs answers nobody, and nothing has gone out yet. Called by any thread."""
        attempt = self.current
        if attempt is None or is_live(fleet.by_id, attempt.lease.backend_id):
            return
        if any(is_live(fleet.by_id, i) for tier in self._untried() for i in tier):
            attempt.waiting.interrupt(Deserting())

    def run(self) -> Answer:
        """The first good answer, else the best of the others.

        Raises:
            RequestError: nobody gave one that can be shown.
        """
        try:
            for number in range(self.parts.max_attempts):
                tier, counts = self._next(is_retry=number > 0)
                if not tier:
                    break
                with self.parts.budget.retry(counts):
                    answer = self._attempt(tier)
                if answer is not None:
                    return answer
            return self._give_up()
        finally:
            self._count_failures()

    def _next(self, *, is_retry: bool) -> tuple[policy.Tier, bool]:
        """Who is asked next, and whether that costs of the retry budget; nobody where there is nobody, or no budget."""
        breakers, model = self.parts.breakers, self.model
        tiers = breakers.usable(self._untried(), model)
        if not tiers or not is_retry:
            return (tiers[0] if tiers else ()), False
        calm = breakers.unsuspected(tiers, model)
        if calm:
            return calm[0], False
        return (tiers[0], True) if self.parts.budget.allows() else ((), False)

    def _untried(self) -> list[policy.Tier]:
        left = [tuple(i for i in tier if i not in self.tried) for tier in self.tiers]
        return [tier for tier in left if tier]

    def _attempt(self, tier: policy.Tier) -> Answer | None:
        """Try the least busy backend of a tier; None means: ask the next one."""
        self.current = attempt = self._begin(self._take(tier))
        try:
            backend = self.fleet.by_id[attempt.lease.backend_id].backend
            send = partial(self.parts.upstream.send, backend, self.asking.call, attempt.limits)
            with attempt.waiting.exposed():
                attempt.upstream = self.parts.loads.send(attempt.pair, attempt.limits, send)
                return self._judge(attempt, attempt.upstream)
        except UpstreamError as exc:
            self._note(exc, attempt)
            return None
        except Deserting:
            self.trace.reasons.append("went down before it answered")
            return None
        finally:
            self.current = None
            self.parts.breakers.reported(attempt.pair)
            if not attempt.is_handed_over:
                attempt.give_back()

    def _take(self, tier: policy.Tier) -> Lease:
        """A place at the least busy backend of a tier; while that was looked for, another request may have become the
        one that a half-open breaker lets through."""
        lease = self.parts.leases.take(tier)
        while len(tier) > 1 and not self.parts.breakers.allows((lease.backend_id, self.model)):
            lease.release()
            tier = tuple(i for i in tier if i != lease.backend_id)
            lease = self.parts.leases.take(tier)
        return lease

    def _begin(self, lease: Lease) -> _Attempt:
        pair = lease.backend_id, self.model
        limits = self.parts.loads.limits(self.fleet, pair, may_load=self.is_listed)
        self.tried.add(lease.backend_id)
        self.trace.attempts.append(self.fleet.by_id[lease.backend_id].backend.name)
        self.parts.breakers.tried(pair, limits.first_byte_s)
        return _Attempt(lease, self.model, limits)

    def _note(self, exc: UpstreamError, attempt: _Attempt) -> None:
        """Note what an attempt's failure says of its backend.

        Raises:
            RequestError: it must not be repeated.
        """
        log.info("%s: %s", self.trace.request_id, exc)
        self.trace.reasons.append(_REASONS.get(exc.code, "gave no good answer"))
        if isinstance(exc, (Unreachable, ConnectionLost)):
            self.parts.breakers.lost(attempt.pair, refused=isinstance(exc, Unreachable))
        else:
            self.parts.breakers.failed(attempt.pair)
        if not exc.may_repeat:
            raise _TimedOut(attempt.limits) from exc

    def _judge(self, attempt: _Attempt, upstream: Upstream) -> Answer | None:
        """Read as much of an answer as it takes to know whether it may be released."""
        if upstream.status >= 300:
            return self._judge_error(attempt, upstream)
        kind = upstream.readable_type
        first = _first_record(upstream) if is_stream(upstream.content_type) else upstream.read_up_to(WHOLE_BYTES)
        if is_error(first):
            self.trace.reasons.append("began its answer with an error")
            return self._judge_failure(_keep(attempt, upstream, Verdict.FAILED, first))
        if (is_stream(kind) or upstream.is_complete) and not is_possible(kind, first):
            raise BadAnswer(f"{self.trace.attempts[-1]}: what it calls {kind} is none")
        if upstream.is_complete and not _is_whole(kind, first):
            raise Truncated(f"{self.trace.attempts[-1]}: the stream ended without its end mark")
        self.trace.first_byte_s = self.trace.elapsed_s
        if is_stream(upstream.content_type):
            # Of an answer that does not stream, the wait says more of its length.
            self.parts.loads.learn(self.fleet, attempt.pair, upstream.waited_s)
        return self._release(attempt, upstream, first)

    def _judge_error(self, attempt: _Attempt, upstream: Upstream) -> Answer | None:
        body = upstream.read_up_to(ERROR_BYTES)
        verdict = weigh(upstream.status, body, is_listed=self.is_listed)
        if verdict is Verdict.PASS:
            if upstream.status == 404 and not self.asking.caller.is_told_of_absence:
                raise Hidden(self.trace.model)
            return self._release(attempt, upstream, body)
        self.trace.reasons.append(f"{_VERDICTS[verdict]} ({upstream.status})")
        kept = _keep(attempt, upstream, verdict, body)
        if verdict is Verdict.FAILED:
            return self._judge_failure(kept)
        if verdict is Verdict.MISCONFIGURED:
            # Of one model only: Ollama says the same where it is not signed in for a cloud model.
            log.error("%s refuses Caravan with %s: check its token and URL", self.trace.attempts[-1], upstream.status)
            self.parts.breakers.failed(kept.pair)
            return None
        if verdict is Verdict.BUSY:
            self.parts.breakers.busy(kept.pair)
        elif not self._untried() and not self.kept:
            # The only holder is asked once more: Ollama at times does not find what it lists (its issue 18447).
            self.tried.discard(attempt.lease.backend_id)
        self.kept.append(kept)
        return None

    def _judge_failure(self, kept: _Kept) -> Answer | None:
        """Two backends that say the same are believed: it is the client's request that is at fault."""
        twin = next((k for k in self.kept if k.verdict is Verdict.FAILED and k.said == kept.said), None)
        if twin is None:
            self.kept.append(kept)
            return None
        self.kept.remove(twin)
        return self._pass_on(kept, "passed_on")

    def _pass_on(self, kept: _Kept, outcome: str) -> Answer:
        """A backend's own error answer, which is complete in memory."""
        if not kept.is_whole:
            raise AllFailed("the backend's error is too long to be passed on")
        self.trace.status, self.trace.outcome = kept.status, outcome
        self.trace.write()
        return Answer(kept.status, kept.reason, with_length(kept.headers, kept.body), kept.body)

    def _release(self, attempt: _Attempt, upstream: Upstream, first: bytes) -> Answer:
        """An answer that is the client's: it goes out, and says that its backend is well."""
        breakers = self.parts.breakers
        breakers.answered(attempt.pair)
        self.trace.status = upstream.status
        if upstream.is_complete:
            breakers.succeeded(attempt.pair)
            self.trace.outcome = "complete"
            self.trace.write()
            return Answer(upstream.status, upstream.reason, with_length(upstream.headers, first), first)
        told = partial(breakers.succeeded, attempt.pair), partial(breakers.failed, attempt.pair)
        dialect, client = self.asking.route.dialect, self.asking.client
        body = RelayBody(dialect, self.trace, attempt.lease, upstream, first, client, *told)
        attempt.is_handed_over = True
        headers = to_client(upstream.headers)
        if body.is_sized:
            headers.append(("Content-Length", str(upstream.length)))
        return Answer(upstream.status, upstream.reason, headers, body, body.close)

    def _give_up(self) -> Answer:
        """Everybody failed: the best candidate's own answer, else one of ours."""
        if not self.kept:
            raise AllFailed(f"no backend that hosts '{self.trace.model}' gave an answer")
        best = self.kept[0]
        if best.verdict is Verdict.MISSING and not self.asking.caller.is_told_of_absence:
            raise Hidden(self.trace.model)
        return self._pass_on(best, best.verdict.value)

    def _count_failures(self) -> None:
        """5xx answers count only now: while somebody may say the same, they may be the client's own mistake."""
        for kept in self.kept:
            if kept.verdict is Verdict.FAILED:
                self.parts.breakers.failed(kept.pair)


def _keep(attempt: _Attempt, upstream: Upstream, verdict: Verdict, body: bytes) -> _Kept:
    about = upstream.status, upstream.reason, upstream.headers
    return _Kept(attempt.pair, verdict, *about, body, upstream.is_complete)


class _TimedOut(RequestError):
    """No first byte in time. It is not repeated: the work may be nearly done, and the next one would begin anew."""

    status = 504
    code = "upstream_timeout"

    def __init__(self, limits: Limits) -> None:
        of_load = f", of which {limits.load_s:g} s were for loading the model" if limits.load_s else ""
        super().__init__(f"the backend did not begin to answer within {limits.first_byte_s:g} s{of_load}")


def _is_whole(kind: str, body: bytes) -> bool:
    """Is a body that came whole with its probe a whole stream? What is no stream is judged by its framing."""
    record = LastRecord(record_end(kind))
    record.note(body)
    return is_ended(kind, record.seen, is_open=record.is_open)


def _first_record(upstream: Upstream) -> bytes:
    """A stream's beginning, up to the end of its first record wherever the reads cut it."""
    first = upstream.read()
    if not upstream.readable_type:
        return first
    end = record_end(upstream.content_type)
    while end not in first and len(first) < RECORD_BYTES and (piece := upstream.read()):
        first += piece
    return first
