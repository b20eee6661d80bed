"""Answers and questions arrive as they were sent."""

from __future__ import annotations

import gzip
import statistics
import threading
import time

from conformance.fakes.answers import JSON_UTF8, SSE
from conformance.fakes.faults import Status
from conformance.fakes.http import RawClient, RawResponse
from conformance.fakes.wire import LAST_CHUNK, chunk, head_bytes
from conformance.judge import check_good, is_good
from conformance.row import TRIES, Group, check, check_in_time
from conformance.scripts import Pieces, Raw
from conformance.site import MODEL, PATIENCE_S, V1_CHAT, Site, says_close, told

GROUP = Group("fidelity", "Answers and questions arrive as they were sent")

# What a gateway that parses and writes anew would change: spaces, escapes, numbers, key order, unknown keys.
LINE = b'{"z" : 1.50, "model":"conform","created_at":"2026-11-21T12:00:00Z","message":{"role":"assistant",'
LINE += b'"content":"\\u00e9\xc3\xa9 \\/ \\ud83d\\ude00"},"big":123456789012345678901234567890,"done":false}\n'
LAST = b'{"model":"conform","created_at":"2026-11-21T12:00:01Z","message":{"role":"assistant","content":""},'
LAST += b'"done":true,"done_reason":"stop"}\n'
EVENT = b'data: {"id":"x", "object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"\\u00e9"}}]}\n\n'
EVENTS = [b": a comment\n\n", EVENT, b"event: other\nid: 7\n" + EVENT, b"data: [DONE]\n\n"]
# Above this a reader sees the words come in jerks.
LAG_S = 0.150
BIG_BODY = 8 << 20
# Longest time in seconds until a client hears that it may send its body.
CONTINUE_S = 1.0
# Until this many seconds are over, a first token may come.
FIRST_S = 5.0


def check_same(answer: RawResponse, wanted: bytes) -> None:
    check(answer.status == 200 and answer.complete, f"the answer was {told(answer)}")
    if answer.body == wanted:
        return
    pairs = enumerate(zip(answer.body, wanted, strict=False))
    at = next((place for place, (got, sent) in pairs if got != sent), min(len(answer.body), len(wanted)))
    check(False, f"{len(wanted)} bytes were sent, {len(answer.body)} came, other from byte {at} on")


@GROUP.row
def ndjson_bytes(site: Site) -> None:
    """An NDJSON stream arrives byte for byte, with its content type."""
    pieces = [LINE, LINE[:40], LINE[40:] + LINE, LAST]
    site.strike(Pieces(pieces))
    answer = site.ask()
    check_same(answer, b"".join(pieces))
    check(answer.content_type == "application/x-ndjson", f"the content type was {answer.content_type}")


@GROUP.row
def sse_bytes(site: Site) -> None:
    """An SSE stream arrives byte for byte, comments and unknown fields too, with its content type."""
    site.strike(Pieces(EVENTS, SSE), V1_CHAT)
    answer = site.ask(V1_CHAT)
    check_same(answer, b"".join(EVENTS))
    check(answer.content_type == SSE, f"the content type was {answer.content_type}")


@GROUP.row
def whole_bytes(site: Site) -> None:
    """An answer that is not streamed arrives byte for byte, with its status and content type."""
    body = LINE.rstrip() + b" \n"
    site.strike(Status(200, body.replace(b'"done":false', b'"done":true')))
    answer = site.ask(body=site.body(stream=False))
    check_same(answer, body.replace(b'"done":false', b'"done":true'))
    check(answer.content_type == JSON_UTF8, f"the content type was {answer.content_type}")


@GROUP.row
def error_bytes(site: Site) -> None:
    """A backend's 400 arrives with its own body, and the request is asked once."""
    body = b'{"error":"think value \\"maybe\\" is <invalid>"}'
    site.always(Status(400, body))
    answer = site.ask()
    check((answer.status, answer.body) == (400, body), f"the answer was {told(answer)}")
    check(len(site.asked()) == 1, f"{len(site.asked())} backends were asked")


@GROUP.row
def large_answer(site: Site) -> None:
    """A stream of 8 MiB in pieces of uneven size arrives byte for byte."""
    pieces = [LINE * (number % 7 + 1) for number in range(BIG_BODY // len(LINE) // 4)]
    site.strike(Pieces([*pieces, LAST]))
    check_same(site.ask(timeout_s=20), b"".join([*pieces, LAST]))


@GROUP.row
def first_piece_at_once(site: Site) -> None:
    """The first token arrives while the backend has not made the second one."""
    gate = threading.Event()
    site.strike(Pieces([LINE, LAST], gate=gate))
    with site.client(FIRST_S) as client:
        site.send(client)
        try:
            answer = client.read_head()
            first = next(client.iter_body(answer))
        except TimeoutError:
            first = b""
        finally:
            gate.set()
        check(first == LINE, "nothing came until the backend went on")


@GROUP.row
def lag_of_a_piece(site: Site) -> None:
    """A token is passed on within 150 ms (the median of 8)."""
    check_in_time(LAG_S, lambda: lag_of_a_stream(site))


def lag_of_a_stream(site: Site) -> float:
    """The median time in seconds between the backend's sending of a token and its coming to the client."""
    script = Pieces([LINE] * 8 + [LAST], pause_s=0.06)
    site.strike(script)
    arrived: list[float] = []
    with site.client() as client:
        site.send(client)
        answer = client.read_head()
        for piece in client.iter_body(answer):
            arrived += [time.monotonic()] * piece.count(b"\n")
    return statistics.median(got - sent for got, sent in zip(arrived, script.sent_at, strict=False))


@GROUP.row
def compressed_answer(site: Site) -> None:
    """A compressed answer arrives as it is, with its Content-Encoding."""
    body = gzip.compress(LINE + LAST, mtime=0)
    headers = [("Content-Type", "application/x-ndjson"), ("Content-Encoding", "gzip")]
    site.strike(Status(200, body, headers))
    answer = site.ask(headers={"Accept-Encoding": "gzip"})
    check_same(answer, body)
    check(answer.header("content-encoding") == "gzip", "the Content-Encoding was lost")


@GROUP.row
def body_that_ends_with_the_connection(site: Site) -> None:
    """An answer without a length, which ends with its connection, arrives whole."""
    head = head_bytes(200, [("Content-Type", "application/x-ndjson"), ("Connection", "close")])
    site.strike(Raw(head + LINE + LAST))
    check_same(site.ask(), LINE + LAST)


@GROUP.row
def length_beside_chunks(site: Site) -> None:
    """An answer with a Content-Length beside its chunks: the chunks count, or it is an error."""
    head = [("Content-Type", "application/x-ndjson"), ("Content-Length", "20"), ("Transfer-Encoding", "chunked")]
    site.strike(Raw(head_bytes(200, head) + chunk(LINE) + chunk(LAST) + LAST_CHUNK))
    answer = site.ask()
    if answer.status < 500 and not is_good(site, answer):
        check_same(answer, LINE + LAST)
        check(answer.header("content-length") != "20", "the wrong Content-Length reached the client")


@GROUP.row
def trailers(site: Site) -> None:
    """A stream with trailer fields arrives whole, and the connection stays in step."""
    site.strike(Pieces([LINE, LAST], trailer=b"X-Checksum: 7\r\nX-More: 8\r\n"))
    with site.client() as client:
        site.send(client)
        answer = client.read_response()
        check_same(answer, LINE + LAST)
        check_next(site, client, answer)


@GROUP.row
def interim_answer(site: Site) -> None:
    """A 103 before the answer is passed on or dropped, and never taken for the answer."""
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n"
    head = head_bytes(200, [("Content-Type", "application/x-ndjson"), ("Content-Length", str(len(LINE + LAST)))])
    site.always(Raw(early + head + LINE + LAST, keep=True))
    check_same(site.ask(), LINE + LAST)


@GROUP.row
def no_content(site: Site) -> None:
    """A 204 and a 304 pass without a body or its framing, or become an error; the connection stays in step."""
    for status in (204, 304):
        site.strike(Status(status, headers=()))
        with site.client() as client:
            site.send(client)
            answer = client.read_response()
            if answer.status != status:
                check(answer.status >= 500 or is_good(site, answer), f"the {status} became {told(answer)}")
                continue
            check(answer.header("transfer-encoding") is None, f"a {status} with a Transfer-Encoding")
            check_next(site, client, answer)


@GROUP.row
def head(site: Site) -> None:
    """The answer to HEAD has no body, and the connection stays in step."""
    with site.client() as client:
        site.send(client, "/api/tags", method="HEAD")
        check_next(site, client, client.read_response(head_only=True))


@GROUP.row
def connection_is_kept(site: Site) -> None:
    """Three requests on one connection are answered in order, unless an answer says that it is the last."""
    with site.client() as client:
        site.send(client)
        answer = client.read_response()
        check_good(site, answer)
        for _ in range(2):
            answer = check_next(site, client, answer)


@GROUP.row
def old_client(site: Site) -> None:
    """A client of HTTP/1.0 gets the answer without chunks, ended by the end of the connection."""
    body = site.body()
    head = site.raw_head([f"Content-Length: {len(body)}"]).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    answer = site.raw(head + body)
    check_good(site, answer)
    check(answer is not None and answer.header("transfer-encoding") is None, "it got chunks")


@GROUP.row
def large_question(site: Site) -> None:
    """A body of 8 MiB reaches the backend byte for byte."""
    asked = site.body(padding="é\n" * (BIG_BODY // 4))
    check_good(site, site.ask(body=asked, timeout_s=20))
    check(site.asked()[-1].body == asked, "the backend got another body")


@GROUP.row
def question_bytes(site: Site) -> None:
    """A question reaches the backend byte for byte: spaces, escapes, numbers, unknown keys."""
    text = (
        '{ "model" : "%s",\n\t"messages":[{"role":"user","content":"%s \\u00e9 \\/ \xe9"}], "n":1.50e0, "x_own":null }'
    )
    asked = (text % (MODEL, site.mark)).encode()
    check_good(site, site.ask(body=asked))
    check(site.asked()[-1].body == asked, "the backend got another body")


@GROUP.row
def chunked_question(site: Site) -> None:
    """A body in chunks, with extensions and a trailer, reaches the backend byte for byte."""
    body = site.body()
    cut = len(body) // 3
    sent = b"%x;name=value\r\n%s\r\n" % (cut, body[:cut]) + b"%x\r\n%s\r\n" % (len(body) - cut, body[cut:])
    head = site.raw_head(["Content-Type: application/json", "Transfer-Encoding: chunked"])
    check_good(site, site.raw(head + sent + b"0\r\nX-Trailer: 1\r\n\r\n"))
    check(site.asked()[-1].body == body, "the backend got another body")


@GROUP.row
def expect_continue(site: Site) -> None:
    """`Expect: 100-continue` gets its 100 within a second, and the body arrives once."""
    body = site.body()
    head = site.raw_head(["Content-Type: application/json", f"Content-Length: {len(body)}", "Expect: 100-continue"])
    for _ in range(TRIES):
        with site.client(CONTINUE_S) as client:
            client.send(head)
            try:
                interim = client.read_until(b"\r\n\r\n")
            except TimeoutError:
                continue
            check(interim.startswith(b"HTTP/1.1 100 "), f"there came {interim[:40]!r}")
            client.sock.settimeout(PATIENCE_S)
            client.send(body)
            check_good(site, client.read_response())
            break
    else:
        check(False, "there came nothing")
    check([request.body for request in site.asked()] == [body], "the body did not arrive once")


def check_next(site: Site, client: RawClient, before: RawResponse) -> RawResponse:
    """The next request on a connection gets its own answer, unless the one before said that it was the last."""
    if says_close(before):
        return before
    site.send(client)
    answer = client.read_response()
    check_good(site, answer, "of the next request on the connection, ")
    return answer
