"""The running part of a fake: its port, its event loop thread, and what it has seen."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from conformance.fakes.answers import Answer
from conformance.fakes.raw import fill_backlog, held_port
from conformance.fakes.recorded import RecordedRequest
from conformance.fakes.wire import Connection, Exchange

# Bound in seconds for anything a test asks the loop to do; a longer answer is a bug of the fake.
COMMAND_DEADLINE_S = 15.0
BACKLOG = 1024


def matches(pattern: str, path: str) -> bool:
    """Compare a path with a pattern: exact, or a prefix when it ends in `*` or `/`."""
    if pattern.endswith("*"):
        return path.startswith(pattern[:-1])
    if pattern.endswith("/") and pattern != "/":
        return path.startswith(pattern)
    return path == pattern


class Journal:
    """What a fake has seen. Written by its loop, read by tests; survives kill and restart."""

    def __init__(self) -> None:
        self.requests: list[RecordedRequest] = []
        self.errors: list[BaseException] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self.keep = True
        self._changed = threading.Condition()

    def began(self, request: RecordedRequest) -> None:
        with self._changed:
            if self.keep:
                self.requests.append(request)
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
            self._changed.notify_all()

    def ended(self, request: RecordedRequest) -> None:
        with self._changed:
            self.in_flight -= 1
            self._changed.notify_all()

    def of(self, pattern: str) -> list[RecordedRequest]:
        return [request for request in list(self.requests) if matches(pattern, request.target)]

    def wait(self, ready: Callable[[], bool], deadline_s: float, what: str) -> None:
        """Wait until something about the requests is true; AssertionError after the deadline."""
        with self._changed:
            if not self._changed.wait_for(ready, deadline_s):
                seen = [repr(request) for request in self.requests[-20:]]
                raise AssertionError(f"not within {deadline_s} s: {what}; saw {seen}")

    def forget(self) -> None:
        with self._changed:
            self.requests = []
            self.max_in_flight = self.in_flight


class Server:
    """Owns one port for its life, and a loop thread while it is started.

    Args:
        respond: plays the answer to one exchange; runs on the loop.
        plan: the fault-free answer to a request.
    """

    def __init__(
        self,
        respond: Callable[[Exchange], Coroutine[Any, Any, None]],
        plan: Callable[[RecordedRequest], Answer],
        port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self.respond = respond
        self.answer = plan
        self.journal = Journal()
        self.connections: set[Connection] = set()
        self.dying = False
        self.accepting = False
        self.running = asyncio.Event()
        self.running.set()
        # The holder keeps the number ours while nobody listens: a killed fake refuses connections
        # and no other process can take its place before the restart.
        self._holder = held_port(port, host)
        self.host = host
        self.port: int = self._holder.getsockname()[1]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._listener: socket.socket | None = None
        self._accepts: set[asyncio.Task[Any]] = set()
        self._plugs: list[socket.socket] = []

    # Called by connections.

    def began(self, request: RecordedRequest) -> None:
        self.journal.began(request)

    def ended(self, request: RecordedRequest) -> None:
        self.journal.ended(request)

    def failed(self, error: BaseException | None) -> None:
        """Keep an error of the fake itself; stop() raises it."""
        if error is not None:
            self.journal.errors.append(error)

    # Called by tests.

    def start(self) -> None:
        if self._thread is not None:
            raise RuntimeError("the fake runs already")
        loop = asyncio.new_event_loop()
        self._loop = loop
        name = f"fake-ollama-{self.port}"
        self._thread = threading.Thread(target=self._run, args=(loop,), name=name, daemon=True)
        self._thread.start()
        self.listen()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    def command(self, what: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the loop and wait for it."""
        assert self._loop is not None, "the fake is not started"
        future = asyncio.run_coroutine_threadsafe(what, self._loop)
        return future.result(COMMAND_DEADLINE_S)

    def listen(self) -> None:
        """Begin to accept on the port."""
        self.command(self._listen())

    async def _listen(self) -> None:
        listener = held_port(self.port, self.host)
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._listener = listener
        self.accepting = True
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Take all waiting connections.

        Not asyncio's own server: it forgets a connection that is between accept and its protocol
        when the server closes, and the socket stays open until it is collected.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                conn, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            conn.setblocking(False)
            task = loop.create_task(loop.connect_accepted_socket(lambda: Connection(self), conn))
            self._accepts.add(task)
            task.add_done_callback(self._accepts.discard)

    def drop(self, reset: bool) -> None:
        """Stop listening and end all connections."""
        for plug in self._plugs:
            plug.close()
        self._plugs.clear()
        self.command(self._drop(reset))

    async def _drop(self, reset: bool) -> None:
        await self._close_listener()
        self.dying = True
        for connection in list(self.connections):
            if reset:
                connection.reset()
            else:
                connection.transport.abort()
        # Connections report their loss on the next turns of the loop.
        while self.connections or self._accepts:
            await asyncio.sleep(0)
        self.dying = False
        self.running.set()

    def freeze(self, frozen: bool) -> None:
        self.command(self._freeze(frozen))

    async def _freeze(self, frozen: bool) -> None:
        if frozen:
            self.running.clear()
        else:
            self.running.set()

    def swallow_connects(self) -> None:
        """Turn the port into a SYN black hole; open connections stay open and silent."""
        self.freeze(True)
        self.command(self._close_listener())
        listener = held_port(self.port, self.host)
        self._plugs = [listener, *fill_backlog(listener)]

    async def _close_listener(self) -> None:
        self.accepting = False
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def stop(self) -> None:
        """End everything within a second; raise what went wrong inside the fake."""
        if self._thread is None or self._loop is None:
            self._holder.close()
            return
        self.drop(reset=False)
        self.command(self._settle())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(COMMAND_DEADLINE_S)
        if self._thread.is_alive():
            raise RuntimeError("the fake's thread does not end")
        self._thread = self._loop = None
        self._holder.close()
        if self.journal.errors:
            raise RuntimeError("the fake failed") from self.journal.errors[0]

    async def _settle(self) -> None:
        """Wait for cancelled exchanges, so that none is destroyed while pending."""
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()

    @property
    def started(self) -> bool:
        return self._thread is not None

    def wait_connections(self, count: int, deadline_s: float) -> None:
        """Wait until exactly `count` connections are open."""
        end = time.monotonic() + deadline_s
        while len(self.connections) != count:
            if time.monotonic() > end:
                raise AssertionError(f"{len(self.connections)} connections, wanted {count}")
            time.sleep(0.002)
