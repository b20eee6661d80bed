"""What a worker gathers while it serves, written to the registry from time to time."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Sized
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from proxy_app.errors import RegistryAway
from proxy_app.store.registry import Registry
from proxy_app.store.threads import NativeThread

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Sized)


class Bookkeeper(ABC, Generic[T]):
    """A thread that writes what was gathered; no request waits for it, and what cannot be written waits.

    Owned by: the worker's runtime.
    """

    def __init__(self, name: str, every_s: float, data_dir: Path) -> None:
        self._name, self._every_s, self._data_dir = name, every_s, data_dir
        self._native = NativeThread()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Write the rest, and end."""
        self._stop.set()
        self._thread.join(2)
        self._native.close()

    @abstractmethod
    def _take(self) -> T:
        """What was gathered since the last time."""

    @abstractmethod
    def _write(self, registry: Registry, taken: T) -> None:
        """Write it, on the native thread. Raises: RegistryAway: it is given back."""

    @abstractmethod
    def _give_back(self, taken: T) -> None:
        """Gather it again."""

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._stop.wait(self._every_s)
            taken = self._take()
            try:
                if taken:
                    self._native.run(partial(self._store, taken))
            except RegistryAway as exc:
                log.debug("%s is not written: %s", self._name, exc)
                self._give_back(taken)
            except Exception:  # the top of a thread
                log.exception("%s could not be written", self._name)

    def _store(self, taken: T) -> None:
        with closing(Registry(self._data_dir)) as registry:
            self._write(registry, taken)
