"""One piece of work for everybody who waits for it, within one process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class _Flight(Generic[T]):
    def __init__(self) -> None:
        self.landed = threading.Event()
        self.result: T | None = None
        self.failure: BaseException | None = None


class Flights(Generic[T]):
    """A table of work in progress.

    The work runs on a thread of its own, so that no client's hang-up ends what others wait for.
    """

    def __init__(self) -> None:
        self._flying: dict[Hashable, _Flight[T]] = {}
        self._lock = threading.Lock()

    def join(self, key: Hashable, work: Callable[[], T]) -> T:
        """Wait for the work under this key, starting it where nobody has; raises what it raised."""
        flight = self.start(key, work)
        flight.landed.wait()
        if flight.failure is not None:
            raise flight.failure
        return flight.result  # type: ignore[return-value]

    def start(self, key: Hashable, work: Callable[[], T]) -> _Flight[T]:
        """Start the work where nobody has, and do not wait."""
        with self._lock:
            flight = self._flying.get(key)
            if flight is None:
                flight = self._flying[key] = _Flight()
                thread = threading.Thread(target=self._fly, args=(key, flight, work), name=f"flight {key}", daemon=True)
                thread.start()
        return flight

    def _fly(self, key: Hashable, flight: _Flight[T], work: Callable[[], T]) -> None:
        try:
            flight.result = work()
        except Exception as exc:  # the top of a thread: whoever waits raises it
            flight.failure = exc
        finally:
            with self._lock:
                del self._flying[key]
            flight.landed.set()
