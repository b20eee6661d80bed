"""What passes through the relay and what does not, both ways: headers, codings, framings, and who is asking."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from conformance.fakes import faults
from conformance.fakes.faults import Exchange, Fault
from conformance.fakes.http import RawClient, RawResponse
from conformance.fakes.ollama import FakeOllama
from conformance.fakes.recorded import RecordedRequest
from tests.fakes.procs import free_port
from tests.product import NO_BREAKER, Stand, question, served, stand

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

CHAT, EMBED, OPENAI = "/api/chat", "/api/embed", "/v1/chat/completions"
WITH_ZSTD = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages")
DONE = b'{"model":"tiny","done":true}\n'
VALUE = b'{"ok":true}'
LOCAL = "127.0.0.1"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("hygiene"), **NO_BREAKER) as made:
        yield made


@pytest.fixture
def site(shared: Stand) -> Stand:
    shared.tidy()
    return shared


class Bytes(Fault):
    """Exactly these bytes, and then the connection stays as it is or ends."""

    def __init__(self, data: bytes, ends: bool = False) -> None:
        self._data, self._ends = data, ends

    async def play(self, exchange: Exchange) -> None:
        await exchange.send(self._data)
        if self._ends:
            exchange.close()


def answered(*lines: str, body: bytes = b"") -> Bytes:
    """An answer with these header lines; without one that says how long it is, the body's length is added."""
    framed = any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines)
    all_lines = ["HTTP/1.1 200 OK", *lines, *([] if framed else [f"Content-Length: {len(body)}"])]
    return Bytes("\r\n".join(all_lines).encode("latin-1") + b"\r\n\r\n" + body)


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def sent(site: Stand, *lines: str, path: str = CHAT, body: bytes | None = None) -> RawResponse:
    """POST with exactly these header lines beside Host and length."""
    data = json.dumps(question(path)).encode() if body is None else body
    head = [f"POST {path} HTTP/1.1", "Host: localhost", *lines, f"Content-Length: {len(data)}"]
    with site.client() as client:
        client.send("\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + data)
        return client.read_response()


def arrived(site: Stand, *lines: str, path: str = CHAT) -> RecordedRequest:
    """The request that a backend gets for one with these header lines."""
    assert sent(site, *lines, path=path).status == 200
    return site.fakes[0].wait_for(path)


def own_name(site: Stand) -> str:
    """What this Caravan calls itself in Via."""
    request = arrived(site)
    site.fakes[0].forget_requests()
    return request.header("via") or ""


# --- requests: what a backend hears --------------------------------------------------------------


def test_via_goes_on_and_says_who_else_it_went_through(site: Stand) -> None:
    name = own_name(site)
    assert re.fullmatch(r"1\.1 caravan[-0-9a-z]*", name)
    request = arrived(site, "Via: 1.0 fred, 1.1 p.example.net", "X-Between: 1", "Via: 2 other")
    said = ", ".join(request.all("via"))
    assert [each.strip() for each in said.split(",")] == ["1.0 fred", "1.1 p.example.net", "2 other", name]


def test_every_header_that_any_connection_line_names_stays_here(site: Stand) -> None:
    lines = ("Connection: x-one , keep-alive", "X-One: 1", "X-Two: 2", "Connection: X-TWO,X-Three", "X-Kept: 3")
    request = arrived(site, *lines)
    assert (request.all("x-one"), request.all("x-two"), request.all("x-kept")) == ([], [], ["3"])
    assert request.all("connection") in ([], ["keep-alive"])


@pytest.mark.parametrize("named", ["Host", "Content-Length", "Content-Type", "Via", "X-Forwarded-For", "X-Request-Id"])
def test_a_client_cannot_name_away_what_a_backend_needs(site: Stand, named: str) -> None:
    request = arrived(site, "Content-Type: application/json", f"Connection: {named}")
    present = {name.lower() for name, _ in request.headers}
    assert {"host", "content-length", "via", "x-forwarded-for", "x-request-id"} <= present
    assert request.json() == question(CHAT)


@pytest.mark.parametrize("name", ["TE", "Trailer", "Upgrade", "Proxy-Connection", "Keep-Alive", "HTTP2-Settings"])
def test_what_is_about_the_connection_stays_here_though_no_connection_line_names_it(site: Stand, name: str) -> None:
    lines = (f"{name}: trailers", *(["Connection: HTTP2-Settings"] if name.startswith("HTTP2") else []))
    assert arrived(site, *lines).all(name) == []


def test_an_expectation_is_met_here_and_goes_no_further(site: Stand) -> None:
    body = json.dumps(question(CHAT)).encode()
    with site.client() as client:
        client.send_request("POST", CHAT, b"", {"Expect": "100-continue", "Content-Length": str(len(body))})
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        assert site.fakes[0].count(CHAT) == 0
        client.send(body)
        assert client.read_response().status == 200
    (request,) = site.fakes[0].requests_for(CHAT)
    assert (request.body, request.all("expect")) == (body, [])


def test_a_repeated_header_keeps_its_values_and_their_order(site: Stand) -> None:
    request = arrived(site, "X-Tag: b", "Accept: text/a", "x-tag: a", "X-TAG: c, d", "Accept: text/b;q=0.5")
    assert [value.strip() for value in ",".join(request.all("x-tag")).split(",")] == ["b", "a", "c", "d"]
    assert [value.strip() for value in ",".join(request.all("accept")).split(",")] == ["text/a", "text/b;q=0.5"]


@pytest.mark.parametrize("value", ["", "caf\xe9", "\xc3\xa9\xff", "a\tb", '"quoted, with a comma"', "x" * 7000])
def test_a_value_arrives_byte_for_byte(site: Stand, value: str) -> None:
    assert arrived(site, f"X-Any: {value}").all("x-any") == [value]


def test_ninety_headers_arrive(site: Stand) -> None:
    request = arrived(site, *(f"X-N{number}: {number}" for number in range(90)))
    assert [request.header(f"x-n{number}") for number in range(90)] == [str(number) for number in range(90)]


CREDENTIALS = ("Authorization: Bearer sk-client", "Cookie: a=sk-client", "Cookie: b=sk-client", "X-Api-Key: sk-client")


@pytest.mark.parametrize("path", ["/api/show", CHAT, OPENAI, "/v1/messages"])
def test_credentials_of_a_client_reach_no_backend_on_any_route(site: Stand, path: str) -> None:
    # A document with an overlay is never answered from the cache.
    asked = {"model": "tiny", "system": "be brief"} if path == "/api/show" else question(path)
    more = ("Origin: http://localhost:3000", "Referer: http://localhost:3000/?sk-client", "Api-Key: kept")
    assert sent(site, *CREDENTIALS, *more, path=path, body=json.dumps(asked).encode()).status == 200
    request = site.fakes[0].wait_for(path)
    assert "sk-client" not in str(request.headers)
    assert (request.all("origin"), request.all("host")) == ([], [f"{LOCAL}:{site.fakes[0].port}"])


def test_a_backends_cookies_reach_nobody_and_never_come_back_to_it(site: Stand) -> None:
    cookies = ("Set-Cookie: a=1; Path=/", "set-cookie: b=2", "SET-COOKIE2: c=3", "Content-Type: application/x-ndjson")
    site.fakes[0].fault(CHAT, answered(*cookies, body=DONE))
    answer = site.post(CHAT)
    assert (answer.status, answer.body) == (200, DONE)
    assert answer.all("set-cookie") == []
    assert site.post(CHAT).status == 200
    assert site.fakes[0].requests_for(CHAT)[1].all("cookie") == []


def test_an_http_1_0_client_is_served_by_http_1_1(site: Stand) -> None:
    body = json.dumps(question(CHAT, stream=False)).encode()
    with site.client() as client:
        client.send(b"POST /api/chat HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        answer = client.read_response()
    request = site.fakes[0].wait_for(CHAT)
    assert (answer.status, answer.complete, request.version) == (200, True, "HTTP/1.1")
    assert request.header("host") == f"{LOCAL}:{site.fakes[0].port}"


# --- who is asking -------------------------------------------------------------------------------

CLAIMS = (
    "X-Forwarded-For: 203.0.113.9",
    "X-Forwarded-Host: attacker.example",
    "X-Forwarded-Port: 99",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Protocol: https",
    "X-Forwarded-Ssl: on",
    "X-Forwarded-Prefix: /x",
    "X-Forwarded-Server: attacker.example",
    "X-Real-IP: 203.0.113.9",
    "Forwarded: for=203.0.113.9;host=attacker.example",
)


def test_nobody_in_front_is_believed_about_who_is_asking(site: Stand) -> None:
    request = arrived(site, *CLAIMS)
    assert (request.all("x-forwarded-for"), request.all("x-forwarded-proto")) == ([LOCAL], ["http"])
    claims = {name.lower() for name, _ in request.headers if name.lower().startswith("x-forwarded-")}
    assert claims <= {"x-forwarded-for", "x-forwarded-proto"}
    assert not re.search(r"203\.0\.113\.9|attacker\.example", str(request.headers))


def test_the_address_of_who_asks_is_told_once_whatever_is_claimed(site: Stand) -> None:
    request = arrived(site, "X-Forwarded-For: 203.0.113.1", "X-Forwarded-For: 203.0.113.2, 127.0.0.9")
    assert request.all("x-forwarded-for") == [LOCAL]


@pytest.mark.parametrize("line", ["X_Forwarded_For: 203.0.113.9", "X-Forwarded_For: 203.0.113.9", "X_Real_IP: 1"])
def test_another_spelling_of_a_claim_stays_here(site: Stand, line: str) -> None:
    request = arrived(site, line)
    assert request.all("x-forwarded-for") == [LOCAL]
    assert not [name for name, _ in request.headers if "_" in name]


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A product that stands behind one proxy."""
    with stand(tmp_path_factory.mktemp("behind"), "a", CARAVAN_TRUSTED_HOPS="1", **NO_BREAKER) as made:
        yield made


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        ((), LOCAL),
        (("X-Forwarded-For: 203.0.113.9",), "203.0.113.9"),
        (("X-Forwarded-For: 10.6.6.6, 203.0.113.9",), "203.0.113.9"),
        (("X-Forwarded-For: 10.6.6.6", "X-Forwarded-For: 203.0.113.9"), "203.0.113.9"),
        (("X-Forwarded-For: 2001:db8::1",), "2001:db8::1"),
        (("X-Real-IP: 10.6.6.6", "Forwarded: for=10.6.6.6"), LOCAL),
        (("X_Forwarded_For: 10.6.6.6",), LOCAL),
    ],
    ids=["said nothing", "one", "the last of a list", "the last line", "IPv6", "other headers", "another spelling"],
)
def test_the_one_proxy_in_front_is_believed_and_no_one_before_it(
    behind: Stand, lines: tuple[str, ...], address: str
) -> None:
    behind.tidy()
    request = arrived(behind, *lines)
    assert request.all("x-forwarded-for") == [address]
    assert "10.6.6.6" not in str(request.headers)


def test_the_one_proxy_in_front_is_believed_about_the_scheme(behind: Stand) -> None:
    behind.tidy()
    assert arrived(behind, "X-Forwarded-Proto: https").all("x-forwarded-proto") == ["https"]
    assert arrived(behind, "X-Forwarded-Host: localhost").all("x-forwarded-host") in ([], ["localhost"])


def test_a_proxy_in_front_cannot_bring_a_foreign_host_past_the_check(behind: Stand) -> None:
    behind.tidy()
    assert sent(behind, "X-Forwarded-Host: attacker.example").status in (200, 403)
    assert [request.all("host") for request in behind.fakes[0].requests_for(CHAT)] in (
        [],
        [[f"{LOCAL}:{behind.fakes[0].port}"]],
    )


def test_a_caravan_that_is_its_own_backend_asks_itself_for_nothing(tmp_path: Path) -> None:
    port = free_port()
    with FakeOllama("a", ["tiny", "only-a"]) as fake:
        backends = [{"name": "itself", "url": f"http://{LOCAL}:{port}"}, {"name": "a", "url": fake.url}]
        changes = {"PORT": str(port), "OLLAMA_BACKENDS": json.dumps(backends), **NO_BREAKER}
        with served([fake], tmp_path, **changes) as site:
            assert "," not in (arrived(site).header("via") or "")
            fake.kill()
            answer = site.post(CHAT)
            assert (answer.status in (502, 503), list(answer.json())) == (True, ["error"])


# --- answers: codings ----------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize(("path", "kind"), [(EMBED, "application/json"), (CHAT, "application/x-ndjson")])
def test_a_compressed_answer_passes_untouched(site: Stand, path: str, kind: str, framing: str) -> None:
    packed = gzip.compress(DONE * 50)
    lines = [f"Content-Type: {kind}", "Content-Encoding: gzip", "Vary: Accept-Encoding"]
    if framing == "chunks":
        answer = answered(*lines, "Transfer-Encoding: chunked", body=chunked(packed[:20], packed[20:]))
    else:
        answer = answered(*lines, body=packed)
    site.fakes[0].fault(path, answer)
    got = sent(site, "Accept-Encoding: gzip;q=1.0, br", path=path)
    assert (got.status, got.complete, got.body) == (200, True, packed)
    assert (got.all("content-encoding"), got.all("vary"), got.content_type) == (["gzip"], ["Accept-Encoding"], kind)
    assert site.fakes[0].requests_for(path)[0].all("accept-encoding") == ["gzip;q=1.0, br"]


def test_what_was_not_asked_for_in_a_coding_is_not_asked_of_a_backend_in_one(site: Stand) -> None:
    request = arrived(site)
    assert (request.all("accept-encoding"), request.all("user-agent"), request.all("accept")) == ([], [], [])


# --- requests in zstd ----------------------------------------------------------------------------


def pack(path: str, model: str = "tiny", **more: Any) -> bytes:
    return zstandard.ZstdCompressor().compress(json.dumps(question(path, model, **more)).encode())


@pytest.mark.parametrize("path", WITH_ZSTD)
def test_a_body_in_zstd_finds_its_model_and_passes_untouched(site: Stand, path: str) -> None:
    for fake in site.fakes:
        fake.fault(path, faults.Status(200, "{}", (("Content-Type", "application/json"),)))
    packed = pack(path, "only-b")
    assert sent(site, "Content-Encoding: zstd", path=path, body=packed).status == 200
    assert site.counts(path) == [0, 1]
    request = site.fakes[1].requests_for(path)[0]
    assert (request.body, request.all("content-encoding")) == (packed, ["zstd"])
    assert request.all("content-length") == [str(len(packed))]


def test_a_body_in_two_frames_of_zstd_is_one_body(site: Stand) -> None:
    site.fakes[1].fault(OPENAI, faults.Status(200, "{}", (("Content-Type", "application/json"),)))
    text = json.dumps(question(OPENAI, "only-b")).encode()
    packed = b"".join(zstandard.ZstdCompressor().compress(part) for part in (text[:9], text[9:]))
    assert sent(site, "Content-Encoding: zstd", path=OPENAI, body=packed).status == 200
    assert site.fakes[1].requests_for(OPENAI)[0].body == packed


def wide_zstd(text: bytes) -> bytes:
    """For an unpacker that would set 128 MiB aside."""
    wide = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    return packer.compress(text) + packer.flush()


BROKEN_ZSTD = {
    "no zstd": b'{"model":"tiny","messages":[]}',
    "nothing": b"",
    "a header alone": b"\x28\xb5\x2f\xfd",
    "cut": pack(OPENAI)[:-8],
    "garbage inside": pack(OPENAI)[:12] + b"\xff" * 30,
    "a bomb": zstandard.ZstdCompressor().compress(b" " * (30 << 20)),
    "a window of 128 MiB": wide_zstd(json.dumps(question(OPENAI)).encode()),
}


@pytest.mark.parametrize("name", BROKEN_ZSTD)
def test_a_body_that_is_no_good_zstd_is_refused_and_goes_nowhere(site: Stand, name: str) -> None:
    answer = sent(site, "Content-Encoding: zstd", path=OPENAI, body=BROKEN_ZSTD[name])
    assert answer.status in (400, 413)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert site.counts(OPENAI) == [0, 0]


@pytest.mark.parametrize("path", [CHAT, "/api/generate", EMBED])
def test_ollamas_own_routes_read_no_zstd(site: Stand, path: str) -> None:
    answer = sent(site, "Content-Encoding: zstd", path=path, body=pack(path))
    assert (answer.status, list(answer.json())) == (400, ["error"])
    assert site.counts(path) == [0, 0]


def test_a_bomb_costs_the_others_nothing(site: Stand) -> None:
    with site.client() as client:
        for _ in range(3):
            answer = client.request("POST", OPENAI, BROKEN_ZSTD["a bomb"], {"Content-Encoding": "zstd"})
            assert answer.status in (400, 413)
            client.close()
            client = site.client()
        client.close()
    assert site.post(CHAT).status == 200


# --- answers: framing ----------------------------------------------------------------------------


def in_step(client: RawClient) -> bool:
    """Does the connection answer the next request as if nothing had been before?"""
    answer = client.request("GET", "/api/version")
    return answer.status == 200 and list(answer.json()) == ["version"]


def relayed(site: Stand, fault: Fault, path: str = EMBED) -> RawResponse:
    """What a client gets of these bytes of the only backend that has the model; its connection stays in step."""
    site.fakes[0].fault(path, fault, times=None)
    with site.client() as client:
        answer = client.request("POST", path, json=question(path, "only-a"))
        if answer.complete and answer.header("connection") != "close":
            assert in_step(client)
    return answer


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_gets_none(site: Stand, status: int) -> None:
    answer = relayed(site, Bytes(b'HTTP/1.1 %d X\r\nETag: "x"\r\n\r\n' % status))
    assert (answer.status, answer.body, answer.header("etag")) == (status, b"", '"x"')
    assert (answer.all("transfer-encoding"), answer.all("content-length")) in (([], []), ([], ["0"]))


@pytest.mark.parametrize("head", [b"204 No Content", b"304 Not Modified", b"200 OK\r\nContent-Length: 0"])
def test_what_comes_behind_an_empty_answer_begins_no_other_one(site: Stand, head: bytes) -> None:
    behind = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Le"
    relayed(site, Bytes(b"HTTP/1.1 %b\r\n\r\n%b" % (head, behind)))
    assert sent(site).complete
    assert site.fakes[0].requests_for(CHAT)[-1].nth == 1, "on a connection of its own"


@pytest.mark.parametrize("blanks", [1, 100, 5_000])
def test_blanks_before_an_answer_are_no_garbage(site: Stand, blanks: int) -> None:
    """Another Caravan that keeps a connection alive sends them."""
    answer = relayed(site, answered("Content-Type: application/json", body=b" " * blanks + VALUE))
    assert (answer.status, answer.body.strip()) == (200, VALUE)


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
def test_head_has_the_head_of_get_and_nothing_else(site: Stand, path: str) -> None:
    with site.client() as client:
        full = client.request("GET", path)
        head = client.request("HEAD", path)
        assert in_step(client)
    moving = {"date", "x-request-id", "age", "server-timing"}
    assert (head.status, head.body) == (full.status, b"")
    assert [h for h in head.headers if h[0].lower() not in moving] == [
        h for h in full.headers if h[0].lower() not in moving
    ]
    assert head.header("content-length") == str(len(full.body))


INTERIM = {
    "100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "102": b"HTTP/1.1 102 Processing\r\n\r\n",
    "103": b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n",
    "several": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nX-A: b\r\n\r\nHTTP/1.1 103 Hints\r\n\r\n",
}
LAST = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n" + VALUE


@pytest.mark.parametrize("name", INTERIM)
def test_an_interim_answer_is_not_taken_for_the_answer(site: Stand, name: str) -> None:
    answer = relayed(site, Bytes(INTERIM[name] + LAST))
    assert (answer.status, answer.body) == (200, VALUE)
    assert answer.all("link") == []


def test_a_flood_of_interim_answers_ends_in_an_error(site: Stand) -> None:
    answer = relayed(site, Bytes(INTERIM["100"] * 20_000))
    assert answer.status in (502, 503)
    assert list(answer.json()) == ["error"]


def test_a_backend_that_switches_to_another_protocol_has_not_answered(site: Stand) -> None:
    """Nobody asked it to: what follows is no HTTP any more."""
    head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n"
    answer = relayed(site, Bytes(head + LAST))
    assert answer.status == 502
    assert list(answer.json()) == ["error"]
    assert answer.all("upgrade") == []


def test_trailers_of_an_answer_cost_nothing_of_its_body(site: Stand) -> None:
    body = chunked(VALUE[:4], VALUE[4:])[:-2] + b"X-Checksum: 1\r\nSet-Cookie: a=b\r\n\r\n"
    lines = ("Content-Type: application/json", "Trailer: X-Checksum", "Transfer-Encoding: chunked")
    answer = relayed(site, answered(*lines, body=body))
    assert (answer.status, answer.body, answer.complete) == (200, VALUE, True)
    assert (answer.all("trailer"), answer.all("set-cookie")) == ([], [])


def test_a_length_beside_chunks_is_dropped(site: Stand) -> None:
    answer = relayed(site, answered("Content-Length: 2", "Transfer-Encoding: chunked", body=chunked(VALUE)))
    assert (answer.status, answer.body, answer.complete) in ((200, VALUE, True), (502, answer.body, True))
    assert len(answer.all("content-length")) + len(answer.all("transfer-encoding")) == 1


def test_two_equal_lengths_of_an_answer_become_one_or_an_error(site: Stand) -> None:
    answer = relayed(site, answered("Content-Length: 11", "Content-Length: 11", body=VALUE))
    assert (answer.status, answer.body) == (200, VALUE) or answer.status == 502
    assert len(answer.all("content-length")) == 1


BAD_LENGTHS = ("11, 12", "+11", "-11", "0xb", "1_1", "1 1", "11;", "abc", "99999999999999999999999", "")


@pytest.mark.parametrize("length", BAD_LENGTHS)
def test_an_answer_whose_length_is_none_is_never_a_whole_one(site: Stand, length: str) -> None:
    answer = relayed(
        site, Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\n%b" % (length.encode(), VALUE), ends=True)
    )
    whole = (answer.status, answer.body, answer.complete) == (200, VALUE, True)
    # Some readers take these for the right number, or for none, where the end of the connection ends the body.
    assert answer.status in (502, 503) or not answer.complete or (whole and length in ("", "+11", "1_1"))


@pytest.mark.parametrize("coding", ["gzip, chunked", "chunked, chunked", "identity", "xchunked", "chunked, identity"])
def test_an_answer_in_a_coding_that_nobody_reads_is_an_error(site: Stand, coding: str) -> None:
    lines = ("Content-Type: application/json", f"Transfer-Encoding: {coding}")
    data = answered(*lines, body=chunked(VALUE))
    answer = relayed(site, data)
    assert answer.status in (502, 503) or not answer.complete


FOLDED = b"HTTP/1.1 200 OK\r\nX-Long: one\r\n Set-Cookie: two\r\n\tX-New: three\r\nContent-Length: 11\r\n\r\n" + VALUE


def test_a_folded_line_of_an_answer_becomes_no_new_header(site: Stand) -> None:
    answer = relayed(site, Bytes(FOLDED))
    assert answer.status in (200, 502)
    assert (answer.all("set-cookie"), answer.all("x-new")) == ([], [])
    assert all(re.fullmatch(r"[!-9;-~]+", name) for name, _ in answer.headers)


BAD_LINES = {
    "NUL": b"X-Bad: a\x00b",
    "a carriage return": b"X-Bad: a\rX-New: b",
    "a control character": b"X-Bad: \x1b[31m",
    "a name with a blank": b"X Bad: a",
    "no colon": b"X-Bad",
    "no name": b": a",
    "a blank before the colon": b"X-Bad : a",
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_header_line_of_an_answer_is_dropped_or_the_answer_is(site: Stand, name: str) -> None:
    data = b"HTTP/1.1 200 OK\r\n%b\r\nContent-Length: 11\r\n\r\n%b" % (BAD_LINES[name], VALUE)
    answer = relayed(site, Bytes(data))
    assert (answer.status, answer.body) == (200, VALUE) or answer.status == 502
    assert answer.all("x-new") == []
    assert not re.search(rb"[\x00\x1b]|\r(?!\n)", answer.head)


@pytest.mark.parametrize(
    "line", [b"HTTP/1.1 200", b"HTTP/1.1 200 ", b"HTTP/1.0 200 OK", b"HTTP/1.1 200 Se\xf1or", b"HTTP/1.1 299 Odd"]
)
def test_an_odd_first_line_of_an_answer_is_understood(site: Stand, line: bytes) -> None:
    answer = relayed(site, Bytes(line + b"\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n" + VALUE))
    assert (answer.status, answer.body, answer.complete) == (int(line.split()[1]), VALUE, True)


@pytest.mark.parametrize(
    "line", [b"HTTP/2 200 OK", b"HTTP/1.1 abc OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"ICY 200 OK"]
)
def test_a_first_line_that_is_none_is_an_error(site: Stand, line: bytes) -> None:
    answer = relayed(site, Bytes(line + b"\r\nContent-Length: 11\r\n\r\n" + VALUE, ends=True))
    assert answer.status in (502, 503)


def test_a_backend_that_closes_does_not_close_the_client(site: Stand) -> None:
    answer = relayed(site, answered("Connection: close, X-Hop", "X-Hop: 1", "Keep-Alive: timeout=1", body=VALUE))
    assert (answer.status, answer.body, answer.all("x-hop"), answer.all("keep-alive")) == (200, VALUE, [], [])
    assert answer.header("connection") != "close"


# --- refusals of the server itself ---------------------------------------------------------------

REFUSED = {
    "a bad line": b"GET  / HTTP/1.1\r\n\r\n",
    "a bad header": b"GET / HTTP/1.1\r\nHost: localhost\r\n<script>: x\r\n\r\n",
    "an unknown coding": b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: <script>\r\n\r\n",
    "a long line": b"GET /%b HTTP/1.1\r\n\r\n" % (b"a" * 5000),
    "a long header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: %b\r\n\r\n" % (b"a" * 9000),
    "an expectation": b"GET / HTTP/1.1\r\nHost: localhost\r\nExpect: <script>\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "a loud method": b"get / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_by_the_server_itself_has_an_id_and_repeats_nothing(site: Stand, name: str) -> None:
    with site.client() as client:
        client.send(REFUSED[name])
        answer = client.read_response()
        assert client.closed_by_peer(10)
    assert 400 <= answer.status < 600
    assert answer.complete
    assert re.fullmatch(r"[0-9a-f]{32}", answer.header("x-request-id") or "")
    assert b"script" not in answer.body
    assert answer.all("connection") == ["close"]
