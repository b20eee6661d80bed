"""An answer that broke off never looks complete, and nothing is asked twice once it has begun."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from conformance.fakes.answers import JSON_UTF8
from conformance.fakes.faults import (
    Ending,
    Eof,
    Fault,
    Garbage,
    HalfChunk,
    Rst,
    ShortContentLength,
    Stall,
    StreamThen,
)
from conformance.fakes.http import CutOff, RawClient, RawResponse
from conformance.fakes.wire import head_bytes
from conformance.judge import check_good, check_honest, has_error, is_good
from conformance.row import Group, check
from conformance.rows.fidelity import LAST
from conformance.scripts import HalfBody, Later, Raw
from conformance.site import CHAT, PATIENCE_S, V1_CHAT, Site, says_close, told

GROUP = Group("endings", "Answers that break off")
TOKENS = 2
# How long in seconds a gateway may hold back the beginning of a stream until the suite goes on without.
BEGIN_S = 5.0
Begun = Callable[[], None]
# A gateway waits for a silent backend as long as it likes; the suite looks at it for this long, in seconds.
STALL_LOOK_S = 1.0
POISON = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{"poison":true}\n'


def broken_stream(site: Site, ending: Ending, path: str) -> None:
    """Break every stream after two tokens, when the client has the first; it sees that, and nobody else is asked."""
    gate = threading.Event()
    broken(site, StreamThen(TOKENS, Later(gate, ending)), path, gate.set)


def broken(site: Site, fault: StreamThen, path: str, begun: Begun) -> None:
    """Let every stream meet a fault that strikes when the client has the first token, which `begun` tells."""
    site.always(fault, path)
    with site.client() as client:
        site.send(client, path)
        answer = read_begun(client, begun)
    check(not is_good(site, answer), "a whole answer came out of nowhere")
    check_honest(site, answer)
    check_asked_once(site, path)


def read_begun(client: RawClient, begun: Begun) -> RawResponse | None:
    """Read an answer to where it ends; None where not even its head was whole.

    A gateway that holds the beginning back may go on after a while without having shown it.
    """
    once = Once(begun)
    timer = threading.Timer(BEGIN_S, once)
    timer.start()
    try:
        return read_all(client, once)
    except (CutOff, ConnectionError):
        return None
    except TimeoutError:
        check(False, "the client was left waiting")
        raise
    finally:
        timer.cancel()
        timer.join()


class Once:
    """A function that does its work at the first call only."""

    def __init__(self, work: Begun) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._is_done = False

    def __call__(self) -> None:
        with self._lock:
            if not self._is_done:
                self._is_done = True
                self._work()


def read_all(client: RawClient, begun: Begun) -> RawResponse:
    answer = client.read_head()
    pieces: list[bytes] = []
    try:
        for piece in client.iter_body(answer):
            pieces.append(piece)
            begun()
        answer.ended = "complete"
    except (CutOff, ConnectionError):
        pass
    answer.body = b"".join(pieces)
    return answer


def check_asked_once(site: Site, path: str = CHAT) -> None:
    """Fail where a request was repeated although a part of its answer had been sent."""
    count = len(site.asked(path))
    check(count == 1, f"the backends were asked {count} times")


def broken_answer(site: Site, fault: Fault | type[Fault]) -> None:
    """Break an answer that is not streamed; the client may get another backend's answer instead."""
    site.strike(fault)
    try:
        answer = site.ask(body=site.body(stream=False))
    except (CutOff, ConnectionError):
        return
    check_honest(site, answer)


@GROUP.row
def ndjson_fin(site: Site) -> None:
    """An NDJSON stream that ends by FIN is cut or ends in an error record; it is not asked again."""
    broken_stream(site, Eof(), CHAT)


@GROUP.row
def ndjson_rst(site: Site) -> None:
    """An NDJSON stream that is reset is cut or ends in an error record; it is not asked again."""
    broken_stream(site, Rst(), CHAT)


@GROUP.row
def ndjson_half_chunk(site: Site) -> None:
    """An NDJSON stream that ends inside a chunk is cut or ends in an error record; it is not asked again."""
    broken_stream(site, HalfChunk(), CHAT)


@GROUP.row
def ndjson_garbage(site: Site) -> None:
    """An NDJSON stream with garbage for a chunk is cut or ends in an error record; it is not asked again."""
    broken_stream(site, Garbage(), CHAT)


@GROUP.row
def sse_fin(site: Site) -> None:
    """An SSE stream that ends by FIN is cut or ends in an error event; it is not asked again."""
    broken_stream(site, Eof(), V1_CHAT)


@GROUP.row
def sse_rst(site: Site) -> None:
    """An SSE stream that is reset is cut or ends in an error event; it is not asked again."""
    broken_stream(site, Rst(), V1_CHAT)


@GROUP.row
def sse_half_chunk(site: Site) -> None:
    """An SSE stream that ends inside a chunk is cut or ends in an error event; it is not asked again."""
    broken_stream(site, HalfChunk(), V1_CHAT)


@GROUP.row
def killed_backend(site: Site) -> None:
    """A backend that is killed in mid-stream: the client sees it at once, and nothing is asked again."""
    broken(site, StreamThen(TOKENS, Stall), CHAT, lambda: site.kill(site.asked_last()))


@GROUP.row
def stalled_stream(site: Site) -> None:
    """A stream that falls silent is left open, or ended visibly; it is not asked again."""
    site.always(StreamThen(TOKENS, Stall))
    with site.client() as client:
        site.send(client)
        site.wait_asked()
        client.sock.settimeout(STALL_LOOK_S)
        with suppress(TimeoutError, CutOff):
            check_honest(site, client.read_response())
    check_asked_once(site)


@GROUP.row
def error_record_passes(site: Site) -> None:
    """A backend's own error record in mid-stream reaches the client, and the request is not asked again."""
    asked = site.body().replace(site.mark.encode(), site.mark.encode() + b" ERRMID")
    answer = site.ask(body=asked)
    check(has_error(answer.body), f"the answer was {told(answer)}")
    check_asked_once(site)


@GROUP.row
def whole_fin(site: Site) -> None:
    """A whole answer in chunks that ends by FIN is visibly incomplete, an error, or another backend's."""
    broken_answer(site, StreamThen(0, Eof))


@GROUP.row
def whole_rst(site: Site) -> None:
    """A whole answer in chunks that is reset is visibly incomplete, an error, or another backend's."""
    broken_answer(site, StreamThen(0, Rst))


@GROUP.row
def whole_short_of_its_length(site: Site) -> None:
    """A whole answer short of its Content-Length is visibly incomplete, an error, or another backend's."""
    broken_answer(site, HalfBody())


@GROUP.row
def hole_is_not_filled(site: Site) -> None:
    """The next answer never slides into the hole of one that was short of its Content-Length."""
    site.strike(HalfBody())
    body = site.body(stream=False)
    one = site.raw_head(["Content-Type: application/json", f"Content-Length: {len(body)}"]) + body
    with site.client() as client:
        client.send(one + one)
        try:
            answer = client.read_response()
        except CutOff:
            return
    check(b"HTTP/1.1" not in answer.body, "the second answer stands in the first one's body")
    check_honest(site, answer)


@GROUP.row
def bytes_beyond_the_length(site: Site) -> None:
    """Bytes beyond an answer's Content-Length reach no client."""
    site.strike(ShortContentLength(5))
    site.ask(body=site.body(stream=False))
    for _ in range(4):
        check_good(site, site.ask(body=site.body(stream=False)), "of the next request, ")


@GROUP.row
def poisoned_connection(site: Site) -> None:
    """A second answer that a backend sends unasked is never the answer to the next request."""
    head = head_bytes(200, [("Content-Type", JSON_UTF8), ("Content-Length", str(len(LAST)))])
    site.strike(Raw(head + LAST + POISON, keep=True))
    client = site.client()
    try:
        for number in range(5):
            site.send(client, body=site.body(stream=False))
            answer = client.read_response()
            check(b"poison" not in answer.body, f"answer {number + 1} was the poison")
            if number:
                check_good(site, answer, "of the next request, ")
            if says_close(answer):
                client.close()
                client = site.client()
    finally:
        client.close()


@GROUP.row
def cut_connection_is_closed(site: Site) -> None:
    """After an answer that was cut, the client's connection is closed."""
    site.always(StreamThen(TOKENS, Eof))
    with site.client() as client:
        site.send(client)
        answer = client.read_response()
        if answer.complete:
            check(has_error(answer.body), f"a complete-looking answer: {told(answer)}")
        else:
            check(client.closed_by_peer(PATIENCE_S), "the connection stayed open")
