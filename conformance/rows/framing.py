"""Requests whose bytes can be read in two ways are refused; what is cut short never arrives as whole."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from conformance.fakes.http import CutOff, RawClient, RawResponse
from conformance.judge import check_good, is_good
from conformance.row import Group, check
from conformance.site import Site, says_close, told

GROUP = Group("framing", "Requests with ambiguous or broken framing")
CHUNKED = "Transfer-Encoding: chunked"
# How long in seconds a refusal may take.
REFUSAL_S = 8.0


def chunks(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


def smuggled(site: Site) -> bytes:
    """A whole request that stands where only a body should be."""
    body = site.body(smuggled=True)
    return site.raw_head(["Content-Type: application/json", f"Content-Length: {len(body)}"]) + body


def check_nothing_smuggled(site: Site) -> None:
    check(not any(b'"smuggled"' in request.body[:4000] for request in site.asked()), "the hidden request was run")


def refusal(site: Site, data: bytes) -> RawResponse | None:
    """Send broken bytes; fail unless they are refused (4xx, 501, 505 or a close) and reach no backend."""
    try:
        answer = site.raw(data, REFUSAL_S)
    except TimeoutError:
        check(False, f"neither an answer nor a close within {REFUSAL_S:g} s")
    seen = len(site.asked())
    check(seen == 0, f"it reached a backend, and the answer was {told(answer)}")
    check(answer is None or 400 <= answer.status < 600, f"the answer was {told(answer)}")
    return answer


def refused(site: Site, lines: Iterable[str], body: bytes) -> None:
    refusal(site, site.raw_head(["Content-Type: application/json", *lines]) + body)


@GROUP.row
def length_and_chunked(site: Site) -> None:
    """Content-Length beside chunked: refused, or read as chunked and the connection closed."""
    body = chunks(site.body())
    hidden = smuggled(site)
    head = site.raw_head(["Content-Type: application/json", f"Content-Length: {len(body + hidden)}", CHUNKED])
    with site.client(REFUSAL_S) as client:
        client.send(head + body + hidden)
        first = read_or_none(client)
        second = read_or_none(client)
    check_nothing_smuggled(site)
    check(first is None or first.status >= 400 or is_good(site, first), f"the answer was {told(first)}")
    check(second is None or second.status >= 400, f"a second answer: {told(second)}")


def read_or_none(client: RawClient) -> RawResponse | None:
    try:
        return client.read_response()
    except (CutOff, ConnectionError):
        return None
    except TimeoutError:
        check(False, f"neither an answer nor a close within {REFUSAL_S:g} s")
        raise


@GROUP.row
def two_lengths(site: Site) -> None:
    """Two Content-Length fields that disagree are refused."""
    body = site.body()
    refused(site, [f"Content-Length: {len(body)}", f"Content-Length: {len(body) + 9}"], body + b"GET / HTT")


@GROUP.row
def list_of_lengths(site: Site) -> None:
    """A Content-Length that is a list of different numbers is refused."""
    body = site.body()
    refused(site, [f"Content-Length: {len(body)}, {len(body) + 9}"], body + b"GET / HTT")


@GROUP.row
def signed_length(site: Site) -> None:
    """A Content-Length with a sign, and one in hex, are refused."""
    body = site.body()
    refused(site, [f"Content-Length: +{len(body)}"], body)
    refused(site, [f"Content-Length: {len(body):#x}"], body)


@GROUP.row
def negative_length(site: Site) -> None:
    """A negative Content-Length is refused."""
    refused(site, ["Content-Length: -1"], site.body())


@GROUP.row
def unknown_coding(site: Site) -> None:
    """A Transfer-Encoding that is not exactly `chunked` is refused."""
    body = chunks(site.body())
    for coding in ("xchunked", "chunked, identity", "gzip, identity"):
        refused(site, [f"Transfer-Encoding: {coding}"], body)


@GROUP.row
def chunked_twice(site: Site) -> None:
    """A Transfer-Encoding that says `chunked` twice is refused."""
    refused(site, ["Transfer-Encoding: chunked, chunked"], chunks(site.body()))
    refused(site, [CHUNKED, CHUNKED], chunks(site.body()))


@GROUP.row
def space_before_the_colon(site: Site) -> None:
    """A space between a field's name and its colon is refused."""
    refused(site, ["Transfer-Encoding : chunked"], chunks(site.body()))


@GROUP.row
def bad_chunk_size(site: Site) -> None:
    """A chunk size that is not plain hex is refused."""
    for size in (b"0x10", b"-1", b"+5", b"zz"):
        refused(site, [CHUNKED], size + b"\r\n" + site.body() + b"\r\n0\r\n\r\n")


@GROUP.row
def huge_chunk_size(site: Site) -> None:
    """A chunk size beyond 64 bits is refused at once."""
    refused(site, [CHUNKED], b"f" * 17 + b"\r\n" + site.body() + b"\r\n0\r\n\r\n")


@GROUP.row
def chunk_without_its_line_end(site: Site) -> None:
    """Chunk data that goes on where its line should end is refused."""
    body = site.body()
    refused(site, [CHUNKED], b"%x\r\n%sXX0\r\n\r\n" % (len(body), body))


@GROUP.row
def no_host(site: Site) -> None:
    """HTTP/1.1 without a Host is refused."""
    body = site.body()
    refusal(site, site.raw_head([f"Content-Length: {len(body)}"], host=False) + body)


@GROUP.row
def two_hosts(site: Site) -> None:
    """Two Host fields are refused."""
    body = site.body()
    refused(site, ["Host: other.localhost", f"Content-Length: {len(body)}"], body)


@GROUP.row
def folded_line(site: Site) -> None:
    """A folded header line is refused, or the fold becomes a space; it makes no header of its own."""
    body = site.body()
    head = site.raw_head(["X-Folded: a", " X-Injected: b", f"Content-Length: {len(body)}"])
    answer = site.raw(head + body)
    seen = site.asked()
    check(not any(request.all("x-injected") for request in seen), "the backend saw X-Injected")
    check(bool(seen) or answer is None or answer.status >= 400, f"the answer was {told(answer)}")


@GROUP.row
def control_characters(site: Site) -> None:
    """A NUL or a lone CR in a header value is refused, or never reaches a backend as it is."""
    for value in ("a\0b", "a\rX-Injected: b"):
        body = site.body()
        answer = site.raw(site.raw_head([f"X-Control: {value}", f"Content-Length: {len(body)}"]) + body)
        seen = [text for request in site.asked() for text in (*request.all("x-control"), *request.all("x-injected"))]
        check(not any("\0" in text or "\r" in text or text == "b" for text in seen), f"the backend saw {seen}")
        check(bool(site.asked()) or answer is None or answer.status >= 400, f"the answer was {told(answer)}")


@GROUP.row
def space_in_a_name(site: Site) -> None:
    """A field name with a space in it is refused, or does not reach the backend."""
    body = site.body()
    answer = site.raw(site.raw_head(["X Spaced: 1", f"Content-Length: {len(body)}"]) + body)
    seen = [name for request in site.asked() for name, _ in request.headers if "spaced" in name.lower()]
    check(not seen, f"the backend saw {', '.join(seen)}")
    check(bool(site.asked()) or answer is None or answer.status >= 400, f"the answer was {told(answer)}")


@GROUP.row
def unknown_version(site: Site) -> None:
    """A request line with HTTP/3.0 or HTTP/x is refused."""
    body = site.body()
    head = site.raw_head([f"Content-Length: {len(body)}"])
    for version in (b"HTTP/3.0", b"HTTP/x"):
        refusal(site, head.replace(b"HTTP/1.1", version, 1) + body)


@GROUP.row
def huge_header(site: Site) -> None:
    """A header of 1 MB is refused, quickly."""
    refused(site, [f"X-Huge: {'x' * 1_000_000}", "Content-Length: 0"], b"")


@GROUP.row
def short_body(site: Site) -> None:
    """A body that ends before its Content-Length never reaches a backend as a whole one."""
    body = site.body()
    cut_off(site, site.raw_head([f"Content-Length: {len(body) + 5}"]) + body)


@GROUP.row
def short_chunks(site: Site) -> None:
    """A chunked body without its last chunk never reaches a backend as a whole one."""
    cut_off(site, site.raw_head([CHUNKED]) + chunks(site.body())[:-5])


def cut_off(site: Site, data: bytes) -> None:
    """Send half a request and close the sending side; nothing of it may run."""
    with site.client(REFUSAL_S) as client:
        client.send(data)
        client.sock.shutdown(socket.SHUT_WR)
        answer = read_or_none(client)
    check(not site.asked(), f"a backend got it as a whole request, and the answer was {told(answer)}")
    check(answer is None or answer.status >= 400, f"the answer was {told(answer)}")


@GROUP.row
def get_with_a_body(site: Site) -> None:
    """A GET with a body is forwarded or refused, and the connection stays in step."""
    body = smuggled(site)
    head = site.raw_head([f"Content-Length: {len(body)}"], "/api/tags").replace(b"POST", b"GET", 1)
    with site.client() as client:
        client.send(head + body)
        read_or_none(client)
        try:
            site.send(client)
            answer = client.read_response()
        except (CutOff, ConnectionError):
            answer = None
    check_nothing_smuggled(site)
    check(answer is None or answer.status >= 400 or is_good(site, answer), f"the next answer was {told(answer)}")


@GROUP.row
def pipelined(site: Site) -> None:
    """Two requests in one packet are answered in their order, unless the first answer says that it is the last."""
    first, second = site.body(), site.body(stream=False)
    parts = [site.raw_head([f"Content-Length: {len(body)}"]) + body for body in (first, second)]
    with site.client() as client:
        client.send(b"".join(parts))
        answers = [client.read_response()]
        if not says_close(answers[0]):
            answers.append(client.read_response())
    for answer in answers:
        check_good(site, answer)
    streamed = [answer.body.count(b"\n") > 1 for answer in answers]
    check(streamed in ([True], [True, False]), "they came in another order")
