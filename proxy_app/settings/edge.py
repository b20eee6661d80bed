"""Settings of the side that clients see, and of the processes that serve them."""

from __future__ import annotations

from dataclasses import dataclass

from proxy_app.settings.limits import KeyLimits, parse_limits
from proxy_app.settings.readers import MIB, choice, flag, scopes, seconds, setting, strong_secret, text, whole, words


@dataclass(frozen=True)
class Listening:
    """Where Caravan listens."""

    host: str = setting("HOST", "127.0.0.1", text, "Address to listen on.")
    port: int = setting("PORT", 8080, whole(1, 65535), "Port to listen on.")
    anonymous: bool = setting(
        "CARAVAN_ANONYMOUS",
        False,
        flag,
        "1 serves everybody who can reach it, key or not. Without it a public address needs a key.",
    )
    admin_key: str | None = setting(
        "CARAVAN_ADMIN_KEY",
        None,
        strong_secret,
        "A key with all rights that is valid without being stored, to begin with. At least 128 bits: `openssl rand -hex 32`.",
        secret=True,
    )
    anonymous_scopes: tuple[str, ...] = setting(
        "CARAVAN_ANONYMOUS_SCOPES",
        ("infer", "read"),
        scopes,
        "What somebody without a key may do where CARAVAN_ANONYMOUS=1 lets them in: some of infer, read, metrics, manage, admin.",
    )
    limits: KeyLimits = setting(
        "CARAVAN_LIMITS",
        KeyLimits(),
        parse_limits,
        "Limits of each key, and of all who come without one together, that its own do not replace: `rpm=60,burst=20,concurrent=4,tpm=100000,tpd=2000000,gpu=3600` (requests a minute, how many more at once, under way; tokens a minute and a day; GPU seconds a day) and `num_ctx=8192,num_predict=2048,images=4,body=1048576,keep_alive=600` (what one request may ask for; keep_alive in seconds).",
    )
    limit_excess: str = setting(
        "CARAVAN_LIMIT_EXCESS",
        "clamp",
        choice("clamp", "refuse"),
        "What happens to a request that asks for more num_ctx, num_predict or keep_alive than its key may: `clamp` gives it as much as it may have, `refuse` is a 400.",
    )
    usage_days: int = setting(
        "CARAVAN_USAGE_DAYS",
        90,
        whole(1, 3650),
        "How long is kept what each key used of which model in which hour.",
        unit="days",
    )
    key_in_path: bool = setting(
        "CARAVAN_KEY_IN_PATH",
        False,
        flag,
        "1 takes a key as the beginning of the path too, `/k/<key>/api/chat`, for clients that can send no header. Whatever logs addresses in front of Caravan then logs keys.",
    )
    hosts: tuple[str, ...] = setting(
        "CARAVAN_HOSTS",
        (),
        words,
        "More names that may stand in the Host header of a loopback listener, beside those Ollama allows. `.example.com` allows all names below it, `*` any name.",
    )
    origins: tuple[str, ...] = setting(
        "CARAVAN_ORIGINS",
        (),
        words,
        "Browser origins that may call, such as `https://chat.example.com`; `*` stands for any text. On a loopback `HOST` those that Ollama allows (localhost, desktop apps) may too; on a public one nobody else.",
    )
    max_body: int = setting(
        "CARAVAN_MAX_BODY",
        64 * MIB,
        whole(1024),
        "Longest request body that is accepted; a longer one is a 413.",
        unit="bytes",
    )
    body_memory: int = setting(
        "CARAVAN_BODY_MEMORY",
        128 * MIB,
        whole(MIB),
        "Memory that the request bodies of one worker may hold together; beyond it a request is a 503 with Retry-After. Bodies above 1 MiB wait in a file in DATA_DIR and hold none.",
        unit="bytes",
    )
    trusted_hops: int = setting(
        "CARAVAN_TRUSTED_HOPS",
        0,
        whole(0, 10),
        "How many proxies stand in front of Caravan and tell who asks in `X-Forwarded-For`, `-Proto` and `-Host` (1 behind nginx or Heroku's router). 0 believes none of these headers.",
        unit="proxies",
    )
    account_backend: str | None = setting(
        "CARAVAN_ACCOUNT_BACKEND",
        None,
        text,
        "Name of the backend whose ollama.com account `/api/me` and `/api/signout` are about. Without it they are a 403.",
    )
    keepalive_s: int = setting(
        "CARAVAN_KEEPALIVE",
        75,
        whole(1, 3600),
        "How long an idle client connection stays open; it is the time limit for request headers too. More than the idle time of what stands in front (nginx 60 s; use 95 on Heroku).",
        unit="s",
    )
    client_timeout_s: float = setting(
        "CARAVAN_CLIENT_TIMEOUT",
        60.0,
        seconds(0.05),
        "Longest silence of a client in the middle of its request, and longest time in which it takes nothing of an answer (nginx's default).",
        unit="s",
    )


@dataclass(frozen=True)
class Relaying:
    """Relaying."""

    connect_timeout_s: float = setting(
        "CARAVAN_CONNECT_TIMEOUT",
        2.0,
        seconds(0.05, 60),
        "Longest wait for a connection to a backend.",
        unit="s",
    )
    first_byte_timeout_s: float = setting(
        "CARAVAN_FIRST_BYTE_TIMEOUT",
        300.0,
        seconds(1),
        "Longest wait for an answer's first byte where the model is loaded: the requests before it and a long prompt take time (Ollama itself waits without limit). Of an answer that does not stream it is the limit for all of it: Ollama sends nothing before the end.",
        unit="s",
    )
    load_timeout_s: float = setting(
        "CARAVAN_LOAD_TIMEOUT",
        300.0,
        seconds(1),
        "What is added to that where the model has to be loaded first (Ollama's own OLLAMA_LOAD_TIMEOUT): at least this, and twice what its last loads took. A load that is given up on starts from the beginning.",
        unit="s",
    )
    finish_loads: bool = setting(
        "CARAVAN_FINISH_LOADS",
        False,
        flag,
        "1 lets a backend finish loading a model for others who wait for it when the client that began the load hangs up (Ollama itself drops the load).",
    )
    heartbeat_s: float = setting(
        "CARAVAN_HEARTBEAT",
        0.0,
        seconds(),
        "Send what clients ignore (a blank before JSON, a comment in an event stream) each time nothing came for this long before an answer begins, for routers that cut silent connections (Heroku: 30 s; use 20). An error after the first one comes inside a 200. 0 sends none.",
        unit="s",
    )
    idle_timeout_s: float = setting(
        "CARAVAN_IDLE_TIMEOUT",
        120.0,
        seconds(0.05),
        "Longest silence inside an answer that has begun.",
        unit="s",
    )
    attempts: int = setting(
        "CARAVAN_ATTEMPTS",
        3,
        whole(1, 10),
        "Most attempts for one request, the first included.",
        unit="attempts",
    )
    retry_share: int = setting(
        "CARAVAN_RETRY_SHARE",
        20,
        whole(0, 100),
        "Further attempts under way, as a share of all requests that wait for an answer, that may go to backends whose last answer was no good either; at least 3 (Envoy's retry budget).",
        unit="%",
    )
    failures_to_open: int = setting(
        "CARAVAN_BREAKER_FAILURES",
        5,
        whole(1, 100),
        "5xx answers in a row after which a model on a backend is skipped, and lost connections in a row after which the whole backend is (Envoy's consecutive_5xx). A refused connection counts for all of them.",
        unit="failures",
    )
    breaker_open_s: float = setting(
        "CARAVAN_BREAKER_OPEN",
        5.0,
        seconds(0.05, 600),
        "How long it is skipped at first; doubled at each further failure, at most 12 times this. After a refused connection: a fifth of this, and never longer than this.",
        unit="s",
    )


@dataclass(frozen=True)
class Storing:
    """Store operations."""

    pull_to: tuple[str, ...] = setting(
        "CARAVAN_PULL_TO",
        ("first",),
        words,
        "Which backends get what is pulled, uploaded or created: `first` (the preferred one that is up), `all` that are up, or names of backends. A model made from one that the fleet holds goes to those of them that hold it.",
    )
    store_timeout_s: float = setting(
        "CARAVAN_STORE_TIMEOUT",
        1800.0,
        seconds(1),
        "Longest silence of a backend in the middle of a pull, a push, a create, a copy, a delete or an upload: verifying the digest of a large model says nothing.",
        unit="s",
    )


@dataclass(frozen=True)
class Managing:
    """The admin page."""

    session_idle_s: int = setting(
        "CARAVAN_SESSION_IDLE",
        4 * 3600,
        whole(60),
        "A login ends when nothing was asked for so long; an open page asks.",
        unit="s",
    )
    session_s: int = setting(
        "CARAVAN_SESSION_LENGTH",
        7 * 86400,
        whole(60),
        "A login ends after this time in any case.",
        unit="s",
    )
    login_attempts: int = setting(
        "CARAVAN_LOGIN_ATTEMPTS",
        10,
        whole(1),
        "Wrong keys that one address (of IPv6: one /64) may try at the login in a minute; more are a 429.",
        unit="a minute",
    )
    safe_version: str = setting(
        "CARAVAN_SAFE_VERSION",
        "0.17.1",
        text,
        "Backends with an older Ollama are warned of. 0.17.1 mends CVE-2026-7482, by which clients read the server's memory.",
    )


@dataclass(frozen=True)
class Running:
    """Processes and logs."""

    workers: int = setting(
        "WEB_CONCURRENCY",
        2,
        whole(1, 256),
        "Web worker processes.",
        unit="processes",
    )
    grace_s: int = setting(
        "CARAVAN_GRACE",
        25,
        whole(1, 3600),
        "How long a stop waits for running streams (Heroku kills after 30 s).",
        unit="s",
    )
    reload_interval_s: float = setting(
        "CARAVAN_RELOAD_INTERVAL",
        0.25,
        seconds(0.02, 60),
        "How often a worker looks whether the registry changed.",
        unit="s",
    )
    log_level: str = setting(
        "CARAVAN_LOG_LEVEL",
        "info",
        choice("debug", "info", "warning", "error"),
        "What is logged: `info` has one line for each relayed request, `debug` one for every request.",
    )
