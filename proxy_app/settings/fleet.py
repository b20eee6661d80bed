"""Settings of the side that backends and stores are on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proxy_app.settings.backends import BackendSettings, check_url, read_backends
from proxy_app.settings.readers import MIB, Network, networks, redis_url, seconds, setting, text, whole


@dataclass(frozen=True)
class TheFleet:
    """The fleet."""

    backends: tuple[BackendSettings, ...] = setting(
        "OLLAMA_BACKENDS",
        (),
        read_backends,
        "The fleet: `name=url,name=url`, or a JSON list of objects with name, url and optionally auth_token, headers, priority, slots, kind, cloud. The order is the priority order.",
        secret=True,
    )
    backend_nets: tuple[Network, ...] = setting(
        "CARAVAN_BACKEND_NETS",
        (),
        networks,
        "Networks in which backends may be, such as `10.1.0.0/16,127.0.0.0/8`; everywhere if not set, but never where clouds keep their machines' credentials (169.254.0.0/16). What counts is the address that was really connected to.",
    )
    base_url: str = setting(
        "OLLAMA_BASE_URL",
        "http://127.0.0.1:11434",
        check_url,
        "The one backend, named `default`, where OLLAMA_BACKENDS is empty.",
    )
    auth_token: str | None = setting(
        "OLLAMA_AUTH_TOKEN",
        None,
        text,
        "Bearer token for that one backend.",
        secret=True,
    )


@dataclass(frozen=True)
class Polling:
    """Polls and health."""

    poll_interval_s: float = setting(
        "CARAVAN_POLL_INTERVAL",
        2.0,
        seconds(),
        "Time between two polls of a live backend's `/api/tags` (the health probe) and `/api/ps`, with 10 % jitter. 0 turns polling off.",
        unit="s",
    )
    slow_poll_interval_s: float = setting(
        "CARAVAN_SLOW_POLL_INTERVAL",
        10.0,
        seconds(),
        "Time between two polls of `/api/version` and `/api/status`. 0 asks only once.",
        unit="s",
    )
    down_poll_interval_s: float = setting(
        "CARAVAN_DOWN_POLL_INTERVAL",
        1.0,
        seconds(0.05),
        "Time between two probes of a backend that failed its last one.",
        unit="s",
    )
    poll_timeout_s: float = setting(
        "CARAVAN_POLL_TIMEOUT",
        5.0,
        seconds(0.05, 60),
        "Longest wait for one poll's answer.",
        unit="s",
    )
    fall: int = setting(
        "CARAVAN_FALL",
        3,
        whole(1, 100),
        "Failed probes in a row that mark a backend down (HAProxy's default).",
        unit="probes",
    )
    rise: int = setting(
        "CARAVAN_RISE",
        2,
        whole(1, 100),
        "Good probes in a row that bring a backend back (HAProxy's default).",
        unit="probes",
    )
    forget_after_s: float = setting(
        "CARAVAN_FORGET_AFTER",
        86400.0,
        seconds(),
        "How long the models of a dead backend are remembered: shown from the cache, 503 instead of 404 for inference.",
        unit="s",
    )
    hydrate_concurrency: int = setting(
        "CARAVAN_HYDRATE_CONCURRENCY",
        4,
        whole(0, 64),
        "Show documents fetched ahead of demand at the same time (Ollama's own figure for cloud models). 0 turns hydration off.",
        unit="requests",
    )
    hydrate_timeout_s: float = setting(
        "CARAVAN_HYDRATE_TIMEOUT",
        3.0,
        seconds(0.05, 60),
        "Longest wait for one of them (Ollama's own figure).",
        unit="s",
    )


@dataclass(frozen=True)
class Caching:
    """Caches and stores."""

    redis_url: str | None = setting(
        "REDIS_URL",
        None,
        redis_url,
        "The Redis that all processes share. Without it `caravan up` runs a private one.",
        secret=True,
    )
    redis_prefix: str = setting(
        "CARAVAN_REDIS_PREFIX",
        "caravan",
        text,
        "What all Redis keys begin with; one per fleet where several share a Redis.",
    )
    redis_timeout_s: float = setting(
        "CARAVAN_REDIS_TIMEOUT",
        0.25,
        seconds(0.01, 10),
        "Longest wait for one Redis call in a request; values above 256 KiB get 2 s.",
        unit="s",
    )
    redis_memory: int = setting(
        "CARAVAN_REDIS_MEMORY",
        256 * MIB,
        whole(16 * MIB),
        "Memory limit of the private Redis.",
        unit="bytes",
    )
    data_dir: Path = setting(
        "DATA_DIR",
        Path("data"),
        Path,
        "Folder of the registry, the locks and the private Redis's socket.",
    )
    show_cache_bytes: int = setting(
        "CARAVAN_SHOW_CACHE_BYTES",
        128 * MIB,
        whole(MIB),
        "Show documents kept in Redis, all together; the least recently used go first.",
        unit="bytes",
    )
    worker_cache_bytes: int = setting(
        "CARAVAN_WORKER_CACHE_BYTES",
        64 * MIB,
        whole(0),
        "Show documents kept in the memory of each worker.",
        unit="bytes",
    )
    cloud_cooldown_s: float = setting(
        "CARAVAN_CLOUD_COOLDOWN",
        5.0,
        seconds(),
        "A cached cloud document is refreshed behind a served answer at most this often (Ollama's own figure).",
        unit="s",
    )
    show_timeout_s: float = setting(
        "CARAVAN_SHOW_TIMEOUT",
        30.0,
        seconds(0.05, 600),
        "Longest wait for a backend's show document that a client asked for.",
        unit="s",
    )
