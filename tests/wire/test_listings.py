"""What the fleet has, as one server: listings, versions, and how they behave while servers come and go."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conformance.fakes.faults import Status
from conformance.fakes.http import RawClient, fetch
from conformance.fakes.models import derived_digest, tags_item
from conformance.fakes.ollama import FakeModel, FakeOllama
from tests.conftest import FakeFactory
from tests.fakes.procs import ROOT, Process
from tests.product import listed
from tests.wire.shows import gateway, until

pytestmark = pytest.mark.leaky

# What a listing that waits for a vanished backend waits for at least: a connect that hangs. Seconds.
HANGS_S = 1
GOLDEN = ROOT / "tests" / "golden"


class Stage:
    def __init__(self, process: Process, a: FakeOllama, b: FakeOllama) -> None:
        self.process, self.a, self.b = process, a, b
        self.url = process.url


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with (
        FakeOllama("a", fleet_a(), version="0.33.0") as a,
        FakeOllama("b", fleet_b(), version="0.32.9") as b,
        gateway([a, b], tmp_path_factory.mktemp("listings")) as process,
    ):
        b.load_model("tiny")
        until(lambda: len(listed(process.url)) == 5, "the union")
        until(lambda: process.get("/api/version").json() == {"version": "0.32.9"}, "both versions")
        yield Stage(process, a, b)


def fleet_a() -> list[FakeModel]:
    base = FakeModel("base", modified_at="2026-11-01T00:00:00Z", digest=derived_digest("base"))
    return [
        FakeModel("tiny"),
        base,
        replace(base, name="copy"),
        FakeModel("MIXED:Q4", modified_at="2026-10-01T00:00:00Z"),
    ]


def fleet_b() -> list[FakeModel]:
    return [
        FakeModel("library/tiny:latest", size=1, digest=derived_digest("drift")),
        FakeModel("mixed:q4", modified_at="2026-10-02T00:00:00Z"),
        FakeModel("ns/only-b:v1", modified_at="2026-12-01T00:00:00Z"),
    ]


def tags(url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = strict(fetch(f"{url}/api/tags").body)["models"]
    return found


def strict(body: bytes) -> Any:
    """JSON as clients read it: no NaN, no Infinity."""

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(body, parse_constant=refuse)


def test_tags_is_the_union_with_the_best_holders_records_newest_first(stage: Stage) -> None:
    records = tags(stage.url)
    assert [item["name"] for item in records] == [
        "ns/only-b:v1",
        "tiny:latest",
        "base:latest",
        "copy:latest",
        "MIXED:Q4",
    ]
    by_name = {item["name"]: item for item in records}
    assert by_name["tiny:latest"] == tags_item(stage.a.store.get("tiny"))
    assert by_name["base:latest"]["digest"] == by_name["copy:latest"]["digest"], "copies are models of their own"


def test_v1_models_is_the_same_union_in_openais_form(stage: Stage) -> None:
    answer = fetch(f"{stage.url}/v1/models")
    assert answer.content_type == "application/json"
    value = strict(answer.body)
    assert value["object"] == "list"
    assert [item["id"] for item in value["data"]] == [item["name"] for item in tags(stage.url)]
    assert value["data"][0] == {"id": "ns/only-b:v1", "object": "model", "created": 1796083200, "owned_by": "ns"}
    assert {item["owned_by"] for item in value["data"][1:]} == {"library"}


@pytest.mark.parametrize("path", ["/api/tags", "/v1/models"])
def test_listings_are_stable_and_have_an_entity_tag(stage: Stage, path: str) -> None:
    answers = [fetch(stage.url + path) for _ in range(5)]
    etag = answers[0].header("etag") or ""
    assert len({answer.body for answer in answers}) == len({answer.header("etag") for answer in answers}) == 1
    assert etag.startswith('"')
    for given in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = fetch(stage.url + path, headers={"If-None-Match": given})
        assert (answer.status, answer.body, answer.header("etag")) == (304, b"", etag), given
    assert fetch(stage.url + path, headers={"If-None-Match": '"other"'}).status == 200


def test_a_changed_listing_has_another_entity_tag(stage: Stage) -> None:
    before = fetch(f"{stage.url}/api/tags").header("etag") or ""
    stage.a.add_model("passing")
    until(lambda: "passing:latest" in listed(stage.url), "listed")
    assert fetch(f"{stage.url}/api/tags", headers={"If-None-Match": before}).status == 200
    stage.a.remove_model("passing")
    until(lambda: "passing:latest" not in listed(stage.url), "gone")
    assert fetch(f"{stage.url}/api/tags").header("etag") == before, "the same listing has the same tag"


def test_ps_is_the_union_of_what_is_loaded(stage: Stage) -> None:
    stage.a.load_model("base")
    stage.a.load_model("tiny")
    until(lambda: len(loaded(stage.url)) == 2, "both are loaded")
    assert sorted(loaded(stage.url)) == ["base:latest", "tiny:latest"]
    expiries = [item["expires_at"] for item in strict(fetch(f"{stage.url}/api/ps").body)["models"]]
    assert expiries == sorted(expiries, reverse=True)
    for model in ("base", "tiny"):
        stage.a.unload_model(model)
    until(lambda: loaded(stage.url) == ["tiny:latest"], "b's is left")


def loaded(url: str) -> list[str]:
    return [item["name"] for item in fetch(f"{url}/api/ps").json()["models"]]


def test_the_version_is_the_lowest_among_live_backends(stage: Stage) -> None:
    assert fetch(f"{stage.url}/api/version").json() == {"version": "0.32.9"}
    stage.b.version = "0.33.0-rc2"
    until(lambda: fetch(f"{stage.url}/api/version").json() == {"version": "0.33.0-rc2"}, "a candidate is lower")
    stage.b.version = "0.100.0"
    until(lambda: fetch(f"{stage.url}/api/version").json() == {"version": "0.33.0"}, "numbers, not text")
    stage.b.version = "0.32.9"
    until(lambda: fetch(f"{stage.url}/api/version").json() == {"version": "0.32.9"}, "the lowest again")


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
def test_head_has_the_headers_of_get_and_no_body(stage: Stage, path: str) -> None:
    with RawClient(stage.url) as client:
        get, head = client.request("GET", path), client.request("HEAD", path)
        assert (head.status, head.body) == (200, b"")
        for name in ("content-type", "content-length", "etag"):
            assert head.header(name) == get.header(name)
        assert client.request("GET", "/").body == b"Ollama is running", "the connection is in step"


def golden(name: str) -> dict[str, Any]:
    case: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return case


@pytest.mark.parametrize(
    "name",
    [
        "tags_put_405",
        "tags_options_405",
        "v1_models_head_405",
        "unknown_path_404",
        "path_case_404",
        "pprof_404",
        "messages_count_tokens_404",
        "v1_images_generations_404",
        "version_head_200",
    ],
)
def test_what_is_not_there_is_said_as_ollama_says_it(stage: Stage, name: str) -> None:
    case = golden(name)
    body = case["request_body"].encode() if case.get("request_body") else None
    answer = fetch(stage.url + case["path"], case["method"], body, case.get("request_headers"))
    assert answer.status == case["status"]
    if case["method"] != "HEAD":
        assert answer.body == (case["response_body"] or "").encode()
    allow = {key.lower(): value for key, value in case["response_headers"].items()}.get("allow")
    assert allow_set(answer.header("allow")) == allow_set(allow)
    if "Content-Type" in case["response_headers"]:
        assert answer.content_type == case["response_headers"]["Content-Type"]


def allow_set(text: str | None) -> set[str]:
    return set() if text is None else {word.strip() for word in text.split(",")}


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/api/show", {"POST"}),
        ("POST", "/api/ps", {"GET"}),
        ("HEAD", "/api/ps", {"GET"}),
        ("POST", "/api/version", {"GET", "HEAD"}),
        ("DELETE", "/", {"GET", "HEAD"}),
        ("HEAD", "/v1/models/tiny", {"GET"}),
    ],
)
def test_a_wrong_method_is_405_with_what_is_allowed(stage: Stage, method: str, path: str, allow: set[str]) -> None:
    answer = fetch(stage.url + path, method)
    assert (answer.status, allow_set(answer.header("allow"))) == (405, allow)
    if method != "HEAD":
        assert answer.body == b"405 method not allowed"


@pytest.mark.parametrize("name", ["trailing_slash_301", "double_slash_307"])
def test_slashes_are_redirected_as_ollama_does(stage: Stage, name: str) -> None:
    case = golden(name)
    answer = fetch(stage.url + case["path"], case["method"])
    assert (answer.status, answer.header("location")) == (case["status"], case["response_headers"]["Location"])


# -- servers that come and go ----------------------------------------------------------------------


def test_an_empty_fleet_has_empty_lists(fakes: FakeFactory, tmp_path: Path) -> None:
    with gateway([fakes("empty", [])], tmp_path) as process:
        assert process.get("/api/tags").json() == {"models": []}
        assert process.get("/v1/models").json() == {"object": "list", "data": []}
        assert process.get("/api/ps").json() == {"models": []}


def test_a_dead_backends_models_leave_the_list_and_come_back(fakes: FakeFactory, tmp_path: Path) -> None:
    one, two = fakes("one", ["here", FakeModel("both", size=1)]), fakes("two", ["there", FakeModel("both", size=2)])
    two.version = "0.1.0"
    with gateway([one, two], tmp_path) as process:
        until(lambda: listed(process.url) == {"here:latest", "there:latest", "both:latest"}, "the union")
        one.kill()
        until(lambda: listed(process.url) == {"there:latest", "both:latest"}, "the dead one's models are gone")
        assert {item["name"]: item["size"] for item in tags(process.url)}["both:latest"] == 2
        two.kill()
        until(lambda: listed(process.url) == set(), "nobody is left")
        assert process.get("/v1/models").json()["data"] == []
        assert process.get("/readyz").status == 200, "a listing of nothing is still an answer"
        one.restart()
        until(lambda: listed(process.url) == {"here:latest", "both:latest"}, "back")
        assert {item["name"]: item["size"] for item in tags(process.url)}["both:latest"] == 1
        until(lambda: process.get("/api/version").json() == {"version": "0.33.0"}, "the live one's version")


def test_no_listing_waits_for_a_backend_that_vanished(fakes: FakeFactory, tmp_path: Path) -> None:
    good, hole = fakes("good", ["here"]), fakes("hole", ["there"])
    paths = ("/api/tags", "/v1/models", "/api/ps", "/api/version", "/")
    times = {"CARAVAN_POLL_TIMEOUT": "2", "CARAVAN_CONNECT_TIMEOUT": str(HANGS_S)}
    with gateway([hole, good], tmp_path, **times) as process:
        until(lambda: listed(process.url) == {"here:latest", "there:latest"}, "the union")
        before = {path: slow_s(process.url, path) for path in paths}
        hole.black_hole()
        during = {path: slow_s(process.url, path) for path in paths}
        for path in paths:
            # The rest is for a busy machine.
            assert during[path] < max(10 * before[path], HANGS_S / 2), (path, before, during)
        until(lambda: listed(process.url) == {"here:latest"}, "marked down", 12.0)


def slow_s(url: str, path: str) -> float:
    """What one of twenty takes longer than: a machine that stands still for once does so for one of them."""
    took = []
    with RawClient(url) as client:
        for _ in range(40):
            started = time.monotonic()
            assert client.request("GET", path).status == 200
            took.append(time.monotonic() - started)
    return statistics.quantiles(took, n=20)[-1]


ODD_RECORDS = {
    "infinite": '"size":1e999',
    "not-a-number": '"size":NaN',
    "half-a-character": '"details":{"family":"\\ud800"}',
    "wrong-types": '"modified_at":5,"digest":null,"details":[],"capabilities":7',
    "before-all-time": '"modified_at":"0001-01-01T00:00:00"',
    "after-all-time": '"modified_at":"9999-12-31T23:59:59.999999999-23:59"',
}


def test_odd_records_of_backends_spoil_nobodys_listing(fakes: FakeFactory, tmp_path: Path) -> None:
    good, servers = fakes("good", ["here"]), []
    for name, odd in ODD_RECORDS.items():
        server = fakes(name, [])
        server.fault("/api/tags", Status(200, '{"models":[{"name":"%s:1",%s}]}' % (name, odd)), times=None)
        servers.append(server)
    with gateway([*servers, good], tmp_path) as process:
        until(lambda: "here:latest" in listed_strictly(process.url), "the good one's models")
        good.add_model("new")
        until(lambda: "new:latest" in listed_strictly(process.url), "the listing still moves")
        strict(process.get("/v1/models").body)


def listed_strictly(url: str) -> set[str]:
    return {item["name"] for item in tags(url)}


@pytest.mark.parametrize("version", ["9" * 5000, "\ud800"], ids=["endless", "half a character"])
def test_an_odd_version_spoils_nobodys_catalogue(fakes: FakeFactory, tmp_path: Path, version: str) -> None:
    odd, good = fakes("odd", ["there"], version=version), fakes("good", ["here"])
    with gateway([odd, good], tmp_path) as process:
        until(lambda: "here:latest" in listed(process.url), "the good one's models")
        good.add_model("new")
        until(lambda: "new:latest" in listed(process.url), "the listing still moves")
        until(lambda: process.get("/api/version").json() == {"version": "0.33.0"}, "a version that is one")
