"""Inference requests: sent to a live backend that hosts the model, failed over until the first byte, then relayed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from proxy_app.dialects.endings import SSE
from proxy_app.dialects.inference import CLOUD_DISABLED, InferenceRoute
from proxy_app.dialects.usage import Spent, WithoutUsage, spent
from proxy_app.domain import Buffer, Fleet, ModelName, parse_name
from proxy_app.errors import (
    Cancelled,
    Cancelling,
    ClientGone,
    CloudDisabled,
    Forbidden,
    Interrupted,
    RequestError,
    Unavailable,
)
from proxy_app.routing import policy
from proxy_app.services.access import fleet_for
from proxy_app.services.fleet import FleetReloader, all_down, all_draining, check_seen
from proxy_app.services.limiter import Limiter, Ticket, limit_headers
from proxy_app.services.relayed import STOPPING, Answer, RelayBody, Trace
from proxy_app.services.running import Run, Runs
from proxy_app.services.search import Asking, Parts, Search
from proxy_app.services.traffic import TrafficBook
from proxy_app.services.unloading import unload_everywhere
from proxy_app.services.usage import UsageBook
from proxy_app.upstream.client import Call

# How requests end without an answer while a backend works on them.
_WORKED_ON = ("client_gone", "upstream_timeout", "cancelled")


@dataclass(frozen=True, slots=True)
class Relay:
    """Relays inference requests of one worker. Owned by: the worker's runtime; all state is its parts'."""

    reloader: FleetReloader
    parts: Parts
    limiter: Limiter
    usage: UsageBook
    runs: Runs
    traffic: TrafficBook

    def answer(self, asking: Asking, model: str) -> Answer:
        """Answer one request; the caller iterates the body and calls `close` whatever happens.

        Args:
            model: the name as the client wrote it.

        Raises:
            RequestError: nothing can be passed on; the text is for the client.
            ClientGone: the client hung up.
        """
        trace = Trace(asking.call.request_id, asking.route.path, model, asking.caller.key_id)
        run = self.runs.begin(trace)
        ticket: Ticket | None = None
        answer: Answer | None = None
        try:
            ticket = self.limiter.admit(asking.caller, _size(asking.call), asking.length)
            with self.parts.budget.request(), asking.client.watch(), run.waiting.exposed():
                search = self._search(asking, trace)
                run.follow = search.follow
                if asking.unloads:
                    unload_everywhere(self.parts.upstream, search.fleet, search.model, asking.call)
                answer = search.run()
        except (RequestError, ClientGone, Interrupted) as exc:
            raise self._told(exc, run) from None
        finally:
            if answer is None:
                self.runs.end(run)
                if ticket is not None:
                    ticket.settle(*_given_up(ticket, trace))
        return self._billed(answer, asking, run, ticket)

    def _told(self, exc: RequestError | ClientGone | Interrupted, run: Run) -> BaseException:
        """The log line of a request that failed, and what is raised for it."""
        if isinstance(exc, Interrupted):
            exc = Cancelled() if isinstance(exc, Cancelling) else Unavailable(STOPPING, retry_after_s=1)
        run.trace.fail(exc)
        self._note(run, Spent())
        return exc

    def _note(self, run: Run, spent: Spent) -> None:
        """A request is over."""
        self.runs.end(run)
        self.usage.note(run.trace, spent)
        self.traffic.note(run, spent)

    def _billed(self, answer: Answer, asking: Asking, run: Run, ticket: Ticket) -> Answer:
        """See to it that what the answer costs is settled when it is over."""
        trace = run.trace

        def bill(spent: Spent) -> None:
            ticket.settle(*_charged(ticket, trace, spent))
            self._note(run, spent)

        if isinstance(answer.body, RelayBody):
            run.body = answer.body
            answer.body.bill, answer.body.waiting = bill, run.waiting
            if asking.hides_usage and answer.body.kind.startswith(SSE):
                answer.body.change = WithoutUsage()
        else:
            bill(_spent_whole(answer, trace))
            if asking.hides_usage:
                _hide_usage(answer)
        if ticket.reserved is not None:
            answer.headers += limit_headers(ticket.reserved.limits, ticket.left)
        return answer

    def _search(self, asking: Asking, trace: Trace) -> Search:
        route = asking.route
        if route.no_cloud is not None:
            if not asking.caller.may_use_cloud:
                raise Forbidden("this key is for some models only, and for none of Ollama's cloud, which searches")
            fleet = self.reloader.fleet
            # No model has its name: what fails here says nothing of the backend's models.
            return Search(self.parts, asking, fleet, trace, _cloud_candidates(fleet, route.no_cloud), route.path)
        if not trace.model:
            raise route.missing
        name = parse_name(trace.model)
        fleet = fleet_for(self.reloader, asking.caller, name, trace.model)
        if name.is_cloud:
            # A cloud model and a local one of the same name have nothing in common but that.
            tiers, model = _cloud_candidates(fleet, CLOUD_DISABLED), f"{name.space}:{name.canonical}"
        else:
            tiers, model = _candidates(fleet, route, name, trace.model), name.canonical
            trace.is_listed = True
        return Search(self.parts, asking, fleet, trace, tiers, model, is_listed=not name.is_cloud)


def _charged(ticket: Ticket, trace: Trace, spent: Spent) -> tuple[int, int]:
    """Tokens and GPU ms that count against the limits: of an answer that does not say it, what the question was taken
    to cost, and of one that its client gave up, all the time since it asked."""
    is_left = trace.outcome == "client_gone"
    is_said = spent.tokens_in or trace.status != 200 or not (is_left or trace.outcome == "complete")
    tokens = spent.tokens if is_said else spent.tokens + ticket.guess
    return tokens, _since_ms(trace) if is_left else spent.gpu_ms


def _given_up(ticket: Ticket, trace: Trace) -> tuple[int, int]:
    """The same for a request without an answer, where a backend worked on it all the same."""
    if trace.attempts and trace.outcome in _WORKED_ON:
        return ticket.guess, _since_ms(trace)
    return 0, 0


def _since_ms(trace: Trace) -> int:
    return int(trace.elapsed_s * 1000)


def _size(call: Call) -> int:
    return len(call.body) if isinstance(call.body, Buffer) else 0


def _hide_usage(answer: Answer) -> None:
    """The same for a stream that came whole."""
    if isinstance(answer.body, bytes) and _content_type(answer).startswith(SSE):
        answer.body = WithoutUsage()(answer.body)
        headers = [(name, value) for name, value in answer.headers if name.lower() != "content-length"]
        answer.headers = [*headers, ("Content-Length", str(len(answer.body)))]


def _content_type(answer: Answer) -> str:
    return next((value for name, value in answer.headers if name.lower() == "content-type"), "")


def _spent_whole(answer: Answer, trace: Trace) -> Spent:
    """What an answer cost that is complete in memory; an error costs nothing."""
    if answer.status != 200 or not isinstance(answer.body, bytes):
        return Spent()
    found = spent(_content_type(answer), answer.body) or Spent(is_exact=False)
    return found if found.gpu_ms else replace(found, gpu_ms=_since_ms(trace), is_exact=False)


def _candidates(fleet: Fleet, route: InferenceRoute, name: ModelName, model: str) -> list[policy.Tier]:
    """Who may be asked.

    Raises:
        RequestError: nobody, and why.
    """
    tiers = policy.hosts(fleet, name.canonical)
    if tiers:
        return tiers
    if fleet.live_holders(name.canonical):
        raise all_draining(name)
    if name.canonical in fleet.holders:
        raise all_down(name)
    check_seen(fleet)
    raise route.unknown(model)


def _cloud_candidates(fleet: Fleet, disabled: CloudDisabled) -> list[policy.Tier]:
    tiers = policy.cloud_hosts(fleet)
    if tiers:
        return tiers
    if fleet.forbids_cloud:
        raise disabled
    raise Unavailable("no backend that may use the cloud is up")
