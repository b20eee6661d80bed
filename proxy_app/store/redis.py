"""The way to Redis: short time limits, a breaker, and one error for everything that goes wrong.

Redis may be refused, paused, slow, full or restarted at any moment: a caller gets `CacheAway` within its budget and
goes on without. Nothing is ever repeated here, since the outcome of a call that timed out is unknown.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from proxy_app.errors import CacheAway
from proxy_app.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")
SCRIPTS = Path(__file__).with_name("scripts")

# Larger values travel on connections of their own, with a longer budget, and say nothing about Redis' health:
# 8 MB take longer than a small call's whole budget on a busy machine.
BIG_BYTES = 256 * 1024
BIG_TIMEOUT_S = 2.0
FAILURES_TO_OPEN = 3
OPEN_S = 2.0
CONNECTIONS = 256
# The longest path that a unix socket's address has room for on Linux, without its final NUL.
SOCKET_PATH_MAX = 107


def private_socket(data_dir: Path) -> Path:
    """Where `caravan up` puts its private Redis's socket, and where other processes look for it."""
    path = data_dir.resolve() / "redis.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
        return path
    runtime = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(runtime) / f"caravan-{os.getuid()}-{name}" / "redis.sock"


class RedisGate:
    """All calls to Redis of one process go through here.

    Owned by: the process's runtime. State: closed (calls go through), open (calls fail at once, while a
    background thread probes every 2 s).

    Args:
        url: where Redis is; with None, the private Redis is used while its socket is there.
        private: that socket.
        timeout_s: budget of a call.
    """

    def __init__(self, url: str | None, private: Path, timeout_s: float) -> None:
        self._private = None if url else private
        self._small = _client(url or f"unix://{private}", timeout_s)
        self._big = _client(url or f"unix://{private}", BIG_TIMEOUT_S)
        self._lines: list[Any] = []
        self._lock = threading.Lock()
        self._failures = 0
        self._stop = threading.Event()
        self._probing: threading.Thread | None = None
        if not self._is_there():
            self._open("there is no Redis")

    @classmethod
    def of(cls, settings: Settings) -> RedisGate:
        return cls(settings.redis_url, private_socket(settings.data_dir), settings.redis_timeout_s)

    @property
    def is_away(self) -> bool:
        """Is the breaker open?"""
        return self._probing is not None

    def run(self, call: Callable[[redis.Redis], Any], *, big: bool = False) -> Any:
        """Make one call.

        Args:
            big: the call moves a value above 256 KiB.

        Raises:
            CacheAway: the breaker is open, or the call failed.
        """
        return self._guarded(lambda: call(self._big if big else self._small), counts=not big)

    def call(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run one script, as almost every request does: straight on a connection. What redis-py's client does around a
        call (pool, poll of the socket through the hub, retries, telemetry) costs as much as the call itself.

        Raises:
            CacheAway: as `run`.
        """
        return self._guarded(lambda: self._on_line(script, keys, args), counts=True)

    def _guarded(self, call: Callable[[], Any], *, counts: bool) -> Any:
        if self.is_away:
            raise CacheAway("Redis is away")
        try:
            answer = call()
        except (redis.RedisError, OSError) as exc:
            if counts:
                self._count(exc)
            raise CacheAway(f"Redis: {exc}") from exc
        self._failures = 0
        return answer

    def _on_line(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        line = self._lines.pop() if self._lines else self._small.connection_pool.get_connection()
        try:
            return script.on(line, keys, args)
        except redis.ConnectionError:
            # Redis was restarted: the others would fail too, each once. All connect again when they are used.
            for other in self._lines:
                other.disconnect()
            raise
        finally:
            self._lines.append(line)

    def close(self) -> None:
        self._stop.set()
        probing = self._probing
        if probing is not None:
            probing.join(OPEN_S)
        self._small.close()
        self._big.close()

    def _count(self, exc: Exception) -> None:
        # An answer, even an error, shows that Redis is there: full, read-only, wrong type.
        if not isinstance(exc, (redis.ConnectionError, redis.TimeoutError, OSError)):
            return
        # So does a pool of ours that is all in use.
        if isinstance(exc, redis.exceptions.MaxConnectionsError):
            return
        self._failures += 1
        if self._failures >= FAILURES_TO_OPEN:
            self._open(str(exc))

    def _open(self, reason: str) -> None:
        with self._lock:
            if self._probing is not None or self._stop.is_set():
                return
            log.warning("going on without Redis: %s", reason)
            self._probing = threading.Thread(target=self._probe_until_back, name="redis-probe", daemon=True)
            self._probing.start()

    def _probe_until_back(self) -> None:
        while not self._stop.wait(OPEN_S):
            if self._is_there() and self._answers():
                log.warning("Redis is back")
                self._failures = 0
                self._probing = None
                return

    def _is_there(self) -> bool:
        return self._private is None or (self._private.exists() and self._private.parent.stat().st_uid == os.getuid())

    def _answers(self) -> bool:
        try:
            return bool(self._small.ping())
        except (redis.RedisError, OSError):
            return False


def _client(url: str, timeout_s: float) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        # A new connection sends nothing before the call: each question of a handshake would cost a budget of its own.
        protocol=2,
        driver_info=None,
        # Heroku closes idle connections after 300 s.
        health_check_interval=30,
        max_connections=CONNECTIONS,
    )


class Script:
    """A Lua script of `scripts/`; its file documents KEYS, ARGV and the answer."""

    def __init__(self, name: str) -> None:
        self._source = (SCRIPTS / f"{name}.lua").read_text()
        self._sha = hashlib.sha1(self._source.encode(), usedforsecurity=False).hexdigest()

    def on(self, line: Any, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run it on a connection of redis-py's."""
        line.send_command("EVALSHA", self._sha, len(keys), *keys, *args)
        try:
            return line.read_response()
        except redis.exceptions.NoScriptError:
            line.send_command("EVAL", self._source, len(keys), *keys, *args)
            return line.read_response()

    def many(self, client: redis.Redis, calls: Sequence[tuple[list[str], list[Any]]]) -> None:
        """Call it several times in one round trip; an answer that is an error stands for that one call alone."""
        pipeline = client.pipeline(transaction=False)
        for keys, args in calls:
            pipeline.evalsha(self._sha, len(keys), *keys, *args)
        answers = pipeline.execute(raise_on_error=False)
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, redis.exceptions.NoScriptError):
                keys, args = call
                client.eval(self._source, len(keys), *keys, *args)


def unix_now() -> float:
    """UTC seconds, for times that are stored."""
    return time.time()
