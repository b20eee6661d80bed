"""One upstream request for one document, however many clients wait and in however many workers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from conformance.fakes.faults import Error500, Fault, StallBeforeHeaders
from conformance.fakes.http import CutOff, RawClient
from conformance.fakes.ollama import FakeOllama
from conformance.fakes.wire import Exchange
from tests.conftest import FakeFactory
from tests.fakes.procs import Process
from tests.wire.shows import cache_of, gateway, show, shows, until

CLIENTS = 200
FEW = 60
BODY = json.dumps({"model": "tiny", "verbose": True}).encode()


@dataclass(frozen=True)
class StallThenFail(Fault):
    """Silence until an event is set, then a failure."""

    until: threading.Event

    async def play(self, exchange: Exchange) -> None:
        await exchange.wait(self.until)
        await Error500().play(exchange)


@contextmanager
def two_workers(fake: FakeOllama, folder: Path, redis_url: str, **changes: str) -> Iterator[Process]:
    """Two workers that both know their fleet."""
    with gateway([fake], folder, redis_url, WEB_CONCURRENCY="2", **changes) as process:
        until(lambda: len(workers(process)) == 2, "two workers")
        until(lambda: all(process.get("/readyz").status == 200 for _ in range(10)), "both workers are ready")
        yield process


def workers(process: Process) -> list[psutil.Process]:
    return [each for each in process.named("gunicorn") if each.ppid() == process.pid]


def busy(process: Process, worker: psutil.Process) -> int:
    """How many clients a worker has accepted."""
    found = worker.net_connections("tcp")
    return sum(c.status == psutil.CONN_ESTABLISHED and c.laddr.port == process.port for c in found)


def leader_of(process: Process, fake: FakeOllama) -> psutil.Process:
    """The worker that is asking the backend right now; polls are the refresher's."""
    asking = [
        worker
        for worker in workers(process)
        if any(c.raddr and c.raddr.port == fake.port for c in worker.net_connections("tcp"))
    ]
    assert len(asking) == 1, "exactly one worker asks the backend"
    return asking[0]


def crowd(stack: ExitStack, process: Process, count: int) -> list[RawClient]:
    """Clients that have asked for the verbose document and wait."""
    clients = []
    for _ in range(count):
        client = stack.enter_context(RawClient(process.url))
        client.send_request("POST", "/api/show", BODY)
        clients.append(client)
    return clients


def all_accepted(process: Process, count: int) -> bool:
    # Client ends of this process' own sockets are of no interest: the workers' are.
    return sum(busy(process, worker) for worker in workers(process)) >= count


def statuses(clients: list[RawClient]) -> list[int | str]:
    """Each client's status, or `cut`."""
    found: list[int | str] = []
    for client in clients:
        try:
            found.append(client.read_response().status)
        except CutOff:
            found.append("cut")
    return found


def repeated(process: Process) -> list[str | None]:
    """Ten repeats of the crowd's question."""
    return [cache_of(show(process.url, "tiny", verbose=True)) for _ in range(10)]


def test_a_crowd_of_first_requests_over_two_workers_is_one_upstream_request(
    fakes: FakeFactory, tmp_path: Path, redis_url: str
) -> None:
    fake, go = fakes("one"), threading.Event()
    with two_workers(fake, tmp_path, redis_url, CARAVAN_HYDRATE_CONCURRENCY="0") as process, ExitStack() as stack:
        fake.fault("/api/show", StallBeforeHeaders(go))
        clients = crowd(stack, process, CLIENTS)
        until(lambda: all_accepted(process, CLIENTS), "all clients are accepted")
        shares = [busy(process, worker) for worker in workers(process)]
        go.set()

        assert statuses(clients) == [200] * CLIENTS
        assert min(shares) > 0, "both workers had some of the crowd"
        assert len(shows(fake, "tiny")) == 1
        # The other worker's clients got it through Redis: now everybody has it.
        assert repeated(process) == ["hit"] * 10
        assert len(shows(fake, "tiny")) == 1


def test_the_first_client_may_hang_up_without_harm_to_the_others(
    fakes: FakeFactory, tmp_path: Path, redis_url: str
) -> None:
    fake, go = fakes("one"), threading.Event()
    with two_workers(fake, tmp_path, redis_url, CARAVAN_HYDRATE_CONCURRENCY="0") as process, ExitStack() as stack:
        fake.fault("/api/show", StallBeforeHeaders(go))
        [first] = crowd(stack, process, 1)
        asked = fake.wait_for("/api/show")
        first.abort()
        clients = crowd(stack, process, CLIENTS - 1)
        until(lambda: all_accepted(process, CLIENTS - 1), "all clients are accepted")
        assert not asked.client_gone.is_set(), "the fetch goes on for the others"
        go.set()

        assert statuses(clients) == [200] * (CLIENTS - 1)
        assert len(shows(fake, "tiny")) == 1
        assert repeated(process) == ["hit"] * 10
        assert len(shows(fake, "tiny")) == 1


def test_a_leader_that_is_killed_costs_one_more_request(fakes: FakeFactory, tmp_path: Path, redis_url: str) -> None:
    fake, go = fakes("one"), threading.Event()
    with two_workers(fake, tmp_path, redis_url, CARAVAN_HYDRATE_CONCURRENCY="0") as process, ExitStack() as stack:
        fake.fault("/api/show", StallBeforeHeaders(go))
        clients = crowd(stack, process, CLIENTS)
        fake.wait_for("/api/show")
        until(lambda: all_accepted(process, CLIENTS), "all clients are accepted")
        leader = leader_of(process, fake)
        led, others = busy(process, leader), CLIENTS - busy(process, leader)
        leader.kill()
        found = statuses(clients)
        go.set()

        assert others > 0, "the other worker had some of the crowd"
        assert (found.count(200), found.count("cut")) == (others, led)
        assert len(shows(fake, "tiny")) == 2
        until(lambda: len(workers(process)) == 2, "the killed worker is replaced")
        until(lambda: all(process.get("/readyz").status == 200 for _ in range(10)), "both workers are ready")
        assert repeated(process) == ["hit"] * 10
        assert len(shows(fake, "tiny")) == 2


def test_a_failure_is_shared_by_the_crowd_and_not_kept(fakes: FakeFactory, tmp_path: Path, redis_url: str) -> None:
    fake, go = fakes("one"), threading.Event()
    with two_workers(fake, tmp_path, redis_url, CARAVAN_HYDRATE_CONCURRENCY="0") as process, ExitStack() as stack:
        fake.fault("/api/show", StallThenFail(go), times=None)
        clients = crowd(stack, process, 50)
        fake.wait_for("/api/show")
        until(lambda: all_accepted(process, 50), "all clients are accepted")
        go.set()

        assert statuses(clients) == [500] * 50
        # The only holder is asked twice, by each worker at most.
        assert len(shows(fake, "tiny")) <= 4
        fake.clear_faults()
        assert show(process.url, "tiny", verbose=True).status == 200


def test_without_redis_each_worker_has_one_flight(fakes: FakeFactory, tmp_path: Path) -> None:
    fake, go = fakes("one"), threading.Event()
    with two_workers(fake, tmp_path, "") as process, ExitStack() as stack:
        fake.fault("/api/show", StallBeforeHeaders(go), times=None)
        clients = crowd(stack, process, FEW)
        until(lambda: all_accepted(process, FEW), "all clients are accepted")
        taking_part = sum(busy(process, worker) > 0 for worker in workers(process))
        fake.wait_for("/api/show", taking_part)
        go.set()

        assert statuses(clients) == [200] * FEW
        assert len(shows(fake, "tiny")) == taking_part
