"""The inference requests that a worker works on, so that operators can see them and end them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from proxy_app.domain import Fleet
from proxy_app.errors import Cancelling
from proxy_app.services.relayed import RelayBody, Trace
from proxy_app.store.redis import unix_now
from proxy_app.upstream.aside import Interruptible


@dataclass(eq=False, slots=True, weakref_slot=True)
class Run:
    """One running request. Owned by: whoever works on it.

    Args:
        id: its own: clients may choose theirs, and choose the same twice.
        at: when it came, UTC seconds.
        body: of its answer, where that streams.
        follow: is told of a new Fleet while it looks for an answer.
    """

    trace: Trace
    id: str = field(default_factory=lambda: "%032x" % random.getrandbits(128))
    at: float = field(default_factory=unix_now)
    waiting: Interruptible = field(default_factory=Interruptible)
    body: RelayBody | None = None
    follow: Callable[[Fleet], None] = lambda _: None

    @property
    def backend(self) -> str | None:
        """Who works on it; None while it looks for one."""
        attempts = self.trace.attempts
        return attempts[-1] if len(attempts) > len(self.trace.reasons) else None

    @property
    def tokens(self) -> int:
        return self.body.record.tokens if self.body is not None else 0

    def cancel(self) -> None:
        """End it: its client is told so as soon as it can be told anything, its backend is free at once."""
        self.waiting.interrupt(Cancelling())
        if self.body is not None and not self.waiting.is_exposed:
            # It waits for its client, who may take nothing for long; nobody reads from the backend in that time.
            self.body.free()


class Runs:
    """Owned by: the worker's runtime; changed by the relay.

    They are held weakly: what nobody works on any more is not there, even where nobody has said its end.
    """

    def __init__(self) -> None:
        self._runs: WeakValueDictionary[str, Run] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        """Newest first."""
        return iter(sorted(self._runs.values(), key=lambda run: run.at, reverse=True))

    def follow(self, fleet: Fleet) -> None:
        for run in list(self._runs.values()):
            run.follow(fleet)

    def begin(self, trace: Trace) -> Run:
        run = Run(trace)
        self._runs[run.id] = run
        return run

    def end(self, run: Run) -> None:
        """It is over. Idempotent."""
        self._runs.pop(run.id, None)
        # The body knows its run, too: a circle would wait for the garbage collector.
        run.body = None

    def cancel(self, run_id: str) -> bool:
        """End one, if it is here."""
        run = self._runs.get(run_id)
        if run is not None:
            run.cancel()
        return run is not None
