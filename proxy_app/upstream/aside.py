"""Work that goes on beside the greenlet that waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import gevent
from gevent import Greenlet, GreenletExit

from proxy_app.errors import ClientGone

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
