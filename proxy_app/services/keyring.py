"""All keys, as one worker knows them, and the check of what a client presents."""

from __future__ import annotations

import base64
import hmac
import ipaddress
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from proxy_app.dialects.credentials import Presented, Signed, digest, key_id_of
from proxy_app.domain import ALL_SCOPES, NO_LIMITS, Caller, KeyLimits, parse_limits
from proxy_app.services.setup import MARK
from proxy_app.settings import Settings
from proxy_app.store.keys import StoredKey
from proxy_app.store.redis import unix_now

log = logging.getLogger(__name__)

# How far a client's clock may be off; a signature is good for that long.
CLOCK_S = 60
# What an unknown key is compared with, so that it takes as long as a known one.
_NOBODYS = digest("nobody's")
BOOTSTRAP = "bootstrap"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class _Entry:
    key: StoredKey
    caller: Caller
    networks: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys at one moment. Immutable; a worker swaps it when the registry's keys change.

    `default`: the limits of the key of the settings.
    `is_lost`: there were keys, and the registry that had them is gone.
    """

    entries: Mapping[str, _Entry] = field(default_factory=dict)
    signers: Mapping[str, _Entry] = field(default_factory=dict)
    bootstrap: str = field(repr=False, default="")
    default: KeyLimits = NO_LIMITS
    is_lost: bool = False

    @property
    def is_empty(self) -> bool:
        """Has there never been a key? One that was revoked or has expired opens the door to nobody."""
        return not self.entries and not self.bootstrap

    def check(self, given: Presented, address: str) -> Caller | None:
        """Who presents this; None where nobody may with it, from there, now.

        Args:
            address: the client's.
        """
        if isinstance(given, Signed):
            entry = self.signers.get(given.key)
            known = entry is not None and _is_signed(given)
        else:
            entry = self.entries.get(key_id_of(given or "") or "")
            found = digest(given or "")
            if self.bootstrap and hmac.compare_digest(found, self.bootstrap):
                return self._admin
            known = hmac.compare_digest(found, entry.key.digest if entry else _NOBODYS) and entry is not None
        if not known or entry is None or not entry.key.is_valid(unix_now()):
            return None
        return entry.caller if _is_from(entry.networks, address) else None

    def mark(self, key_id: str) -> str | None:
        """A key's hash."""
        entry = self.entries.get(key_id)
        return entry.key.digest if entry else (self.bootstrap or None) if key_id == BOOTSTRAP else None

    def known(self, key_id: str, mark: str, address: str) -> Caller | None:
        """The holder of a key that was checked before; None where it has ended, or become another one."""
        if not mark or self.mark(key_id) != mark:
            return None
        entry = self.entries.get(key_id)
        if entry is None:
            return self._admin
        is_valid = entry.key.is_valid(unix_now()) and _is_from(entry.networks, address)
        return entry.caller if is_valid else None

    @property
    def _admin(self) -> Caller:
        return Caller(BOOTSTRAP, ALL_SCOPES, limits=self.default)


def ring_of(keys: Iterable[StoredKey], settings: Settings) -> KeyRing:
    """The ring of the registry's keys and the one of the settings."""
    entries = {key.id: entry for key in keys if (entry := _entry(key, settings.limits))}
    # Of several keys with one signer the newest counts that is valid.
    by_validity = sorted(entries.values(), key=lambda entry: entry.key.is_valid(unix_now()))
    signers = {entry.key.signer: entry for entry in by_validity if entry.key.signer}
    is_lost = not entries and (settings.data_dir / MARK).exists()
    bootstrap = digest(settings.admin_key) if settings.admin_key else ""
    return KeyRing(entries, signers, bootstrap, settings.limits, is_lost)


def public_key(text: str) -> str:
    """The base64 part of a line such as `~/.ollama/id_ed25519.pub` has.

    Raises:
        ValueError: it is no ed25519 public key.
    """
    words = text.split()
    encoded = words[1] if len(words) > 1 and words[0] == "ssh-ed25519" else text.strip()
    try:
        _public_key(encoded)
    except (UnsupportedAlgorithm, ValueError):
        raise ValueError("expected the public key of an ed25519 pair, such as ~/.ollama/id_ed25519.pub") from None
    return encoded


def _entry(key: StoredKey, default: KeyLimits) -> _Entry | None:
    """A key as it is checked; one that cannot be read lets nobody in, and keeps nobody else out."""
    try:
        return _Entry(key, _caller(key, default), tuple(map(ipaddress.ip_network, key.networks)))
    except ValueError as exc:
        log.error("the key %s cannot be read and is not valid: %s", key.id, exc)
        return None


def _caller(key: StoredKey, default: KeyLimits) -> Caller:
    patterns = tuple(pattern.lower() for pattern in key.models)
    return Caller(key.id, frozenset(key.scopes), patterns, limits=parse_limits(key.limits).over(default))


def _is_signed(given: Signed) -> bool:
    if abs(unix_now() - given.at_s) > CLOCK_S:
        return False
    try:
        _public_key(given.key).verify(given.signature, given.challenge)
    except InvalidSignature:
        return False
    return True


@lru_cache(maxsize=1024)
def _public_key(encoded: str) -> Ed25519PublicKey:
    base64.b64decode(encoded, validate=True)
    key = load_ssh_public_key(b"ssh-ed25519 " + encoded.encode())
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("not ed25519")
    return key


def _is_from(networks: tuple[Network, ...], address: str) -> bool:
    if not networks:
        return True
    try:
        client = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(client, "ipv4_mapped", None)
    return any((mapped or client) in network for network in networks)
