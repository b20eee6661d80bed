"""Writing down when keys were last used: rarely, and never while a request waits."""

from __future__ import annotations

import logging
import threading
from functools import partial
from pathlib import Path

from proxy_app.errors import RegistryAway
from proxy_app.services.access import Access
from proxy_app.services.keyring import BOOTSTRAP
from proxy_app.store.keys import KeyStore
from proxy_app.store.registry import Registry
from proxy_app.store.threads import NativeThread

log = logging.getLogger(__name__)

# A person who looks at this asks about days.
WRITE_S = 10.0


class KeyUse:
    """Owned by: the worker's runtime. Its thread writes what `Access` saw; what cannot be written waits."""

    def __init__(self, access: Access, data_dir: Path) -> None:
        self._access, self._data_dir = access, data_dir
        self._native = NativeThread()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="key-use", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Write the rest, and end."""
        self._stop.set()
        self._thread.join(2)
        self._native.close()

    def _run(self) -> None:
        while True:
            is_last = self._stop.wait(WRITE_S)
            used, self._access.used = self._access.used, {}
            used.pop(BOOTSTRAP, None)
            try:
                if used:
                    self._native.run(partial(self._write, used))
            except RegistryAway as exc:
                log.debug("when keys were used is not written: %s", exc)
                self._access.used = used | self._access.used
            except Exception:  # the top of a thread
                log.exception("when keys were used could not be written")
            if is_last:
                return

    def _write(self, used: dict[str, float]) -> None:
        registry = Registry(self._data_dir)
        try:
            KeyStore(registry).note_used(used)
        finally:
            registry.close()
