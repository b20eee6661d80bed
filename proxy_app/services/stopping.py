"""A flag that a signal handler may raise.

`threading.Event` may not: a handler that interrupts `Event.wait` in the same thread and calls `set` waits for a lock
that its own thread holds. A `SimpleQueue` may be put into from anywhere, also in the middle of a `get`.
"""

from __future__ import annotations

import queue


class StopFlag:
    """Raised once; waited for by one thread."""

    def __init__(self) -> None:
        self._raised = False
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        self._raised = True
        self._wakes.put(None)

    def is_set(self) -> bool:
        return self._raised

    def wait(self, timeout_s: float) -> bool:
        """Sleep until it is raised, or the time is up; tells whether it is raised."""
        if not self._raised:
            try:
                self._wakes.get(timeout=timeout_s)
            except queue.Empty:
                return self._raised
        return self._raised
