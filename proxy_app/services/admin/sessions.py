"""Logging in: a key with the scope `admin` begins a session, and the browser gets a token in its place.

Source: OWASP ASVS 5.0, 7.2 to 7.4 (a new token at each login, idle and absolute ends, revocable on the server).
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets

from proxy_app.domain import Caller, KeyLimits
from proxy_app.errors import Forbidden, Limited, RegistryAway, Unauthorized
from proxy_app.services.access import Access
from proxy_app.services.desk import RegistryDesk
from proxy_app.services.limiter import Limiter
from proxy_app.settings import Settings
from proxy_app.store.redis import unix_now
from proxy_app.store.sessions import Session, SessionStore

# A session's last use is written at most this often, in seconds.
SEEN_S = 30.0
TOKEN_BYTES = 32


class Sessions:
    """Owned by: the worker's runtime; the sessions are the registry's, so that all workers know them."""

    def __init__(self, settings: Settings, access: Access, desk: RegistryDesk, limiter: Limiter) -> None:
        self._settings, self._access, self._desk, self._limiter = settings, access, desk, limiter

    def login(self, key: str, address: str) -> str:
        """Begin a session; returns its token.

        Raises:
            Limited: too many attempts from that address have failed.
            Unauthorized: no key that is valid there.
            Forbidden: the key does not have the scope `admin`.
        """
        caller = self._access.holder(key, address)
        if caller is None:
            self._count_failure(address)
            raise Unauthorized("this is no key that is valid here")
        if not caller.may("admin"):
            raise Forbidden("this key does not have the scope 'admin'")
        token, now = secrets.token_urlsafe(TOKEN_BYTES), unix_now()
        session = Session(_hash(token), caller.key_id, self._access.mark(caller.key_id) or "", now, now)
        forgotten = now - self._settings.session_idle_s
        self._desk.run(lambda registry: SessionStore(registry).add(session, forgotten))
        return token

    def caller(self, token: str, address: str) -> Caller | None:
        """Whose session this is; None where it has ended, or its key has. Raises: RegistryAway: nobody can say."""
        session = self._desk.run(lambda registry: SessionStore(registry).find(_hash(token)))
        now = unix_now()
        if session is None or not self._lives(session, now):
            return None
        caller = self._access.known(session.key_id, session.mark, address)
        if caller is not None and now - session.seen_at > SEEN_S:
            self._note_seen(session, now)
        return caller if caller is not None and caller.may("admin") else None

    def logout(self, token: str) -> None:
        self._desk.run(lambda registry: SessionStore(registry).end(_hash(token)))

    def logout_all(self) -> int:
        """End everybody's; returns how many."""
        return self._desk.run(lambda registry: SessionStore(registry).end_all())

    def _count_failure(self, address: str) -> None:
        """Slow down who guesses; who has a key is never held up by others of the same address. Raises: Limited."""
        tries = KeyLimits(rpm=self._settings.login_attempts)
        try:
            self._limiter.admit(Caller(key_id=f"login from {_site(address)}", limits=tries), 0).settle()
        except Limited as exc:
            raise Limited("login attempts", exc.retry_after_s) from None

    def _lives(self, session: Session, now: float) -> bool:
        is_idle = now - session.seen_at > self._settings.session_idle_s
        return not is_idle and now - session.created_at <= self._settings.session_s

    def _note_seen(self, session: Session, now: float) -> None:
        try:
            self._desk.run(lambda registry: SessionStore(registry).seen(session.token, now))
        except RegistryAway:
            # It is noted the next time.
            return


def _site(address: str) -> str:
    """Where somebody sits who may choose the rest of their address: a /64 of IPv6 (RFC 4291, 2.5.1), all of IPv4."""
    try:
        client = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(client, ipaddress.IPv4Address):
        return address
    return str(client.ipv4_mapped or ipaddress.ip_network((client, 64), strict=False))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
