"""Every object of a process, built once from the settings."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from proxy_app.routing.breaker import BreakerRules
from proxy_app.services.breakers import Breakers
from proxy_app.services.catalog import Catalog
from proxy_app.services.documents import Documents
from proxy_app.services.fleet import FleetReloader
from proxy_app.services.guardian import Guardian
from proxy_app.services.relay import Relay
from proxy_app.services.setup import open_registry
from proxy_app.settings import Settings
from proxy_app.store.cache import ShowCache
from proxy_app.store.leases import LeaseKeeper
from proxy_app.store.redis import RedisGate
from proxy_app.upstream.client import Limits, UpstreamClient


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
