"""What is larger than a worker's memory passes through it: in constant memory, whole or visibly not."""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from conformance.fakes.http import RawClient
from tests.fakes import procs
from tests.fakes.sink import BLOCK, LAST_LINE, LINE, MODEL, Sink, sink
from tests.product import QUICK, listed

# The sink lives as long as the module, and with it the connections that Caravan keeps to it.
pytestmark = [pytest.mark.leaky, pytest.mark.alone]

GROWTH = 32 << 20
UPLOAD_BLOCKS = 2048
ANSWER_LINES = 300 * 2**20 // len(LINE) + 1
BLOB = "/api/blobs/sha256:" + "ab" * 32
# Deadline in seconds for any single read or write on a machine that has other things to do.
PATIENCE_S = 60.0


@contextmanager
def gateway(folder: Path, *sinks: Sink, **changes: str) -> Iterator[procs.Process]:
    backends = [{"name": made.name, "url": made.url} for made in sinks]
    env = {**QUICK, "OLLAMA_BACKENDS": json.dumps(backends), "WEB_CONCURRENCY": "1", **changes}
    wanted = {made.mark for made in sinks}
    with procs.caravan(env, folder, "refresh"), procs.gunicorn(env, folder) as process:
        process.wait_ready()
        process.wait_until(lambda: wanted <= listed(process.url), "all sinks are seen")
        yield process


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[procs.Process, Sink]]:
    """A gateway and the sink behind it."""
    with sink(lines=ANSWER_LINES) as made, gateway(tmp_path_factory.mktemp("upload"), made) as process:
        yield process, made


def worker_of(process: procs.Process) -> psutil.Process:
    return process.named("gunicorn")[0]


@contextmanager
def growth_measured(process: procs.Process) -> Iterator[list[int]]:
    """By how many bytes the worker grows meanwhile, at most."""
    worker = worker_of(process)
    before = worker.memory_info().rss
    grown, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            grown[0] = max(grown[0], worker.memory_info().rss - before)

    looking = threading.Thread(target=look, name="memory")
    looking.start()
    try:
        yield grown
    finally:
        over.set()
        looking.join()


def block(at: int) -> bytes:
    """A block unlike the others; most of it costs nothing to make."""
    return at.to_bytes(8, "big") + bytes(BLOCK - 8)


def upload(client: RawClient, blocks: int) -> int:
    """Send an upload of a known length; returns its checksum."""
    client.send_request("POST", BLOB, None, {"Content-Length": str(blocks * BLOCK)})
    checksum = 0
    for at in range(blocks):
        piece = block(at)
        client.send(piece)
        checksum = zlib.crc32(piece, checksum)
    return checksum


def test_an_upload_of_two_gigabytes_passes_in_constant_memory(far: tuple[procs.Process, Sink]) -> None:
    process, made = far
    with RawClient(process.url, PATIENCE_S) as client, growth_measured(process) as grown:
        checksum = upload(client, UPLOAD_BLOCKS)
        answer = client.read_response()
    arrived = made.next_upload()
    assert (answer.status, answer.body) == (201, b"")
    assert (arrived.announced, arrived.size, arrived.checksum) == (UPLOAD_BLOCKS * BLOCK,) * 2 + (checksum,)
    assert grown[0] < GROWTH


def test_an_answer_of_300_megabytes_passes_in_constant_memory(far: tuple[procs.Process, Sink]) -> None:
    process, _ = far
    with RawClient(process.url, PATIENCE_S) as client, growth_measured(process) as grown:
        client.send_request("POST", "/api/generate", json.dumps({"model": MODEL, "prompt": "hi"}).encode())
        head = client.read_head()
        size, tail = 0, b""
        for piece in client.iter_body(head):
            size, tail = size + len(piece), (tail + piece)[-len(LAST_LINE) :]
    assert size > 300 << 20
    assert tail == LAST_LINE
    assert grown[0] < GROWTH


@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_an_upload_that_is_cut_short_never_arrives_as_whole(far: tuple[procs.Process, Sink], chunked: bool) -> None:
    process, made = far
    framing = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(4 * BLOCK)}
    with RawClient(process.url, PATIENCE_S) as client:
        client.send_request("POST", BLOB, None, framing)
        client.send((b"%x\r\n" % (4 * BLOCK) if chunked else b"") + block(0))
        arriving = made.next_upload()
        assert not arriving.over.is_set()
    assert arriving.over.wait(PATIENCE_S), "the backend still waits for the rest"
    assert not arriving.is_whole


def test_a_client_that_is_still_there_hears_that_its_upload_was_short(far: tuple[procs.Process, Sink]) -> None:
    process, made = far
    with RawClient(process.url, PATIENCE_S) as client:
        client.send_request("POST", BLOB, None, {"Content-Length": str(4 * BLOCK)})
        client.send(block(0))
        arriving = made.next_upload()
        client.sock.shutdown(1)
        answer = client.read_response()
    assert answer.status == 400
    assert "shorter" in answer.json()["error"]
    assert arriving.over.wait(PATIENCE_S)
    assert not arriving.is_whole


def test_an_early_refusal_reaches_the_client_before_it_has_sent_all(tmp_path: Path) -> None:
    with (
        sink(refuse_after=BLOCK) as made,
        gateway(tmp_path, made) as process,
        RawClient(process.url, PATIENCE_S) as client,
    ):
        client.send_request("POST", BLOB, None, {"Content-Length": str(1 << 40)})
        client.sock.setblocking(False)
        assert send_until_answered(client)
        client.sock.settimeout(PATIENCE_S)
        answer = client.read_response()
        # A connection in the middle of a request is used no more, on either side.
        assert made.next_upload().left.wait(PATIENCE_S)
        assert client.closed_by_peer(PATIENCE_S)
    assert (answer.status, answer.json()) == (413, {"error": "too large for me"})


def send_until_answered(client: RawClient) -> bool:
    """Send on and on, as a client with a large file does, until there is something to read."""
    end = time.monotonic() + PATIENCE_S
    piece = block(0)
    while time.monotonic() < end:
        try:
            if client.sock.recv(1, 2):
                return True
        except BlockingIOError:
            pass
        try:
            client.sock.send(piece)
        except BlockingIOError:
            continue
        except ConnectionError:
            return True
    return False


def test_one_backend_that_refuses_an_upload_does_not_keep_it_from_the_others(tmp_path: Path) -> None:
    with (
        sink("good") as good,
        sink("bad", refuse_after=BLOCK) as bad,
        gateway(tmp_path, bad, good, CARAVAN_PULL_TO="all") as process,
        RawClient(process.url, PATIENCE_S) as client,
    ):
        checksum = upload(client, 64)
        answer = client.read_response()
    assert answer.status == 500
    assert answer.json() == {"error": "upload on bad failed: too large for me; done on good"}
    arrived = good.next_upload()
    assert (arrived.is_whole, arrived.checksum) == (True, checksum)
