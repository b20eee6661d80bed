"""Inference requests: sent to a live backend that hosts the model, failed over until the first byte, then relayed.

The order of things: candidates, a lease, an attempt, a probe of the answer's first chunk; nothing
reaches the client before that chunk is there and is not an error.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field

from proxy_app.dialects.inference import CLOUD_DISABLED, InferenceRoute
from proxy_app.domain import Fleet, ModelName, parse_name
from proxy_app.errors import (
    AllFailed,
    ClientGone,
    RequestError,
    Unavailable,
    Unreachable,
    UpstreamError,
)
from proxy_app.routing import policy
from proxy_app.routing.retry import Verdict, weigh
from proxy_app.services.breakers import Breakers
from proxy_app.services.fleet import FleetReloader, all_down, check_seen
from proxy_app.services.relayed import Answer, Client, RelayBody, Trace, give_back
from proxy_app.store.leases import Lease, LeaseKeeper
from proxy_app.upstream.client import Call, Limits, UpstreamClient
from proxy_app.upstream.headers import to_client
from proxy_app.upstream.stream import Upstream

log = logging.getLogger(__name__)

# Answers up to this are read whole, so that one that is cut fails over.
WHOLE_BYTES = 1 << 20
# Enough of an error answer to compare and to pass on.
ERROR_BYTES = 256 << 10
# A first record longer than this is no error record.
RECORD_BYTES = 64 << 10
_STREAMS = ("application/x-ndjson", "text/event-stream")


@dataclass(slots=True)
class _Kept:
    """A backend's own error answer, shown if nobody does better."""

    backend_id: int
    verdict: Verdict
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def said(self) -> tuple[int, str]:
        return self.status, _error_text(self.body)


@dataclass(slots=True)
class _Search:
    """The state of one request while it looks for a backend that answers."""

    route: InferenceRoute
    call: Call
    tiers: list[policy.Tier]
    trace: Trace
    is_listed: bool
    kept: list[_Kept] = field(default_factory=list)
    tried: set[int] = field(default_factory=set)

    def untried(self) -> list[policy.Tier]:
        left = [tuple(i for i in tier if i not in self.tried) for tier in self.tiers]
        return [tier for tier in left if tier]


@dataclass(frozen=True, slots=True)
class Relay:
    """Relays inference requests of one worker. Owned by: the worker's runtime; all state is its parts'."""

    reloader: FleetReloader
    upstream: UpstreamClient
    breakers: Breakers
    leases: LeaseKeeper
    limits: Limits
    max_attempts: int

    def answer(self, route: InferenceRoute, call: Call, model: str, client: Client) -> Answer:
        """Answer one request; the caller iterates the body and calls `close` whatever happens.

        Raises:
            RequestError: nothing can be passed on; the text is for the client.
            ClientGone: the client hung up.
        """
        trace = Trace(call.request_id, route.path, model)
        try:
            if not model:
                raise route.missing
            name = parse_name(model)
            fleet = self.reloader.knowing(name.canonical)
            tiers = _candidates(fleet, route, name, model)
            search = _Search(route, call, tiers, trace, is_listed=not name.is_cloud)
            with client.watch():
                return self._first_good(fleet, search, client)
        except ClientGone:
            trace.status, trace.outcome = 499, "client_gone"
            trace.write()
            raise
        except RequestError as exc:
            trace.status, trace.outcome = exc.status, exc.code
            trace.write()
            raise

    def _first_good(self, fleet: Fleet, search: _Search, client: Client) -> Answer:
        for _ in range(self.max_attempts):
            tiers = self.breakers.usable(search.untried())
            if not tiers:
                break
            answer = self._attempt(fleet, search, tiers[0], client)
            if answer is not None:
                return answer
        return self._give_up(search)

    def _attempt(self, fleet: Fleet, search: _Search, tier: policy.Tier, client: Client) -> Answer | None:
        """Try the least busy backend of a tier; None means: ask the next one."""
        lease = self.leases.take(tier)
        backend = fleet.by_id[lease.backend_id].backend
        search.tried.add(backend.id)
        search.trace.attempts.append(backend.name)
        self.breakers.tried(backend.id)
        upstream: Upstream | None = None
        try:
            upstream = self.upstream.send(backend, search.call, self.limits)
            answer = self._judge(search, lease, upstream, client)
        except UpstreamError as exc:
            log.info("%s: %s", search.call.request_id, exc)
            if exc.counts_against_backend:
                self.breakers.failed(backend.id, refused=isinstance(exc, Unreachable))
            if exc.retry == "never":
                give_back(lease, upstream)
                raise _TimedOut(f"the backend did not begin to answer within {self.limits.first_byte_s:g} s") from exc
            answer = None
        except BaseException:
            give_back(lease, upstream)
            raise
        if answer is None:
            give_back(lease, upstream)
        return answer

    def _judge(self, search: _Search, lease: Lease, upstream: Upstream, client: Client) -> Answer | None:
        """Read as much of an answer as it takes to know whether it may be released."""
        if upstream.status >= 300:
            return self._judge_error(search, lease, upstream, client)
        streams = upstream.content_type.startswith(_STREAMS)
        first = _first_record(upstream) if streams else upstream.read_up_to(WHOLE_BYTES)
        if _is_error_record(first):
            kept = _Kept(lease.backend_id, Verdict.FAILED, upstream.status, upstream.reason, upstream.headers, first)
            return self._judge_failure(search, lease, kept, upstream)
        search.trace.first_byte_s = time.monotonic() - search.trace.started
        return self._release(search, lease, upstream, first, client)

    def _judge_error(self, search: _Search, lease: Lease, upstream: Upstream, client: Client) -> Answer | None:
        body = upstream.read_up_to(ERROR_BYTES)
        verdict = weigh(upstream.status, body, is_listed=search.is_listed)
        kept = _Kept(lease.backend_id, verdict, upstream.status, upstream.reason, upstream.headers, body)
        if verdict is Verdict.PASS:
            return self._release(search, lease, upstream, body, client)
        if verdict is Verdict.MISSING and not search.untried() and not search.kept:
            # The only holder is asked once more: Ollama at times does not find what it lists (its issue 18447).
            search.tried.discard(lease.backend_id)
        if verdict is Verdict.MISCONFIGURED:
            log.error("%s refuses Caravan with %s: check its token and URL", search.trace.attempts[-1], upstream.status)
            return None
        if verdict is Verdict.FAILED:
            return self._judge_failure(search, lease, kept, upstream)
        search.kept.append(kept)
        return None

    def _judge_failure(self, search: _Search, lease: Lease, kept: _Kept, upstream: Upstream) -> Answer | None:
        """Two backends that say the same are believed: it is the client's request that is at fault."""
        twin = next((k for k in search.kept if k.verdict is Verdict.FAILED and k.said == kept.said), None)
        if twin is None:
            search.kept.append(kept)
            return None
        search.kept.remove(twin)
        give_back(lease, upstream)
        return self._pass_on(search, kept, "passed_on")

    def _pass_on(self, search: _Search, kept: _Kept, outcome: str) -> Answer:
        """A backend's own error answer, which is complete in memory."""
        self._count_failures(search)
        search.trace.status, search.trace.outcome = kept.status, outcome
        search.trace.write()
        return Answer(kept.status, kept.reason, _with_length(kept.headers, kept.body), kept.body)

    def _release(self, search: _Search, lease: Lease, upstream: Upstream, first: bytes, client: Client) -> Answer:
        """An answer that is the client's: it goes out, and says that its backend is well."""
        self.breakers.succeeded(lease.backend_id)
        self._count_failures(search)
        search.trace.status = upstream.status
        headers = to_client(upstream.headers)
        if upstream.is_complete:
            give_back(lease, upstream)
            search.trace.outcome = "complete"
            search.trace.write()
            return Answer(upstream.status, upstream.reason, _with_length(upstream.headers, first), first)
        if upstream.length is not None:
            headers.append(("Content-Length", str(upstream.length)))
        body = RelayBody(search.route, search.trace, lease, upstream, first, client, self.breakers)
        return Answer(upstream.status, upstream.reason, headers, body, body.close)

    def _give_up(self, search: _Search) -> Answer:
        """Everybody failed: the best candidate's own answer, else one of ours."""
        if not search.kept:
            raise AllFailed(f"no backend that hosts '{search.trace.model}' gave an answer")
        best = search.kept[0]
        return self._pass_on(search, best, best.verdict.value)

    def _count_failures(self, search: _Search) -> None:
        """5xx answers count only now: while somebody may say the same, they may be the client's own mistake."""
        for kept in search.kept:
            if kept.verdict is Verdict.FAILED:
                self.breakers.failed(kept.backend_id)


class _TimedOut(RequestError):
    status = 504
    code = "upstream_timeout"


def _candidates(fleet: Fleet, route: InferenceRoute, name: ModelName, model: str) -> list[policy.Tier]:
    """Who may be asked.

    Raises:
        RequestError: nobody, and why.
    """
    if name.is_cloud:
        return _cloud_candidates(fleet)
    tiers = policy.hosts(fleet, name.canonical)
    if tiers:
        return tiers
    if name.canonical in fleet.holders:
        raise all_down(name)
    check_seen(fleet)
    raise route.unknown(model)


def _cloud_candidates(fleet: Fleet) -> list[policy.Tier]:
    tiers = policy.cloud_hosts(fleet)
    if tiers:
        return tiers
    if fleet.forbids_cloud:
        raise CLOUD_DISABLED
    raise Unavailable("no backend that may use the cloud is up")


def _first_record(upstream: Upstream) -> bytes:
    """A stream's beginning, up to the end of its first record wherever the reads cut it."""
    end = b"\n\n" if upstream.content_type.startswith("text/event-stream") else b"\n"
    first = upstream.read()
    while end not in first and len(first) < RECORD_BYTES and (piece := upstream.read()):
        first += piece
    return first


def _is_error_record(first: bytes) -> bool:
    """Does an answer with a good status begin with an error, in the form of any dialect?"""
    head = first[:64].lstrip()
    return head.startswith((b'{"error"', b'data: {"error"', b"event: error"))


def _error_text(body: bytes) -> str:
    """An error answer's message, without what differs between two backends that mean the same."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return body.decode("utf-8", "replace")
    return str(error.get("message") if isinstance(error, dict) else error)


def _with_length(headers: list[tuple[str, str]], body: bytes) -> list[tuple[str, str]]:
    return [*to_client(headers), ("Content-Length", str(len(body)))]
