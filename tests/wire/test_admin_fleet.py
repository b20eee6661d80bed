"""What an operator does with backends and models through the admin API, and what comes of it."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from conformance.fakes import faults
from conformance.fakes.http import RawClient, RawResponse, fetch
from conformance.fakes.ollama import FakeModel, FakeOllama
from tests.fakes.redis import PrivateRedis
from tests.keys import ADMIN, bearer
from tests.product import Stand, listed, mark, question, stand
from tests.wire.scripted import AsPlanned, Halting
from tests.wire.shows import gateway, until

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

TOKEN = "hunter2-of-a-backend"
# What is asked of Redis and of a backend gets its answer, however slow the machine is.
PATIENT = {"CARAVAN_REDIS_TIMEOUT": "5", "CARAVAN_POLL_TIMEOUT": "15"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, redis_server: PrivateRedis) -> Iterator[Stand]:
    redis_server.flush()
    folder = tmp_path_factory.mktemp("admin")
    with stand(folder, redis_url=redis_server.url, WEB_CONCURRENCY="2", **PATIENT) as made:
        yield made


@pytest.fixture(scope="module")
def spare() -> Iterator[FakeOllama]:
    """A server that is no backend yet."""
    with FakeOllama("spare", ["tiny", "only-spare"]) as fake:
        yield fake


def call(site: Stand, method: str, path: str, asked: Any = None) -> RawResponse:
    return fetch(f"{site.url}/admin/api{path}", method, json=asked)


def backend(site: Stand, name: str) -> dict[str, Any] | None:
    found = call(site, "GET", "/backends").json()["backends"]
    return next((one for one in found if one["name"] == name), None)


def model(site: Stand, name: str) -> dict[str, Any]:
    (found,) = call(site, "GET", f"/models?query={name}").json()["models"]
    return dict(found)


def holders(site: Stand, name: str) -> list[str]:
    """Who holds the models with this in their names."""
    found = call(site, "GET", f"/models?query={name}").json()["models"]
    return [holder["backend"] for one in found for holder in one["holders"]]


# The end of a change is held for two seconds at most until all workers know; a busy machine may need more. Only a test
# that has the machine for itself may ask at once.


def settle(site: Stand, name: str, **wanted: Any) -> None:
    """Wait until every worker says this of a backend."""
    site.process.wait_each(lambda: wanted.items() <= (backend(site, name) or {}).items(), f"{name} is {wanted}")


def settle_holders(site: Stand, name: str, *wanted: str) -> None:
    """Wait until every worker says that these hold a model."""
    site.process.wait_each(lambda: holders(site, name) == [*wanted], f"{name} is held by {wanted}")


def settle_gone(site: Stand, fake: FakeOllama) -> None:
    """Wait until no worker knows a backend any more."""
    site.process.wait_each(lambda: mark(fake) not in listed(site.url), f"{fake.name} is gone")


def drain(site: Stand, name: str, draining: bool) -> None:
    assert call(site, "PATCH", f"/backends/{name}", {"draining": draining}).status == 200
    settle(site, name, draining=draining)


def current(site: Stand, name: str) -> dict[str, bool]:
    return {holder["backend"]: holder["is_current"] for holder in model(site, name)["holders"]}


def events(site: Stand, kind: str = "") -> list[dict[str, Any]]:
    return list(call(site, "GET", f"/events?kind={kind}").json()["events"])


def new(fake: FakeOllama, **more: Any) -> dict[str, Any]:
    return {"name": fake.name, "url": fake.url, **more}


@contextmanager
def added(site: Stand, fake: FakeOllama, **more: Any) -> Iterator[dict[str, Any]]:
    answer = call(site, "POST", "/backends", new(fake, **more))
    assert answer.status == 201, answer.body
    try:
        site.process.wait_each(lambda: mark(fake) in listed(site.url), "it is known")
        yield answer.json()
    finally:
        assert call(site, "DELETE", f"/backends/{fake.name}").status == 204
        settle_gone(site, fake)


# -- backends -------------------------------------------------------------------------------------------


def knowing(site: Stand, fake: FakeOllama) -> list[bool]:
    """Does each worker list it?"""
    return site.process.each(lambda: mark(fake) in listed(site.url))


@pytest.mark.alone
def test_a_backend_that_is_added_is_used_at_once_and_by_every_worker(site: Stand, spare: FakeOllama) -> None:
    told = call(site, "POST", "/backends", new(spare)).json()
    assert (told["state"], told["origin"], told["models"]) == ("up", "operator", 2)
    assert knowing(site, spare) == [True, True]
    asked = {"model": "only-spare", "messages": [], "stream": False}
    assert site.post("/api/chat", asked).json()["done"]
    for draining in (True, False):
        assert call(site, "PATCH", "/backends/spare", {"draining": draining}).json()["draining"] is draining
        assert site.process.each(lambda: (backend(site, "spare") or {})["draining"]) == [draining] * 2
    assert call(site, "DELETE", "/backends/spare").status == 204
    assert knowing(site, spare) == [False, False]
    assert backend(site, "spare") is None


@pytest.mark.alone
def test_a_change_waits_for_another_process_that_writes(site: Stand) -> None:
    """The refresher does all the time, and on a busy machine not in an instant."""
    registry = sqlite3.connect(Path(site.process.env["DATA_DIR"]) / "caravan.db", isolation_level=None)
    with closing(registry), ThreadPoolExecutor(1) as pool:
        registry.execute("BEGIN IMMEDIATE")
        answer = pool.submit(call, site, "PATCH", "/backends/a", {"draining": True})
        with suppress(TimeoutError):
            answer.result(0.3)
        registry.rollback()
        assert answer.result().status == 200
    drain(site, "a", draining=False)


def test_its_token_goes_to_it_and_nowhere_else(site: Stand, spare: FakeOllama) -> None:
    with added(site, spare, auth_token=TOKEN, headers={"X-Team": "blue"}) as told:
        assert (told["has_token"], told["header_names"]) == (True, ["X-Team"])
        spare.forget_requests()
        answer = site.post("/api/chat", {"model": "only-spare", "messages": [], "stream": False})
        assert answer.status == 200, (answer.status, answer.body)
        (request,) = spare.requests_for("/api/chat")
        assert request.header("authorization") == f"Bearer {TOKEN}"
        assert request.header("x-team") == "blue"
    pages = [call(site, "GET", path).body for path in ("/backends", "/events", "/settings")]
    assert not [page for page in pages if TOKEN.encode() in page]
    assert TOKEN not in site.process.output


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({"name": "a", "url": "http://127.0.0.1:9", "test": False}, 409, "there is a backend of the name a already"),
        ({"name": "A", "url": "http://127.0.0.1:9", "test": False}, 409, "there is a backend of the name A already"),
        ({"name": "x", "url": "http://127.0.0.1:9"}, 409, "does not work"),
        ({"name": "x", "url": "ftp://gpu1"}, 400, "expected a URL such as http://gpu1:11434"),
        ({"name": "x", "url": "http://user:secret@gpu1"}, 400, "without user"),
        ({"name": "x", "url": "http://169.254.169.254/latest"}, 409, "CARAVAN_BACKEND_NETS"),
        ({"name": "x", "url": "http://a..b:80", "test": False}, 400, "a host's name"),
        ({"name": "x", "url": f"http://{'a' * 70}:80", "test": False}, 400, "a host's name"),
        ({"name": "all", "url": "http://gpu1:11434", "test": False}, 400, "CARAVAN_PULL_TO"),
        ({"name": "x", "url": "http://gpu1:11434", "test": False, "priority": 1 << 63}, 400, "priority"),
        ({"name": "x y", "url": "http://gpu1:11434"}, 400, "name"),
        ({"name": "x"}, 400, "url"),
        ({"name": "x", "url": "http://gpu1:11434", "port": 1}, 400, "port"),
        ({"name": "x", "url": "http://gpu1:11434", "headers": {"a\nb": "c"}, "test": False}, 400, "header name"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(site: Stand, asked: dict[str, Any], status: int, said: str) -> None:
    answer = call(site, "POST", "/backends", asked)
    assert answer.status == status, answer.body
    assert said in answer.json()["error"]
    assert "secret" not in answer.body.decode()


def test_a_backend_can_be_asked_before_it_is_added(site: Stand, spare: FakeOllama) -> None:
    told = call(site, "POST", "/backends/test", new(spare)).json()
    assert (told["ok"], told["models"]) == (True, ["only-spare:latest", "tiny:latest"])
    assert backend(site, "spare") is None
    told = call(site, "POST", "/backends/test", {"name": "x", "url": "http://127.0.0.1:9"}).json()
    assert told["ok"] is False
    assert told["error"]


@pytest.mark.parametrize("end", ["", "/"])
@pytest.mark.parametrize("is_tested", [True, False])
def test_one_server_is_no_two_backends(site: Stand, spare: FakeOllama, end: str, is_tested: bool) -> None:
    a = site.fakes[0]
    told = (409, {"error": "a has this address already"})
    answer = call(site, "POST", "/backends", {"name": "again", "url": a.url.upper() + end, "test": is_tested})
    assert (answer.status, answer.json()) == told
    assert backend(site, "again") is None
    with added(site, spare):
        answer = call(site, "PATCH", "/backends/spare", {"url": a.url + end, "test": is_tested})
        assert (answer.status, answer.json()) == told
        # Its own address is no other one's.
        assert call(site, "PATCH", "/backends/spare", {"url": spare.url + end}).status == 200


def test_caravan_is_no_backend_of_itself(site: Stand) -> None:
    answer = call(site, "POST", "/backends", {"name": "me", "url": site.url})
    assert answer.status == 409, answer.body


def test_a_drained_backend_ends_its_work_and_gets_no_more(site: Stand) -> None:
    site.tidy()
    a, b = site.fakes
    go_on = threading.Event()
    a.fault("/api/chat", Halting(AsPlanned(), go_on))
    body = json.dumps(question("/api/chat", stream=True)).encode()
    with RawClient(site.url) as client:
        client.send_request("POST", "/api/chat", body, {"Content-Type": "application/json"})
        pieces = client.iter_body(client.read_head())
        assert next(pieces)
        drain(site, "a", draining=True)
        a.forget_requests()
        for _ in range(6):
            assert site.post("/api/chat").lines()[-1]["done"]
        assert site.counts("/api/chat") == [0, 6]
        go_on.set()
        assert b'"done":true' in b"".join(pieces)
    assert mark(a) in listed(site.url), "it still lists what it holds"
    drain(site, "a", draining=False)
    site.post("/api/chat")
    assert a.count("/api/chat") == 1
    assert [event["kind"] for event in events(site, "backend.")[:2]] == ["backend.undrained", "backend.drained"]
    assert b.count("/api/chat") == 6


def test_what_the_environment_says_is_changed_there(site: Stand) -> None:
    for method, asked in (("PATCH", {"slots": 3}), ("DELETE", None)):
        answer = call(site, method, "/backends/a", asked)
        assert (answer.status, answer.json()["error"]) == (
            409,
            "a comes from the environment: change OLLAMA_BACKENDS, and start Caravan again",
        )


def test_a_backend_that_moves_is_learned_anew(site: Stand, spare: FakeOllama) -> None:
    with FakeOllama("other", ["other"]) as other, added(site, spare):
        changes = {"url": other.url, "slots": 2, "auth_token": TOKEN}
        assert call(site, "PATCH", "/backends/spare", changes).status == 200
        settle(site, "spare", url=other.url, slots=2, has_token=True)
        until(lambda: {"other:latest"} <= listed(site.url) and mark(spare) not in listed(site.url), "the new models")
        assert call(site, "PATCH", "/backends/spare", {"auth_token": None}).status == 200
        settle(site, "spare", slots=2, has_token=False)


def test_an_edit_changes_what_it_names_and_nothing_else(site: Stand, spare: FakeOllama) -> None:
    """Also where another edit is made while the backend is asked."""
    with added(site, spare, auth_token=TOKEN), ThreadPoolExecutor(1) as pool:
        go_on = threading.Event()
        # The refresher has its connection by now: whoever comes on a new one asks for the edit.
        asked = spare.fault("/api/tags", faults.StallBeforeHeaders(go_on), when=lambda request: request.nth == 1)
        slow = pool.submit(call, site, "PATCH", "/backends/spare", {"slots": 7})
        try:
            until(lambda: asked.played == 1, "the backend is asked")
            quick = {"priority": 3, "headers": {"X-Team": "red"}, "test": False}
            assert call(site, "PATCH", "/backends/spare", quick).status == 200
            assert not slow.done()
        finally:
            go_on.set()
        assert slow.result().status == 200
        settle(site, "spare", slots=7, priority=3, header_names=["X-Team"], has_token=True)


def test_two_who_remove_one_backend_are_told_who_was_late(site: Stand, spare: FakeOllama) -> None:
    assert call(site, "POST", "/backends", new(spare)).status == 201
    site.process.wait_each(lambda: mark(spare) in listed(site.url), "it is known")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: call(site, "DELETE", "/backends/spare").status, range(4)))
    assert answers.count(204) >= 1
    assert set(answers) <= {204, 404}
    settle_gone(site, spare)


def test_what_is_not_there_is_a_404(site: Stand) -> None:
    for method, asked in (("PATCH", {"draining": True}), ("DELETE", None)):
        answer = call(site, method, "/backends/nobody", asked)
        assert (answer.status, answer.json()["error"]) == (404, "there is no backend of the name nobody")


def test_an_operators_backend_survives_a_start(tmp_path: Path, spare: FakeOllama) -> None:
    with stand(tmp_path, ["a"]) as first:
        assert call(first, "POST", "/backends", new(spare)).status == 201
    with stand(tmp_path, ["a"]) as again:
        until(lambda: mark(spare) in listed(again.url), "it is there again")


# -- what is odd ------------------------------------------------------------------------------------------


def notices(site: Stand) -> dict[str, str]:
    return {notice["kind"]: notice["text"] for notice in call(site, "GET", "/backends").json()["notices"]}


def test_a_model_with_one_holder_is_told(site: Stand) -> None:
    assert "only-a:latest, only-b:latest" in notices(site)["one-holder"]
    assert "digest-drift" not in notices(site)


def test_a_model_that_drifted_is_told(site: Stand) -> None:
    before = site.fakes[1].store.get("tiny").digest
    site.fakes[1].set_digest("tiny", "f" * 64)
    try:
        until(lambda: "tiny:latest" in notices(site).get("digest-drift", ""), "the drift is seen")
        # Each worker sees it in its own time.
        until(lambda: current(site, "tiny") == {"a": True, "b": False}, "who has the other one is told")
    finally:
        site.fakes[1].set_digest("tiny", before)
    site.process.wait_each(lambda: current(site, "tiny") == {"a": True, "b": True}, "they hold the same again")


def test_an_old_ollama_is_told(tmp_path: Path) -> None:
    with stand(tmp_path, ["a"], CARAVAN_SAFE_VERSION="99.0.0") as made:
        until(lambda: "a: an Ollama below 99.0.0" in notices(made).get("old-version", ""), "the version is seen")


def test_changes_of_state_are_events(tmp_path: Path) -> None:
    with stand(tmp_path) as made:
        made.fakes[1].kill()
        made.wait_unseen(made.fakes[1])
        until(lambda: bool(events(made, "backend.down")), "it is told")
        down = events(made, "backend.down")[0]
        assert (down["who"], down["subject"], down["level"]) == ("caravan", "b", "warning")
        made.fakes[1].restart()
        made.wait_seen()
        until(lambda: len([e for e in events(made, "backend.up") if e["subject"] == "b"]) == 2, "it is up again")


def test_the_errors_of_a_backend_are_not_those_of_its_clients(tmp_path: Path) -> None:
    """With a product of its own: what is counted is written down when the request is long over."""
    with stand(tmp_path, ["a"], WEB_CONCURRENCY="2") as own:

        def counted() -> tuple[int, int]:
            found = backend(own, "a") or {}
            return found["requests"], found["errors"]

        assert counted() == (0, 0)
        own.fakes[0].fault("/api/chat", faults.Status(400, '{"error":"no such option"}'), times=1)
        assert own.post("/api/chat").status == 400
        until(lambda: counted()[0] == 1, "the refusal is counted")
        own.fakes[0].fault("/api/chat", faults.StreamThen(2, faults.Rst()), times=1)
        assert "error" in own.post("/api/chat").lines()[-1]
        until(lambda: counted()[0] == 2, "the cut answer is counted")
        assert counted() == (2, 1)


# -- models -----------------------------------------------------------------------------------------------


def test_a_model_says_who_holds_it_and_what_it_can(site: Stand) -> None:
    before = model(site, "tiny")["cache"]["hits"]
    for _ in range(5):
        fetch(f"{site.url}/api/show", "POST", json={"model": "tiny"})
    until(lambda: model(site, "tiny")["cache"]["hits"] >= before + 3, "what was served is counted")
    found = model(site, "tiny")
    assert [holder["backend"] for holder in found["holders"]] == ["a", "b"]
    assert found["capabilities"] == ["completion"]
    assert found["context_length"] == 256
    assert found["cache"]["stored_at"] is not None
    assert found["size"] > 0


def test_models_are_searched_and_come_in_pages(tmp_path: Path) -> None:
    many = [FakeModel(f"model-{number:03}") for number in range(120)]
    with stand(tmp_path, ["a"], models=many) as made:
        first = call(made, "GET", "/models").json()
        assert (len(first["models"]), first["total"], first["pages"]) == (50, 121, 3)
        last = call(made, "GET", "/models?page=9").json()
        assert (last["page"], len(last["models"])) == (3, 21)
        found = call(made, "GET", "/models?query=MODEL-11").json()
        assert [one["name"] for one in found["models"]] == [f"model-11{n}:latest" for n in range(10)]


def test_a_pull_goes_to_the_backends_that_were_chosen(site: Stand) -> None:
    site.tidy()
    answer = call(site, "POST", "/models/pull", {"model": "fresh", "backends": ["b"]})
    assert answer.lines()[-1] == {"status": "success"}
    assert site.counts("/api/pull") == [0, 1]
    settle_holders(site, "fresh", "b")
    assert call(site, "POST", "/models/delete", {"model": "fresh"}).status == 204
    settle_holders(site, "fresh")
    assert [event["kind"] for event in events(site, "model.")[:2]] == ["model.deleted", "model.pulled"]


def test_a_model_whose_holders_are_drained_is_not_said_to_be_down(site: Stand) -> None:
    site.tidy()
    try:
        for name in "ab":
            assert call(site, "PATCH", f"/backends/{name}", {"draining": True}).status == 200
        site.process.wait_each(lambda: site.post("/api/chat").status == 503, "both are drained")
        answer = site.post("/api/chat")
        assert "has drained them" in answer.json()["error"]
        assert answer.header("retry-after") == "30"
    finally:
        for name in "ab":
            call(site, "PATCH", f"/backends/{name}", {"draining": False})
    site.process.wait_each(lambda: site.post("/api/chat").status == 200, "both work again")


def test_its_own_address_is_no_backend(site: Stand) -> None:
    answer = call(site, "POST", "/backends/test", {"name": "itself", "url": site.url})
    assert "leads back to Caravan itself" in answer.json()["error"]


def told(site: Stand) -> tuple[str, str, str, str]:
    """The newest event of a model."""
    newest = events(site, "model.")[0]
    return newest["kind"], newest["subject"], newest["text"], newest["level"]


def test_what_clients_do_to_the_models_is_among_the_events(site: Stand) -> None:
    site.tidy()
    copied = fetch(f"{site.url}/api/copy", "POST", json={"source": "tiny", "destination": "twin"})
    assert copied.status == 200
    assert told(site) == ("model.copied", "tiny", "was copied to twin:latest on a, b", "info")
    settle_holders(site, "twin", "a", "b")
    assert fetch(f"{site.url}/api/delete", "DELETE", json={"model": "twin"}).status == 200
    assert told(site) == ("model.deleted", "twin", "was deleted from a, b", "warning")
    assert site.post("/api/pull", {"model": "fresh"}).lines()[-1] == {"status": "success"}
    assert told(site) == ("model.pulled", "fresh", "was pulled to a", "info")
    settle_holders(site, "fresh", "a")
    assert fetch(f"{site.url}/api/delete", "DELETE", json={"model": "fresh"}).status == 200
    settle_holders(site, "fresh")
    settle_holders(site, "twin")


def test_what_did_not_happen_is_not_said_to_have(site: Stand) -> None:
    site.tidy()
    site.fakes[0].fault("/api/pull", faults.Status(500, '{"error":"no room"}'), times=None)
    assert "error" in site.post("/api/pull", {"model": "fresh"}).lines()[-1]
    assert told(site) == ("model.pulled", "fresh", "was not pulled to a (failed)", "warning")
    before = len(events(site, "model."))
    assert fetch(f"{site.url}/api/delete", "DELETE", json={"model": "nobody-has-it"}).status == 404
    assert len(events(site, "model.")) == before


def test_a_pull_to_nobody_is_refused(site: Stand) -> None:
    answer = call(site, "POST", "/models/pull", {"model": "fresh", "backends": ["nobody"]})
    assert (answer.status, answer.json()["error"]) == (400, "no backend of that name: nobody")


def test_a_copy_is_made_wherever_the_model_is(site: Stand) -> None:
    assert call(site, "POST", "/models/copy", {"source": "tiny", "destination": "twin"}).status == 204
    settle_holders(site, "twin", "a", "b")
    assert call(site, "POST", "/models/delete", {"model": "twin"}).status == 204
    settle_holders(site, "twin")


def test_a_copy_replaces_nothing_unless_it_is_told_to(site: Stand) -> None:
    kept = [fake.store.get("only-b").digest for fake in site.fakes[1:]]
    asked = {"source": "tiny", "destination": "Only-B:latest"}
    answer = call(site, "POST", "/models/copy", asked)
    assert answer.status == 409
    assert "exists already on b" in answer.json()["error"]
    assert [fake.store.get("only-b").digest for fake in site.fakes[1:]] == kept
    for _ in range(2):
        assert call(site, "POST", "/models/copy", {"source": "tiny", "destination": "x", "replace": True}).status == 204
    settle_holders(site, "x:latest", "a", "b")
    assert call(site, "POST", "/models/delete", {"model": "x"}).status == 204
    settle_holders(site, "x:latest")


@pytest.mark.alone
def test_a_load_is_seen_when_it_is_answered(tmp_path: Path) -> None:
    """By every worker, however seldom the backends are asked."""

    def is_loaded_at_b() -> bool:
        return any(each["is_loaded"] for each in model(made, "tiny")["holders"] if each["backend"] == "b")

    with stand(tmp_path, WEB_CONCURRENCY="2", CARAVAN_POLL_INTERVAL="60") as made:
        for verb, is_loaded in (("load", True), ("unload", False)) * 2:
            assert call(made, "POST", f"/models/{verb}", {"model": "tiny", "backend": "b"}).status == 204
            assert made.process.each(is_loaded_at_b) == [is_loaded] * 2


def test_a_model_is_loaded_kept_and_unloaded_where_it_was_said(site: Stand) -> None:
    site.tidy()
    orders = {"load": [{"keep_alive_s": None}, {"keep_alive_s": 30 * 86400}], "unload": [{}]}
    for verb, variants in orders.items():
        for more in variants:
            assert call(site, "POST", f"/models/{verb}", {"model": "tiny", "backend": "b", **more}).status == 204
    asked = [json.loads(request.body) for request in site.fakes[1].requests_for("/api/generate")]
    assert [each["keep_alive"] for each in asked] == [-1, 30 * 86400, 0]
    assert not site.fakes[0].count("/api/generate")


def test_a_load_that_fails_says_why(site: Stand) -> None:
    site.tidy()
    site.fakes[1].fault("/api/generate", faults.Status(500, '{"error":"not enough memory"}'))
    answer = call(site, "POST", "/models/load", {"model": "tiny", "backend": "b"})
    assert (answer.status, answer.json()["error"]) == (409, "b refused with 500: not enough memory")
    assert call(site, "POST", "/models/load", {"model": "tiny", "backend": "nobody"}).status == 404


ODD = (
    {"details": "a text", "size": 10**400, "capabilities": 3},
    {"details": {"family": 3}, "size": -1, "modified_at": []},
    {"details": [1], "size": "big", "capabilities": ["x", None]},
)


@pytest.mark.parametrize("odd", ODD)
def test_one_odd_backend_breaks_no_page(tmp_path: Path, odd: dict[str, Any]) -> None:
    item = {"name": "odd", "model": "odd", "digest": "d" * 64, **odd}
    loaded = {"name": "odd", "model": "odd", "size_vram": 10**400, "expires_at": "never", "context_length": -3}
    with stand(tmp_path, ["a"]) as made:
        made.fakes[0].fault("/api/tags", faults.Status(200, json.dumps({"models": [item]})), times=None)
        made.fakes[0].fault("/api/ps", faults.Status(200, json.dumps({"models": [loaded]})), times=None)
        more_polls(made.fakes[0])
        made.wait_unseen(made.fakes[0])
        for page in ("/admin/", "/admin/models", "/admin/keys", "/admin/api/models", "/admin/api/backends"):
            assert fetch(made.url + page).status == 200, page
        assert "Traceback" not in made.process.output


def more_polls(fake: FakeOllama) -> None:
    for path in ("/api/tags", "/api/ps"):
        fake.wait_for(path, fake.count(path) + 3)


# -- pages that are open ----------------------------------------------------------------------------------


def test_an_open_page_hears_of_a_change_through_any_worker(site: Stand) -> None:
    with RawClient(site.url) as client:
        client.send_request("GET", "/admin/live")
        head = client.read_head()
        pieces = client.iter_body(head)
        assert b"retry" in next(pieces)
        call(site, "PATCH", "/backends/b", {"draining": True})
        assert next(piece for piece in pieces if b"event: changed" in piece)
    drain(site, "b", draining=False)


def test_a_first_key_that_could_not_be_made_locks_nobody_out(tmp_path: Path) -> None:
    with stand(tmp_path, ["a"]) as made:
        registry = sqlite3.connect(tmp_path / "data" / "caravan.db", isolation_level=None)
        try:
            registry.execute("BEGIN IMMEDIATE")
            assert call(made, "POST", "/keys", {"label": "me", "scopes": ["admin"]}).status == 503
            assert fetch(f"{made.url}/api/tags").status == 200
        finally:
            registry.close()
        time.sleep(1)
        assert fetch(f"{made.url}/api/tags").status == 200
        assert call(made, "POST", "/keys", {"label": "me", "scopes": ["admin"]}).status == 201


def test_a_registry_that_is_locked_is_told_and_no_bug(site: Stand) -> None:
    folder = Path(site.process.env["DATA_DIR"])
    registry = sqlite3.connect(folder / "caravan.db", isolation_level=None)
    try:
        registry.execute("BEGIN IMMEDIATE")
        answer = call(site, "PATCH", "/backends/a", {"draining": True})
        assert (answer.status, answer.header("retry-after")) == (503, "1")
        assert "the registry cannot be used now" in answer.json()["error"]
        assert call(site, "GET", "/backends").status == 200, "reading goes on"
    finally:
        registry.close()
    assert "Traceback" not in site.process.output


# -- settings ---------------------------------------------------------------------------------------------


def test_settings_tell_where_they_came_from_and_no_secret(tmp_path: Path) -> None:
    with gateway([], tmp_path, CARAVAN_ADMIN_KEY=ADMIN) as process:
        answer = fetch(f"{process.url}/admin/api/settings", headers=bearer(ADMIN))
    found = {setting["name"]: setting for setting in answer.json()["settings"]}
    assert (found["CARAVAN_ADMIN_KEY"]["value"], found["CARAVAN_ADMIN_KEY"]["origin"]) == (
        "(set, hidden)",
        "environment",
    )
    assert found["CARAVAN_GRACE"]["origin"] == "default"
    assert ADMIN.encode() not in answer.body
