"""Headers: what passes, what must not, and whose they are."""

from __future__ import annotations

from conformance.fakes.answers import Header
from conformance.fakes.recorded import RecordedRequest
from conformance.judge import check_good
from conformance.row import Group, check
from conformance.scripts import BackToTheGateway, Pieces
from conformance.site import CHAT, Site, told

GROUP = Group("headers", "Headers")
DONE = b'{"model":"conform","message":{"role":"assistant","content":"x"},"done":true}\n'
SECRET = "a-secret-of-one-client"
# A gateway that looks for its own mark in the request sees it in the second round; a retry may cost a third and fourth.
ROUNDS = 4


def sent_with(site: Site, *lines: str) -> RecordedRequest | None:
    """Send a question with these header lines; the request as the backend got it, None where it was refused."""
    body = site.body()
    head = site.raw_head(["Content-Type: application/json", f"Content-Length: {len(body)}", *lines])
    answer = site.raw(head + body)
    came = site.asked()
    if came:
        check_good(site, answer)
        return came[-1]
    check(answer is None or 400 <= answer.status < 500, "it neither reached a backend nor was it refused")
    return None


def answered_with(site: Site, *headers: Header) -> list[Header]:
    """Let a backend answer with these headers; the headers that the client got."""
    site.strike(Pieces([DONE], headers=headers))
    answer = site.ask()
    check(answer.status == 200 and answer.complete, f"the answer was {told(answer)}")
    return answer.headers


def values(headers: list[Header], name: str) -> list[str]:
    """The values of a header, those in one line taken apart."""
    lines = [value for key, value in headers if key.lower() == name.lower()]
    return [value.strip() for line in lines for value in line.split(",")]


def check_absent(headers: list[Header], *names: str) -> None:
    there = sorted({name for name, _ in headers} & set(names) | {n for n, _ in headers if n.lower() in names})
    check(not there, f"these passed: {', '.join(there)}")


@GROUP.row
def host_is_the_backends(site: Site) -> None:
    """The backend never sees the Host that the client used."""
    body = site.body()
    own = ["Host: gateway.localhost:7", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    answer = site.raw(site.raw_head(own, host=False) + body)
    if not site.asked():
        check(answer is not None and 400 <= answer.status < 500, "it neither reached a backend nor was it refused")
        return
    check_good(site, answer)
    seen = site.asked()[-1].all("host")
    check(len(seen) == 1 and "gateway" not in seen[0], f"the backend saw Host: {', '.join(seen)}")


@GROUP.row
def hop_by_hop_of_a_request(site: Site) -> None:
    """Keep-Alive, TE, Trailer, Upgrade and the Proxy- headers of a request do not reach the backend."""
    names = ("keep-alive", "proxy-connection", "proxy-authorization", "te", "trailer", "upgrade")
    lines = ("Keep-Alive: timeout=9", "Proxy-Connection: keep-alive", "TE: gzip", "Trailer: X-T", "Upgrade: h2c")
    got = sent_with(site, *lines, "Proxy-Authorization: Basic eDp5", "Connection: keep-alive, TE, Upgrade")
    check_absent(got.headers if got else [], *names)


@GROUP.row
def named_by_connection_of_a_request(site: Site) -> None:
    """A header that the client's Connection names does not reach the backend."""
    got = sent_with(site, "Connection: keep-alive, X-Private", "X-Private: 1")
    check_absent(got.headers if got else [], "x-private")


@GROUP.row
def connection_strips_nothing_needed(site: Site) -> None:
    """A Connection header that names Host, Content-Length and Content-Type cannot take them away."""
    got = sent_with(site, "Connection: keep-alive, Host, Content-Length, Content-Type")
    check(got is None or got.body == site.body(), "the backend got another body")
    check(got is None or got.header("host") is not None, "the backend got no Host")


@GROUP.row
def hop_by_hop_of_an_answer(site: Site) -> None:
    """Keep-Alive, Proxy-Authenticate, Upgrade and what Connection names in an answer do not reach the client."""
    got = answered_with(
        site,
        ("Connection", "keep-alive, X-Internal"),
        ("X-Internal", "1"),
        ("Keep-Alive", "timeout=77"),
        ("Proxy-Authenticate", "Basic"),
        ("Upgrade", "h2c"),
    )
    # A gateway's own Keep-Alive is another one.
    mine = [(name, value) for name, value in got if name.lower() != "keep-alive" or value == "timeout=77"]
    check_absent(mine, "x-internal", "keep-alive", "proxy-authenticate", "upgrade")


@GROUP.row
def nothing_invented(site: Site) -> None:
    """The backend sees no Accept-Encoding, Cookie or Authorization that the client did not send."""
    got = sent_with(site)
    check_absent(got.headers if got else [], "accept-encoding", "cookie", "authorization")


@GROUP.row
def own_headers_pass(site: Site) -> None:
    """A header nobody knows reaches the backend, and one of the backend reaches the client."""
    got = sent_with(site, 'X-Own-Question: a, b;c="d"', "User-Agent: conformance/1")
    check(got is not None and got.all("x-own-question") == ['a, b;c="d"'], "the client's was lost or changed")
    check("b;c" in values(answered_with(site, ("X-Own-Answer", "a, b;c")), "x-own-answer"), "the backend's was lost")


@GROUP.row
def repeated_headers(site: Site) -> None:
    """A header that comes twice keeps both values in their order, in both directions."""
    got = sent_with(site, "X-Twice: 1", "X-Twice: 2")
    seen = values(got.headers if got else [], "x-twice")
    check(seen == ["1", "2"], f"the backend saw {seen}")
    seen = values(answered_with(site, ("X-Two", "1"), ("X-Two", "2")), "x-two")
    check(seen == ["1", "2"], f"the client saw {seen}")


@GROUP.row
def two_cookies_are_two_lines(site: Site) -> None:
    """Two Set-Cookie lines of a backend arrive as two lines, or not at all."""
    cookies = ["a=1; Expires=Sat, 21 Nov 2026 12:00:00 GMT", "b=2; Path=/"]
    got = answered_with(site, *(("Set-Cookie", cookie) for cookie in cookies))
    seen = [value for name, value in got if name.lower() == "set-cookie"]
    check(seen in ([], cookies), f"the client saw {seen}")


@GROUP.row
def cookies_are_not_replayed(site: Site) -> None:
    """A cookie that a backend set for one client does not come back with the next client's request."""
    answered_with(site, ("Set-Cookie", f"session={SECRET}; Path=/"))
    for _ in range(2):
        check_good(site, site.ask())
    came = [value for request in site.asked() for value in request.all("cookie")]
    check(not came, f"the backend saw Cookie: {', '.join(came)}")


@GROUP.row
def credentials_stay(site: Site) -> None:
    """Authorization, X-Api-Key and Cookie of a client do not reach the backend."""
    lines = [f"X-Api-Key: {SECRET}", f"Cookie: session={SECRET}"]
    if "authorization" not in {name.lower() for name in site.headers}:
        lines.append(f"Authorization: Bearer {SECRET}")
    got = sent_with(site, *lines)
    own = {value for name, value in site.headers.items() if name.lower() in ("authorization", "x-api-key", "cookie")}
    seen = [name for name, value in got.headers if SECRET in value or value in own] if got else []
    check(not seen, f"these passed: {', '.join(seen)}")


@GROUP.row
def forged_address(site: Site) -> None:
    """X-Forwarded-For with an underscore is no way to smuggle an address past the gateway."""
    got = sent_with(site, "X_Forwarded_For: 203.0.113.7")
    there = [f"{name}: {value}" for name, value in (got.headers if got else []) if "203.0.113.7" in value]
    check(not there, f"the backend saw {', '.join(there)}")


@GROUP.row
def via(site: Site) -> None:
    """The gateway adds itself to Via (RFC 9110 §7.6.3: a gateway must)."""
    got = sent_with(site)
    check(got is not None and bool(got.all("via")), "the backend saw no Via")


@GROUP.row
def loop(site: Site) -> None:
    """A request that comes back to the gateway is refused, not sent round and round."""
    circle = BackToTheGateway(site.host, site.port, site.prefix + CHAT, limit=12)
    site.always(circle)
    answer = site.ask(timeout_s=10)
    check(circle.rounds <= ROUNDS, f"it went round {circle.rounds} times, and the answer was {answer.status}")
    check(answer.status >= 400, f"the answer was {answer.status}")


@GROUP.row
def no_header_out_of_a_fold(site: Site) -> None:
    """A folded header line of an answer becomes a space or an error, never a header of its own."""
    site.strike(Pieces([DONE], headers=(("X-Folded", "a\r\n X-Injected: b"),)))
    answer = site.ask()
    check(answer.header("x-injected") is None, "the client saw X-Injected")
