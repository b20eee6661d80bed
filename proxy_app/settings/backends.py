"""OLLAMA_BACKENDS: the fleet as the environment names it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """One entry of OLLAMA_BACKENDS; `priority` None means its position in the list."""

    name: str
    url: str
    auth_token: str | None = field(default=None, repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    priority: int | None = None
    slots: int | None = None
    kind: str = "ollama"
    cloud: bool | None = None


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BACKEND_FIELDS = {"name", "url", "auth_token", "headers", "priority", "slots", "kind", "cloud"}


def check_url(raw: object) -> str:
    """A backend's base URL without its trailing slash; userinfo, query and fragment have no place in it.

    Raises:
        ValueError: with what is expected.
    """
    url = urlsplit(raw if isinstance(raw, str) else "")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("expected a URL such as http://gpu1:11434")
    if url.username or url.password or url.query or url.fragment:
        raise ValueError("expected a URL without user, query and fragment (use auth_token or headers)")
    try:
        url.hostname.encode("idna")
    except UnicodeError:
        raise ValueError("expected a host's name, its parts of 1 to 63 letters") from None
    if url.port == 0:
        raise ValueError("expected a port between 1 and 65535")
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}"


def endpoint_of(url: str) -> tuple[str, str, int, str]:
    """What tells two checked URLs apart: scheme, host, port and path; `HTTP://GPU1:80/` is `http://gpu1`."""
    parts = urlsplit(url)
    host = (parts.hostname or "").encode("idna").decode().rstrip(".")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, host, port, parts.path.rstrip("/")


def read_backends(raw: str) -> tuple[BackendSettings, ...]:
    """Read OLLAMA_BACKENDS: a JSON list of objects, or `name=url,name=url`.

    Raises:
        ValueError: one line for each problem.
    """
    entries = _json_entries(raw) if raw.lstrip().startswith("[") else _short_entries(raw)
    backends, problems = [], []
    for place, entry in enumerate(entries, 1):
        try:
            backends.append(read_backend(entry))
        except ValueError as exc:
            problems.append(f"entry {place}: {exc}")
    names = [backend.name.lower() for backend in backends]
    problems += [f"the name {name!r} is used twice" for name in sorted({n for n in names if names.count(n) > 1})]
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(backends)


def _json_entries(raw: str) -> list[Any]:
    try:
        entries = json.loads(raw)
    except ValueError as exc:
        raise ValueError(f"expected a JSON list of objects ({exc})") from None
    return list(entries)


def _short_entries(raw: str) -> list[Any]:
    entries: list[Any] = []
    for piece in filter(None, (piece.strip() for piece in raw.split(","))):
        name, equals, url = piece.partition("=")
        entries.append({"name": name.strip(), "url": url.strip()} if equals else piece)
    return entries


def read_backend(entry: object) -> BackendSettings:
    """One entry. Raises: ValueError: what is wrong with it."""
    if not isinstance(entry, dict):
        raise ValueError("expected name=url, or an object with name and url")
    unknown = sorted(set(entry) - _BACKEND_FIELDS)
    if unknown:
        raise ValueError(f"unknown field {', '.join(map(str, unknown))}")
    name = entry.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("name: expected letters, digits, dots, dashes and underscores (at most 64)")
    try:
        url = check_url(entry.get("url"))
    except ValueError as exc:
        raise ValueError(f"{name}: url: {exc}") from None
    return BackendSettings(
        name=name,
        url=url,
        auth_token=_typed(entry, "auth_token", str),
        headers=_headers(name, entry.get("headers")),
        priority=_typed(entry, "priority", int),
        slots=_typed(entry, "slots", int),
        kind=_typed(entry, "kind", str) or "ollama",
        cloud=_typed(entry, "cloud", bool),
    )


def _typed(entry: Mapping[str, Any], key: str, kind: type) -> Any:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {str: "a text", int: "a whole number", bool: "true or false"}
        raise ValueError(f"{entry['name']}: {key}: expected {words[kind]}")
    if kind is str:
        _refuse_line_ends(f"{entry['name']}: {key}", str(value))
    return value


def _headers(name: str, raw: object) -> tuple[tuple[str, str], ...]:
    if raw is None:
        return ()
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise ValueError(f"{name}: headers: expected an object of texts")
    headers: dict[str, str] = dict(raw)
    for key, value in headers.items():
        if not _HEADER_NAME.fullmatch(key):
            raise ValueError(f"{name}: headers: {key!r} is not a header name")
        _refuse_line_ends(f"{name}: headers: {key}", value)
    return tuple(headers.items())


def _refuse_line_ends(where: str, value: str) -> None:
    if any(ord(char) < 32 or ord(char) > 255 for char in value):
        raise ValueError(f"{where}: expected printable Latin-1 text")
