"""Store operations over a fleet: who gets them, and what is said of it.

What is new goes where CARAVAN_PULL_TO says; what is there already is changed wherever it is. What failed on one
backend leaves what the others did done, and the answer names both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from proxy_app.dialects import store
from proxy_app.domain import Backend, Caller, Fleet, ModelName
from proxy_app.errors import (
    AllFailed,
    BadRequest,
    ClientGone,
    Forbidden,
    ModelNotFound,
    RequestError,
    Stopping,
    Unavailable,
)
from proxy_app.routing.targets import Targets, targets
from proxy_app.services.access import check_allowed
from proxy_app.services.fleet import FleetReloader, all_down, check_seen
from proxy_app.services.parts import Crew, Order, error_answer
from proxy_app.services.progress import Progress, outcome
from proxy_app.services.relayed import STOPPING, Answer, Client
from proxy_app.services.store_trace import Note, StoreTrace
from proxy_app.services.visibility import Visibility
from proxy_app.upstream.client import Call, Limits, UpstreamClient

BLOBS = "/api/blobs"


@dataclass(frozen=True, slots=True)
class StoreOps:
    """Changes what the backends hold. Owned by: the worker's runtime; all state is its parts'.

    Every method answers one request; the caller iterates the body and calls `close` whatever happens. All raise:
        RequestError: nothing was changed; the text is for the client.
        ClientGone: the client hung up; what backends were doing for it has ended.
    """

    reloader: FleetReloader
    upstream: UpstreamClient
    visibility: Visibility
    limits: Limits
    pull_to: tuple[str, ...]
    note: Note

    def pull(self, call: Call, client: Client, caller: Caller) -> Answer:
        """Pull a model to the backends that get what is new."""
        with self._traced(call, caller) as trace:
            ask = store.read_pull(_body(call))
            trace.model = ask.given
            check_allowed(caller, ask.name)
            order = self._order("pull", _streaming(call, ask.streams), self._targets())
            return self._progress(order, ask.streams, client, trace)

    def create(self, call: Call, client: Client, caller: Caller) -> Answer:
        """Make a model where what it is made of is."""
        with self._traced(call, caller) as trace:
            ask = store.read_create(_body(call))
            trace.model = ask.name.shortest
            check_allowed(caller, ask.name, *filter(None, (ask.made_from,)))
            if ask.is_foreign and caller.models:
                raise Forbidden("a key that may use some models only makes none from another host's")
            order = self._order("create", _streaming(call, ask.streams), self._makers(ask, call, client))
            return self._progress(order, ask.streams, client, trace)

    def push(self, call: Call, client: Client, caller: Caller) -> Answer:
        """Push a model from its best holder; from another one where that cannot be reached."""
        with self._traced(call, caller) as trace:
            ask = store.read_push(_body(call))
            trace.model = ask.given
            check_allowed(caller, ask.name)
            holders = self._holders(ask.name, f"model '{ask.given}' not found")
            for holder in holders:
                crew = self._crew(Order("push", _streaming(call, ask.streams), [holder]))
                answer = self._run(Progress(crew, client, trace, _nothing_to_settle), ask.streams)
                if crew.parts[0].reached:
                    return answer
            raise AllFailed(f"no backend that holds '{ask.given}' can be reached")

    def copy(self, call: Call, client: Client, caller: Caller) -> Answer:
        """Copy a model on every holder that is up."""
        with self._traced(call, caller) as trace:
            ask = store.read_copy(_body(call))
            trace.model = ask.given
            trace.about = f" to {ask.destination.shortest}"
            check_allowed(caller, ask.source, ask.destination)
            holders = self._holders(ask.source, f"model {store.quoted(ask.given)} not found")
            return self._change(Order("copy", call, holders), client, trace)

    def delete(self, call: Call, client: Client, caller: Caller) -> Answer:
        """Delete a model from every holder; one that is down keeps it, and is named."""
        with self._traced(call, caller) as trace:
            ask = store.read_delete(_body(call))
            trace.model = ask.given
            check_allowed(caller, ask.name)
            holders = self._holders(ask.name, f"model '{ask.given}' not found")
            missing = [(name, "it is down and still holds it") for name in self._down(ask.name)]
            return self._change(Order("delete", call, holders, missing), client, trace)

    def upload(self, digest: str, call: Call, client: Client) -> tuple[Answer, bool]:
        """Send a blob to the backends that get what is new, while it comes in.

        Args:
            call: its body comes in pieces.

        Returns:
            The answer, and whether the body was read to its end.
        """
        with self._traced(call, Caller(), BLOBS) as trace:
            trace.model = digest
            store.check_digest(digest)
            crew = self._crew(self._order("upload", call, self._targets()))
            trace.attempts += [part.name for part in crew.parts]
            was_read = crew.upload(_pieces(call), client)
            return _told(crew, trace), was_read

    def find_blob(self, digest: str, call: Call, client: Client) -> Answer:
        """Do all the backends that get what is new have this blob?"""
        with self._traced(call, Caller(), BLOBS) as trace:
            trace.model = digest
            store.check_digest(digest)
            crew = self._crew(self._order("look for", call, self._targets()))
            trace.attempts += [part.name for part in crew.parts]
            crew.send_all(client)
            if not any(part.reached for part in crew.parts):
                raise Unavailable("no backend that gets uploads can be reached")
            if crew.failed:
                return _noted(error_answer(404, f"blob {store.quoted(digest)} not found"), crew, trace)
            return _noted(Answer(200, "OK", []), crew, trace)

    # -- who ---------------------------------------------------------------------------------------

    def _targets(self) -> Targets:
        """Who gets what is new.

        Raises:
            Unavailable: nobody can.
        """
        fleet = self.reloader.fleet
        chosen = targets(fleet, self.pull_to)
        if not chosen.backends:
            check_seen(fleet)
            reasons = "; ".join(f"{name}: {why}" for name, why in chosen.missing)
            raise Unavailable(f"no backend takes it now ({reasons})" if reasons else "no backend takes it now")
        return chosen

    def _holders(self, name: ModelName, not_found: str) -> Sequence[Backend]:
        """Who holds a model and is up, best first.

        Raises:
            ModelNotFound: nobody does, or did.
            Unavailable: who could be asked is down.
        """
        fleet = self.reloader.knowing(name.canonical)
        found = _live(fleet, name)
        if found:
            return found
        if name.canonical in fleet.holders:
            raise all_down(name)
        check_seen(fleet)
        raise ModelNotFound(not_found)

    def _down(self, name: ModelName) -> list[str]:
        fleet = self.reloader.fleet
        members = [fleet.by_id[held.backend_id] for held in fleet.holders.get(name.canonical, ())]
        return [member.backend.name for member in members if not member.is_live]

    def _makers(self, ask: store.CreateAsk, call: Call, client: Client) -> Targets:
        """Who can make a model: of those who get what is new, else of all.

        Raises:
            BadRequest: nobody has the files.
            Unavailable: see `_targets`; or every holder of the base is down.
        """
        chosen = self._targets()
        fleet = self.reloader.fleet
        if ask.base is not None and ask.base.canonical in fleet.holders:
            holders = [b for b in _live(fleet, ask.base) if fleet.by_id[b.id].takes_work]
            if not holders:
                raise all_down(ask.base)
            wanted = tuple(backend for backend in chosen.backends if backend in holders)
            chosen = Targets(wanted or tuple(holders[:1]))
        if not ask.digests:
            return chosen
        having = self._having(ask.digests, chosen.backends, call, client)
        if having:
            return Targets(having)
        others = [m.backend for m in fleet.members if m.takes_work and m.backend not in chosen.backends]
        having = self._having(ask.digests, others, call, client)
        if not having:
            raise BadRequest("no backend has all the files that this is made of: upload them first")
        return Targets(having)

    def _having(
        self, digests: Sequence[str], backends: Sequence[Backend], call: Call, client: Client
    ) -> tuple[Backend, ...]:
        """Which of these backends have all these blobs."""
        having = tuple(backends)
        for digest in digests:
            if having:
                look = Call("HEAD", f"/api/blobs/{digest}", origin=call.origin)
                crew = self._crew(Order("look for", look, having))
                crew.send_all(client)
                having = tuple(part.backend for part in crew.done)
        return having

    @contextmanager
    def _traced(self, call: Call, caller: Caller, route: str = "") -> Iterator[StoreTrace]:
        """What is written down of an operation, also where it ends in an error of our own, or with its client."""
        trace = StoreTrace(call.request_id, route or call.target, key_id=caller.key_id, note=self.note)
        try:
            yield trace
        except Stopping:
            trace.status, trace.outcome = Unavailable.status, "stopped"
            trace.write()
            raise Unavailable(STOPPING, retry_after_s=1) from None
        except (RequestError, ClientGone) as exc:
            trace.fail(exc)
            raise

    # -- how ---------------------------------------------------------------------------------------

    def _order(self, verb: str, call: Call, chosen: Targets) -> Order:
        return Order(verb, call, chosen.backends, chosen.missing)

    def _crew(self, order: Order) -> Crew:
        return Crew(order, self.upstream, self.limits)

    def _progress(self, order: Order, streams: bool, client: Client, trace: StoreTrace) -> Answer:
        return self._run(Progress(self._crew(order), client, trace, self.visibility.hold), streams)

    def _run(self, progress: Progress, streams: bool) -> Answer:
        try:
            return progress.begin() if streams else progress.run()
        except BaseException:
            progress.cancel()
            raise

    def _change(self, order: Order, client: Client, trace: StoreTrace) -> Answer:
        """Have it done by all holders at once, and wait until it is seen."""
        crew = self._crew(order)
        trace.attempts += [part.name for part in crew.parts]
        crew.send_all(client)
        crew.forgive_missing()
        with client.watch():
            self.visibility.hold([part.backend for part in crew.done])
        return _told(crew, trace)


def _nothing_to_settle(_: Collection[Backend]) -> None:
    """A push changes nothing here."""


def _live(fleet: Fleet, name: ModelName) -> list[Backend]:
    return [fleet.by_id[held.backend_id].backend for held in fleet.live_holders(name.canonical)]


def _body(call: Call) -> bytes:
    assert isinstance(call.body, bytes), "the body was read whole"
    return call.body


def _streaming(call: Call, streams: bool) -> Call:
    """Progress is asked for always: a backend that says nothing for an hour may be dead."""
    return call if streams else replace(call, body=store.streaming(_body(call)))


def _pieces(call: Call) -> Iterator[bytes]:
    assert isinstance(call.body, Iterator), "an upload comes in pieces"
    return call.body


def _told(crew: Crew, trace: StoreTrace) -> Answer:
    return _noted(crew.answer(), crew, trace)


def _noted(answer: Answer, crew: Crew, trace: StoreTrace) -> Answer:
    """An answer that is whole: its log line is written now."""
    trace.status, trace.outcome = answer.status, outcome(crew)
    trace.write()
    return answer
