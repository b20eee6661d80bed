"""What changed when, and who did it: one row of the registry for each event, the newest of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from proxy_app.store.registry import Registry

# A year of a busy operator; far below what a page could show.
KEPT = 20_000
Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Event:
    """Args: at: UTC seconds. kind: such as `backend.down`. who: a key's id, or `caravan`. id: 0 before it is stored."""

    at: float
    kind: str
    who: str
    subject: str
    text: str
    level: Level = "info"
    id: int = 0


class EventStore:
    """The `events` table of a registry. Raises: RegistryAway: from every method."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def add(self, events: Iterable[Event]) -> None:
        rows = [{name: value for name, value in asdict(event).items() if name != "id"} for event in events]
        with self._registry.writing() as db:
            db.table("events").insert_all(rows)
            db.execute("DELETE FROM events WHERE id <= (SELECT MAX(id) FROM events) - ?", [KEPT])

    def newest(self, limit: int, kind: str = "", before: int | None = None) -> list[Event]:
        """Newest first.

        Args:
            kind: the beginning of the kinds that are meant, such as `backend`; all by default.
            before: only those with a lower id.
        """
        where, values = ["substr(kind, 1, ?) = ?"], [len(kind), kind]
        if before is not None:
            where.append("id < ?")
            values.append(before)
        with self._registry.reading() as db:
            rows = db.table("events").rows_where(" AND ".join(where), values, order_by="id DESC", limit=limit)
            return [Event(**row) for row in rows]

    def last_id(self) -> int:
        """Moves with every event."""
        with self._registry.reading() as db:
            return int(db.execute("SELECT COALESCE(MAX(id), 0) FROM events").fetchone()[0])
