"""Making, changing and ending keys. Each call opens the registry for itself: the commands are short, and rare.

When a change returns, every worker obeys; should one of them hang, two seconds later at most.
"""

from __future__ import annotations

import ipaddress
import logging
import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields, replace

from proxy_app.dialects.credentials import digest, new_key
from proxy_app.domain import Scope, parse_limits
from proxy_app.errors import CaravanError, RegistryAway
from proxy_app.services.keyring import public_key
from proxy_app.services.setup import MARK
from proxy_app.services.sightings import Sightings
from proxy_app.services.visibility import Visibility
from proxy_app.settings import Settings
from proxy_app.store.events import Event, EventStore
from proxy_app.store.keys import KeyStore, StoredKey
from proxy_app.store.redis import unix_now
from proxy_app.store.registry import Registry

log = logging.getLogger(__name__)

LONGEST_LABEL = 200
# Holds emoji of several parts together.
_JOINER = "\u200d"
# A person waits for this; a refresher that writes holds the registry for milliseconds.
BUSY_S = 5.0


class KeyProblem(CaravanError):
    """What was asked for cannot be done; the text says why."""

    code = "key_problem"


class KeyEnded(KeyProblem):
    """Only a key that is valid can be changed."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made; its text is shown once and stored nowhere."""

    stored: StoredKey
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a new key should be. Args: as `StoredKey`; lives_s: seconds until it ends; signer: a public key's line."""

    label: str
    scopes: tuple[Scope, ...] = ("infer", "read")
    models: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    lives_s: float | None = None
    signer: str | None = None
    limits: str = ""


@dataclass(frozen=True, slots=True)
class Edit:
    """What a key should be from now on; None: as it is.

    Args: as `Wish`, each in the place of all that was there; lives_s: from now on, inf: for ever.
    """

    label: str | None = None
    scopes: tuple[Scope, ...] | None = None
    models: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    limits: str | None = None
    lives_s: float | None = None

    def __str__(self) -> str:
        """What it changes, in words."""
        words = {"scopes": "what it may do", "lives_s": "its end"}
        return ", ".join(words.get(f.name, f.name) for f in fields(self) if getattr(self, f.name) is not None)


def create(settings: Settings, wish: Wish) -> NewKey:
    """Make a key.

    Raises:
        KeyProblem: something of the wish makes no sense.
        RegistryAway: it cannot be stored.
    """
    with _changing(settings) as registry:
        made = create_in(settings, KeyStore(registry), wish)
        _note(registry, "key.created", made.stored, "was made")
        return made


def create_in(settings: Settings, store: KeyStore, wish: Wish) -> NewKey:
    """The same, where the registry is open. Raises: as `create`."""
    now = unix_now()
    stored = StoredKey(
        id="",
        label=_label(wish.label),
        scopes=tuple(sorted(set(wish.scopes))),
        models=tuple(wish.models),
        networks=tuple(_network(text) for text in wish.networks),
        signer=_signer(wish.signer),
        limits=_limits(wish.limits),
        created_at=now,
        expires_at=None if wish.lives_s is None else now + wish.lives_s,
    )
    if stored.signer and any(key.signer == stored.signer and key.is_valid(now) for key in store.all()):
        raise KeyProblem("that public key belongs to another key already: revoke it first")
    return _add(settings, store, stored)


def all_keys(settings: Settings) -> tuple[StoredKey, ...]:
    with _registry(settings) as registry:
        return KeyStore(registry).all()


def find(settings: Settings, text: str) -> StoredKey:
    """The one key with this id or label. Raises: KeyProblem: none, or several."""
    with _registry(settings) as registry:
        return _one(KeyStore(registry), text)


def edit(settings: Settings, text: str, wanted: Edit) -> StoredKey:
    """Change a key, whose text stays as it is.

    Raises:
        KeyProblem: something of it makes no sense, or there is no such key, or it has ended.
        RegistryAway: it cannot be stored.
    """
    with _changing(settings) as registry:
        key = edit_in(KeyStore(registry), text, wanted)
        _note(registry, "key.changed", key, f"was changed: {wanted}")
        return key


def edit_in(store: KeyStore, text: str, wanted: Edit) -> StoredKey:
    """The same, where the registry is open. Raises: as `edit`."""
    key = _going(_one(store, text))
    changed = replace(
        key,
        label=key.label if wanted.label is None else _label(wanted.label),
        scopes=key.scopes if wanted.scopes is None else tuple(sorted(set(wanted.scopes))),
        models=key.models if wanted.models is None else wanted.models,
        networks=key.networks if wanted.networks is None else tuple(map(_network, wanted.networks)),
        limits=key.limits if wanted.limits is None else _limits(wanted.limits),
        expires_at=key.expires_at if wanted.lives_s is None else _end(wanted.lives_s),
    )
    store.change(changed)
    return changed


def _end(lives_s: float) -> float | None:
    return None if lives_s == math.inf else unix_now() + lives_s


def _going(key: StoredKey) -> StoredKey:
    if not key.is_valid(unix_now()):
        raise KeyEnded(f"the key {key.id} has ended: make a new one")
    return key


def revoke(settings: Settings, text: str) -> StoredKey:
    """End a key now. Raises: KeyProblem: there is none, or several are called so."""
    with _changing(settings) as registry:
        key = _one(KeyStore(registry), text)
        KeyStore(registry).end([key.id], unix_now())
        _note(registry, "key.revoked", key, "was revoked")
        return replace(key, revoked_at=unix_now())


def rotate(settings: Settings, text: str, overlap_s: float) -> NewKey:
    """Make a key that may what another one may; the old one ends after `overlap_s`."""
    with _changing(settings) as registry:
        made = rotate_in(settings, KeyStore(registry), text, overlap_s)
        _note(registry, "key.rotated", made.stored, f"takes the place of {made.stored.replaces} {in_words(overlap_s)}")
        return made


def in_words(overlap_s: float) -> str:
    """When a key ends that is rotated: "in 7 days", "in 90 minutes", "at once"."""
    if not overlap_s:
        return "at once"
    lengths = (("day", 86400), ("hour", 3600), ("minute", 60))
    unit, length = next(((unit, length) for unit, length in lengths if overlap_s % length == 0), ("second", 1))
    count = overlap_s / length
    return f"in {count:g} {unit}{'' if count == 1 else 's'}"


def rotate_in(settings: Settings, store: KeyStore, text: str, overlap_s: float) -> NewKey:
    """The same, where the registry is open. Raises: KeyProblem, RegistryAway."""
    old, now = _going(_one(store, text)), unix_now()
    fresh = replace(old, created_at=now, revoked_at=None, replaces=old.id, used_at=None)
    return _add(settings, store, fresh, now + overlap_s)


def _add(settings: Settings, store: KeyStore, wanted: StoredKey, replaced_at: float | None = None) -> NewKey:
    key_id, text = new_key()
    stored = replace(wanted, id=key_id, digest=digest(text))
    mark = settings.data_dir / MARK
    was_marked = mark.exists()
    try:
        # From the mark on, an empty registry opens the door to nobody: it is there before the first key holds.
        store.add(stored, lambda: mark.touch(mode=0o600), replaced_at)
    except RegistryAway:
        if not was_marked:
            mark.unlink(missing_ok=True)
        raise
    return NewKey(stored, text)


def _one(store: KeyStore, text: str) -> StoredKey:
    found = store.find(text)
    if not found:
        raise KeyProblem(f"there is no key with the id or label {text!r}")
    if len(found) > 1:
        raise KeyProblem(
            f"{len(found)} keys have the label {text!r}: name one by its id ({', '.join(k.id for k in found)})"
        )
    return found[0]


def _note(registry: Registry, kind: str, key: StoredKey, what: str) -> None:
    """Note what was done; it is done, whether it can be noted or not."""
    event = Event(unix_now(), kind, "command line", key.id, f"{key.label} {what}")
    try:
        EventStore(registry).add([event])
    except RegistryAway as exc:
        log.warning("%s %s is not among the events: %s", kind, key.id, exc)


@contextmanager
def _changing(settings: Settings) -> Iterator[Registry]:
    """A registry to change keys in; when it is left, every worker knows."""
    with _registry(settings) as registry:
        yield registry
    with closing(Visibility(settings.data_dir, Sightings(settings.data_dir))) as visibility:
        visibility.spread()


@contextmanager
def _registry(settings: Settings) -> Iterator[Registry]:
    registry = Registry(settings.data_dir, busy_s=BUSY_S)
    try:
        # Not the backends of this environment: it may be another one than the server's.
        registry.migrate()
        yield registry
    finally:
        registry.close()


def _label(text: str) -> str:
    if not text.strip() or len(text) > LONGEST_LABEL or not text.replace(_JOINER, "").isprintable():
        raise KeyProblem(f"label: expected 1 to {LONGEST_LABEL} printable characters")
    return text.strip()


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise KeyProblem(f"{text!r} is no network: expected a form such as 10.1.0.0/16 or 2001:db8::/32") from None


def _limits(text: str) -> str:
    try:
        parse_limits(text)
    except ValueError as exc:
        raise KeyProblem(str(exc)) from None
    return text


def _signer(text: str | None) -> str | None:
    try:
        return None if text is None else public_key(text)
    except ValueError as exc:
        raise KeyProblem(str(exc)) from None
