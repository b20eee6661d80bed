"""Who may not use a model does not learn whether it exists: same bytes, same status, same headers, same time."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conformance.fakes.faults import Status
from conformance.fakes.http import RawClient, RawResponse
from conformance.fakes.models import FakeModel
from conformance.fakes.ollama import FakeOllama
from tests.keys import ADMIN, bearer, new_key
from tests.product import INFERENCE, NO_BREAKER, STREAMING
from tests.wire.shows import gateway

# The fake lives as long as the module, and with it the connections that Caravan keeps to it.
pytestmark = pytest.mark.leaky

# Names of one length, so that nothing but the name itself differs.
HELD, UNKNOWN = "hidden", "nobody"
# A name that the patterns allow, and that nobody holds.
ALLOWED_UNKNOWN = "tinyxx"
SAMPLES = 2000
# The promise is 2 %; a machine that is busy with other things measures itself.
MARGIN = 0.05
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--x--\r\n'
)


@dataclass
class Site:
    url: str
    fake: FakeOllama
    keys: dict[str, str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp("disclosure")
    keys = {
        "user": new_key(folder, "user", models=("tiny*",)),
        "cloud": new_key(folder, "cloud", models=("tiny*", "tiny*cloud")),
        "manager": new_key(folder, "manager", scopes=("infer", "read", "manage")),
        "narrow": new_key(folder, "narrow", scopes=("infer", "read", "manage"), models=("tiny*",)),
        "admin": new_key(folder, "admin", scopes=("admin",)),
        "plain": new_key(folder, "plain"),
        "bootstrap": ADMIN,
    }
    with FakeOllama("one", ["tiny", HELD, f"me/{HELD}", f"tiny:{HELD}"]) as fake:
        fake.cloud_models = {HELD: FakeModel(HELD)}
        with gateway([fake], folder, CARAVAN_ADMIN_KEY=ADMIN, **NO_BREAKER) as process:
            yield Site(process.url, fake, keys)


# -- what is asked ----------------------------------------------------------------------------------

Ask = tuple[str, str, bytes | None, dict[str, str]]
"""Method, target, body, headers."""


def asking(path: str, **more: Any) -> Callable[[str], Ask]:
    asked = {**INFERENCE.get(path, {}), **more}

    def ask(model: str) -> Ask:
        return "POST", path, json.dumps({"model": model, **asked}).encode(), {"Content-Type": "application/json"}

    return ask


def store(method: str, path: str, *fields: str, **more: Any) -> Callable[[str], Ask]:
    def ask(model: str) -> Ask:
        body = json.dumps({**dict.fromkeys(fields, model), **more}).encode()
        return method, path, body, {"Content-Type": "application/json"}

    return ask


def form(model: str) -> Ask:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    return "POST", "/v1/audio/transcriptions", FORM % model.encode(), headers


def as_page(model: str) -> Ask:
    method, target, body, headers = asking("/api/chat")(model)
    return method, target, body, {**headers, "Accept": "text/html"}


ROUTES: dict[str, Callable[[str], Ask]] = {
    **{path: asking(path) for path in INFERENCE},
    **{f"{path} streamed": asking(path, stream=True) for path in STREAMING},
    **{f"{path} whole": asking(path, stream=False) for path in STREAMING},
    "/v1/audio/transcriptions": form,
    "/api/show": asking("/api/show"),
    "/api/show verbose": asking("/api/show", verbose=True),
    "/api/show with overlays": asking("/api/show", system="be brief"),
    "/api/show by its old name": lambda model: ("POST", "/api/show", json.dumps({"name": model}).encode(), {}),
    "/v1/models": lambda model: ("GET", f"/v1/models/{model}", None, {}),
    "load": lambda model: ("POST", "/api/generate", json.dumps({"model": model}).encode(), {}),
    "unload": lambda model: ("POST", "/api/generate", json.dumps({"model": model, "keep_alive": 0}).encode(), {}),
    "a page": as_page,
    "too little": lambda model: ("POST", "/api/chat", json.dumps({"model": model, "messages": 7}).encode(), {}),
}
FORMS = ("{}", "{}:latest", "me/{}", "tiny:{}", "{}:1b", "hf.co/me/{}", "{}:cloud", "{}-cloud")


def ask(client: RawClient, asked: Ask, key: str) -> RawResponse:
    method, target, body, headers = asked
    return client.request(method, target, body, {**headers, **bearer(key)})


def told(client: RawClient, asked: Ask, key: str, model: str) -> bytes:
    """All bytes of an answer but what differs between any two: the name itself, the time, and its own id."""
    answer = ask(client, asked, key)
    head = re.sub(rb"(?mi)^(Date|X-Request-Id): [^\r]*\r\n", b"", answer.head)
    own = (answer.header("x-request-id") or "").encode()
    # Anthropic's form has room for a part of it.
    body = answer.body.replace(own, b"ID").replace(own[:24], b"ID")
    return (head + body).replace(model.encode(), b"MODEL")


@pytest.fixture
def client(site: Site) -> Iterator[RawClient]:
    with RawClient(site.url) as connected:
        yield connected


# -- who may not know -------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
def test_unknown_and_forbidden_look_the_same(site: Site, client: RawClient, route: str) -> None:
    before = len([each for each in site.fake.requests if HELD.encode() in each.body])
    for pattern in FORMS if route != "/v1/models" else FORMS[:-2]:
        if pattern.startswith("tiny"):
            continue
        held, unknown = (
            told(client, ROUTES[route](pattern.format(model)), site.keys["user"], pattern.format(model))
            for model in (HELD, UNKNOWN)
        )
        assert held == unknown
        assert held.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert len([each for each in site.fake.requests if HELD.encode() in each.body]) == before


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_allowed_and_unknown_looks_like_what_is_forbidden(site: Site, client: RawClient, route: str) -> None:
    unknown, held = (told(client, ROUTES[route](model), site.keys["user"], model) for model in (ALLOWED_UNKNOWN, HELD))
    assert unknown == held


@pytest.mark.parametrize("route", [route for route in ROUTES if route != "too little"])
@pytest.mark.parametrize("name", ["{}:cloud", "{}-cloud", "{}:1b-cloud"])
def test_a_cloud_model_that_nobody_knows_looks_like_a_forbidden_one(
    site: Site, client: RawClient, route: str, name: str
) -> None:
    """A backend says that it is unknown: that is passed on to nobody who may not know."""
    unknown, held = name.format(ALLOWED_UNKNOWN), name.format(HELD)
    asked = [told(client, ROUTES[route](model), site.keys["cloud"], model) for model in (unknown, held)]
    assert asked[0] == asked[1]
    assert asked[0].startswith(b"HTTP/1.1 403 Forbidden\r\n")
    reached = [each for each in site.fake.requests if held.encode() in each.body + each.path.encode()]
    assert not reached, "of the forbidden one nobody is asked"


@pytest.mark.parametrize("route", [route for route in ROUTES if route != "too little"])
def test_of_an_unknown_cloud_model_a_backend_is_asked(site: Site, client: RawClient, route: str) -> None:
    """Else the test above compared nothing but two refusals of Caravan's own; who manages hears what it said."""
    model = f"{ALLOWED_UNKNOWN}:{len(route)}b-cloud"
    for key, status in (("cloud", 403), ("manager", 404)):
        before = len(site.fake.requests)
        assert ask(client, ROUTES[route](model), site.keys[key]).status == status
        assert [each for each in site.fake.requests[before:] if model.encode() in each.body + each.path.encode()]


@pytest.mark.parametrize("route", ROUTES)
def test_a_key_for_all_models_is_not_told_either(site: Site, client: RawClient, route: str) -> None:
    """Else its answers would tell apart what another key's do not."""
    plain, narrow = (told(client, ROUTES[route](UNKNOWN), site.keys[key], UNKNOWN) for key in ("plain", "user"))
    assert plain == narrow


STORE = {
    "pull": store("POST", "/api/pull", "model"),
    "push": store("POST", "/api/push", "model"),
    "create": store("POST", "/api/create", "model", **{"from": "tiny"}),
    "create from": store("POST", "/api/create", "from", model="tiny2"),
    "copy": store("POST", "/api/copy", "source", destination="tiny2"),
    "copy to": store("POST", "/api/copy", "destination", source="tiny"),
    "delete": store("DELETE", "/api/delete", "model"),
}


@pytest.mark.parametrize("order", STORE)
@pytest.mark.parametrize("key", ["user", "narrow"])
def test_an_order_for_a_forbidden_model_tells_nothing(site: Site, order: str, key: str) -> None:
    answers = []
    for model in (HELD, UNKNOWN):
        # A body that nobody read ends its connection.
        with RawClient(site.url) as client:
            answers.append(told(client, STORE[order](model), site.keys[key], model))
    held, unknown = answers
    assert held == unknown
    assert held.startswith(b"HTTP/1.1 403 Forbidden\r\n")


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/api/embed"])
def test_a_model_that_its_holders_have_lost_looks_the_same(site: Site, client: RawClient, path: str) -> None:
    """Until they are polled again they are thought to hold it."""
    site.fake.fault(path, Status(404, '{"error":"model \'tiny\' not found"}'), times=None)
    try:
        gone = told(client, asking(path)("tiny"), site.keys["user"], "tiny")
        assert ask(client, asking(path)("tiny"), site.keys["manager"]).status == 404
    finally:
        site.fake.clear_faults()
    assert gone == told(client, asking(path)("none"), site.keys["user"], "none")


def test_an_answer_that_is_no_403_does_not_say_403(site: Site, client: RawClient) -> None:
    """The comparison sees what differs: two models of which one may be used look different."""
    mine, forbidden = (told(client, asking("/api/show")(model), site.keys["user"], model) for model in ("tiny", HELD))
    assert mine != forbidden
    assert mine.startswith(b"HTTP/1.1 200 OK\r\n")


# -- who has to know --------------------------------------------------------------------------------

WORDS = {
    "/api/chat": f"model '{UNKNOWN}' not found",
    "/api/show": f"model '{UNKNOWN}:latest' not found",
    "/v1/models": f"model '{UNKNOWN}:latest' not found",
    "/v1/chat/completions": f"model '{UNKNOWN}' not found",
    "/v1/messages": f"model '{UNKNOWN}' not found",
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("key", ["manager", "admin", "bootstrap"])
def test_who_manages_hears_ollamas_404(site: Site, client: RawClient, route: str, key: str) -> None:
    """Ollama's command pulls a model when it hears that nobody has it."""
    if route == "too little":
        return
    answer = ask(client, ROUTES[route](UNKNOWN), site.keys[key])
    assert answer.status == 404
    assert "not found" in answer.body.decode()
    if route in WORDS:
        said = answer.json()["error"]
        assert (said if isinstance(said, str) else said["message"]) == WORDS[route]


def test_what_is_said_is_what_ollama_says(site: Site, client: RawClient) -> None:
    for route in ("/api/chat", "/api/show", "/v1/chat/completions", "/v1/embeddings", "/api/embed"):
        with RawClient(site.fake.url) as direct:
            theirs = ask(direct, ROUTES[route](UNKNOWN), "")
        ours = ask(client, ROUTES[route](UNKNOWN), site.keys["manager"])
        assert (ours.status, ours.body) == (theirs.status, theirs.body.strip())


def test_who_manages_some_models_hears_of_those_alone(site: Site, client: RawClient) -> None:
    assert ask(client, asking("/api/chat")(ALLOWED_UNKNOWN), site.keys["narrow"]).status == 404
    for model in (HELD, UNKNOWN):
        assert ask(client, asking("/api/chat")(model), site.keys["narrow"]).status == 403


# -- time -------------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize("route", ["/api/chat", "/api/show"])
def test_unknown_and_forbidden_take_the_same_time(site: Site, client: RawClient, route: str) -> None:
    """Once of three times: what a busy machine adds to the one or the other is not the same each time."""
    assert any(difference(site, client, route) < MARGIN for _ in range(3))


def difference(site: Site, client: RawClient, route: str) -> float:
    """By how much the slowest median is above the fastest."""
    spent: dict[str, list[float]] = {ALLOWED_UNKNOWN: [], HELD: [], UNKNOWN: []}
    asked = {model: ROUTES[route](model) for model in spent}
    order = list(spent)
    for n in range(SAMPLES):
        # Each comes after each other one equally often.
        for model in order if n % 2 else reversed(order):
            started = time.perf_counter()
            ask(client, asked[model], site.keys["user"])
            spent[model].append(time.perf_counter() - started)
    medians = {model: statistics.median(times) for model, times in spent.items()}
    low, high = min(medians.values()), max(medians.values())
    shown = ", ".join(f"{model} {median * 1e6:.0f} us" for model, median in medians.items())
    print(f"{route}: {shown}: {100 * (high / low - 1):.2f} %")
    return high / low - 1


def test_nothing_is_hidden_where_there_are_no_keys(fakes: Any, tmp_path: Path) -> None:
    with gateway([fakes("one", ["tiny"])], tmp_path) as process, RawClient(process.url) as client:
        assert ask(client, asking("/api/chat")(UNKNOWN), "none").status == 404
        method, target, body, headers = asking("/api/show")(UNKNOWN)
        answer = client.request(method, target, body, headers)
    assert (answer.status, answer.json()) == (404, {"error": WORDS["/api/show"]})
