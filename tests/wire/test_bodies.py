"""Long request bodies wait on the disk, short ones in a bounded memory, and all arrive as they were sent."""

from __future__ import annotations

import hashlib
import json
import select
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from conformance.fakes import faults
from conformance.fakes.http import RawClient, RawResponse
from conformance.fakes.recorded import RecordedRequest
from tests.product import NO_BREAKER, Stand, question, stand

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

MIB = 1 << 20
# Four bodies of just below 1 MiB, and no fifth.
MEMORY = 4 * MIB
BIG = 40 * MIB
# What a worker may need for a body of any length, beside the body: a slice of it here and there.
SLACK = 16 * MIB


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("bodies"), CARAVAN_BODY_MEMORY=str(MEMORY), **NO_BREAKER) as made:
        yield made


@pytest.fixture
def site(shared: Stand, own_files: set[str]) -> Iterator[Stand]:
    shared.tidy()
    yield shared
    for fake in shared.fakes:
        # 40 MiB each.
        fake.forget_requests()


def worker(site: Stand) -> psutil.Process:
    (found,) = site.process.workers
    return found


def own_memory(process: psutil.Process) -> int:
    """Memory that is a process's own, without what it maps of files, in bytes."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def spooled_files(site: Stand) -> set[str]:
    """The files without a name that the worker has open; each is open twice while it is mapped."""
    targets = []
    for each in Path(f"/proc/{worker(site).pid}/fd").iterdir():
        # One that is closed by now is none.
        with suppress(FileNotFoundError):
            targets.append(str(each.readlink()))
    return {target for target in targets if target.startswith(data_dir(site)) and target.endswith("(deleted)")}


def data_dir(site: Stand) -> str:
    return site.process.env["DATA_DIR"]


def body_of(size: int, place: str = "first", model: str = "tiny") -> bytes:
    """A chat of about this size, its model before, between or behind the rest."""
    padding = b"x" * (size // 2)
    parts = {
        "first": b'{"model":"%b","stream":false,"messages":[{"role":"user","content":"%b%b"}]}',
        "between": b'{"messages":[{"role":"user","content":"%b"}],"model":"%b","stream":false,"padding":"%b"}',
        "last": b'{"stream":false,"messages":[{"role":"user","content":"%b%b"}],"model":"%b"}',
    }
    name = model.encode()
    values = {"first": (name, padding, padding), "between": (padding, name, padding), "last": (padding, padding, name)}
    return parts[place] % values[place]


def post(site: Stand, body: bytes, **headers: str) -> RawResponse:
    with site.client(30) as client:
        return client.request("POST", "/api/chat", body, headers)


def digest(body: bytes) -> str:
    """Two bodies are compared by this: a difference of 40 MiB is nothing to print."""
    return hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("place", ["first", "between", "last"])
def test_a_model_is_found_wherever_it_stands_in_40_mib(site: Stand, place: str) -> None:
    body = body_of(BIG, place, "only-b")
    answer = post(site, body)
    assert answer.json()["message"]["content"] == "Hello from b."
    (request,) = site.fakes[1].requests_for("/api/chat")
    assert (len(request.body), digest(request.body)) == (len(body), digest(body))


@pytest.mark.parametrize("size", [MIB - 70, MIB, MIB + 70, 5 * MIB])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_body_of_any_size_arrives_as_it_was_sent(site: Stand, size: int, framing: str) -> None:
    body = body_of(size)
    if framing == "length":
        answer = post(site, body)
    else:
        pieces = [body[start : start + 100_000] for start in range(0, len(body), 100_000)]
        answer = post(site, b"".join(map(faults.chunk, pieces)) + b"0\r\n\r\n", **{"Transfer-Encoding": "chunked"})
    assert answer.json()["done"]
    (request,) = site.fakes[0].requests_for("/api/chat")
    assert digest(request.body) == digest(body)
    assert request.header("content-length") == str(len(body))


@pytest.mark.parametrize("fault", [faults.Refuse503Busy(), faults.Error500(), faults.RstBeforeHeaders()], ids=repr)
def test_a_long_body_goes_to_a_second_backend_as_it_was_sent(site: Stand, fault: faults.Fault) -> None:
    body = body_of(5 * MIB)
    site.fakes[0].fault("/api/chat", fault, times=2)
    assert post(site, body).json()["message"]["content"] == "Hello from b."
    for fake in site.fakes:
        assert {digest(request.body) for request in fake.requests_for("/api/chat")} == {digest(body)}


def asking(site: Stand, body: bytes, number: int) -> RawClient:
    """A client whose request waits at the backend, as the one of this number.

    The room that others took comes back behind their answers, or when it is seen that they have left: while there is
    none, the client is told to come again, and does.
    """
    deadline_s = time.monotonic() + 20
    while True:
        client = site.client(30)
        client.send_request("POST", "/api/chat", body)
        while not select.select([client.sock], [], [], 0.01)[0]:
            if site.fakes[0].count("/api/chat") >= number:
                return client
            assert time.monotonic() < deadline_s, "no request came, and no answer"
        with client:
            assert client.read_response().status == 503
        assert time.monotonic() < deadline_s, "there is no room"


@contextmanager
def waiting(site: Stand, bodies: list[bytes]) -> Iterator[list[RawClient]]:
    """Clients whose requests wait at the backend; at the end they get their answers."""
    answer = threading.Event()
    before = site.fakes[0].count("/api/chat")
    rule = site.fakes[0].fault("/api/chat", faults.StallBeforeHeaders(answer), times=None)
    with ExitStack() as stack:
        clients = []
        for number, body in enumerate(bodies, 1):
            clients.append(stack.enter_context(asking(site, body, before + number)))
        try:
            yield clients
        finally:
            answer.set()
            rule.remove()
        assert [client.read_response().status for client in clients] == [200] * len(clients)


@pytest.fixture(scope="module")
def own_files(shared: Stand) -> set[str]:
    """The files without a name that a worker has without any body."""
    return spooled_files(shared)


@pytest.fixture
def before(site: Stand, own_files: set[str]) -> set[str]:
    """The files that are there before a test: those of others are gone by then, and no number of theirs comes again."""
    site.process.wait_until(lambda: spooled_files(site) <= own_files, "the files of other tests are gone", 15)
    return own_files


def test_a_long_body_of_a_failed_attempt_leaves_no_file(site: Stand, before: set[str]) -> None:
    """What its errors still refer to may not keep it open: the next full collection may be minutes away."""
    for _ in range(8):
        site.fakes[0].fault("/api/chat", faults.RstBeforeHeaders(), times=2)
        assert post(site, body_of(2 * MIB)).status == 200
        site.fakes[0].clear_faults()
    site.process.wait_until(lambda: spooled_files(site) <= before, "all files are gone", 10)


def test_a_long_body_waits_in_a_file_without_a_name_and_costs_no_memory(site: Stand, before: set[str]) -> None:
    assert post(site, body_of(2 * MIB)).status == 200
    site.process.wait_until(lambda: spooled_files(site) <= before, "its file is gone", 10)
    memory = own_memory(worker(site))
    names = sorted(Path(data_dir(site)).iterdir())
    with waiting(site, [body_of(BIG), body_of(BIG, "last")]):
        assert own_memory(worker(site)) - memory < SLACK
        assert len(spooled_files(site) - before) == 2
        assert sorted(Path(data_dir(site)).iterdir()) == names
    site.process.wait_until(lambda: spooled_files(site) <= before, "both files are gone", 10)
    assert own_memory(worker(site)) - memory < SLACK


def test_a_body_is_let_go_of_as_soon_as_an_answer_has_begun(site: Stand, before: set[str]) -> None:
    site.fakes[0].fault("/api/chat", faults.StreamThen(1, faults.Stall))
    body = body_of(5 * MIB).replace(b'"stream":false', b'"stream":true', 1)
    with site.client() as client:
        client.send_request("POST", "/api/chat", body)
        head = client.read_head()
        assert next(client.iter_body(head))
        site.process.wait_until(lambda: spooled_files(site) <= before, "the file is gone", 10)


def test_a_client_that_leaves_takes_its_file_along(site: Stand, before: set[str]) -> None:
    site.fakes[0].fault("/api/chat", faults.StallBeforeHeaders())
    with site.client() as client:
        client.send_request("POST", "/api/chat", body_of(5 * MIB))
        site.fakes[0].wait_for("/api/chat")
        assert len(spooled_files(site) - before) == 1
    site.process.wait_until(lambda: spooled_files(site) <= before, "the file is gone", 10)


# --- the memory of all bodies together -----------------------------------------------------------

BELOW = body_of(MIB - 4096)


def refused(answer: RawResponse) -> bool:
    assert answer.status in (200, 503)
    return answer.status == 503


def test_bodies_beyond_the_memory_for_them_are_told_to_come_again(site: Stand) -> None:
    with waiting(site, [BELOW] * 4):
        answer = post(site, BELOW)
        assert answer.status == 503
        assert int(answer.header("retry-after") or 0) >= 1
        assert set(answer.json()) == {"error"}
        # What needs no room of its own goes on.
        assert site.process.get("/api/tags").status == 200
    assert not refused(post(site, BELOW))


def test_bodies_in_files_take_no_room_of_the_others(site: Stand) -> None:
    with waiting(site, [body_of(2 * MIB)] * 6 + [BELOW] * 2):
        assert not refused(post(site, body_of(2 * MIB, model="only-b")))
        assert not refused(post(site, body_of(MIB - 4096, model="only-b")))


@pytest.mark.parametrize(
    ("path", "keys"),
    [("/v1/chat/completions", {"error"}), ("/v1/messages", {"type", "error", "request_id"}), ("/api/embed", {"error"})],
)
def test_the_refusal_is_in_the_dialect_of_the_route(site: Stand, path: str, keys: set[str]) -> None:
    asked: dict[str, Any] = question(path, padding="x" * (MIB - 4096))
    with waiting(site, [BELOW] * 4):
        answer = site.post(path, asked)
    assert (answer.status, set(answer.json())) == (503, keys)
    assert answer.header("retry-after")


def test_the_connection_of_a_refused_body_is_not_used_again(site: Stand) -> None:
    """Part of the body was not read: it must not be taken for a request."""
    with waiting(site, [BELOW] * 4), site.client() as client:
        client.send_request("POST", "/api/chat", BELOW)
        assert client.read_response().status == 503
        assert client.closed_by_peer(10)


def leave_in_mid_body(site: Stand) -> None:
    with site.client() as client:
        client.send_request("POST", "/api/chat", BELOW[:-10], {"Content-Length": str(len(BELOW))})


def refuse_its_json(site: Stand) -> None:
    assert post(site, BELOW.replace(b'{"model', b'"model', 1)).status == 400


def leave_in_prefill(site: Stand) -> None:
    before = site.fakes[0].count("/api/chat")
    site.fakes[0].fault("/api/chat", faults.StallBeforeHeaders())
    with site.client() as client:
        client.send_request("POST", "/api/chat", BELOW)
        request: RecordedRequest = site.fakes[0].wait_for("/api/chat", before + 1)
    assert request.client_gone.wait(10)


def ask_for_nobody(site: Stand) -> None:
    assert post(site, BELOW.replace(b"tiny", b"nope", 1)).status == 404


def exceed_the_limit(site: Stand) -> None:
    chunks = faults.chunk(b"x" * MIB) * 65
    with site.client(60) as client:
        try:
            assert client.request("POST", "/api/chat", chunks, {"Transfer-Encoding": "chunked"}).status == 413
        except ConnectionError:
            # It was refused while it was sent.
            return


WASTES = [leave_in_mid_body, refuse_its_json, leave_in_prefill, ask_for_nobody, exceed_the_limit]


@pytest.mark.parametrize("waste", WASTES, ids=lambda waste: waste.__name__)
def test_memory_comes_back_however_a_request_ends(site: Stand, waste: Any) -> None:
    for _ in range(6):
        waste(site)
    # All of it is there: four fit, and a fifth does not.
    site.process.wait_until(lambda: not refused(post(site, BELOW)), "there is room")
    with waiting(site, [BELOW] * 4):
        assert refused(post(site, BELOW))


def test_the_least_memory_that_can_be_set_is_enough_for_any_body(tmp_path_factory: pytest.TempPathFactory) -> None:
    with stand(tmp_path_factory.mktemp("least"), CARAVAN_BODY_MEMORY=str(MIB)) as two:
        assert json.loads(post(two, body_of(3 * MIB)).body)["done"]
