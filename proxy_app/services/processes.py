"""The process group of `caravan up`: children that die with it, and are replaced when they die."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from proxy_app.services.stopping import StopFlag

log = logging.getLogger(__name__)

# A child that dies sooner than this is started again with growing pauses.
YOUNG_S = 5.0
PAUSES_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
LOOK_S = 0.1


def tethered(command: Sequence[str], death_signal: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command, run so that it gets this signal when the calling process dies."""
    wrapper = [sys.executable, "-m", "proxy_app.services.tether", death_signal.name, str(os.getpid())]
    return [*wrapper, *command]


def caravan_command(*words: str) -> list[str]:
    """One of our own commands, as a child that dies with this process."""
    return tethered([sys.executable, "-m", "proxy_app.cli", *words])


def stop_process(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Ask a process to stop, and kill it when its time is up."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass(slots=True)
class Child:
    """One process of the group. `before` runs before each start (it may clean up what the last one left)."""

    name: str
    command: Sequence[str]
    patience_s: float
    before: Callable[[], None] = lambda: None
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    start_at_s: float = 0.0
    deaths: int = field(default=0)

    def start(self) -> None:
        self.before()
        # In a session of its own: Ctrl-C in a terminal is for us alone, who stop the children in order.
        self.process = subprocess.Popen(self.command, start_new_session=True)
        self.started_s = time.monotonic()

    def look(self) -> None:
        """Start it again if it died."""
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            self.deaths = self.deaths + 1 if now - self.started_s < YOUNG_S else 0
            pause = PAUSES_S[min(self.deaths, len(PAUSES_S) - 1)]
            log.warning("%s ended with %s; starting it again", self.name, self.process.returncode)
            self.process, self.start_at_s = None, now + pause
        if self.process is None and now >= self.start_at_s:
            self.start()


class Group:
    """Children in the order of their start; they stop in the opposite order.

    Owned by: the `caravan up` process, which stays single-threaded: the tie between a child and its parent is one
    between the child and the thread that started it.
    """

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = list(children)
        self._stopping = StopFlag()

    def stop(self) -> None:
        """End `run`; safe in a signal handler."""
        self._stopping.set()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def run(self, started: Callable[[], None]) -> None:
        """Start everybody, replace who dies, and stop everybody when told to."""
        try:
            for child in self._children:
                child.start()
            started()
            while not self._stopping.wait(LOOK_S):
                for child in self._children:
                    child.look()
        finally:
            self._stop_all()

    def _stop_all(self) -> None:
        # The last in the list serve and use what the first provide: they have to be gone first.
        for child in reversed(self._children):
            if child.process is not None:
                stop_process(child.process, child.patience_s)
