"""Every object of a process, built once from the settings."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from proxy_app.errors import RegistryAway, RegistryTooNew
from proxy_app.routing.breaker import BreakerRules
from proxy_app.services.breakers import Breakers
from proxy_app.services.catalog import Catalog
from proxy_app.services.documents import Documents
from proxy_app.services.fleet import FleetReloader
from proxy_app.services.guardian import Guardian
from proxy_app.services.relay import Relay
from proxy_app.settings import Settings
from proxy_app.store.cache import ShowCache
from proxy_app.store.leases import LeaseKeeper
from proxy_app.store.redis import RedisGate
from proxy_app.store.registry import Registry
from proxy_app.upstream.client import Limits, UpstreamClient

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Runtime:
    """What a web worker works with. Built after the fork; `close` ends its threads and connections."""

    settings: Settings
    reloader: FleetReloader
    catalog: Catalog
    relay: Relay
    guardian: Guardian
    gate: RedisGate
    leases: LeaseKeeper
    upstream: UpstreamClient
    draining: bool = False
    started_s: float = field(default_factory=time.monotonic)

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.started_s

    @classmethod
    def build(cls, settings: Settings) -> Runtime:
        open_registry(settings)
        gate = RedisGate.of(settings)
        cache = show_cache(gate, settings)
        upstream = UpstreamClient()
        reloader = FleetReloader(settings.data_dir, settings.fleet, settings.reload_interval_s)
        documents = Documents(cache, upstream, settings.connect_timeout_s)
        breakers = Breakers(
            BreakerRules(settings.failures_to_open, settings.breaker_open_s), settings.connect_timeout_s + 1
        )
        reloader.on_change(breakers.follow)
        leases = LeaseKeeper(gate, settings.redis_prefix)
        limits = Limits(settings.connect_timeout_s, settings.first_byte_timeout_s, settings.idle_timeout_s)
        runtime = cls(
            settings=settings,
            reloader=reloader,
            catalog=Catalog(reloader, cache, documents, settings),
            relay=Relay(reloader, upstream, breakers, leases, limits, settings.attempts),
            guardian=Guardian(settings.data_dir),
            gate=gate,
            leases=leases,
            upstream=upstream,
        )
        reloader.start()
        if settings.poll_interval_s > 0:
            runtime.guardian.start()
        return runtime

    def close(self) -> None:
        self.draining = True
        if self.settings.poll_interval_s > 0:
            self.guardian.close()
        self.catalog.close()
        self.reloader.close()
        self.leases.close()
        self.upstream.close()
        self.gate.close()


def show_cache(gate: RedisGate, settings: Settings) -> ShowCache:
    return ShowCache(gate, settings.redis_prefix, settings.show_cache_bytes)


# Longer than a migration by another process, shorter than anybody wants to wait for a first answer.
BOOT_BUSY_S = 2.0


def open_registry(settings: Settings) -> None:
    """Migrate the registry and import the environment's backends.

    A registry that cannot be used delays nobody: the worker serves, says why, and looks again.

    Raises:
        RegistryTooNew: it was written by a newer version; going on could damage it.
    """
    try:
        prepare_registry(settings, BOOT_BUSY_S)
    except RegistryTooNew:
        raise
    except RegistryAway as exc:
        log.error("%s", exc)


def prepare_registry(settings: Settings, busy_s: float = 10.0) -> list[str]:
    """Migrate the registry and import the environment's backends; returns the migrations that ran.

    Args:
        busy_s: how long to wait for another process that writes.

    Raises:
        RegistryAway: it cannot be used.
    """
    registry = Registry(settings.data_dir, busy_s=busy_s)
    try:
        applied = registry.migrate()
        for warning in registry.import_backends(settings.fleet):
            log.warning("%s", warning)
        return applied
    finally:
        registry.close()
