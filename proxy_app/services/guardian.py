"""Sees to it that somebody refreshes: a worker starts a refresher as its child where nobody holds the role."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from pathlib import Path

from proxy_app.errors import RegistryAway
from proxy_app.services.processes import caravan_command, stop_process
from proxy_app.services.role import FileLock, is_vacant
from proxy_app.store.registry import STALE_S, Registry
from proxy_app.store.threads import NativeThread

log = logging.getLogger(__name__)

LOOK_S = 0.5
# Those who run a refresher of their own (`caravan up`, a Procfile) replace it faster than this.
VACANT_S = 2.0


class Guardian:
    """One worker of a data directory, the holder of `guardian.lock`, watches over the role.

    Owned by: the worker's runtime. The child dies with the worker, however that dies.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._lock = FileLock(data_dir / "guardian.lock")
        self._native = NativeThread()
        self._registry: Registry | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._vacant_since: float | None = None
        self._started_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guardian", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(2)
        if self._child is not None:
            stop_process(self._child, 1.5)
        self._native.run(self._forget_registry)
        self._native.close()
        self._lock.free()

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                self._look()
            except (RegistryAway, OSError) as exc:
                self._native.run(self._forget_registry)
                log.debug("the refresher's role could not be looked at: %s", exc)

    def _look(self) -> None:
        if not self._lock.take():
            return
        if self._child is not None:
            if self._child.poll() is None and not self._hangs():
                return
            log.warning("the refresher ended with %s", self._child.poll())
            self._child = None
        if not self._native.run(self._is_vacant):
            self._vacant_since = None
            return
        now = time.monotonic()
        if self._vacant_since is None:
            self._vacant_since = now
        elif now - self._vacant_since >= VACANT_S and not self._stop.is_set():
            self._vacant_since = None
            log.info("nobody refreshes the registry: starting a refresher")
            self._started_s = time.monotonic()
            self._child = subprocess.Popen(caravan_command("refresh", "--child"))

    def _hangs(self) -> bool:
        """Has our own child stopped beating? Then it is killed, and the next one takes its role."""
        child, old_enough = self._child, time.monotonic() - self._started_s > STALE_S
        if child is None or not old_enough or not self._native.run(self._is_vacant):
            return False
        log.warning("the refresher does not move any more: killing it")
        child.kill()
        child.wait()
        return True

    def _forget_registry(self) -> None:
        """On the native thread. The next look opens it anew: it may have been replaced."""
        registry, self._registry = self._registry, None
        if registry is not None:
            registry.close()

    def _is_vacant(self) -> bool:
        if self._registry is not None and self._registry.is_replaced:
            self._forget_registry()
        if self._registry is None:
            self._registry = Registry(self._data_dir)
        return is_vacant(self._registry, self._data_dir)
