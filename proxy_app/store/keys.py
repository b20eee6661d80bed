"""The keys in the registry: who may use what. A secret itself is stored nowhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy_app.domain import Scope
from proxy_app.errors import RegistryAway
from proxy_app.store.registry import Registry


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One row.

    Args:
        id: the part of a key that may be shown.
        digest: SHA-256 of the whole key, in hex.
        models: patterns of names; none: all.
        networks: from where it may be used, in CIDR form; none: from everywhere.
        limits: in the form of `parse_limits`.
        signer: a public key, base64, whose signatures count as this key.
        created_at, expires_at, revoked_at, used_at: UTC seconds; None: never.
        replaces: the id of the key that this one was made to replace.
    """

    id: str
    label: str
    scopes: tuple[Scope, ...]
    created_at: float
    models: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    signer: str | None = None
    limits: str = ""
    expires_at: float | None = None
    revoked_at: float | None = None
    replaces: str | None = None
    used_at: float | None = None
    digest: str = field(repr=False, default="")

    def is_valid(self, now_s: float) -> bool:
        return all(end is None or end > now_s for end in (self.expires_at, self.revoked_at))


_CHANGEABLE = ("label", "scopes", "models", "networks", "limits", "expires_at")


class KeyStore:
    """The `keys` table of a registry. Writers: the commands, the admin page. Not shared between threads.

    Raises:
        RegistryAway: from every method.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def number(self) -> int:
        """Moves with every change of a key."""
        with self._registry.reading() as db:
            row = next(db.table("generations").rows_where("part = 'keys'"), None)
        if row is None:
            raise RegistryAway("the registry is not set up: run caravan migrate")
        return int(row["number"])

    def all(self) -> tuple[StoredKey, ...]:
        with self._registry.reading() as db:
            # Plain SQL: to sqlite-utils a table that is not there has no rows, and no keys would open the door.
            return tuple(_key(row) for row in db.query("SELECT * FROM keys ORDER BY created_at, id"))

    def find(self, text: str) -> list[StoredKey]:
        """The keys that a person means: one by its id, else all with that label."""
        keys = self.all()
        return [key for key in keys if key.id == text] or [key for key in keys if key.label == text]

    def add(self, key: StoredKey, mark: Callable[[], None] = lambda: None, replaced_at: float | None = None) -> None:
        """Add a key.

        Args:
            mark: is called when the key is written and nobody sees it yet: should it fail, there is no key.
            replaced_at: when the key that it replaces ends.
        """
        with self._registry.writing() as db:
            db.table("keys").insert(_row(key))
            if replaced_at is not None:
                _end(db, str(key.replaces), replaced_at)
            _bump(db)
            mark()

    def end(self, key_ids: Iterable[str], at: float) -> None:
        """Revoke keys at a time, which may lie ahead; one that ends sooner keeps its end."""
        with self._registry.writing() as db:
            for key_id in key_ids:
                _end(db, key_id, at)
            _bump(db)

    def change(self, key: StoredKey) -> None:
        """Write what may be changed of a key: its label, what it may do, and its `expires_at`."""
        row = _row(key)
        with self._registry.writing() as db:
            db.table("keys").update(key.id, {name: row[name] for name in _CHANGEABLE})
            _bump(db)

    def note_used(self, used: Mapping[str, float]) -> None:
        """Remember when keys were last used; no worker needs to hear of that."""
        with self._registry.writing() as db:
            for key_id, at in used.items():
                db.execute("UPDATE keys SET used_at = MAX(COALESCE(used_at, 0), ?) WHERE id = ?", [at, key_id])


def _end(db: Any, key_id: str, at: float) -> None:
    db.execute("UPDATE keys SET revoked_at = MIN(COALESCE(revoked_at, ?), ?) WHERE id = ?", [at, at, key_id])


def _bump(db: Any) -> None:
    # The other one is what every worker says of itself that it has read: by that it is known who knows of the change.
    db.execute("UPDATE generations SET number = number + 1 WHERE part IN ('keys', 'volatile')")


def _key(row: Mapping[str, Any]) -> StoredKey:
    lists: dict[str, Sequence[str]] = {name: json.loads(row[name]) for name in ("scopes", "models", "networks")}
    return StoredKey(
        id=row["id"],
        digest=row["hash"],
        label=row["label"],
        scopes=tuple(lists["scopes"]),  # type: ignore[arg-type]
        models=tuple(lists["models"]),
        networks=tuple(lists["networks"]),
        signer=row["signer"],
        limits=row["limits"] or "",
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        replaces=row["replaces"],
        used_at=row["used_at"],
    )


def _row(key: StoredKey) -> dict[str, Any]:
    lists = {name: json.dumps(getattr(key, name)) for name in ("scopes", "models", "networks")}
    plain = ("id", "label", "signer", "limits", "created_at", "expires_at", "revoked_at", "replaces", "used_at")
    return {"hash": key.digest, **lists} | {name: getattr(key, name) for name in plain}
