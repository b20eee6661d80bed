"""An Ollama server for tests: real sockets, Ollama's exact wire forms, and faults on demand.

    with FakeOllama("a", models=["llama3"]) as fake:
        fake.fault("/api/chat", Refuse503Busy(), times=1)
        ...
        assert fake.count("/api/chat") == 2

Alone: `python -m conformance.fakes.ollama --port 11500 --model llama3 --tokens 50`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from conformance.fakes.faults import Fault
from conformance.fakes.machine import Machine
from conformance.fakes.models import FakeModel
from conformance.fakes.recorded import RecordedRequest
from conformance.fakes.routes import Routes
from conformance.fakes.server import Server, matches
from conformance.fakes.store import ModelStore
from conformance.fakes.wire import Exchange

__all__ = ["FakeModel", "FakeOllama", "FaultRule", "RecordedRequest"]

# Default deadline in seconds of the waits: a safety net, far above what a healthy run needs.
LONG_S = 15.0


@dataclass(eq=False)
class FaultRule:
    """One programmed fault; `played` counts how often it struck."""

    pattern: str
    fault: Fault
    times: int | None
    when: Callable[[RecordedRequest], bool] | None
    played: int = 0
    removed: bool = field(default=False)

    def applies(self, request: RecordedRequest) -> bool:
        used_up = self.times is not None and self.played >= self.times
        if self.removed or used_up or not matches(self.pattern, request.target):
            return False
        return self.when is None or self.when(request)

    def remove(self) -> None:
        self.removed = True


class FakeOllama(Machine):
    """A simulated Ollama server on a port of 127.0.0.1 that stays its own until stop().

    Owned by one test. Its Machine fields (`version`, `tokens`, `token_delay_s`, `cloud_disabled`,
    ...) may be changed at any time and hold for the next request.
    """

    def __init__(
        self,
        name: str = "fake",
        models: Iterable[str | FakeModel] = ("tiny",),
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        tokens: int | None = None,
        token_delay_s: float = 0.0,
        version: str = "0.33.0",
        cloud_disabled: bool = False,
    ) -> None:
        super().__init__(name, ModelStore(models), version, cloud_disabled, tokens, token_delay_s)
        self._rules: list[FaultRule] = []
        self._rules_lock = threading.Lock()
        self._routes = Routes(self)
        self._server = Server(self._respond, self._routes.answer, port, host)
        self._journal = self._server.journal

    def __repr__(self) -> str:
        return f"<FakeOllama {self.name} {self.url}>"

    # --- life ----------------------------------------------------------------------------------

    def start(self) -> Self:
        self._server.start()
        return self

    def stop(self) -> None:
        """End everything the fake does; also frees the port. A second call does nothing."""
        self._server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def kill(self, reset: bool = False) -> None:
        """Die as by SIGKILL: connects are refused, streams break off without their end.

        The kernel of a killed process sends a FIN where all input was read; `reset` sends an RST.
        Models and counters stay for a restart.
        """
        self._server.drop(reset)

    def restart(self) -> None:
        """Come back on the same port after a kill or a black hole; nothing is loaded then."""
        self._server.drop(reset=False)
        for model, _ in self.store.resident():
            self.store.unload(model.name)
        self._server.listen()

    def pause(self) -> None:
        """Accept and read, but send nothing more: a hung server. Requests are still recorded."""
        self._server.freeze(True)

    def resume(self) -> None:
        self._server.freeze(False)

    def black_hole(self) -> None:
        """Vanish from the network: new connects hang, open connections fall silent.

        Only restart() ends it.
        """
        self._server.swallow_connects()

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def url(self) -> str:
        return f"http://{self._server.host}:{self.port}"

    # --- models --------------------------------------------------------------------------------

    def add_model(self, model: str | FakeModel) -> FakeModel:
        return self.store.add(model)

    def remove_model(self, name: str) -> None:
        self.store.remove(name)

    def set_digest(self, name: str, digest: str) -> None:
        self.store.set_digest(name, digest)

    def load_model(self, name: str) -> None:
        self.store.load(name)

    def unload_model(self, name: str) -> None:
        self.store.unload(name)

    @property
    def cloud_models(self) -> dict[str, FakeModel]:
        """Base name -> model that `<base>:cloud` and `<base>-cloud` reach."""
        return self.store.cloud_models

    @cloud_models.setter
    def cloud_models(self, models: dict[str, FakeModel]) -> None:
        self.store.cloud_models = models

    # --- faults --------------------------------------------------------------------------------

    def fault(
        self,
        path: str,
        fault: Fault | type[Fault],
        times: int | None = 1,
        when: Callable[[RecordedRequest], bool] | None = None,
    ) -> FaultRule:
        """Let the next `times` requests (None: all) for a path meet a fault.

        Args:
            path: exact, or a prefix when it ends in `*` or `/`.
            fault: a value, or its class where the defaults will do.
            when: further condition; runs on the serving thread, so it must not block.
        """
        value = fault() if isinstance(fault, type) else fault
        rule = FaultRule(path, value, times, when)
        with self._rules_lock:
            self._rules.append(rule)
        return rule

    def clear_faults(self) -> None:
        with self._rules_lock:
            self._rules.clear()

    def _next_fault(self, request: RecordedRequest) -> Fault | None:
        with self._rules_lock:
            for rule in self._rules:
                if rule.applies(request):
                    rule.played += 1
                    return rule.fault
        return None

    async def _respond(self, exchange: Exchange) -> None:
        fault = self._next_fault(exchange.request)
        if fault is None:
            await exchange.play(exchange.plan())
        else:
            await fault.play(exchange)

    # --- observation ---------------------------------------------------------------------------

    @property
    def requests(self) -> list[RecordedRequest]:
        return self._journal.requests

    def requests_for(self, path: str) -> list[RecordedRequest]:
        """The recorded requests for a path (or prefix), oldest first."""
        return self._journal.of(path)

    def count(self, path: str) -> int:
        return len(self._journal.of(path))

    def wait_for(self, path: str, n: int = 1, deadline_s: float = LONG_S) -> RecordedRequest:
        """Wait until `n` requests for a path have come; returns the n-th."""
        what = f"{n} requests for {path} at {self.name}"
        self._journal.wait(lambda: self.count(path) >= n, deadline_s, what)
        return self._journal.of(path)[n - 1]

    def wait_idle(self, deadline_s: float = LONG_S) -> None:
        """Wait until no request is in flight."""
        self._journal.wait(lambda: self.in_flight == 0, deadline_s, f"{self.name} idle")

    def wait_connections(self, count: int, deadline_s: float = LONG_S) -> None:
        self._server.wait_connections(count, deadline_s)

    def forget_requests(self) -> None:
        """Start the record anew."""
        self._journal.forget()

    def keep_requests(self, keep: bool) -> None:
        """Turn the record off for long loads, where it would only grow."""
        self._journal.keep = keep

    @property
    def open_connections(self) -> int:
        return len(self._server.connections)

    @property
    def in_flight(self) -> int:
        """Requests that are read and whose answer is not complete."""
        return self._journal.in_flight

    @property
    def max_in_flight(self) -> int:
        return self._journal.max_in_flight


if __name__ == "__main__":
    from conformance.fakes.standalone import main

    main()
