"""All settings, read once from the environment into one frozen value.

Each field knows its environment variable, default, unit and help; `docs/settings.md` is generated from
the same table (`make docs`). All problems are reported at once.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values

from proxy_app.errors import ConfigError

Reader = Callable[[str], Any]
Number = TypeVar("Number", int, float)


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


def _text(raw: str) -> str:
    return raw


def _flag(raw: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    try:
        return words[raw.strip().lower()]
    except KeyError:
        raise ValueError("expected 1 or 0") from None


def _words(raw: str) -> tuple[str, ...]:
    return tuple(word for word in raw.replace(",", " ").split() if word)


def _whole(least: int, most: int | None = None) -> Reader:
    def read(raw: str) -> int:
        try:
            number = int(raw)
        except ValueError:
            raise ValueError("expected a whole number") from None
        return _in_range(number, least, most)

    return read


def _seconds(least: float = 0.0, most: float | None = None) -> Reader:
    def read(raw: str) -> float:
        try:
            number = float(raw)
        except ValueError:
            raise ValueError("expected a number of seconds") from None
        if not math.isfinite(number):
            raise ValueError("expected a finite number of seconds")
        return _in_range(number, least, most)

    return read


def _in_range(number: Number, least: float, most: float | None) -> Number:
    if number < least or (most is not None and number > most):
        limits = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ValueError(f"expected a value of {limits}")
    return number


def _choice(*words: str) -> Reader:
    def read(raw: str) -> str:
        if raw.lower() not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return raw.lower()

    return read


def _redis_url(raw: str) -> str:
    if urlsplit(raw).scheme not in ("redis", "rediss", "unix"):
        raise ValueError("expected a URL that starts with redis://, rediss:// or unix://")
    return raw


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
    if url.port == 0:
        raise ValueError("expected a port between 1 and 65535")
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}"


def read_backends(raw: str) -> tuple[BackendSettings, ...]:
    """Read OLLAMA_BACKENDS: a JSON list of objects, or `name=url,name=url`.

    Raises:
        ValueError: one line for each problem.
    """
    entries = _json_entries(raw) if raw.lstrip().startswith("[") else _short_entries(raw)
    backends, problems = [], []
    for place, entry in enumerate(entries, 1):
        try:
            backends.append(_backend(entry))
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


def _backend(entry: object) -> BackendSettings:
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
        _refuse_line_ends(f"{entry['name']}: {key}", value)
    return value


def _headers(name: str, raw: object) -> tuple[tuple[str, str], ...]:
    if raw is None:
        return ()
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise ValueError(f"{name}: headers: expected an object of texts")
    for key, value in raw.items():
        if not _HEADER_NAME.fullmatch(key):
            raise ValueError(f"{name}: headers: {key!r} is not a header name")
        _refuse_line_ends(f"{name}: headers: {key}", value)
    return tuple(raw.items())


def _refuse_line_ends(where: str, value: str) -> None:
    if any(ord(char) < 32 or ord(char) > 255 for char in value):
        raise ValueError(f"{where}: expected printable Latin-1 text")


def _setting(
    env: str,
    default: Any,
    read: Reader,
    help: str,
    *,
    unit: str = "",
    secret: bool = False,
    group: str,
) -> Any:
    metadata = {"env": env, "read": read, "help": help, "unit": unit, "secret": secret, "group": group}
    return field(default=default, repr=not secret, metadata=metadata)


MIB = 1 << 20

LISTEN, FLEET, POLLS, CACHES, RELAY, PROCESS = (
    "Where Caravan listens",
    "The fleet",
    "Polls and health",
    "Caches and stores",
    "Relaying",
    "Processes and logs",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, validated. Build it with `load` (or directly in tests)."""

    host: str = _setting("HOST", "127.0.0.1", _text, "Address to listen on.", group=LISTEN)
    port: int = _setting("PORT", 8080, _whole(1, 65535), "Port to listen on.", group=LISTEN)
    anonymous: bool = _setting(
        "CARAVAN_ANONYMOUS",
        False,
        _flag,
        "1 serves a public address to everybody who can reach it. Without it Caravan refuses to listen anywhere but on loopback.",
        group=LISTEN,
    )
    hosts: tuple[str, ...] = _setting(
        "CARAVAN_HOSTS",
        (),
        _words,
        "More names that may stand in the Host header of a loopback listener, beside those Ollama allows. `.example.com` allows all names below it, `*` any name.",
        group=LISTEN,
    )
    origins: tuple[str, ...] = _setting(
        "CARAVAN_ORIGINS",
        (),
        _words,
        "More browser origins that may call, beside those Ollama allows, such as `https://chat.example.com`; `*` stands for any text.",
        group=LISTEN,
    )
    max_body: int = _setting(
        "CARAVAN_MAX_BODY",
        64 * MIB,
        _whole(1024),
        "Longest request body that is accepted; a longer one is a 413.",
        unit="bytes",
        group=LISTEN,
    )
    keepalive_s: int = _setting(
        "CARAVAN_KEEPALIVE",
        75,
        _whole(1, 3600),
        "How long an idle client connection stays open; it is the time limit for request headers too. More than the idle time of what stands in front (nginx 60 s; use 95 on Heroku).",
        unit="s",
        group=LISTEN,
    )

    backends: tuple[BackendSettings, ...] = _setting(
        "OLLAMA_BACKENDS",
        (),
        read_backends,
        "The fleet: `name=url,name=url`, or a JSON list of objects with name, url and optionally auth_token, headers, priority, slots, kind, cloud. The order is the priority order.",
        secret=True,
        group=FLEET,
    )
    base_url: str = _setting(
        "OLLAMA_BASE_URL",
        "http://127.0.0.1:11434",
        check_url,
        "The one backend, named `default`, where OLLAMA_BACKENDS is empty.",
        group=FLEET,
    )
    auth_token: str | None = _setting(
        "OLLAMA_AUTH_TOKEN",
        None,
        _text,
        "Bearer token for that one backend.",
        secret=True,
        group=FLEET,
    )

    poll_interval_s: float = _setting(
        "CARAVAN_POLL_INTERVAL",
        2.0,
        _seconds(),
        "Time between two polls of a live backend's `/api/tags` (the health probe) and `/api/ps`, with 10 % jitter. 0 turns polling off.",
        unit="s",
        group=POLLS,
    )
    slow_poll_interval_s: float = _setting(
        "CARAVAN_SLOW_POLL_INTERVAL",
        10.0,
        _seconds(),
        "Time between two polls of `/api/version` and `/api/status`. 0 asks only once.",
        unit="s",
        group=POLLS,
    )
    down_poll_interval_s: float = _setting(
        "CARAVAN_DOWN_POLL_INTERVAL",
        1.0,
        _seconds(0.05),
        "Time between two probes of a backend that failed its last one.",
        unit="s",
        group=POLLS,
    )
    poll_timeout_s: float = _setting(
        "CARAVAN_POLL_TIMEOUT",
        5.0,
        _seconds(0.05, 60),
        "Longest wait for one poll's answer.",
        unit="s",
        group=POLLS,
    )
    fall: int = _setting(
        "CARAVAN_FALL",
        3,
        _whole(1, 100),
        "Failed probes in a row that mark a backend down (HAProxy's default).",
        unit="probes",
        group=POLLS,
    )
    rise: int = _setting(
        "CARAVAN_RISE",
        2,
        _whole(1, 100),
        "Good probes in a row that bring a backend back (HAProxy's default).",
        unit="probes",
        group=POLLS,
    )
    forget_after_s: float = _setting(
        "CARAVAN_FORGET_AFTER",
        86400.0,
        _seconds(),
        "How long the models of a dead backend are remembered: shown from the cache, 503 instead of 404 for inference.",
        unit="s",
        group=POLLS,
    )
    hydrate_concurrency: int = _setting(
        "CARAVAN_HYDRATE_CONCURRENCY",
        4,
        _whole(0, 64),
        "Show documents fetched ahead of demand at the same time (Ollama's own figure for cloud models). 0 turns hydration off.",
        unit="requests",
        group=POLLS,
    )
    hydrate_timeout_s: float = _setting(
        "CARAVAN_HYDRATE_TIMEOUT",
        3.0,
        _seconds(0.05, 60),
        "Longest wait for one of them (Ollama's own figure).",
        unit="s",
        group=POLLS,
    )

    redis_url: str | None = _setting(
        "REDIS_URL",
        None,
        _redis_url,
        "The Redis that all processes share. Without it `caravan up` runs a private one.",
        secret=True,
        group=CACHES,
    )
    redis_prefix: str = _setting(
        "CARAVAN_REDIS_PREFIX",
        "caravan",
        _text,
        "What all Redis keys begin with; one per fleet where several share a Redis.",
        group=CACHES,
    )
    redis_timeout_s: float = _setting(
        "CARAVAN_REDIS_TIMEOUT",
        0.25,
        _seconds(0.01, 10),
        "Longest wait for one Redis call in a request; values above 256 KiB get 2 s.",
        unit="s",
        group=CACHES,
    )
    redis_memory: int = _setting(
        "CARAVAN_REDIS_MEMORY",
        256 * MIB,
        _whole(16 * MIB),
        "Memory limit of the private Redis.",
        unit="bytes",
        group=CACHES,
    )
    data_dir: Path = _setting(
        "DATA_DIR",
        Path("data"),
        Path,
        "Folder of the registry, the locks and the private Redis's socket.",
        group=CACHES,
    )
    show_cache_bytes: int = _setting(
        "CARAVAN_SHOW_CACHE_BYTES",
        128 * MIB,
        _whole(MIB),
        "Show documents kept in Redis, all together; the least recently used go first.",
        unit="bytes",
        group=CACHES,
    )
    worker_cache_bytes: int = _setting(
        "CARAVAN_WORKER_CACHE_BYTES",
        64 * MIB,
        _whole(0),
        "Show documents kept in the memory of each worker.",
        unit="bytes",
        group=CACHES,
    )
    cloud_cooldown_s: float = _setting(
        "CARAVAN_CLOUD_COOLDOWN",
        5.0,
        _seconds(),
        "A cached cloud document is refreshed behind a served answer at most this often (Ollama's own figure).",
        unit="s",
        group=CACHES,
    )
    show_timeout_s: float = _setting(
        "CARAVAN_SHOW_TIMEOUT",
        30.0,
        _seconds(0.05, 600),
        "Longest wait for a backend's show document that a client asked for.",
        unit="s",
        group=CACHES,
    )

    connect_timeout_s: float = _setting(
        "CARAVAN_CONNECT_TIMEOUT",
        2.0,
        _seconds(0.05, 60),
        "Longest wait for a connection to a backend.",
        unit="s",
        group=RELAY,
    )
    first_byte_timeout_s: float = _setting(
        "CARAVAN_FIRST_BYTE_TIMEOUT",
        600.0,
        _seconds(1),
        "Longest wait for an answer's first byte. Ollama sends nothing while it loads a model, and a load that is given up on starts from the beginning.",
        unit="s",
        group=RELAY,
    )
    idle_timeout_s: float = _setting(
        "CARAVAN_IDLE_TIMEOUT",
        120.0,
        _seconds(0.05),
        "Longest silence inside an answer that has begun.",
        unit="s",
        group=RELAY,
    )
    attempts: int = _setting(
        "CARAVAN_ATTEMPTS",
        3,
        _whole(1, 10),
        "Most attempts for one request, the first included.",
        unit="attempts",
        group=RELAY,
    )
    failures_to_open: int = _setting(
        "CARAVAN_BREAKER_FAILURES",
        5,
        _whole(1, 100),
        "5xx answers and resets in a row after which a backend is skipped (Envoy's consecutive_5xx). A refused connection counts for all of them.",
        unit="failures",
        group=RELAY,
    )
    breaker_open_s: float = _setting(
        "CARAVAN_BREAKER_OPEN",
        5.0,
        _seconds(0.05, 600),
        "How long it is skipped at first; doubled at each further failure, at most 12 times this. After a refused connection: a fifth of this, and never longer than this.",
        unit="s",
        group=RELAY,
    )

    workers: int = _setting(
        "WEB_CONCURRENCY",
        2,
        _whole(1, 256),
        "Web worker processes.",
        unit="processes",
        group=PROCESS,
    )
    grace_s: int = _setting(
        "CARAVAN_GRACE",
        25,
        _whole(1, 3600),
        "How long a stop waits for running streams (Heroku kills after 30 s).",
        unit="s",
        group=PROCESS,
    )
    reload_interval_s: float = _setting(
        "CARAVAN_RELOAD_INTERVAL",
        0.25,
        _seconds(0.02, 60),
        "How often a worker looks whether the registry changed.",
        unit="s",
        group=PROCESS,
    )
    log_level: str = _setting(
        "CARAVAN_LOG_LEVEL",
        "info",
        _choice("debug", "info", "warning", "error"),
        "What is logged: `info` has one line for each relayed request, `debug` one for every request.",
        group=PROCESS,
    )

    @property
    def fleet(self) -> tuple[BackendSettings, ...]:
        """The configured backends; a lone one named `default` where none is named."""
        if self.backends:
            return self.backends
        return (BackendSettings(name="default", url=self.base_url, auth_token=self.auth_token),)

    @property
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


def load(environ: Mapping[str, str] | None = None, dotenv: Path | None = Path(".env")) -> Settings:
    """Read the settings from `.env` and the environment, which wins.

    Raises:
        ConfigError: with all problems.
    """
    merged = {**_dotenv(dotenv), **(os.environ if environ is None else environ)}
    problems = _unknown_names(merged)
    values: dict[str, Any] = {}
    for spec in fields(Settings):
        try:
            raw = _raw(merged, spec)
            if raw is not None:
                values[spec.name] = spec.metadata["read"](raw)
        except (ValueError, OSError) as exc:
            problems.append(f"{spec.metadata['env']}: {exc}")
    if problems:
        raise ConfigError(problems)
    return Settings(**values)


def check_exposure(settings: Settings) -> None:
    """Refuse to serve a public address to everybody unless that was said.

    Raises:
        ConfigError: the address is public and CARAVAN_ANONYMOUS is not set.
    """
    if settings.is_public and not settings.anonymous:
        raise ConfigError(
            [
                f"HOST: {settings.host} is a public address and anybody who reaches it could use the fleet. "
                "Set CARAVAN_ANONYMOUS=1 if that is wanted, or HOST=127.0.0.1 behind a proxy that checks who asks."
            ]
        )


def _dotenv(path: Path | None) -> dict[str, str]:
    if path is None or not path.is_file():
        return {}
    return {key: value for key, value in dotenv_values(path, interpolate=False).items() if value is not None}


def _unknown_names(environ: Mapping[str, str]) -> list[str]:
    known = {spec.metadata["env"] for spec in fields(Settings)}
    known |= {f"{spec.metadata['env']}_FILE" for spec in fields(Settings) if spec.metadata["secret"]}
    strange = sorted(name for name in environ if name.startswith("CARAVAN_") and name not in known)
    return [f"{name}: no such setting{_did_you_mean(name, known)}" for name in strange]


def _did_you_mean(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _raw(environ: Mapping[str, str], spec: Field[Any]) -> str | None:
    """The setting's text; empty counts as unset, a secret may stand in the file that NAME_FILE names."""
    name = spec.metadata["env"]
    raw = environ.get(name, "").strip()
    path = environ.get(f"{name}_FILE", "").strip() if spec.metadata["secret"] else ""
    if raw and path:
        raise ValueError(f"set either {name} or {name}_FILE, not both")
    if path:
        raw = Path(path).read_text().strip()
    return raw or None


def settings_doc() -> str:
    """`docs/settings.md`, from the table above."""
    lines = [_DOC_HEAD]
    group = ""
    for spec in fields(Settings):
        meta = spec.metadata
        if meta["group"] != group:
            group = meta["group"]
            lines.append(f"\n## {group}\n\n| setting | default | unit | meaning |\n|---|---|---|---|")
        name = f"`{meta['env']}`" + (f" or `{meta['env']}_FILE`" if meta["secret"] else "")
        lines.append(f"| {name} | {_doc_default(spec.default)} | {meta['unit']} | {meta['help'].replace('|', '&#124;')} |")
    return "\n".join(lines) + "\n"


_DOC_HEAD = """# Settings

Generated from `proxy_app/settings.py` by `make docs`; do not edit by hand.

Settings come from the environment and from a file `.env` in the working directory; the environment wins, and an
empty value counts as not set. A name that starts with `CARAVAN_` and is not listed here stops the start, as does any
wrong value; all problems are reported at once. A secret may stand in a file instead, which `NAME_FILE` names."""


def _doc_default(default: object) -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return "`1`" if default else "`0`"
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{default}`"
