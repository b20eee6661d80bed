"""Whose Host and Origin may call.

Source: Ollama server/routes.go:1776-1867 and envconfig/config.go:86-109 (v0.33.0-rc2), measured.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import lru_cache

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
_LOCAL_ORIGINS = tuple(
    f"{scheme}://{host}{port}"
    for scheme in ("http", "https")
    for host in ("localhost", "127.0.0.1", "0.0.0.0")
    for port in ("", ":*")
)
_APP_ORIGINS = ("app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*")

PREFLIGHT_HEADERS = (
    ("Access-Control-Allow-Methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
    (
        "Access-Control-Allow-Headers",
        "Authorization,X-Api-Key,Anthropic-Version,Anthropic-Beta,Anthropic-Dangerous-Direct-Browser-Access,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Lang,"
        "X-Stainless-Package-Version,X-Stainless-Os,X-Stainless-Arch,X-Stainless-Retry-Count,X-Stainless-Runtime,"
        "X-Stainless-Runtime-Version,X-Stainless-Async,X-Stainless-Helper-Method,X-Stainless-Poll-Helper,"
        "X-Stainless-Custom-Poll-Interval,X-Stainless-Timeout",
    ),
    ("Access-Control-Max-Age", "43200"),
)


def host_guard(extra: tuple[str, ...]) -> Callable[[str], bool]:
    """A check of the Host header for a loopback listener, against DNS rebinding.

    Args:
        extra: more names; `.example.com` allows all below it, `*` everything.
    """
    own = socket.gethostname().lower()

    @lru_cache(maxsize=1024)
    def allows(header: str) -> bool:
        host = _without_port(header).lower()
        if host in ("", "localhost", own) or host.endswith(_LOCAL_SUFFIXES) or "*" in extra:
            return True
        if any(host == name or (name.startswith(".") and host.endswith(name)) for name in extra):
            return True
        return _is_own_address(host)

    return allows


def origin_guard(extra: tuple[str, ...], *, with_local: bool) -> Callable[[str, str], bool]:
    """A check of (Origin, Host): may this page call?

    Args:
        extra: more origins; `*` stands for any text.
        with_local: those too that Ollama allows. A page on somebody's own machine has no business with a server that
            everybody reaches, unless its operator says so.
    """
    patterns = (*extra, *_LOCAL_ORIGINS, *_APP_ORIGINS) if with_local else extra

    @lru_cache(maxsize=1024)
    def allows(origin: str, host: str) -> bool:
        if origin in (f"http://{host}", f"https://{host}"):
            return True
        return any(fnmatchcase(origin.lower(), pattern.lower()) for pattern in patterns)

    return allows


def _without_port(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.count(":") == 1 else header


def _is_own_address(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified


def is_this_machine(header: str) -> bool:
    """Does a Host header (or an address) name a loopback address? Of a unix socket's peer nobody knows."""
    host = _without_port(header).lower()
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
