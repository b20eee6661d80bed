"""Work that goes on beside the greenlet that waits for it, and waiting that somebody else may end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import gevent
from gevent import Greenlet, GreenletExit, getcurrent

from proxy_app.errors import ClientGone, Interrupted

T = TypeVar("T")


class Aside(Generic[T]):
    """One function, called in a greenlet of its own. Owned by: whoever made it; `cancel` ends it at once."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.value: T | None = None
        self._error: BaseException | None = None
        self._begun = False
        self._greenlet: Greenlet = gevent.spawn(self._run, work)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end; False where time is up first."""
        self._greenlet.join(timeout_s)
        return bool(self._greenlet.dead)

    def result(self) -> T:
        """What the function returned. Raises: what it raised."""
        if self._error is not None:
            raise self._error
        return self.value  # type: ignore[return-value]

    def when_over(self, call: Callable[[], None]) -> None:
        """Call something in another greenlet once it has ended."""
        self._greenlet.link(lambda _: call())

    def cancel(self) -> None:
        """Throw `ClientGone` into it, wherever it waits, and wait for its end."""
        if not self._greenlet.dead and self._error is None:
            # Thrown into one that has not begun, it would be reported as nobody's.
            self._greenlet.kill(ClientGone() if self._begun else GreenletExit())
            self._error = self._error or ClientGone()

    def _run(self, work: Callable[[], T]) -> None:
        self._begun = True
        try:
            self.value = work()
        except BaseException as exc:  # `result` raises it
            self._error = exc


class Interruptible:
    """What one request does, which others may end where it waits. Owned by: the request.

    Only what is `exposed` is ended: a greenlet that has gone on to other work must never get what was meant for this.
    """

    __slots__ = ("_cause", "_hub", "_waiting")

    def __init__(self) -> None:
        self._cause: Interrupted | None = None
        self._waiting: Any = None
        self._hub: Any = None

    @property
    def is_interrupted(self) -> bool:
        return self._cause is not None

    @property
    def is_exposed(self) -> bool:
        return self._waiting is not None

    @contextmanager
    def exposed(self) -> Iterator[None]:
        """Raise what `interrupt` says in the greenlet inside, also where that was said before."""
        if self._cause is not None:
            raise self._cause
        self._hub, self._waiting = gevent.get_hub(), getcurrent()
        try:
            yield
        finally:
            self._waiting = None

    def interrupt(self, cause: Interrupted) -> None:
        """End it; the first cause counts."""
        if self._cause is None:
            self._cause = cause
            if self._waiting is not None:
                self._hub.loop.run_callback_threadsafe(self._throw)

    def _throw(self) -> None:
        """Called by the hub: in that moment the greenlet waits, or has left."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.throw(self._cause)
