"""What changed, as it is noted: by operators here, by the refresher of what backends do."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from proxy_app.domain import State
from proxy_app.errors import RegistryAway
from proxy_app.services.admin.shapes import EventsView, EventView
from proxy_app.services.desk import RegistryDesk
from proxy_app.store.events import Event, EventStore, Level
from proxy_app.store.redis import unix_now

log = logging.getLogger(__name__)

PAGE = 100


class EventBook:
    """Owned by: the worker's runtime; the events are the registry's."""

    def __init__(self, desk: RegistryDesk) -> None:
        self._desk = desk

    def note(self, kind: str, who: str, subject: str, text: str, level: Level = "info") -> None:
        """Note what somebody did; it is done, whether it can be noted or not."""
        event = Event(unix_now(), kind, who or "this machine", subject, text, level)
        try:
            self._desk.run(lambda registry: EventStore(registry).add([event]))
        except RegistryAway as exc:
            log.warning("%s %s by %s is not among the events: %s", kind, subject, event.who, exc)

    def page(self, kind: str, before: int | None) -> EventsView:
        """Newest first.

        Args:
            kind: the beginning of the kinds that are meant; "" for all.
            before: an event's id; only older ones.
        """
        found = self._desk.run(lambda registry: EventStore(registry).newest(PAGE + 1, kind, before))
        return EventsView(events=list(_views(found[:PAGE])), more=len(found) > PAGE)


def state_event(backend: str, state: State, error: str | None) -> Event:
    """What the refresher notes when a backend's state changes."""
    told = f"{backend} is {state}" + (f": {error}" if error else "")
    return Event(unix_now(), f"backend.{state}", "caravan", backend, told, "warning" if state == "down" else "info")


def _views(events: Iterable[Event]) -> Iterable[EventView]:
    return (
        EventView(id=e.id, at=e.at, kind=e.kind, level=e.level, who=e.who, subject=e.subject, text=e.text)
        for e in events
    )
