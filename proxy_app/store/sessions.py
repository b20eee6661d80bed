"""Sessions of operators in the registry, so that every worker knows them and a restart ends none."""

from __future__ import annotations

from dataclasses import dataclass, field

from proxy_app.store.registry import Registry


@dataclass(frozen=True, slots=True)
class Session:
    """One row.

    Args:
        token: the hash of what the browser has.
        key_id, mark: the key that it began with, and that key's hash: another key of that id is another one.
        created_at, seen_at: UTC seconds.
    """

    token: str = field(repr=False)
    key_id: str
    mark: str = field(repr=False)
    created_at: float
    seen_at: float


class SessionStore:
    """The `sessions` table of a registry. Raises: RegistryAway: from every method."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def add(self, session: Session, forget_before: float) -> None:
        """Begin a session, and forget those that were not seen since a time (UTC seconds)."""
        with self._registry.writing() as db:
            db.execute("DELETE FROM sessions WHERE seen_at < ?", [forget_before])
            db.table("sessions").insert({name: getattr(session, name) for name in Session.__slots__})

    def find(self, token: str) -> Session | None:
        with self._registry.reading() as db:
            row = next(db.table("sessions").rows_where("token = ?", [token]), None)
        return Session(**row) if row else None

    def seen(self, token: str, at: float) -> None:
        with self._registry.writing() as db:
            db.execute("UPDATE sessions SET seen_at = ? WHERE token = ?", [at, token])

    def end(self, token: str) -> None:
        with self._registry.writing() as db:
            db.table("sessions").delete_where("token = ?", [token])

    def end_all(self) -> int:
        """End all of them; returns how many there were."""
        with self._registry.writing() as db:
            return int(db.execute("DELETE FROM sessions").rowcount)
