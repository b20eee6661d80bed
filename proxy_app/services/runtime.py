"""Every object of a process, built once from the settings."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from proxy_app.routing.breaker import BreakerRules
from proxy_app.routing.patience import Patience
from proxy_app.services.access import Access
from proxy_app.services.account import Account
from proxy_app.services.admin.backends import BackendAdmin
from proxy_app.services.admin.events import EventBook
from proxy_app.services.admin.fleet import FleetDesk
from proxy_app.services.admin.in_flight import InFlight
from proxy_app.services.admin.keys import KeyDesk
from proxy_app.services.admin.models import ModelDesk
from proxy_app.services.admin.office import Office
from proxy_app.services.admin.sessions import Sessions
from proxy_app.services.admin.traffic import Traffic
from proxy_app.services.breakers import Breakers, Sharing
from proxy_app.services.catalog import Catalog
from proxy_app.services.desk import RegistryDesk
from proxy_app.services.documents import Documents
from proxy_app.services.fleet import FleetReloader
from proxy_app.services.guardian import Guardian
from proxy_app.services.key_use import KeyUse
from proxy_app.services.limiter import Limiter
from proxy_app.services.loads import Loads
from proxy_app.services.relay import Relay
from proxy_app.services.retries import RetryBudget
from proxy_app.services.running import Runs
from proxy_app.services.search import Parts
from proxy_app.services.setup import open_registry
from proxy_app.services.sightings import Sightings
from proxy_app.services.store_ops import StoreOps
from proxy_app.services.traffic import TrafficBook
from proxy_app.services.usage import UsageBook
from proxy_app.services.views import Views
from proxy_app.services.visibility import Visibility
from proxy_app.settings import Settings
from proxy_app.store.board import BreakerBoard
from proxy_app.store.cache import ShowCache
from proxy_app.store.leases import LeaseKeeper
from proxy_app.store.limits import LimitStore
from proxy_app.store.redis import RedisGate
from proxy_app.store.running import RunningBoard
from proxy_app.upstream.body import BodyMemory
from proxy_app.upstream.client import Limits, UpstreamClient
from proxy_app.upstream.nets import Nets

# How long what an operator does waits for another process that writes: a thread waits, not the hub. Where it gives up,
# the operator gets a 503 and an event is missing, so it is far above what a write takes on a machine that is busy.
BUSY_S = 1.0


@dataclass(slots=True)
class Runtime:
    """What a web worker works with. Built after the fork; `close` ends its threads and connections."""

    settings: Settings
    reloader: FleetReloader
    access: Access
    views: Views
    catalog: Catalog
    relay: Relay
    desk: RegistryDesk
    store: StoreOps
    account: Account
    guardian: Guardian
    gate: RedisGate
    leases: LeaseKeeper
    upstream: UpstreamClient
    bodies: BodyMemory
    sharing: Sharing
    key_use: KeyUse
    limiter: Limiter
    usage: UsageBook
    traffic_book: TrafficBook
    traffic: Traffic
    draining: bool = False
    started_s: float = field(default_factory=time.monotonic)
    admin: Office = field(init=False)

    def __post_init__(self) -> None:
        self.admin = office(self)

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.started_s

    @classmethod
    def build(cls, settings: Settings) -> Runtime:
        open_registry(settings)
        gate, upstream, access = RedisGate.of(settings), UpstreamClient(Nets(settings.backend_nets)), Access(settings)
        cache = show_cache(gate, settings)
        reloader = FleetReloader(settings.data_dir, settings.fleet, settings.reload_interval_s, access.follow)
        leases = LeaseKeeper(gate, settings.redis_prefix)
        parts = search_parts(settings, upstream, leases)
        limiter = Limiter(LimitStore(gate, settings.redis_prefix), settings.workers)
        usage = UsageBook(settings.data_dir, settings.usage_days)
        runs, traffic_book = Runs(), TrafficBook(settings.data_dir)
        desk = RegistryDesk(settings.data_dir, BUSY_S)
        runtime = cls(
            settings=settings,
            reloader=reloader,
            access=access,
            views=Views(),
            catalog=Catalog(reloader, cache, Documents(cache, upstream, settings.connect_timeout_s), settings),
            relay=Relay(reloader, parts, limiter, usage, runs, traffic_book),
            limiter=limiter,
            usage=usage,
            traffic_book=traffic_book,
            traffic=Traffic(InFlight(runs, RunningBoard(gate, settings.redis_prefix)), settings.data_dir),
            store=store_ops(settings, reloader, upstream, EventBook(desk)),
            desk=desk,
            account=account(settings, reloader, upstream),
            guardian=Guardian(settings.data_dir),
            gate=gate,
            leases=leases,
            upstream=upstream,
            bodies=BodyMemory(settings.body_memory, settings.data_dir),
            key_use=KeyUse(access, settings.data_dir),
            sharing=Sharing(parts.breakers, BreakerBoard(gate, settings.redis_prefix)),
        )
        reloader.on_change(parts.breakers.follow)
        reloader.on_change(runs.follow)
        runtime.start()
        return runtime

    def start(self) -> None:
        for part in (self.reloader, self.sharing, self.key_use, self.usage, self.traffic_book, self.traffic):
            part.start()
        if self.settings.poll_interval_s > 0:
            self.guardian.start()

    def close(self) -> None:
        """End everything, those first that use others."""
        self.draining = True
        if self.settings.poll_interval_s > 0:
            self.guardian.close()
        bookkeepers = (self.sharing, self.key_use, self.limiter, self.usage, self.traffic_book)
        users = (self.traffic, self.admin, self.catalog, self.store.visibility, self.reloader)
        for part in (*bookkeepers, *users, self.leases, self.upstream, self.gate):
            part.close()


def search_parts(settings: Settings, upstream: UpstreamClient, leases: LeaseKeeper) -> Parts:
    connect_s = settings.connect_timeout_s
    patience = Patience(settings.first_byte_timeout_s, settings.load_timeout_s)
    return Parts(
        upstream=upstream,
        breakers=Breakers(BreakerRules(settings.failures_to_open, settings.breaker_open_s)),
        leases=leases,
        loads=Loads(connect_s, settings.idle_timeout_s, patience, settings.finish_loads),
        budget=RetryBudget(settings.retry_share),
        max_attempts=settings.attempts,
    )


def store_ops(settings: Settings, reloader: FleetReloader, upstream: UpstreamClient, events: EventBook) -> StoreOps:
    limits = Limits(settings.connect_timeout_s, settings.store_timeout_s, settings.store_timeout_s)
    sightings = Sightings(settings.data_dir)
    reloader.on_change(sightings.note)
    visibility = Visibility(settings.data_dir, sightings)
    return StoreOps(reloader, upstream, visibility, limits, settings.pull_to, events.note)


def office(services: Runtime) -> Office:
    settings, reloader, parts = services.settings, services.reloader, services.relay.parts
    desk, events = services.desk, EventBook(services.desk)
    loading = Limits(settings.connect_timeout_s, settings.load_timeout_s, settings.load_timeout_s)
    return Office(
        server=settings,
        desk=desk,
        sessions=Sessions(settings, services.access, desk, services.limiter),
        backends=BackendAdmin(settings, lambda: reloader.fleet, desk, services.store.visibility, events),
        fleet_desk=FleetDesk(settings, reloader, desk, parts.leases, parts.breakers),
        model_desk=ModelDesk(reloader, services.catalog, services.store, parts.upstream, loading, events),
        key_desk=KeyDesk(settings, desk, services.store.visibility, events),
        event_book=events,
        traffic_desk=services.traffic,
    )


def account(settings: Settings, reloader: FleetReloader, upstream: UpstreamClient) -> Account:
    limits = Limits(settings.connect_timeout_s, settings.show_timeout_s, settings.show_timeout_s)
    return Account(reloader, upstream, limits, settings.account_backend)


def show_cache(gate: RedisGate, settings: Settings) -> ShowCache:
    return ShowCache(gate, settings.redis_prefix, settings.show_cache_bytes)
