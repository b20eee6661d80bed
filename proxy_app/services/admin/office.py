"""Everything that an operator may see and do, in one place for the pages and the API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy_app.errors import Missing
from proxy_app.services.admin import settings as settings_desk
from proxy_app.services.admin.backends import BackendAdmin
from proxy_app.services.admin.events import EventBook
from proxy_app.services.admin.fleet import FleetDesk
from proxy_app.services.admin.keys import KeyDesk
from proxy_app.services.admin.models import ModelDesk
from proxy_app.services.admin.sessions import Sessions
from proxy_app.services.admin.shapes import (
    ChartView,
    EventsView,
    FleetView,
    KeysView,
    ModelsView,
    SettingsView,
    TrafficView,
    UsageRow,
    UsageView,
)
from proxy_app.services.admin.traffic import Traffic
from proxy_app.services.desk import RegistryDesk
from proxy_app.services.usage import HOUR_S
from proxy_app.services.usage_report import columns, sums
from proxy_app.settings import Settings
from proxy_app.store.events import EventStore
from proxy_app.store.redis import unix_now
from proxy_app.store.registry import Registry
from proxy_app.store.traffic import TrafficStore
from proxy_app.store.usage import UsageStore


@dataclass(frozen=True, slots=True)
class Office:
    """Owned by: the worker's runtime. The views raise RegistryAway; see the parts for what they do."""

    server: Settings
    desk: RegistryDesk
    sessions: Sessions
    backends: BackendAdmin
    fleet_desk: FleetDesk
    model_desk: ModelDesk
    key_desk: KeyDesk
    event_book: EventBook
    traffic_desk: Traffic

    def fleet(self) -> FleetView:
        return self.fleet_desk.view()

    def backend_names(self) -> list[str]:
        """Best first."""
        return [member.backend.name for member in self.fleet_desk.reloader.fleet.members]

    def models(self, query: str, page: int) -> ModelsView:
        return self.model_desk.page(query, page)

    def traffic(self) -> TrafficView:
        running, is_partial = self.traffic_desk.running()
        return TrafficView(running=running, finished=self.traffic_desk.finished(), is_partial=is_partial)

    def chart(self, span_s: float) -> ChartView:
        return self.traffic_desk.chart(span_s)

    def cancel(self, run_id: str, who: str) -> None:
        """End a running request. Raises: Missing: nobody has it (any more)."""
        if not self.traffic_desk.cancel(run_id):
            raise Missing("that request has ended already")
        self.event_book.note("request.cancelled", who, run_id, "a running request was ended", "warning")

    def keys(self) -> KeysView:
        return self.key_desk.view()

    def events(self, kind: str, before: int | None) -> EventsView:
        return self.event_book.page(kind, before)

    def settings(self) -> SettingsView:
        return settings_desk.view(self.server)

    def usage(self, since_s: float, by: Sequence[str]) -> UsageView:
        """What was used in the last `since_s` seconds, by some of key, model, backend, hour."""
        found = self.desk.run(lambda registry: sums(registry, since_s, by))
        rows = [UsageRow(parts=dict(zip(by, parts, strict=True)), **columns(tally)) for parts, tally in found.items()]
        return UsageView(since=unix_now() - since_s, by=list(by), rows=rows)

    def pulse(self) -> tuple[object, ...]:
        """Something that is not the same when a page would look different."""
        fleet = self.fleet_desk.reloader.fleet
        in_flight = tuple(self.fleet_desk.leases.totals(list(fleet.by_id)).items())
        running = tuple(one.id for one in self.traffic_desk.running()[0])
        return fleet.generation, in_flight, running, self.desk.run(_written)

    def close(self) -> None:
        self.desk.close()


def _written(registry: Registry) -> tuple[int, ...]:
    """What ends is in the registry only seconds later: its pages have to be told then, too."""
    this_hour = int(unix_now()) // HOUR_S * HOUR_S
    usage = UsageStore(registry).requests_since(this_hour)
    return EventStore(registry).last_id(), TrafficStore(registry).newest(), usage
