"""`caravan up` while it runs: who is there, and who comes back."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from conformance.fakes.http import fetch
from conformance.fakes.ollama import FakeOllama
from tests.fakes.procs import Process, parent_of
from tests.process.checkout import fleet_of, up
from tests.product import UNHURRIED

MODEL = "llama3.2:1b"
# What dies has a successor at work within this long, in seconds; 2 are promised, the rest is for a busy machine.
REPLACED_S = 20.0
# A later request than the one that was just counted may be late by one poll.
POLL_S = 15.0

# Caravan is started once for all, and its kept connections to the fake outlive a test.
pytestmark = pytest.mark.leaky


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama("one", [MODEL]) as fake:
        yield fake


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up")


@pytest.fixture(scope="module")
def caravan(ollama: FakeOllama, folder: Path) -> Iterator[Process]:
    with up({**fleet_of([ollama]), **UNHURRIED}, folder) as process:
        process.wait_ready().wait_until(lambda: len(workers(process)) == 2, "both workers run")
        yield process


def redis_socket(folder: Path) -> Path:
    return folder / "data" / "redis.sock"


def answers_ping(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as conn:
        conn.settimeout(5)
        try:
            conn.connect(str(path))
            conn.sendall(b"PING\r\n")
            return conn.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def one(found: list[psutil.Process]) -> psutil.Process:
    assert len(found) == 1, found
    return found[0]


def refreshers(caravan: Process) -> list[psutil.Process]:
    return caravan.named("proxy_app.cli refresh")


def server(caravan: Process) -> psutil.Process:
    """gunicorn's master: the child that has the workers as its own."""
    return one([p for p in caravan.named("gunicorn wsgi:app") if parent_of(p) == caravan.pid])


def workers(caravan: Process) -> set[int]:
    return {p.pid for p in caravan.named("gunicorn wsgi:app") if parent_of(p) not in (caravan.pid, None)}


def wait_one_refresher(caravan: Process) -> psutil.Process:
    """A web worker starts one where there was none for a while; then one of both has to yield."""
    caravan.wait_until(lambda: len(refreshers(caravan)) == 1, "one refresher", POLL_S)
    return one(refreshers(caravan))


def wait_replaced(caravan: Process, is_replaced: object, what: str, killed_at: float) -> None:
    assert callable(is_replaced)
    caravan.wait_until(is_replaced, what, REPLACED_S - (time.monotonic() - killed_at))


def test_it_says_in_one_line_where_it_serves_and_what(caravan: Process) -> None:
    caravan.wait_output("Caravan serves")
    plain = [line for line in caravan.output.splitlines() if not line.startswith("{")]
    assert plain == [f"Caravan serves 1 models of 1 backends on {caravan.url}"]


def test_a_healthy_start_writes_no_warnings(caravan: Process) -> None:
    """A line that is always there is one that nobody reads."""
    caravan.wait_output("Caravan serves")
    assert '"level": "warning"' not in caravan.output
    assert '"level": "error"' not in caravan.output


def test_the_private_redis_is_on_a_unix_socket_that_only_its_owner_may_open(caravan: Process, folder: Path) -> None:
    assert answers_ping(redis_socket(folder))
    assert redis_socket(folder).stat().st_mode & 0o777 == 0o700
    assert (folder / "data").stat().st_mode & 0o777 == 0o700


def test_the_private_redis_listens_on_no_port(caravan: Process) -> None:
    redis = one(caravan.named("redis-server"))
    assert not [conn for conn in redis.net_connections(kind="inet") if conn.status == psutil.CONN_LISTEN]


def test_the_registry_is_readable_by_its_owner_alone(caravan: Process, folder: Path) -> None:
    assert (folder / "data" / "caravan.db").stat().st_mode & 0o777 == 0o600


def test_it_runs_one_redis_one_refresher_and_the_workers(caravan: Process) -> None:
    one(caravan.named("redis-server"))
    wait_one_refresher(caravan)
    assert len(workers(caravan)) == 2


def test_a_killed_redis_is_replaced(caravan: Process, folder: Path) -> None:
    old, at = one(caravan.named("redis-server")), time.monotonic()
    old.kill()
    psutil.wait_procs([old], timeout=5)
    wait_replaced(caravan, lambda: answers_ping(redis_socket(folder)), "a Redis answers again", at)
    assert one(caravan.named("redis-server")).pid != old.pid
    assert redis_socket(folder).stat().st_mode & 0o777 == 0o700


def test_a_killed_refresher_is_replaced(caravan: Process, ollama: FakeOllama) -> None:
    old, at = wait_one_refresher(caravan), time.monotonic()
    old.kill()
    psutil.wait_procs([old], timeout=5)
    ollama.forget_requests()
    wait_replaced(caravan, lambda: ollama.count("/api/tags") > 0, "the backend is polled again", at)
    assert wait_one_refresher(caravan).pid != old.pid


def test_a_killed_web_worker_is_replaced(caravan: Process) -> None:
    before = workers(caravan)
    victim, at = psutil.Process(min(before)), time.monotonic()
    victim.kill()
    psutil.wait_procs([victim], timeout=5)
    wait_replaced(caravan, lambda: len(workers(caravan)) == len(before), "as many workers as before", at)
    assert caravan.get("/api/tags").status == 200


def test_killed_web_workers_are_missed_for_two_seconds_at_most(caravan: Process) -> None:
    """All at once, so that only a new one can answer."""
    victims, at = [psutil.Process(pid) for pid in workers(caravan)], time.monotonic()
    for victim in victims:
        victim.kill()
    psutil.wait_procs(victims, timeout=5)
    wait_replaced(caravan, lambda: caravan._answers("/api/tags"), "a new worker answers", at)


def test_a_killed_server_is_replaced_and_its_workers_are_not_left_behind(caravan: Process) -> None:
    old, orphans, at = server(caravan), workers(caravan), time.monotonic()
    old.kill()
    psutil.wait_procs([old], timeout=5)
    wait_replaced(caravan, lambda: caravan._answers("/api/tags"), "a new server answers", at)
    caravan.wait_until(lambda: not orphans & workers(caravan), "the old workers are gone", REPLACED_S)
    assert server(caravan).pid != old.pid


def test_after_all_these_deaths_nobody_is_there_twice(caravan: Process) -> None:
    """A web worker starts a refresher where there is none; one that came back meanwhile has to win or to yield."""
    caravan.wait_ready()
    caravan.wait_until(lambda: len(workers(caravan)) == 2, "two workers")
    wait_one_refresher(caravan)
    one(caravan.named("redis-server"))


def test_a_model_is_shown_from_the_shared_cache_after_all_these_deaths(caravan: Process) -> None:
    body = {"model": MODEL}
    caravan.wait_until(
        lambda: fetch(f"{caravan.url}/api/show", "POST", json=body).header("x-caravan-cache") == "hit", "a cache hit"
    )
