"""Writing down when keys were last used: rarely, and never while a request waits."""

from __future__ import annotations

from pathlib import Path

from proxy_app.services.access import Access
from proxy_app.services.bookkeeper import Bookkeeper
from proxy_app.services.keyring import BOOTSTRAP
from proxy_app.store.keys import KeyStore
from proxy_app.store.registry import Registry

# A person who looks at this asks about days.
WRITE_S = 10.0


class KeyUse(Bookkeeper[dict[str, float]]):
    """Writes what `Access` saw: UTC seconds by the key's id."""

    def __init__(self, access: Access, data_dir: Path) -> None:
        super().__init__("key-use", WRITE_S, data_dir)
        self._access = access

    def _take(self) -> dict[str, float]:
        used, self._access.used = self._access.used, {}
        used.pop(BOOTSTRAP, None)
        return used

    def _write(self, registry: Registry, taken: dict[str, float]) -> None:
        KeyStore(registry).note_used(taken)

    def _give_back(self, taken: dict[str, float]) -> None:
        self._access.used = taken | self._access.used
