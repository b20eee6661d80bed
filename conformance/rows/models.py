"""What only a gateway can do that knows models and reads Ollama's answers."""

from __future__ import annotations

import time
from typing import Any

from conformance.fakes.faults import (
    CleanEnd,
    ErrorInFirstChunk,
    ErrorRecord,
    GarbageAfter200,
    Status,
)
from conformance.fakes.models import FakeModel
from conformance.fakes.ollama import FakeOllama
from conformance.judge import check_good, check_json, is_good
from conformance.row import Group, check, check_in_time
from conformance.rows.endings import broken_stream
from conformance.rows.failover import ask, survives
from conformance.site import CHAT, COPY, MODEL, ONLY, V1_CHAT, Site, told

GROUP = Group("models", "Knows models, and reads Ollama's answers")
LISTED = {f"{name}:latest" for name in (MODEL, COPY, *ONLY.values())}
LISTING_S = 1.0
NOWHERE = "held-by-nobody"
ROUNDS = 4
# Twice each in a row: a gateway that takes turns would be right every other time.
BOTH = (ONLY["a"], ONLY["a"], ONLY["b"], ONLY["b"])


def names(site: Site, path: str = "/api/tags") -> set[str]:
    """The models that a listing names, of Ollama's own or OpenAI's form."""
    answer = site.ask(path, method="GET")
    check(answer.status == 200, f"the answer was {told(answer)}")
    listing: dict[str, Any] = check_json(answer)
    return {item.get("name") or item.get("id") for item in listing.get("models") or listing.get("data") or []}


def check_listed(seen: set[str]) -> None:
    missing = sorted(LISTED - seen)
    check(not missing, f"missing: {', '.join(missing)}")


def holder(site: Site, name: str) -> FakeOllama:
    return site.a if name == ONLY["a"] else site.b


@GROUP.row
def tags_of_both(site: Site) -> None:
    """`/api/tags` lists the models of both backends, a copy (same digest) too, each once."""
    check_listed(names(site))
    listed = [item["name"] for item in check_json(site.ask("/api/tags", method="GET"))["models"]]
    check(len(listed) == len(set(listed)), "a name stands there twice")


@GROUP.row
def openai_models_of_both(site: Site) -> None:
    """`/v1/models` lists the models of both backends."""
    check_listed({name if ":" in name else f"{name}:latest" for name in names(site, "/v1/models")})


@GROUP.row
def asks_the_holder(site: Site) -> None:
    """A chat goes to the backend that holds its model, every time."""
    for name in BOTH:
        answer = site.ask(body=site.body(model=name))
        check_good(site, answer, f"for {name}, ")
        check(site.asked_last() is holder(site, name), f"{name} was answered by the other backend")


@GROUP.row
def names_are_ollamas(site: Site) -> None:
    """A model is found with `:latest`, in capitals, and without a Content-Type, as Ollama finds it."""
    name = ONLY["b"]
    for asked in (f"{name}:latest", name.upper(), f"library/{name}"):
        check_good(site, site.ask(body=site.body(model=asked)), f"for {asked}, ")
    body = site.body(model=name)
    for _ in range(ROUNDS):
        answer = site.raw(site.raw_head([f"Content-Length: {len(body)}"]) + body)
        check_good(site, answer, "without a Content-Type, ")


@GROUP.row
def openai_route_asks_the_holder(site: Site) -> None:
    """A chat on `/v1` goes to the backend that holds its model, every time."""
    for name in BOTH:
        check_good(site, site.ask(V1_CHAT, site.body(model=name)), f"for {name}, ")


@GROUP.row
def show_of_the_holder(site: Site) -> None:
    """`/api/show` of a model that one backend holds is its document, every time."""
    for name in BOTH:
        answer = site.ask("/api/show", b'{"model":"%s"}' % name.encode())
        check(answer.status == 200, f"for {name}, the answer was {told(answer)}")
        place = f"/srv/{holder(site, name).name}/models"
        check(place in check_json(answer)["modelfile"], f"{name} was shown by the other backend")


@GROUP.row
def unknown_model(site: Site) -> None:
    """A model that nobody holds is Ollama's own 404, and OpenAI's on `/v1`."""
    answer = site.ask(body=site.body(model=NOWHERE))
    wanted = {"error": f"model '{NOWHERE}' not found"}
    check(answer.status == 404 and check_json(answer) == wanted, f"the answer was {told(answer)}")
    answer = site.ask(V1_CHAT, site.body(model=NOWHERE))
    check(answer.status == 404 and NOWHERE in check_json(answer)["error"]["message"], f"on /v1 {told(answer)}")


@GROUP.row
def gone_from_one(site: Site) -> None:
    """A model that one of its holders just lost (404) is answered by the other one."""
    survives(site, Status(404, f'{{"error":"model \'{MODEL}\' not found"}}'))


@GROUP.row
def new_model(site: Site) -> None:
    """A model that one backend just got is found without a restart, within the suite's patience."""
    name = "just-pulled"
    site.b.add_model(FakeModel(name))
    try:
        asked = site.body(model=name)
        site.wait(
            lambda: all(is_good(site, ask(site, asked)) for _ in range(ROUNDS)), "it was not found", site.patience_s
        )
    finally:
        site.b.remove_model(name)


@GROUP.row
def listing_beside_a_black_hole(site: Site) -> None:
    """`/api/tags` answers within a second while connects to one backend hang."""
    names(site)
    site.black_hole(site.a)
    for _ in range(2):
        check_in_time(LISTING_S, lambda: listed_after_s(site))


def listed_after_s(site: Site) -> float:
    """How long in seconds a listing takes."""
    began = time.monotonic()
    answer = site.ask("/api/tags", method="GET")
    check(answer.status == 200, told(answer))
    return time.monotonic() - began


@GROUP.row
def error_in_the_first_record(site: Site) -> None:
    """A stream whose first record is an error (200, then `{"error"}`): the client gets the other one's answer."""
    site.strike(ErrorInFirstChunk)
    check_good(site, ask(site))


@GROUP.row
def garbage_after_200(site: Site) -> None:
    """A 200 whose first bytes are no chunk: the client gets the other one's answer."""
    survives(site, GarbageAfter200())


@GROUP.row
def html_for_json(site: Site) -> None:
    """A 200 with a web page where JSON was asked for: the client gets the other one's answer."""
    page = "<html><body>Sign in to continue</body></html>"
    site.strike(Status(200, page, [("Content-Type", "text/html")]))
    check_good(site, ask(site, site.body(stream=False)))


@GROUP.row
def no_end_mark(site: Site) -> None:
    """An NDJSON stream that ends properly, but without `done`, is cut or ends in an error record."""
    broken_stream(site, CleanEnd(), CHAT)


@GROUP.row
def no_end_mark_openai(site: Site) -> None:
    """A `/v1` stream that ends properly, but without `[DONE]`, is cut or ends in an error event."""
    broken_stream(site, CleanEnd(), V1_CHAT)


@GROUP.row
def swallowed_error(site: Site) -> None:
    """A `/v1` stream whose error Ollama itself swallowed is cut or ends in an error event."""
    broken_stream(site, ErrorRecord(), V1_CHAT)


@GROUP.row
def errors_in_the_dialect(site: Site) -> None:
    """Where both backends are down, the error is JSON in the dialect of the route."""
    for fake in site.backends:
        site.kill(fake)
    native = check_json(site.ask())
    check(isinstance(native.get("error"), str), f"on {CHAT}: {native}")
    openai = check_json(site.ask(V1_CHAT, site.body()))
    check(isinstance(openai.get("error"), dict) and "message" in openai["error"], f"on {V1_CHAT}: {openai}")
