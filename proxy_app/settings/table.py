"""The table of all settings: the one place where a setting is named, defaulted and explained."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxy_app.settings.backends import BackendSettings, check_url, read_backends
from proxy_app.settings.readers import Reader, choice, flag, redis_url, seconds, text, whole, words


def setting(
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

    host: str = setting("HOST", "127.0.0.1", text, "Address to listen on.", group=LISTEN)
    port: int = setting("PORT", 8080, whole(1, 65535), "Port to listen on.", group=LISTEN)
    anonymous: bool = setting(
        "CARAVAN_ANONYMOUS",
        False,
        flag,
        "1 serves a public address to everybody who can reach it. Without it Caravan refuses to listen anywhere but on loopback.",
        group=LISTEN,
    )
    hosts: tuple[str, ...] = setting(
        "CARAVAN_HOSTS",
        (),
        words,
        "More names that may stand in the Host header of a loopback listener, beside those Ollama allows. `.example.com` allows all names below it, `*` any name.",
        group=LISTEN,
    )
    origins: tuple[str, ...] = setting(
        "CARAVAN_ORIGINS",
        (),
        words,
        "More browser origins that may call, beside those Ollama allows, such as `https://chat.example.com`; `*` stands for any text.",
        group=LISTEN,
    )
    max_body: int = setting(
        "CARAVAN_MAX_BODY",
        64 * MIB,
        whole(1024),
        "Longest request body that is accepted; a longer one is a 413.",
        unit="bytes",
        group=LISTEN,
    )
    keepalive_s: int = setting(
        "CARAVAN_KEEPALIVE",
        75,
        whole(1, 3600),
        "How long an idle client connection stays open; it is the time limit for request headers too. More than the idle time of what stands in front (nginx 60 s; use 95 on Heroku).",
        unit="s",
        group=LISTEN,
    )

    backends: tuple[BackendSettings, ...] = setting(
        "OLLAMA_BACKENDS",
        (),
        read_backends,
        "The fleet: `name=url,name=url`, or a JSON list of objects with name, url and optionally auth_token, headers, priority, slots, kind, cloud. The order is the priority order.",
        secret=True,
        group=FLEET,
    )
    base_url: str = setting(
        "OLLAMA_BASE_URL",
        "http://127.0.0.1:11434",
        check_url,
        "The one backend, named `default`, where OLLAMA_BACKENDS is empty.",
        group=FLEET,
    )
    auth_token: str | None = setting(
        "OLLAMA_AUTH_TOKEN",
        None,
        text,
        "Bearer token for that one backend.",
        secret=True,
        group=FLEET,
    )

    poll_interval_s: float = setting(
        "CARAVAN_POLL_INTERVAL",
        2.0,
        seconds(),
        "Time between two polls of a live backend's `/api/tags` (the health probe) and `/api/ps`, with 10 % jitter. 0 turns polling off.",
        unit="s",
        group=POLLS,
    )
    slow_poll_interval_s: float = setting(
        "CARAVAN_SLOW_POLL_INTERVAL",
        10.0,
        seconds(),
        "Time between two polls of `/api/version` and `/api/status`. 0 asks only once.",
        unit="s",
        group=POLLS,
    )
    down_poll_interval_s: float = setting(
        "CARAVAN_DOWN_POLL_INTERVAL",
        1.0,
        seconds(0.05),
        "Time between two probes of a backend that failed its last one.",
        unit="s",
        group=POLLS,
    )
    poll_timeout_s: float = setting(
        "CARAVAN_POLL_TIMEOUT",
        5.0,
        seconds(0.05, 60),
        "Longest wait for one poll's answer.",
        unit="s",
        group=POLLS,
    )
    fall: int = setting(
        "CARAVAN_FALL",
        3,
        whole(1, 100),
        "Failed probes in a row that mark a backend down (HAProxy's default).",
        unit="probes",
        group=POLLS,
    )
    rise: int = setting(
        "CARAVAN_RISE",
        2,
        whole(1, 100),
        "Good probes in a row that bring a backend back (HAProxy's default).",
        unit="probes",
        group=POLLS,
    )
    forget_after_s: float = setting(
        "CARAVAN_FORGET_AFTER",
        86400.0,
        seconds(),
        "How long the models of a dead backend are remembered: shown from the cache, 503 instead of 404 for inference.",
        unit="s",
        group=POLLS,
    )
    hydrate_concurrency: int = setting(
        "CARAVAN_HYDRATE_CONCURRENCY",
        4,
        whole(0, 64),
        "Show documents fetched ahead of demand at the same time (Ollama's own figure for cloud models). 0 turns hydration off.",
        unit="requests",
        group=POLLS,
    )
    hydrate_timeout_s: float = setting(
        "CARAVAN_HYDRATE_TIMEOUT",
        3.0,
        seconds(0.05, 60),
        "Longest wait for one of them (Ollama's own figure).",
        unit="s",
        group=POLLS,
    )

    redis_url: str | None = setting(
        "REDIS_URL",
        None,
        redis_url,
        "The Redis that all processes share. Without it `caravan up` runs a private one.",
        secret=True,
        group=CACHES,
    )
    redis_prefix: str = setting(
        "CARAVAN_REDIS_PREFIX",
        "caravan",
        text,
        "What all Redis keys begin with; one per fleet where several share a Redis.",
        group=CACHES,
    )
    redis_timeout_s: float = setting(
        "CARAVAN_REDIS_TIMEOUT",
        0.25,
        seconds(0.01, 10),
        "Longest wait for one Redis call in a request; values above 256 KiB get 2 s.",
        unit="s",
        group=CACHES,
    )
    redis_memory: int = setting(
        "CARAVAN_REDIS_MEMORY",
        256 * MIB,
        whole(16 * MIB),
        "Memory limit of the private Redis.",
        unit="bytes",
        group=CACHES,
    )
    data_dir: Path = setting(
        "DATA_DIR",
        Path("data"),
        Path,
        "Folder of the registry, the locks and the private Redis's socket.",
        group=CACHES,
    )
    show_cache_bytes: int = setting(
        "CARAVAN_SHOW_CACHE_BYTES",
        128 * MIB,
        whole(MIB),
        "Show documents kept in Redis, all together; the least recently used go first.",
        unit="bytes",
        group=CACHES,
    )
    worker_cache_bytes: int = setting(
        "CARAVAN_WORKER_CACHE_BYTES",
        64 * MIB,
        whole(0),
        "Show documents kept in the memory of each worker.",
        unit="bytes",
        group=CACHES,
    )
    cloud_cooldown_s: float = setting(
        "CARAVAN_CLOUD_COOLDOWN",
        5.0,
        seconds(),
        "A cached cloud document is refreshed behind a served answer at most this often (Ollama's own figure).",
        unit="s",
        group=CACHES,
    )
    show_timeout_s: float = setting(
        "CARAVAN_SHOW_TIMEOUT",
        30.0,
        seconds(0.05, 600),
        "Longest wait for a backend's show document that a client asked for.",
        unit="s",
        group=CACHES,
    )

    connect_timeout_s: float = setting(
        "CARAVAN_CONNECT_TIMEOUT",
        2.0,
        seconds(0.05, 60),
        "Longest wait for a connection to a backend.",
        unit="s",
        group=RELAY,
    )
    first_byte_timeout_s: float = setting(
        "CARAVAN_FIRST_BYTE_TIMEOUT",
        600.0,
        seconds(1),
        "Longest wait for an answer's first byte. Ollama sends nothing while it loads a model, and a load that is given up on starts from the beginning.",
        unit="s",
        group=RELAY,
    )
    idle_timeout_s: float = setting(
        "CARAVAN_IDLE_TIMEOUT",
        120.0,
        seconds(0.05),
        "Longest silence inside an answer that has begun.",
        unit="s",
        group=RELAY,
    )
    attempts: int = setting(
        "CARAVAN_ATTEMPTS",
        3,
        whole(1, 10),
        "Most attempts for one request, the first included.",
        unit="attempts",
        group=RELAY,
    )
    failures_to_open: int = setting(
        "CARAVAN_BREAKER_FAILURES",
        5,
        whole(1, 100),
        "5xx answers and resets in a row after which a backend is skipped (Envoy's consecutive_5xx). A refused connection counts for all of them.",
        unit="failures",
        group=RELAY,
    )
    breaker_open_s: float = setting(
        "CARAVAN_BREAKER_OPEN",
        5.0,
        seconds(0.05, 600),
        "How long it is skipped at first; doubled at each further failure, at most 12 times this. After a refused connection: a fifth of this, and never longer than this.",
        unit="s",
        group=RELAY,
    )

    workers: int = setting(
        "WEB_CONCURRENCY",
        2,
        whole(1, 256),
        "Web worker processes.",
        unit="processes",
        group=PROCESS,
    )
    grace_s: int = setting(
        "CARAVAN_GRACE",
        25,
        whole(1, 3600),
        "How long a stop waits for running streams (Heroku kills after 30 s).",
        unit="s",
        group=PROCESS,
    )
    reload_interval_s: float = setting(
        "CARAVAN_RELOAD_INTERVAL",
        0.25,
        seconds(0.02, 60),
        "How often a worker looks whether the registry changed.",
        unit="s",
        group=PROCESS,
    )
    log_level: str = setting(
        "CARAVAN_LOG_LEVEL",
        "info",
        choice("debug", "info", "warning", "error"),
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
