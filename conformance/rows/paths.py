"""Targets: path and query arrive as they were sent, and no spelling gets round a refusal."""

from __future__ import annotations

from conformance.fakes.recorded import RecordedRequest
from conformance.judge import check_good
from conformance.row import Group, check
from conformance.site import CHAT, COPY, Site, told

GROUP = Group("paths", "Paths and queries")
# The same route in other words, for whoever decodes or tidies a path after he has looked at it.
SPELLINGS = (
    "/api/chat/../delete",
    "/api/./delete",
    "/api/chat/%2e%2e/delete",
    "/api/%64elete",
    "/api%2fdelete",
    "/%61pi/delete",
    "/api//delete",
    "//api/delete",
    "/api/delete/",
    "/api/delete;x=1",
    "/api/chat/..;/delete",
    "/api\\delete",
    "/api/chat%00/../delete",
    "/API/DELETE",
)


def all_of(site: Site) -> list[RecordedRequest]:
    """The requests of this row that reached a backend, whatever their path."""
    return [request for fake in site.backends for request in list(fake.requests) if site.is_mine(request)]


@GROUP.row
def query_untouched(site: Site) -> None:
    """A query reaches the backend as it was sent: repeated, empty and encoded parameters too."""
    query = "a=1&a=2&b=&c&d=%20+%2F%2f&e=%zz&f={x}"
    check_good(site, site.ask(f"{CHAT}?{query}"))
    seen = site.asked()[-1].path
    check(seen.partition("?")[2] == query, f"the backend saw {seen}")


@GROUP.row
def no_other_spelling_of_a_store_route(site: Site) -> None:
    """A store route in another spelling is refused, or reaches the backend in just that spelling."""
    for spelling in SPELLINGS:
        body = site.body(model=COPY)
        site.send_and_forget(spelling, body, "DELETE")
    seen = [request.path for request in all_of(site)]
    strange = [path for path in seen if path not in {site.prefix + each for each in SPELLINGS} | set(SPELLINGS)]
    check(not strange, f"the backend saw {', '.join(strange)}")


@GROUP.row
def no_other_spelling_of_a_safe_route(site: Site) -> None:
    """A chat whose path hides another route behind dots reaches no other route."""
    for path in ("/api/chat/../pull", "/api/chat/%2e%2e/pull", "/api/chat/..%2fpull", "/api/pull/../chat"):
        site.send_and_forget(path, site.body(), "POST")
    strange = [request.path for request in all_of(site) if request.target in ("/api/pull", "/pull")]
    check(not strange, f"the backend saw {', '.join(strange)}")


@GROUP.row
def absolute_target(site: Site) -> None:
    """A target in absolute form reaches the backend in origin form, or is refused."""
    body = site.body()
    head = site.raw_head(["Content-Type: application/json", f"Content-Length: {len(body)}"])
    first = f"POST http://{site.authority}{site.prefix}{CHAT} ".encode()
    answer = site.raw(head.replace(f"POST {site.prefix}{CHAT} ".encode(), first, 1) + body)
    seen = [request.path for request in all_of(site)]
    check(seen in ([], [CHAT]), f"the backend saw {', '.join(seen)}")
    if seen:
        check_good(site, answer)
    else:
        check(answer is not None and 400 <= answer.status < 500, f"the answer was {told(answer)}")


@GROUP.row
def fragment_is_not_sent_on(site: Site) -> None:
    """A fragment in the target is dropped or refused, never sent on."""
    site.send_and_forget(f"{CHAT}#x", site.body(), "POST")
    strange = [request.path for request in all_of(site) if "#" in request.path]
    check(not strange, f"the backend saw {', '.join(strange)}")


@GROUP.row
def connect_is_refused(site: Site) -> None:
    """CONNECT is refused, and reaches no backend."""
    answer = site.raw(f"CONNECT {site.authority} HTTP/1.1\r\nHost: {site.authority}\r\n\r\n".encode())
    check(answer is None or answer.status >= 400, f"the answer was {told(answer)}")
    methods = [request.method for fake in site.backends for request in list(fake.requests)]
    check("CONNECT" not in methods, "a backend saw CONNECT")
