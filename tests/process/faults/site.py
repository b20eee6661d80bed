"""A product in front of talkers, and what has to be true of it after every fault."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.fakes import procs
from tests.fakes.procs import Process
from tests.fakes.redis import PrivateRedis
from tests.process.faults.talkers import CANARY, SONG, Talker
from tests.process.faults.traffic import MIXED, MODELS, TOKEN_S, Client, Kind, Reply, Traffic
from tests.product import NO_BREAKER, environment, listed, mark
from tests.wire.shows import until

TOKEN = "hunter2-of-the-backends"
# A crashed worker's leases are gone after this long, in seconds.
LEASES_S = 30.0
# Descriptors that may come and go: connections to the registry, a poll.
SPARE_FDS = 12
# Threads that look whether Redis is back, and the like.
SPARE_THREADS = 3
# Connections to a backend besides those that carried its requests: polls of the refresher, of a worker's own.
SPARE_CONNECTIONS = 8
KEY = re.compile(rb"\{caravan\}:inflight:\d+")
NAME = re.compile(rb"[0-9a-f]{32}")
TRACES = ("Traceback (most recent", '"traceback"')


@dataclass(eq=False)
class Site:
    """Talkers, gunicorn and a refresher of its own."""

    process: Process
    refresher: Process
    talkers: tuple[Talker, ...]
    data: Path
    redis: PrivateRedis | None = None
    descriptors: list[int] = field(default_factory=list)
    threads: int = 0

    @property
    def url(self) -> str:
        return self.process.url

    def traffic(self, kinds: Sequence[Kind] = MIXED, clients: int = 8, tokens: int = 12) -> Traffic:
        return Traffic(self.url, self.talkers, kinds, clients, tokens)

    def client(self) -> Client:
        return Client(self.url, self.talkers)

    def ask(self, kind: Kind, tokens: int = 3) -> Reply:
        """One request on a connection of its own."""
        client = self.client()
        try:
            return client.ask(kind, tokens)
        finally:
            client.close()

    # --- the state that everything comes back to -----------------------------------------------

    def warm_up(self) -> None:
        """Run every path once, and note how many descriptors the workers need for that."""
        with self.traffic() as traffic:
            traffic.more(3 * len(MIXED))
        assert not traffic.failed
        self.wait_idle()
        self.descriptors = self.count_descriptors()
        self.threads = max(worker.num_threads() for worker in self.process.workers)

    def count_descriptors(self) -> list[int]:
        """What each worker has open, but for connections to Redis and to backends: the pools keep as many as were once
        needed at the same time, and that depends on the machine."""
        ports = {talker.port for talker in self.talkers}
        return [descriptors(worker, ports) for worker in self.process.workers]

    def wait_idle(self, deadline_s: float = 10.0) -> None:
        for talker in self.talkers:
            talker.wait_idle(deadline_s)

    def assert_calm(self, deadline_s: float = 10.0) -> None:
        """The backends have nothing to do, no descriptor or thread is lost, and nothing was logged that may not be."""
        self.wait_idle(deadline_s)
        allowed = max(self.descriptors) + SPARE_FDS
        until(lambda: max(self.count_descriptors()) <= allowed, f"{allowed} descriptors", deadline_s)
        threads = self.threads + SPARE_THREADS
        until(
            lambda: max(each.num_threads() for each in self.process.workers) <= threads,
            f"{threads} threads",
            deadline_s,
        )
        for talker in self.talkers:
            most = len(self.process.workers) * talker.max_in_flight + SPARE_CONNECTIONS
            few = lambda talker=talker, most=most: talker.open_connections <= most  # noqa: E731 - one line, one use
            until(few, f"{most} connections to {talker.name}", deadline_s)
        self.assert_clean_logs()

    def assert_no_leases(self, deadline_s: float = LEASES_S) -> None:
        redis = self.redis
        assert redis is not None
        until(lambda: leases(redis) == 0, "no lease is left", deadline_s)

    def assert_clean_logs(self, *explained: str) -> None:
        """No traceback, no prompt, no answer, no token.

        Args:
            explained: parts of lines that may hold a traceback.
        """
        for process in (self.process, self.refresher):
            assert not [word for word in (CANARY, SONG, TOKEN) if word in process.output]
            lines = [line for line in process.output.splitlines() if not any(word in line for word in explained)]
            assert not [line for line in lines if any(word in line for word in TRACES)], process.tail()

    # --- the fleet -----------------------------------------------------------------------------

    def wait_listed(self, name: str, deadline_s: float = 10.0) -> None:
        until(lambda: name in listed(self.url), f"{name} is listed", deadline_s)


def descriptors(worker: psutil.Process, ports: set[int]) -> int:
    """What a worker has open, but for unix sockets and connections to those ports."""
    others = [conn for conn in worker.net_connections("inet") if conn.raddr and conn.raddr.port in ports]
    return worker.num_fds() - len(worker.net_connections("unix")) - len(others)


def leases(redis: PrivateRedis) -> int:
    """How many requests are in flight by what Redis knows."""
    return len(lease_names(redis))


def lease_names(redis: PrivateRedis) -> set[bytes]:
    """Those requests' leases; what has expired counts no more, though it lies there until the next request comes."""
    keys = KEY.findall(redis.command("KEYS", "{caravan}:inflight:*"))
    now_ms = f"({time.time() * 1000:.0f}"
    return {name for key in keys for name in NAME.findall(redis.command("ZRANGEBYSCORE", key.decode(), now_ms, "+inf"))}


def stored_leases(redis: PrivateRedis) -> int:
    """How many lie in Redis, expired ones too."""
    keys = KEY.findall(redis.command("KEYS", "{caravan}:inflight:*"))
    return sum(int(redis.command("ZCARD", key.decode())[1:]) for key in keys)


@contextmanager
def prepare_fleet(names: Sequence[str] = ("a", "b")) -> Iterator[tuple[Talker, ...]]:
    """Talkers that all hold the models of the traffic."""
    with ExitStack() as stack:
        talkers = [Talker(name, [*MODELS, f"only-{name}"], token_delay_s=TOKEN_S) for name in names]
        yield tuple(stack.enter_context(talker) for talker in talkers)


def settings(talkers: Sequence[Talker], redis_url: str = "", **changes: str) -> dict[str, str]:
    """The environment of a product in front of talkers that share the load: the choice needs Redis."""
    backends = ",".join(
        f'{{"name":"{talker.name}","url":"{talker.url}","priority":0,"auth_token":"{TOKEN}"}}' for talker in talkers
    )
    return environment(talkers, redis_url, OLLAMA_BACKENDS=f"[{backends}]", **{**NO_BREAKER, **changes})


@contextmanager
def site(
    folder: Path,
    redis: PrivateRedis | None = None,
    redis_url: str = "",
    talkers: Sequence[Talker] = (),
    **changes: str,
) -> Iterator[Site]:
    """A product that is ready, with its data at `folder/data`.

    Args:
        redis: the server behind it, for its leases.
        redis_url: another way to it than its own.
        talkers: the fleet; by default two new ones.
        changes: more environment variables.
    """
    with ExitStack() as stack:
        fleet = tuple(talkers) or stack.enter_context(prepare_fleet())
        url = redis_url or (redis.url if redis else "")
        env = settings(fleet, url, **changes)
        refresher = stack.enter_context(procs.caravan(env, folder, "refresh"))
        process = stack.enter_context(procs.gunicorn(env, folder))
        process.wait_every_worker()
        made = Site(process, refresher, fleet, folder / "data", redis)
        process.wait_until(lambda: {mark(each) for each in fleet} <= listed(process.url), "all are listed")
        yield made
