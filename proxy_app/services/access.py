"""Who is let in: keys, and what somebody without one may do."""

from __future__ import annotations

from dataclasses import replace

from proxy_app.dialects.credentials import PREFIX, Presented
from proxy_app.domain import ANYBODY, Caller, Fleet, ModelName, Scope
from proxy_app.errors import Forbidden, Hidden, Unauthorized, Unavailable
from proxy_app.services.fleet import FleetReloader, check_seen
from proxy_app.services.keyring import KeyRing, ring_of
from proxy_app.settings import Settings
from proxy_app.store.keys import KeyStore
from proxy_app.store.redis import unix_now
from proxy_app.store.registry import Registry

# What a public client may do where there are no keys: nothing that changes what backends hold.
_USE: frozenset[Scope] = frozenset(("infer", "read"))


class Access:
    """Recognises callers. Owned by: the worker's runtime; the Fleet's reloader brings it the keys.

    `used`: when which key was last used (UTC seconds), until somebody takes it to write it down.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ring: KeyRing | None = None
        self._seen: tuple[int, int] | None = None
        self._had_keys = False
        self.used: dict[str, float] = {}
        scopes: frozenset[Scope] = frozenset(settings.anonymous_scopes)  # type: ignore[arg-type]
        self._stranger = Caller(scopes=scopes, limits=settings.limits)
        self._anybody = replace(ANYBODY, limits=settings.limits)
        without_keys = scopes if settings.anonymous else _USE
        self._user = Caller(scopes=without_keys, sees_all=True, limits=settings.limits)

    def follow(self, registry: Registry) -> None:
        """Read the keys where they changed. On the reloader's native thread.

        Raises:
            RegistryAway: the keys stay what they were.
        """
        store = KeyStore(registry)
        seen = registry.identity(), store.number()
        before = self._ring
        if seen != self._seen or before is None or before.is_empty:
            ring = ring_of(store.all(), self._settings)
            # Keys are ended, never deleted: where there are none any more, they were lost.
            self._had_keys = self._had_keys or bool(ring.entries)
            self._ring = replace(ring, is_lost=not ring.entries and (ring.is_lost or self._had_keys))
            self._seen = seen

    def caller(self, given: Presented, address: str, *, is_local: bool) -> Caller:
        """Who asks.

        Args:
            address: the client's.
            is_local: this machine itself asks, directly, on a loopback listener.

        Raises:
            Unauthorized: nobody who is let in.
            Unavailable: nobody can be recognised now.
        """
        ring = self._ring
        if ring is None:
            raise Unavailable("Caravan has not read its keys yet", retry_after_s=1)
        if ring.is_lost and not ring.bootstrap:
            raise Unavailable("Caravan has lost its keys: its operator has to restore the registry", retry_after_s=60)
        if ring.is_empty:
            return self._without_keys(is_local)
        if given is None or (self._settings.anonymous and isinstance(given, str) and not given.startswith(PREFIX)):
            # Programs that cannot do without a key send any text.
            found = ring.check(given, address) if given is not None else None
            return found or self._anonymous()
        found = ring.check(given, address)
        if found is None:
            raise Unauthorized
        self.used[found.key_id] = unix_now()
        return found

    def holder(self, key: str, address: str) -> Caller | None:
        """Whose key this is, used from there, now; None where it is nobody's."""
        return self._ring.check(key, address) if self._ring is not None else None

    def labels(self) -> dict[str, str]:
        """What people call the keys, ended ones too, by their ids."""
        entries = self._ring.entries if self._ring is not None else {}
        return {key_id: entry.key.label for key_id, entry in entries.items()}

    def mark(self, key_id: str) -> str | None:
        """What tells a key from another one that has its id later; None where there is no such key."""
        return self._ring.mark(key_id) if self._ring is not None else None

    def known(self, key_id: str, mark: str, address: str) -> Caller | None:
        """The holder of a key that was shown before, if that is still the same key, and still valid there."""
        return self._ring.known(key_id, mark, address) if self._ring is not None else None

    def _without_keys(self, is_local: bool) -> Caller:
        if is_local:
            return self._anybody
        if self._settings.is_public and not self._settings.anonymous:
            raise Unauthorized
        return self._user

    def _anonymous(self) -> Caller:
        if not self._settings.anonymous:
            raise Unauthorized
        return self._stranger


def check_scope(caller: Caller, scope: Scope) -> None:
    """Raises: Forbidden: the caller does not have the scope."""
    if caller.may(scope):
        return
    if not caller.key_id:
        raise Forbidden(f"this needs a key with the scope '{scope}', or has to be asked directly on this machine")
    raise Forbidden(f"this key does not have the scope '{scope}'")


def check_allowed(caller: Caller, *names: ModelName) -> None:
    """See to it that a caller changes no model but those it may use. Raises: Hidden."""
    for name in names:
        if not caller.may_use(name):
            raise Hidden(name.given)


def fleet_for(reloader: FleetReloader, caller: Caller, name: ModelName, given: str) -> Fleet:
    """The Fleet for a request that names a model; nobody learns of one that is none of their business.

    Args:
        given: the name as the client wrote it.

    Raises:
        Hidden: the caller may not use it, or nobody is known to hold it and the caller is not to know that.
        Unavailable: nobody can say yet who holds what.
    """
    if not caller.may_use(name):
        # Not even by waiting for who may hold it.
        raise Hidden(given)
    fleet = reloader.knowing(name.canonical)
    if not name.is_cloud and name.canonical not in fleet.holders:
        # Who cannot know yet says so, rather than that there is none.
        check_seen(fleet)
        if not caller.is_told_of_absence:
            raise Hidden(given)
    return fleet
