"""One upstream request for one document, however many clients wait and in however many workers."""

from __future__ import annotations

import json
import threading
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from conformance.fakes.faults import Error500, Fault, StallBeforeHeaders
from conformance.fakes.http import CutOff, RawClient
from conformance.fakes.ollama import FakeOllama, RecordedRequest
from conformance.fakes.wire import Exchange
from tests.conftest import FakeFactory
from tests.fakes.procs import Process
from tests.product import PATIENT
from tests.wire.shows import cache_of, gateway, show, shows, until

# In each of two workers.
CLIENTS = 100
FEW = 30
# A state in /proc/net/tcp.
ESTABLISHED = "01"
BODY = json.dumps({"model": "tiny", "verbose": True}).encode()


@dataclass(frozen=True)
class StallThenFail(Fault):
    """Silence until an event is set, then a failure."""

    until: threading.Event

    async def play(self, exchange: Exchange) -> None:
        await exchange.wait(self.until)
        await Error500().play(exchange)


def two_workers(fake: FakeOllama, folder: Path, redis_url: str, **changes: str) -> AbstractContextManager[Process]:
    return gateway([fake], folder, redis_url, WEB_CONCURRENCY="2", **PATIENT, **changes)


def busy(process: Process, worker: psutil.Process) -> int:
    """How many clients a worker has accepted."""
    found = worker.net_connections("tcp")
    return sum(c.status == psutil.CONN_ESTABLISHED and c.laddr.port == process.port for c in found)


def leader_of(process: Process, fake: FakeOllama) -> psutil.Process:
    """The worker that is asking the backend right now; polls are the refresher's."""
    asking = [
        worker
        for worker in process.workers
        if any(c.raddr and c.raddr.port == fake.port for c in worker.net_connections("tcp"))
    ]
    assert len(asking) == 1, "exactly one worker asks the backend"
    return asking[0]


def crowd(stack: ExitStack, process: Process, count: int) -> list[RawClient]:
    """As many clients in each worker, which have asked for nothing yet.

    A worker stands still while the other one's are accepted: none may be fetching then.
    """
    return [client for worker in process.workers for client in crowd_of(worker, stack, process, count)]


def crowd_of(worker: psutil.Process, stack: ExitStack, process: Process, count: int) -> list[RawClient]:
    with process.only(worker):
        clients = [stack.enter_context(RawClient(process.url)) for _ in range(count)]
        until(lambda: busy(process, worker) >= count, "all clients are accepted")
    return clients


def ask(clients: list[RawClient]) -> None:
    """All ask for the verbose document."""
    for client in clients:
        client.send_request("POST", "/api/show", BODY)


def are_read(process: Process) -> bool:
    """Has the server read all that its clients have sent?"""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    own = [row for row in rows if row[1].endswith(f":{process.port:04X}") and row[3] == ESTABLISHED]
    return all(row[4].endswith(":00000000") for row in own)


def is_of_the_crowd(request: RecordedRequest) -> bool:
    return bool(request.json().get("verbose"))


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
        ask(clients)
        fake.wait_for("/api/show")
        go.set()

        assert statuses(clients) == [200] * CLIENTS * 2
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
        clients = crowd(stack, process, CLIENTS)
        first = stack.enter_context(RawClient(process.url))
        ask([first])
        asked = fake.wait_for("/api/show")
        first.abort()
        ask(clients)
        until(lambda: are_read(process), "all others wait")
        assert not asked.client_gone.is_set(), "the fetch goes on for the others"
        go.set()

        assert statuses(clients) == [200] * CLIENTS * 2
        assert len(shows(fake, "tiny")) == 1
        assert repeated(process) == ["hit"] * 10
        assert len(shows(fake, "tiny")) == 1


def test_a_leader_that_is_killed_costs_one_more_request(fakes: FakeFactory, tmp_path: Path, redis_url: str) -> None:
    fake, go = fakes("one"), threading.Event()
    with two_workers(fake, tmp_path, redis_url, CARAVAN_HYDRATE_CONCURRENCY="0") as process, ExitStack() as stack:
        fake.fault("/api/show", StallBeforeHeaders(go))
        clients = crowd(stack, process, CLIENTS)
        ask(clients)
        fake.wait_for("/api/show")
        leader_of(process, fake).kill()
        found = statuses(clients)
        go.set()

        assert (found.count(200), found.count("cut")) == (CLIENTS, CLIENTS)
        assert len(shows(fake, "tiny")) == 2
        process.wait_every_worker()
        assert repeated(process) == ["hit"] * 10
        assert len(shows(fake, "tiny")) == 2


def test_a_failure_is_shared_by_the_crowd_and_not_kept(fakes: FakeFactory, tmp_path: Path, redis_url: str) -> None:
    fake, go = fakes("one"), threading.Event()
    with two_workers(fake, tmp_path, redis_url, CARAVAN_HYDRATE_CONCURRENCY="0") as process, ExitStack() as stack:
        fake.fault("/api/show", StallThenFail(go), times=None, when=is_of_the_crowd)
        # The last of each worker asks for another document, behind the others.
        clients = crowd(stack, process, FEW + 1)
        last = [clients.pop(), clients.pop(FEW)]
        ask(clients)
        fake.wait_for("/api/show")
        # All have come to where they wait, or ask Redis, which answers one after the other: whoever asked it later has
        # its answer, so have they.
        until(lambda: are_read(process), "all are read")
        plain = [client.request("POST", "/api/show", json={"model": "tiny"}).status for client in last]
        assert plain == [200, 200]
        go.set()

        assert statuses(clients) == [500] * FEW * 2
        # The only holder is asked twice, by each worker at most.
        assert len([each for each in shows(fake, "tiny") if is_of_the_crowd(each)]) <= 4
        fake.clear_faults()
        assert show(process.url, "tiny", verbose=True).status == 200


def test_without_redis_each_worker_has_one_flight(fakes: FakeFactory, tmp_path: Path) -> None:
    fake, go = fakes("one"), threading.Event()
    with two_workers(fake, tmp_path, "") as process, ExitStack() as stack:
        fake.fault("/api/show", StallBeforeHeaders(go), times=None)
        clients = crowd(stack, process, FEW)
        ask(clients)
        fake.wait_for("/api/show", 2)
        go.set()

        assert statuses(clients) == [200] * FEW * 2
        assert len(shows(fake, "tiny")) == 2
