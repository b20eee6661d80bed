"""`POST /api/show` over one gateway: what is a hit, what is not, and whose document it is.

The counterparts of Ollama's own cache tests (server/model_show_cache_test.go, v0.33.0-rc2), and what ours does more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from conformance.fakes.faults import EofBeforeHeaders, Error500, Fault, Redirect, RstBeforeHeaders, Status
from conformance.fakes.http import fetch
from conformance.fakes.models import derived_digest
from conformance.fakes.ollama import FakeModel, FakeOllama
from tests.fakes.procs import Process
from tests.fakes.redis import PrivateRedis
from tests.product import PATIENT, listed
from tests.wire.shows import cache_of, change, digest_of, gateway, publish, show, shows, until

# The backends and the gateway of this module live longer than a test, and so do their connections.
pytestmark = pytest.mark.leaky


class Stage:
    """One gateway in front of two backends. Tests use models of their own."""

    def __init__(self, process: Process, a: FakeOllama, b: FakeOllama, redis: PrivateRedis) -> None:
        self.process, self.a, self.b, self.redis = process, a, b, redis
        self.url = process.url

    def stored(self, model: str) -> int:
        """How many documents of a model Redis holds."""
        return self.redis.command("KEYS", f"*:doc:*/{model}:*").count(b"\r\n$")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, redis_server: PrivateRedis) -> Iterator[Stage]:
    redis_server.flush()
    folder = tmp_path_factory.mktemp("show")
    with (
        FakeOllama("a", ["tiny"]) as a,
        FakeOllama("b", ["tiny"]) as b,
        gateway([a, b], folder, redis_server.url, CARAVAN_HYDRATE_CONCURRENCY="0", **PATIENT) as process,
    ):
        yield Stage(process, a, b, redis_server)


@pytest.fixture(autouse=True)
def no_faults(stage: Stage) -> Iterator[None]:
    yield
    stage.a.clear_faults()
    stage.b.clear_faults()


def direct(fake: FakeOllama, model: str) -> bytes:
    """A document as the backend itself gives it."""
    body = show(fake.url, model).body
    fake.forget_requests()
    return body


def test_a_hit_is_the_backends_own_bytes_and_asks_nobody(stage: Stage) -> None:
    publish(stage.url, "first", stage.a)
    wanted = direct(stage.a, "first")
    miss, hit = show(stage.url, "first"), show(stage.url, "first")
    assert [cache_of(miss), cache_of(hit)] == ["miss", "hit"]
    assert miss.body == hit.body == wanted
    assert hit.content_type == "application/json; charset=utf-8"
    assert (hit.header("age") or "").isdigit()
    assert len(shows(stage.a, "first")) == 1


def test_a_new_digest_refreshes_and_replaces_the_document(stage: Stage) -> None:
    old = publish(stage.url, FakeModel("moved", system="old"), stage.a)
    assert show(stage.url, "moved").json()["system"] == "old"
    change(stage.url, replace(old, system="new", digest=derived_digest("moved again")), stage.a)

    until(lambda: show(stage.url, "moved").json()["system"] == "new", "the new document")
    assert len(shows(stage.a, "moved")) == 2
    assert stage.stored("moved") == 1


def test_a_document_is_kept_while_its_digest_stays_whatever_else_changes(stage: Stage) -> None:
    old = publish(stage.url, FakeModel("kept", system="old"), stage.a)
    show(stage.url, "kept")
    stage.a.add_model(replace(old, system="unseen"))
    publish(stage.url, "kept-witness", stage.a)
    answer = show(stage.url, "kept")
    assert (cache_of(answer), answer.json()["system"]) == ("hit", "old")


def test_verbose_and_plain_documents_are_apart(stage: Stage) -> None:
    publish(stage.url, "talk", stage.a)
    states = [cache_of(show(stage.url, "talk", verbose=verbose)) for verbose in (False, True, False, True)]
    assert states == ["miss", "miss", "hit", "hit"]
    tokens = [
        show(stage.url, "talk", verbose=verbose).json()["model_info"]["tokenizer.ggml.tokens"]
        for verbose in (False, True)
    ]
    assert tokens[0] is None
    assert len(tokens[1]) == 269
    assert stage.stored("talk") == 2


@pytest.mark.parametrize("overlay", [{"system": "be rude"}, {"options": {"temperature": 0.9}}])
def test_an_overlay_bypasses_the_cache_and_is_never_stored(stage: Stage, overlay: dict[str, object]) -> None:
    name = f"laid-{next(iter(overlay))}"
    publish(stage.url, name, stage.a)
    plain = show(stage.url, name).body
    for _ in range(2):
        answer = show(stage.url, name, **overlay)
        assert cache_of(answer) == "bypass"
        assert ("be rude" in answer.json()["modelfile"]) or ("temperature 0.9" in answer.json()["modelfile"])
    after = show(stage.url, name)
    assert (cache_of(after), after.body) == ("hit", plain)
    assert len(shows(stage.a, name)) == 3
    assert stage.stored(name) == 1


def test_an_overlay_asks_even_when_nothing_is_cached_and_leaves_nothing(stage: Stage) -> None:
    publish(stage.url, "laid-cold", stage.a)
    assert cache_of(show(stage.url, "laid-cold", system="be rude")) == "bypass"
    assert stage.stored("laid-cold") == 0
    assert cache_of(show(stage.url, "laid-cold")) == "miss"


@pytest.mark.parametrize("harmless", [{"system": ""}, {"options": {}}, {"options": None}, {"template": "{{ x }}"}])
def test_what_changes_nothing_is_no_overlay(stage: Stage, harmless: dict[str, object]) -> None:
    publish(stage.url, "same", stage.a)
    show(stage.url, "same")
    assert cache_of(show(stage.url, "same", **harmless)) == "hit"


def test_the_legacy_name_field_means_the_same_document(stage: Stage) -> None:
    publish(stage.url, "legacy", stage.a)
    show(stage.url, "legacy")
    answer = fetch(f"{stage.url}/api/show", "POST", json={"name": "legacy"})
    assert (answer.status, cache_of(answer)) == (200, "hit")
    empty_model = fetch(f"{stage.url}/api/show", "POST", json={"name": "legacy", "model": ""})
    assert (empty_model.status, cache_of(empty_model)) == (200, "hit")


def test_all_spellings_of_a_name_share_one_document(stage: Stage) -> None:
    publish(stage.url, "Spelled:Q4", stage.a)
    spellings = [
        "spelled:q4",
        "SPELLED:Q4",
        "library/Spelled:q4",
        "registry.ollama.ai/library/spelled:q4",
        "https://registry.ollama.ai/library/spelled:q4",
        "  spelled:q4 ",
        "spelled:q4:local",
    ]
    answers = [show(stage.url, spelling) for spelling in spellings]
    assert [answer.status for answer in answers] == [200] * len(spellings)
    assert len({answer.body for answer in answers}) == 1
    assert len(shows(stage.a, "spelled")) == 1
    assert stage.stored("spelled") == 1


def test_latest_is_the_default_tag(stage: Stage) -> None:
    publish(stage.url, "plain", stage.a)
    assert cache_of(show(stage.url, "plain:latest")) == "miss"
    assert cache_of(show(stage.url, "plain")) == "hit"
    assert cache_of(show(stage.url, "PLAIN:LATEST")) == "hit"


def test_a_model_and_its_copy_never_get_each_others_document(stage: Stage) -> None:
    original = publish(stage.url, "original", stage.a)
    publish(stage.url, replace(original, name="copy"), stage.a)
    assert digest_of(stage.url, "copy:latest") == digest_of(stage.url, "original:latest")
    for _ in range(2):
        assert "FROM original:latest" in show(stage.url, "original").json()["modelfile"]
        assert "FROM copy:latest" in show(stage.url, "copy").json()["modelfile"]


def test_a_remote_stub_is_never_stored(stage: Stage) -> None:
    publish(stage.url, FakeModel("stub", remote_host="https://ollama.com"), stage.a)
    for _ in range(3):
        assert show(stage.url, "stub").json()["remote_host"] == "https://ollama.com"
    assert len(shows(stage.a, "stub")) == 3
    assert stage.stored("stub") == 0


def test_a_failure_is_passed_on_and_not_kept(stage: Stage) -> None:
    publish(stage.url, "sick", stage.a)
    stage.a.fault("/api/show", Status(500, '{"error":"no such file"}'), times=2)
    failed = show(stage.url, "sick")
    assert (failed.status, failed.json()) == (500, {"error": "no such file"})
    assert stage.stored("sick") == 0
    assert cache_of(show(stage.url, "sick")) == "miss"


def test_a_404_of_the_only_holder_is_asked_once_more(stage: Stage) -> None:
    # Ollama's issue 18447: a model that it lists is not found at random.
    publish(stage.url, "shy", stage.a)
    stage.a.fault("/api/show", Status(404, '{"error":"model \'shy\' not found"}'), times=1)
    assert show(stage.url, "shy").status == 200
    assert len(shows(stage.a, "shy")) == 2


def test_a_404_that_stays_is_not_kept(stage: Stage) -> None:
    publish(stage.url, "gone", stage.a)
    rule = stage.a.fault("/api/show", Status(404, '{"error":"model \'gone:latest\' not found"}'), times=None)
    assert show(stage.url, "gone").status == 404
    rule.remove()
    assert show(stage.url, "gone").status == 200


@pytest.mark.parametrize("fault", [Error500(), EofBeforeHeaders(), RstBeforeHeaders(), Status(401), Redirect()])
def test_another_holder_is_asked_when_the_first_one_fails(stage: Stage, fault: Fault) -> None:
    name = f"shared-{type(fault).__name__.lower()}-{getattr(fault, 'code', 0)}"
    publish(stage.url, name, stage.a, stage.b)
    stage.a.fault("/api/show", fault, times=None)
    answer = show(stage.url, name)
    assert (answer.status, cache_of(answer)) == (200, "miss")
    assert "/srv/b/" in answer.json()["modelfile"]
    # Same digest, so the second holder's document is as good as the first one's.
    assert cache_of(show(stage.url, name)) == "hit"


def test_the_first_holders_digest_decides_and_a_drifted_answer_is_no_hit_later(stage: Stage) -> None:
    name = "drift"
    publish(stage.url, FakeModel(name, digest=derived_digest("other"), system="from b"), stage.b)
    model = publish(stage.url, FakeModel(name, system="from a"), stage.a)
    assert digest_of(stage.url, "drift:latest") == model.digest
    rule = stage.a.fault("/api/show", Error500(), times=None)
    assert show(stage.url, name).json()["system"] == "from b"
    rule.remove()
    # Stored under b's digest: it is not current, so the first holder is asked.
    assert show(stage.url, name).json()["system"] == "from a"
    assert cache_of(show(stage.url, name)) == "hit"


def test_an_unknown_model_is_ollamas_404_and_nothing_is_forwarded(stage: Stage) -> None:
    stage.a.forget_requests()
    stage.b.forget_requests()
    answer = show(stage.url, "Nope")
    assert (answer.status, answer.json()) == (404, {"error": "model 'Nope:latest' not found"})
    assert stage.a.count("/api/show") == stage.b.count("/api/show") == 0


def test_copilot_reads_the_name_that_it_asked_for_and_nobody_else_does(stage: Stage) -> None:
    publish(stage.url, FakeModel("pilot", show_extra={"model_info": {"general.basename": "Weights"}}), stage.a)
    agent = {"User-Agent": "GitHubCopilotChat/0.26.1"}
    for spelling in ("PILOT", "pilot:latest"):
        info = show(stage.url, spelling, headers=agent).json()["model_info"]
        assert info["general.basename"] == spelling
    answer = show(stage.url, "pilot", headers={"User-Agent": "curl/8"})
    assert (cache_of(answer), answer.json()["model_info"]) == ("hit", {"general.basename": "Weights"})
    assert len(shows(stage.a, "pilot")) == 1
    sent = shows(stage.a, "pilot")[0].header("user-agent") or ""
    assert not sent.startswith("GitHubCopilotChat/"), "the backend must not tweak what others will read"


@pytest.mark.parametrize("info", [{}, None])
def test_copilot_gets_its_name_even_where_the_document_has_no_model_info(stage: Stage, info: object) -> None:
    name = f"bare-{type(info).__name__.lower()}"
    publish(stage.url, FakeModel(name, show_extra={"model_info": info}), stage.a)
    answer = show(stage.url, name, headers={"User-Agent": "GitHubCopilotChat/1"})
    assert answer.json()["model_info"] == {"general.basename": name}


def test_copilot_gets_its_name_with_an_overlay_too(stage: Stage) -> None:
    publish(stage.url, "pilot-laid", stage.a)
    answer = show(stage.url, "pilot-laid", headers={"User-Agent": "GitHubCopilotChat/1"}, system="be brief")
    assert answer.json()["model_info"]["general.basename"] == "pilot-laid"
    assert cache_of(answer) == "bypass"


def test_a_documents_entry_is_gone_with_its_model(stage: Stage) -> None:
    publish(stage.url, "deleted", stage.a)
    show(stage.url, "deleted")
    stage.a.remove_model("deleted")
    until(lambda: "deleted:latest" not in listed(stage.url), "the model left the list")
    assert show(stage.url, "deleted").status == 404


def test_a_holder_that_is_down_leaves_a_stale_document_behind(stage: Stage) -> None:
    publish(stage.url, "old-friend", stage.b)
    publish(stage.url, "stranger", stage.b)
    wanted = show(stage.url, "old-friend").body
    stage.b.kill()
    try:
        until(lambda: "old-friend:latest" not in listed(stage.url), "the dead backend's models left the list")
        stale = show(stage.url, "OLD-friend")
        assert (stale.status, cache_of(stale), stale.body) == (200, "stale", wanted)
        unseen = show(stage.url, "stranger")
        assert (unseen.status, set(unseen.json())) == (503, {"error"})
        assert (unseen.header("retry-after") or "").isdigit()
        assert show(stage.url, "old-friend", system="overlay").status == 503
        assert show(stage.url, "nobody").status == 404
    finally:
        stage.b.restart()
    until(lambda: "old-friend:latest" in listed(stage.url), "the backend is back")
    assert cache_of(show(stage.url, "old-friend")) == "hit"


def test_the_first_request_after_a_death_is_served_too(stage: Stage) -> None:
    """Nobody has marked the backend down yet; only the digest moved."""
    model = publish(stage.url, FakeModel("dying", system="old"), stage.b)
    show(stage.url, "dying")
    rule = stage.b.fault("/api/show", RstBeforeHeaders(), times=None)
    change(stage.url, replace(model, system="new", digest=derived_digest("dying again")), stage.b)
    answer = show(stage.url, "dying")
    assert (answer.status, cache_of(answer), answer.json()["system"]) == (200, "stale", "old")
    rule.remove()
    assert show(stage.url, "dying").json()["system"] == "new"


def test_a_model_by_its_path_is_found_with_and_without_a_namespace(stage: Stage) -> None:
    publish(stage.url, "NS/Path:V1", stage.a)
    publish(stage.url, "path", stage.a)
    for path, owner in (("NS/path:v1", "NS"), ("ns%2FPath:V1", "ns"), ("path", "library"), ("PATH:latest", "library")):
        answer = fetch(f"{stage.url}/v1/models/{path}")
        assert answer.status == 200, path
        assert answer.json() == {
            "id": path.replace("%2F", "/"),
            "object": "model",
            "created": 1795262336,
            "owned_by": owner,
        }
        assert answer.content_type == "application/json"


def test_an_unknown_path_model_is_a_404_in_openais_form(stage: Stage) -> None:
    answer = fetch(f"{stage.url}/v1/models/nope")
    wanted = {"message": "model 'nope:latest' not found", "type": "not_found_error", "param": None, "code": None}
    assert (answer.status, answer.json()) == (404, {"error": wanted})


def test_documents_in_redis_outlive_the_registry(stage: Stage, tmp_path: Path) -> None:
    """A new data directory (a dyno's disk is new at every start) in front of the Redis that was there before."""
    publish(stage.url, "survivor", stage.a)
    show(stage.url, "survivor")
    changes = {"CARAVAN_HYDRATE_CONCURRENCY": "0", **PATIENT}
    with gateway([stage.a, stage.b], tmp_path, stage.redis.url, **changes) as second:
        until(lambda: "survivor:latest" in listed(second.url), "the model is listed")
        assert cache_of(show(second.url, "survivor")) == "hit"
    assert len(shows(stage.a, "survivor")) == 1


def test_a_body_that_only_looks_like_the_cached_one_is_read_anew(stage: Stage) -> None:
    """Equal documents by Go's rules: folded keys, the last one wins, bytes after the value are ignored."""
    publish(stage.url, "goish", stage.a)
    show(stage.url, "goish")
    for body in (b'{"MODEL":"goish"}', b'{"model":"nope","Model":"goish"}', b'{"model":"goish"} trailing'):
        answer = fetch(f"{stage.url}/api/show", "POST", body=body, headers={"Content-Type": "text/plain"})
        assert (answer.status, cache_of(answer)) == (200, "hit"), body
    assert json.loads(shows(stage.a, "goish")[0].body) == {"model": "goish:latest"}
