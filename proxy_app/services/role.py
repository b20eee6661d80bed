"""The refresher's role: one process per data directory, which holds a lock, beats, and has an epoch.

A process that dies frees its lock at once. One that is stopped (SIGSTOP) keeps it, but its beat grows old: then the
role is taken
over with a later epoch, and whatever the stopped one writes when it is resumed is refused by the registry.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from proxy_app.store.registry import STALE_S, Registry

LOCK = "refresher.lock"


class FileLock:
    """A lock that dies with its process; `held` tells whether this object holds it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    @property
    def held(self) -> bool:
        return self._file is not None

    def take(self) -> bool:
        """Take it if nobody holds it."""
        if self._file is not None:
            return True
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = open(self._path, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        if not self._is_current(file):
            file.close()
            return False
        self._file = file
        return True

    def seize(self) -> None:
        """Take it from a holder that does not move: the file is replaced, and the old one's lock is worth nothing."""
        self.free()
        self._path.unlink(missing_ok=True)
        self.take()

    def _is_current(self, file: IO[bytes]) -> bool:
        try:
            return os.fstat(file.fileno()).st_ino == self._path.stat().st_ino
        except FileNotFoundError:
            return False

    def free(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Role:
    """One process's claim to the refresher's role."""

    def __init__(self, registry: Registry, data_dir: Path) -> None:
        self._registry = registry
        self._lock = FileLock(data_dir / LOCK)
        self.epoch = 0

    def claim(self) -> bool:
        """Take the role if it is free, its holder is dead, or its holder has stopped beating."""
        locked = self._lock.take()
        if not locked and self._registry.beat_age_s(time.monotonic()) is None:
            # Whoever holds the lock is about to claim the role: two that claimed it would take it from each other.
            return False
        epoch = self._registry.claim(f"{socket.gethostname()}:{os.getpid()}", time.monotonic(), force=locked)
        self.epoch = epoch or 0
        if epoch is not None and not locked:
            self._lock.seize()
        return epoch is not None

    def beat(self) -> None:
        self._registry.beat(self.epoch, time.monotonic())

    def give_up(self) -> None:
        """Free the lock without touching the registry."""
        self._lock.free()
        self.epoch = 0


def is_vacant(registry: Registry, data_dir: Path) -> bool:
    """Does nobody hold the role, or nobody who lives?

    Raises:
        RegistryAway: the registry cannot be asked.
    """
    lock = FileLock(data_dir / LOCK)
    if lock.take():
        lock.free()
        return True
    age = registry.beat_age_s(time.monotonic())
    return age is not None and age > STALE_S
