"""The refresher as a process: it waits for the role, works while it holds it, and ends when told to."""

from __future__ import annotations

import logging

from proxy_app.errors import Fenced, RegistryAway, RegistryTooNew
from proxy_app.services.documents import Documents
from proxy_app.services.hydrate import Hydrator
from proxy_app.services.refresh import Refresher
from proxy_app.services.role import Role
from proxy_app.services.runtime import show_cache
from proxy_app.services.setup import BOOT_BUSY_S, prepare_registry
from proxy_app.services.stopping import StopFlag
from proxy_app.settings import Settings
from proxy_app.store.redis import RedisGate
from proxy_app.store.registry import Registry
from proxy_app.upstream.client import UpstreamClient
from proxy_app.upstream.nets import Nets

log = logging.getLogger(__name__)

# Time between two looks at a role that somebody else holds.
STANDBY_S = 0.25


class RefresherProcess:
    """Everything that `caravan refresh` works with.

    Args:
        waits: stand by while another process holds the role, instead of leaving.
    """

    def __init__(self, settings: Settings, *, waits: bool) -> None:
        self._settings, self._waits = settings, waits
        self._stopping = StopFlag()
        self._refresher: Refresher | None = None

    def stop(self) -> None:
        """End `run` at once; safe in a signal handler."""
        self._stopping.set()
        refresher = self._refresher
        if refresher is not None:
            refresher.stop()

    def once(self) -> bool:
        """One round of polls; False where another process holds the role."""
        prepare_registry(self._settings, BOOT_BUSY_S)
        return self._work(once=True)

    def run(self) -> bool:
        """Hold the role until told to stop; False where another process holds it and we do not wait.

        Raises:
            RegistryAway: the registry cannot be used, and we do not wait.
        """
        complaint = ""
        while not self._stopping.is_set():
            try:
                prepare_registry(self._settings, BOOT_BUSY_S)
                if not self._work(once=False) and not self._waits:
                    return False
            except RegistryAway as exc:
                # Waiting does not make this version newer.
                if not self._waits or isinstance(exc, RegistryTooNew):
                    raise
                if str(exc) != complaint:
                    log.error("%s", exc)
                complaint = str(exc)
            self._stopping.wait(STANDBY_S)
        return True

    def _work(self, *, once: bool) -> bool:
        """Work while we hold the role; False where we do not get it, or lose it."""
        registry = Registry(self._settings.data_dir, busy_s=1.0)
        role = Role(registry, self._settings.data_dir)
        try:
            while not role.claim():
                if once or not self._waits or self._stopping.wait(STANDBY_S):
                    return False
            self._refresh(registry, role, once=once)
            return True
        except Fenced:
            log.warning("another refresher has taken over")
            return False
        finally:
            role.give_up()
            registry.close()

    def _refresh(self, registry: Registry, role: Role, *, once: bool) -> None:
        settings = self._settings
        gate, upstream = RedisGate.of(settings), UpstreamClient(Nets(settings.backend_nets))
        cache = show_cache(gate, settings)
        documents = Documents(cache, upstream, settings.connect_timeout_s)
        hydrator = Hydrator(cache, documents, settings.hydrate_concurrency, settings.hydrate_timeout_s)
        self._refresher = Refresher(settings, registry, role, cache, hydrator)
        try:
            if once:
                self._refresher.once()
            elif not self._stopping.is_set():
                self._refresher.run()
        finally:
            self._refresher = None
            upstream.close()
            gate.close()
