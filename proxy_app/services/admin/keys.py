"""Keys and what they used, as an operator sees and changes them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from proxy_app.domain import Caller
from proxy_app.errors import BadRequest, Conflict, Missing
from proxy_app.services import key_admin
from proxy_app.services.admin.events import EventBook
from proxy_app.services.admin.shapes import KeyChange, KeysView, KeyView, MadeKey, NewKey, Rotation
from proxy_app.services.desk import RegistryDesk
from proxy_app.services.visibility import Visibility
from proxy_app.settings import Settings
from proxy_app.store.keys import KeyStore, StoredKey
from proxy_app.store.limits import DAY_S
from proxy_app.store.redis import unix_now
from proxy_app.store.registry import Registry
from proxy_app.store.usage import Tally, UsageStore

Used = Mapping[str, Tally]


@dataclass(frozen=True, slots=True)
class KeyDesk:
    """Owned by: the worker's runtime. What a method says was done, every worker obeys by then.

    Methods raise RegistryAway, and RequestErrors with texts for the operator.
    """

    settings: Settings
    desk: RegistryDesk
    visibility: Visibility
    events: EventBook

    def view(self) -> KeysView:
        """All keys, newest first."""
        keys, used = self.desk.run(lambda registry: (KeyStore(registry).all(), _used_today(registry)))
        newest_first = sorted(keys, key=lambda key: key.created_at, reverse=True)
        return KeysView(keys=[_view(key, used) for key in newest_first])

    def one(self, key_id: str) -> KeyView:
        """Raises: Missing."""
        key, used = self.desk.run(lambda registry: (_find(registry, key_id), _used_today(registry)))
        return _view(key, used)

    def create(self, order: NewKey, caller: Caller) -> MadeKey:
        """Raises: BadRequest: something of it makes no sense."""
        wish = key_admin.Wish(
            label=order.label,
            scopes=tuple(order.scopes),
            models=tuple(order.models),
            networks=tuple(order.networks),
            lives_s=order.lives_s,
            signer=order.signer,
            limits=order.limits,
        )
        try:
            made = self.desk.run(lambda registry: key_admin.create_in(self.settings, KeyStore(registry), wish))
        except key_admin.KeyProblem as exc:
            raise BadRequest(str(exc)) from None
        self.visibility.spread()
        self.events.note("key.created", caller.key_id, made.stored.id, f"{made.stored.label}: {_may(made.stored)}")
        return MadeKey(key=_view(made.stored, {}), secret=made.text)

    def change(self, key_id: str, order: KeyChange, caller: Caller) -> KeyView:
        """Raises: Missing. BadRequest: something of it makes no sense. Conflict: it has ended."""
        edit = _edit(order)

        def turn(registry: Registry) -> tuple[StoredKey, Used]:
            _find(registry, key_id)
            return key_admin.edit_in(KeyStore(registry), key_id, edit), _used_today(registry)

        try:
            key, used = self.desk.run(turn)
        except key_admin.KeyEnded as exc:
            raise Conflict(str(exc)) from None
        except key_admin.KeyProblem as exc:
            raise BadRequest(str(exc)) from None
        self.visibility.spread()
        self.events.note("key.changed", caller.key_id, key_id, f"{key.label} was changed: {edit}")
        return _view(key, used)

    def revoke(self, key_id: str, caller: Caller) -> KeyView:
        """Raises: Missing."""

        def end(registry: Registry) -> StoredKey:
            key = _find(registry, key_id)
            KeyStore(registry).end([key.id], unix_now())
            return _find(registry, key_id)

        key = self.desk.run(end)
        self.visibility.spread()
        self.events.note("key.revoked", caller.key_id, key.id, f"{key.label} was revoked", "warning")
        return _view(key, {})

    def rotate(self, key_id: str, order: Rotation, caller: Caller) -> MadeKey:
        """Raises: Missing. Conflict: it has ended."""

        def turn(registry: Registry) -> key_admin.NewKey:
            _find(registry, key_id)
            return key_admin.rotate_in(self.settings, KeyStore(registry), key_id, order.overlap_s)

        try:
            made = self.desk.run(turn)
        except key_admin.KeyProblem as exc:
            raise Conflict(str(exc)) from None
        self.visibility.spread()
        text = (
            f"{made.stored.label}: {made.stored.id} takes the place of {key_id} {key_admin.in_words(order.overlap_s)}"
        )
        self.events.note("key.rotated", caller.key_id, key_id, text)
        return MadeKey(key=_view(made.stored, {}), secret=made.text)


def _find(registry: Registry, key_id: str) -> StoredKey:
    found = next((key for key in KeyStore(registry).all() if key.id == key_id), None)
    if found is None:
        raise Missing(f"there is no key {key_id}")
    return found


def _edit(order: KeyChange) -> key_admin.Edit:
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in msgspec.structs.asdict(order).items()
        if value is not msgspec.UNSET
    }
    if given.get("lives_s", 0) is None:
        given["lives_s"] = math.inf
    return key_admin.Edit(**given)


def _used_today(registry: Registry) -> Used:
    used: dict[str, Tally] = defaultdict(Tally)
    for key, tally in UsageStore(registry).since(int(unix_now()) // DAY_S * DAY_S):
        used[key.key_id] += tally
    return used


def _view(key: StoredKey, used: Used) -> KeyView:
    today = used.get(key.id, Tally())
    return KeyView(
        id=key.id,
        label=key.label,
        scopes=list(key.scopes),
        models=list(key.models),
        networks=list(key.networks),
        limits=key.limits,
        has_signer=key.signer is not None,
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        used_at=key.used_at,
        replaces=key.replaces,
        state=_state(key),
        requests_today=today.requests,
        tokens_today=today.tokens_in + today.tokens_out,
        gpu_s_today=today.gpu_ms / 1000,
    )


def _state(key: StoredKey) -> Literal["valid", "expired", "revoked"]:
    now = unix_now()
    if key.is_valid(now):
        return "valid"
    return "revoked" if key.revoked_at is not None and key.revoked_at <= now else "expired"


def _may(key: StoredKey) -> str:
    return f"may {', '.join(key.scopes)}" + (f", models {', '.join(key.models)}" if key.models else "")
