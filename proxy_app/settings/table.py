"""The table of all settings, and what follows from several of them."""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from dataclasses import dataclass
from functools import cached_property

from proxy_app.settings.backends import BackendSettings
from proxy_app.settings.edge import Listening, Managing, Relaying, Running, Storing
from proxy_app.settings.fleet import Caching, Polling, TheFleet

GROUPS = (Listening, TheFleet, Polling, Caching, Relaying, Storing, Managing, Running)


@dataclass(frozen=True)
class Settings(Running, Managing, Storing, Relaying, Caching, Polling, TheFleet, Listening):
    """Every setting, validated. Build it with `load` (or directly in tests)."""

    @property
    def fleet(self) -> tuple[BackendSettings, ...]:
        """The configured backends; a lone one named `default` where none is named."""
        if self.backends:
            return self.backends
        return (BackendSettings(name="default", url=self.base_url, auth_token=self.auth_token),)

    @cached_property
    def via(self) -> str:
        """What all processes of this Caravan call themselves in `Via` (RFC 9110 §7.6.3); no other one has it."""
        place = f"{socket.gethostname()}:{self.data_dir.resolve()}"
        return f"1.1 caravan-{hashlib.sha256(place.encode()).hexdigest()[:8]}"

    @cached_property
    def is_public(self) -> bool:
        """Does it listen on anything but a loopback address?"""
        return not is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Is the address one that only this machine can reach?"""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
