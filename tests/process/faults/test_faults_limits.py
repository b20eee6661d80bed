"""What the machine gives is used up: descriptors, connections of clients that say and take nothing."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from conformance.fakes.http import CutOff, RawClient, encode_json
from tests.fakes import procs
from tests.fakes.redis import PrivateRedis
from tests.process.faults.site import Site, prepare_fleet, settings, site
from tests.process.faults.traffic import CHATS, Kind, added_ms, p99, tell
from tests.product import listed, mark, question
from tests.wire.shows import until

# The talkers live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = [pytest.mark.leaky, pytest.mark.alone]

CHAT = Kind("/api/chat", True)
# What a process of the product may open, and how many clients come.
FEW, CLIENTS = 128, 200
# So many get in at least.
AT_ONCE = 12
# A client that is not served hears so within this time, in seconds.
EARLY_S = 10.0
IDLE, SLOW = 1000, 100
# Descriptors that this process and the product need for those.
NEEDED = 4 * (IDLE + 2 * SLOW)
# What idle and slow clients may add to the first byte of others, in ms; far above what a busy machine adds.
ADDED_MS = 100.0
# Connections to a backend that may be kept besides.
SPARE = 8


@contextmanager
def few_descriptors(folder: Path) -> Iterator[Site]:
    """A product that may open FEW files and connections per process."""
    with prepare_fleet() as talkers, ExitStack() as stack:
        port = procs.free_port()
        env = {**settings(talkers), "PORT": str(port), "DATA_DIR": str(folder / "data")}
        refresher = stack.enter_context(procs.caravan(env, folder, "refresh"))
        command = ["sh", "-c", f"ulimit -n {FEW}; exec gunicorn wsgi:app"]
        process = stack.enter_context(procs.Process(command, env, folder, port))
        process.wait_ready()
        process.wait_until(lambda: {mark(each) for each in talkers} <= listed(process.url), "all are listed")
        yield Site(process, refresher, talkers, folder / "data")


def knock(client: RawClient, deadline_s: float) -> str:
    """Ask for a small thing: `served`, `refused` (by an answer or a close; then the client leaves), or `silent`."""
    client.sock.settimeout(deadline_s)
    try:
        client.send_request("GET", "/livez")
        if client.read_response().status == 200:
            return "served"
    except (CutOff, ConnectionError):
        pass
    except TimeoutError:
        return "silent"
    client.close()
    return "refused"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with few_descriptors(tmp_path_factory.mktemp("narrow")) as made:
        made.warm_up()
        yield made


@contextmanager
def crush(here: Site) -> Iterator[list[tuple[RawClient, str]]]:
    """More clients than there are descriptors, none of whom leaves; and how each was received."""
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(here.url)) for _ in range(CLIENTS)]
        end = time.monotonic() + EARLY_S
        yield [(client, knock(client, max(0.05, end - time.monotonic()))) for client in clients]


def test_where_descriptors_end_clients_are_refused_and_not_left_waiting(narrow: Site) -> None:
    with crush(narrow) as received:
        told = [how for _, how in received]
    assert told.count("served") >= AT_ONCE
    assert told.count("silent") == 0, "nobody is left waiting"


def test_where_descriptors_end_who_got_in_can_work(narrow: Site) -> None:
    """There is room left for a connection to a backend for each."""
    body = encode_json(question("/api/chat", stream=False, options={"num_predict": 3}))
    with crush(narrow) as received:
        inside = [client for client, how in received if how == "served"]
        for client in inside:
            client.sock.settimeout(EARLY_S)
            client.send_request("POST", "/api/chat", body, {"Content-Type": "application/json"})
        answers = [client.read_response() for client in inside]
    assert len(answers) >= AT_ONCE
    assert {(answer.status, answer.complete) for answer in answers} == {(200, True)}


def test_once_descriptors_are_free_everybody_is_served_again(narrow: Site) -> None:
    with crush(narrow):
        pass
    until(lambda: narrow.ask(CHAT).verdict == "complete", "served again", 10)
    with narrow.traffic() as traffic:
        traffic.more(60)
    assert not traffic.failed
    narrow.assert_calm()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for a thousand connections, here and in the product, which inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < NEEDED:
        pytest.skip(f"only {hard} descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, NEEDED), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def crowd(here: Site) -> Iterator[None]:
    """Idle clients, some that send half a request, and some that ask for a long answer and take nothing of it."""
    wish = encode_json(question("/api/chat", stream=True, options={"fake_delay_s": 0.2}))
    with ExitStack() as stack:
        stack.enter_context(procs.idle_connections(here.process.port or 0, IDLE))
        for _ in range(SLOW):
            sender, reader = (stack.enter_context(RawClient(here.url)) for _ in range(2))
            sender.send(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
            reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.send_request("POST", "/api/chat", wish)
        until(lambda: sum(talker.in_flight for talker in here.talkers) >= SLOW, "all readers are served")
        yield


@pytest.mark.usefixtures("many_descriptors")
def test_idle_and_slow_clients_hurt_nobody_and_leave_nothing_behind(redis_server: PrivateRedis, tmp_path: Path) -> None:
    with PrivateRedis(redis_server.binary, tmp_path) as redis, site(tmp_path, redis) as here:
        here.warm_up()
        connections = [talker.open_connections for talker in here.talkers]
        with here.traffic(CHATS) as traffic:
            before = traffic.more(60)
            with crowd(here):
                during = traffic.more(60)
            traffic.more(20)
        tell("alone", before), tell("in a crowd", during)
        assert not traffic.failed
        assert added_ms(during) < added_ms(before) + ADDED_MS
        assert added_ms(during, p99) < 3000
        here.assert_calm()
        here.assert_no_leases(10.0)
        for talker, usual in zip(here.talkers, connections, strict=True):
            until(
                lambda talker=talker, usual=usual: talker.open_connections <= usual + SPARE,
                f"{talker.name}'s connections",
            )
