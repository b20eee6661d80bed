"""While nothing has gone to the client, one bad backend costs nobody an answer."""

from __future__ import annotations

import time
from collections.abc import Sequence

from conformance.fakes.faults import (
    DoubleContentLength,
    EofBeforeHeaders,
    Error500,
    Fault,
    HugeHeader,
    Redirect,
    Refuse503Busy,
    RstBeforeHeaders,
)
from conformance.fakes.http import CutOff, RawResponse
from conformance.fakes.ollama import FakeOllama
from conformance.judge import check_good, has_error, is_good
from conformance.row import Group, check, check_in_time
from conformance.scripts import Raw
from conformance.site import CHAT, PATIENCE_S, Site, told

GROUP = Group("failover", "One backend fails before its first byte")
# Enough to meet a dead backend, whether the gateway takes turns or has a favourite.
ROUNDS = 3
# Longest time in seconds that an answer may take where a connect hangs.
CONNECT_S = 8.0
# Most backends that may be bothered for one question where everybody fails.
MOST_TRIES = 4
ALL_DOWN_S = 3.0
# Longest wait in seconds for an error: a gateway that goes on reading what is no answer gives none.
ERROR_S = 5.0


def survives(site: Site, fault: Fault | type[Fault]) -> None:
    """Let the backend that is asked first fail once, streamed and whole; the client sees nothing of it.

    It is the same one that fails in the second round, if it is asked again so soon: one is bad, not both.
    """
    bad: FakeOllama | None = None
    for stream in (True, False):
        strike = site.strike(fault, on=bad)
        answer = ask(site, site.body(stream=stream))
        if bad is None:
            check(len(strike.struck) == 1, "no backend was asked")
            bad = next(fake for fake in site.backends if strike.struck[0] in fake.requests)
        check_good(site, answer, "streamed: " if stream else "not streamed: ")


def ask(site: Site, body: bytes | None = None, timeout_s: float = PATIENCE_S) -> RawResponse | None:
    try:
        return site.ask(body=body, timeout_s=timeout_s)
    except (CutOff, ConnectionError):
        return None


@GROUP.row
def refused(site: Site) -> None:
    """A backend refuses connections: every client gets the other one's answer."""
    check_good(site, site.ask())
    site.kill(site.asked_last())
    for number in range(ROUNDS):
        check_good(site, ask(site), f"of request {number + 1}, ")


@GROUP.row
def killed_and_reset(site: Site) -> None:
    """A backend dies with RSTs on its open connections: every client gets the other one's answer."""
    check_good(site, site.ask())
    site.kill(site.asked_last(), reset=True)
    for number in range(ROUNDS):
        check_good(site, ask(site), f"of request {number + 1}, ")


@GROUP.row
def black_hole(site: Site) -> None:
    """Connects to a backend hang: every client gets the other one's answer within 8 s."""
    check_good(site, site.ask())
    site.black_hole(site.asked_last())
    for number in range(2):
        try:
            answer = ask(site, timeout_s=CONNECT_S)
        except TimeoutError:
            check(False, f"request {number + 1} had no answer after {CONNECT_S:g} s")
        check_good(site, answer, f"of request {number + 1}, ")


@GROUP.row
def closed_before_the_answer(site: Site) -> None:
    """A backend takes the request and closes: the client gets the other one's answer."""
    survives(site, EofBeforeHeaders)


@GROUP.row
def reset_before_the_answer(site: Site) -> None:
    """A backend takes the request and resets: the client gets the other one's answer."""
    survives(site, RstBeforeHeaders)


@GROUP.row
def stale_connection(site: Site) -> None:
    """A kept connection that the backend closes just then costs no client its answer."""
    for _ in range(4):
        check_good(site, site.ask())
    # On a connection that was not used before this fault does not strike, and the row is kept.
    site.strike(EofBeforeHeaders, when=lambda request: request.nth > 1)
    check_good(site, ask(site))


@GROUP.row
def busy(site: Site) -> None:
    """A backend's queue is full (503): the client gets the other one's answer."""
    survives(site, Refuse503Busy)


@GROUP.row
def error_500(site: Site) -> None:
    """A backend answers 500: the client gets the other one's answer."""
    survives(site, Error500("cuda out of memory"))


@GROUP.row
def garbage_for_an_answer(site: Site) -> None:
    """A backend answers with bytes that are no HTTP: the client gets the other one's answer."""
    survives(site, Raw(b"\x15\x03\x01\x00\x02\x02\x16 this is not HTTP\r\n\r\n"))


@GROUP.row
def contradicting_lengths(site: Site) -> None:
    """A backend answers with two different Content-Lengths: the client gets an error or the other one's answer."""
    honest(site, DoubleContentLength())


@GROUP.row
def megabyte_header(site: Site) -> None:
    """A backend answers with a header of 1 MB: the client gets an error or the other one's answer."""
    honest(site, HugeHeader())


def honest(site: Site, fault: Fault) -> None:
    site.strike(fault)
    answer = ask(site, site.body(stream=False), timeout_s=ERROR_S)
    check(answer is None or answer.status >= 500 or is_good(site, answer), f"the answer was {told(answer)}")
    for _ in range(2):
        check_good(site, ask(site), "of the next request, ")


@GROUP.row
def redirect_is_not_followed(site: Site) -> None:
    """A backend's redirect is not followed."""
    seen = {fake: fake.count("/api/version") for fake in site.backends}
    aim = f"http://127.0.0.1:{site.b.port}/api/version?followed"
    site.always(Redirect(302, aim))
    ask(site)
    came = [r for fake in seen for r in fake.requests_for("/api/version") if "followed" in r.path]
    check(not came, "the gateway went where the redirect pointed")


@GROUP.row
def all_are_down(site: Site) -> None:
    """Both backends refuse: the client gets a 502, 503 or 504 within 3 s, not a hang or a close."""
    for fake in site.backends:
        site.kill(fake)
    check_in_time(ALL_DOWN_S, lambda: refused_after_s(site))


def refused_after_s(site: Site) -> float:
    """How long in seconds it takes until a client hears that there is no backend."""
    began = time.monotonic()
    answer = ask(site)
    check(answer is not None and answer.status in (502, 503, 504), f"the answer was {told(answer)}")
    return time.monotonic() - began


@GROUP.row
def all_are_busy(site: Site) -> None:
    """Both backends are busy: the client sees a 503, and each backend was asked at most twice."""
    site.always(Refuse503Busy)
    answer = ask(site)
    check(answer is not None and answer.status == 503, f"the answer was {told(answer)}")
    check_few(site)


@GROUP.row
def all_fail(site: Site) -> None:
    """Both backends answer 500: the client sees a 5xx, and each backend was asked at most twice."""
    site.always(Error500("boom"))
    answer = ask(site)
    check(answer is not None and answer.status >= 500 and not looks_good(answer), f"the answer was {told(answer)}")
    check_few(site)


def looks_good(answer: RawResponse) -> bool:
    return answer.status == 200 and not has_error(answer.body)


def check_few(site: Site) -> None:
    counts: Sequence[int] = [sum(r in fake.requests for r in site.asked(CHAT)) for fake in site.backends]
    check(sum(counts) <= MOST_TRIES and max(counts) <= 2, f"the backends were asked {counts[0]} and {counts[1]} times")


@GROUP.row
def back_again(site: Site) -> None:
    """A backend that was down and is back gets requests again while the other one is down."""
    check_good(site, site.ask())
    first = site.asked_last()
    site.kill(first)
    check_good(site, ask(site))
    first.restart()
    site.down.discard(first)
    site.kill(site.other(first))
    site.wait(lambda: is_good(site, ask(site)), "the one that came back was not asked", site.patience_s)
