"""The operator's backends in the registry: those that follow nobody's environment, and who is drained."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from proxy_app.errors import Conflict
from proxy_app.settings import BackendSettings, endpoint_of
from proxy_app.store import rows
from proxy_app.store.registry import Registry


class BackendStore:
    """The `backends` table, as an operator changes it. Raises: RegistryAway: from every method."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def add(self, backend: BackendSettings) -> bool:
        """Add one behind all others; False where the name is taken, in whatever case.

        Raises:
            Conflict: another one has its address.
        """
        with self._registry.writing() as db:
            taken = db.execute("SELECT 1 FROM backends WHERE lower(name) = lower(?)", [backend.name]).fetchone()
            if taken:
                return False
            _check_address(db, backend)
            place = int(db.execute("SELECT COALESCE(MAX(place), -1) + 1 FROM backends").fetchone()[0])
            db.table("backends").insert({**rows.backend_row(backend, place), **_operators(backend)})
            self._registry.bump("catalogue")
            return True

    def change(self, name: str, backend: BackendSettings, named: Collection[str]) -> bool:
        """Give some fields of an operator's backend new values; False where it is not there any more.

        What was learned of it is forgotten where its URL changes.

        Args:
            backend: has the values.
            named: the fields; others stay as they are by now, whatever `backend` says of them.

        Raises:
            Conflict: another one has its new address.
        """
        with self._registry.writing() as db:
            old = _operators_row(db, name)
            if old is None:
                return False
            if "url" in named:
                _check_address(db, backend)
            fresh = {**rows.backend_row(backend, old["place"]), **_operators(backend)}
            db.table("backends").update(old["id"], {key: fresh[key] for key in named})
            if "url" in named and old["url"] != backend.url:
                self._registry.forget(old["id"])
            self._registry.bump("catalogue")
            return True

    def drain(self, name: str, *, draining: bool) -> None:
        with self._registry.writing() as db:
            db.execute("UPDATE backends SET draining = ? WHERE name = ?", [int(draining), name])
            self._registry.bump("catalogue")

    def remove(self, name: str) -> bool:
        """Remove an operator's backend, and all that was learned of it; False where it is not there any more."""
        with self._registry.writing() as db:
            row = _operators_row(db, name)
            if row is None:
                return False
            self._registry.drop_backend(row["id"])
            return True

    def loaded(self) -> list[tuple[int, dict[str, Any]]]:
        """(backend's id, its `/api/ps` record) for each model in a backend's memory."""
        with self._registry.reading() as db:
            return [(row["backend_id"], json.loads(row["item"])) for row in db.table("loaded").rows]


def _check_address(db: Any, backend: BackendSettings) -> None:
    """A server under two names would look like two holders of its models, and a drain of one would stop nothing."""
    wanted = endpoint_of(backend.url)
    for name, url in db.execute("SELECT name, url FROM backends WHERE name != ?", [backend.name]):
        if endpoint_of(url) == wanted:
            raise Conflict(f"{name} has this address already")


def _operators_row(db: Any, name: str) -> dict[str, Any] | None:
    return next(db.table("backends").rows_where("name = ? AND origin = 'operator'", [name]), None)


def _operators(backend: BackendSettings) -> dict[str, Any]:
    return {"origin": "operator", "headers": json.dumps(dict(backend.headers)), "auth_token": backend.auth_token}
