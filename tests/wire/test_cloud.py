"""Cloud names: a key space of their own, served at once and refreshed behind.

The counterparts of Ollama's cloud cache tests (server/model_show_cache_test.go, v0.33.0-rc2).
Two workers share everything.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.fakes.faults import EofBeforeHeaders, Error500, Fault, StallBeforeHeaders, Status
from conformance.fakes.http import fetch
from conformance.fakes.ollama import FakeModel, FakeOllama, RecordedRequest
from tests.fakes.procs import Process
from tests.fakes.redis import PrivateRedis
from tests.product import NO_BREAKER
from tests.wire.shows import cache_of, gateway, publish, show, until

pytestmark = pytest.mark.leaky

COOLDOWN_S = 1.0
DISABLED = {"error": "ollama cloud is disabled: remote model details are unavailable"}


class Stage:
    """A gateway in front of `off` (cloud disabled), `banned` (our settings forbid it) and `on`."""

    def __init__(self, process: Process, off: FakeOllama, banned: FakeOllama, on: FakeOllama) -> None:
        self.process, self.off, self.banned, self.on = process, off, banned, on
        self.url = process.url

    def asked(self, base: str) -> list[RecordedRequest]:
        """The show requests for a cloud model that left us."""
        requests = [request for fake in (self.off, self.banned, self.on) for request in fake.requests_for("/api/show")]
        return [each for each in requests if each.json()["model"].strip().lower().startswith(base.lower())]

    def offer(self, base: str, text: str) -> None:
        """Put a model, or a new document of it, into everybody's cloud."""
        for fake in (self.off, self.banned, self.on):
            fake.cloud_models = {**fake.cloud_models, base: FakeModel(base, system=text)}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, redis_server: PrivateRedis) -> Iterator[Stage]:
    redis_server.flush()
    folder = tmp_path_factory.mktemp("cloud")
    with (
        FakeOllama("off", ["tiny"], cloud_disabled=True) as off,
        FakeOllama("banned", ["tiny"]) as banned,
        FakeOllama("on", ["tiny"]) as on,
    ):
        backends = [{"name": fake.name, "url": fake.url} for fake in (off, banned, on)]
        backends[1]["cloud"] = False
        changes = {
            "OLLAMA_BACKENDS": json.dumps(backends),
            "CARAVAN_CLOUD_COOLDOWN": str(COOLDOWN_S),
            "CARAVAN_HYDRATE_CONCURRENCY": "0",
            # What is shared is there, however slow the machine is.
            "CARAVAN_REDIS_TIMEOUT": "5",
            "WEB_CONCURRENCY": "2",
            **NO_BREAKER,
        }
        with gateway([off, banned, on], folder, redis_server.url, **changes) as process:
            yield Stage(process, off, banned, on)


@pytest.fixture(autouse=True)
def no_faults(stage: Stage) -> Iterator[None]:
    yield
    stage.on.clear_faults()


def seen(stage: Stage, model: str, times: int = 2) -> set[str]:
    """The documents that a model's readers get, from both workers."""
    found = stage.process.each(lambda: {show(stage.url, model).json()["system"] for _ in range(times)})
    return set().union(*found)


def cooldowns(since_s: float) -> int:
    """How many cooldowns may have begun at most since a time: a slow machine may need more than one for a test."""
    return 1 + int((time.monotonic() - since_s) / COOLDOWN_S)


def test_a_cold_read_asks_the_first_backend_that_may_and_fills_the_cache(stage: Stage) -> None:
    stage.offer("cold", "first")
    answer = show(stage.url, "cold:cloud")
    assert (answer.status, cache_of(answer), answer.json()["system"]) == (200, "miss", "first")
    assert [each.json()["model"] for each in stage.asked("cold")] == ["cold:cloud"]
    assert stage.on.count("/api/show") > 0
    stage.on.fault("/api/show", Error500(), times=None)
    assert seen(stage, "cold:cloud") == {"first"}


def test_a_backend_without_cloud_is_never_asked(stage: Stage) -> None:
    stage.offer("elsewhere", "text")
    show(stage.url, "elsewhere:cloud")
    assert stage.off.count("/api/show") == stage.banned.count("/api/show") == 0


def test_a_warm_hit_serves_the_old_document_and_refreshes_behind(stage: Stage) -> None:
    stage.offer("swr", "old")
    show(stage.url, "swr:cloud")
    stage.offer("swr", "new")
    go = threading.Event()
    # All of them: a slow machine may come to a second refresh.
    stage.on.fault("/api/show", StallBeforeHeaders(go), times=None)
    answer = show(stage.url, "swr:cloud")
    assert (cache_of(answer), answer.json()["system"]) == ("stale", "old")
    until(lambda: len(stage.asked("swr")) >= 2, "the refresh behind")
    assert seen(stage, "swr:cloud") == {"old"}, "the refresh delays nobody"
    go.set()
    until(lambda: seen(stage, "swr:cloud") == {"new"}, "the new document, in both workers")


def test_a_refresh_runs_at_most_once_per_cooldown_over_all_workers(stage: Stage) -> None:
    stage.offer("calm", "text")
    begun_s = time.monotonic()
    for _ in range(3):
        assert seen(stage, "calm:cloud", 5) == {"text"}
    most = cooldowns(begun_s)
    until(lambda: len(stage.asked("calm")) > 1, "a refresh behind")
    # The cold read, and one refresh for all that followed.
    _, *refreshes = stage.asked("calm")
    assert 1 <= len(refreshes) <= most


def test_after_the_cooldown_the_next_hit_refreshes_again(stage: Stage) -> None:
    stage.offer("again", "one")
    show(stage.url, "again:cloud")
    for text in ("two", "three"):
        stage.offer("again", text)
        until(lambda text=text: seen(stage, "again:cloud", 1) == {text}, f"{text} after a cooldown")


@pytest.mark.parametrize("fault", [Error500(), EofBeforeHeaders(), Status(404, '{"error":"no"}'), Status(401)])
def test_a_refresh_that_fails_keeps_the_entry_and_starts_the_cooldown(stage: Stage, fault: Fault) -> None:
    base = f"keep-{type(fault).__name__.lower()}-{getattr(fault, 'code', 0)}"
    stage.offer(base, "kept")
    show(stage.url, f"{base}:cloud")
    stage.on.fault("/api/show", fault, times=None)
    before, begun_s = len(stage.asked(base)), time.monotonic()
    show(stage.url, f"{base}:cloud")
    until(lambda: len(stage.asked(base)) > before, "the refresh")
    assert seen(stage, f"{base}:cloud") == {"kept"}
    # One refresh asks the only source twice, each time anew where a kept connection was closed; no other one begins.
    assert len(stage.asked(base)) - before <= 4 * cooldowns(begun_s)


def test_a_cold_failure_is_not_kept(stage: Stage) -> None:
    missing = show(stage.url, "later:cloud")
    assert (missing.status, missing.json()) == (404, {"error": "model 'later:latest' not found"})
    stage.offer("later", "there now")
    assert show(stage.url, "later:cloud").json()["system"] == "there now"


def test_cloud_spellings_share_one_entry(stage: Stage) -> None:
    stage.offer("gpt-oss:20b", "shared")
    first = show(stage.url, "gpt-oss:20b-cloud")
    assert cache_of(first) == "miss"
    for spelling in ("gpt-oss:20b:cloud", " gpt-oss:20b:cloud ", "GPT-OSS:20b-Cloud", "library/gpt-oss:20b-cloud"):
        answer = show(stage.url, spelling)
        assert (answer.status, cache_of(answer) in ("hit", "stale")) == (200, True), spelling


def test_a_local_model_and_its_cloud_namesake_do_not_collide(stage: Stage) -> None:
    stage.offer("twin", "from the cloud")
    publish(stage.url, FakeModel("twin", system="from the machine"), stage.on)
    stage.process.wait_each(lambda: show(stage.url, "twin").status == 200, "the model is known")
    for _ in range(2):
        assert seen(stage, "twin") == {"from the machine"}
        assert seen(stage, "twin:local") == {"from the machine"}
        assert seen(stage, "twin:cloud") == {"from the cloud"}


def test_a_cloud_name_that_no_machine_holds_says_nothing_about_the_local_one(stage: Stage) -> None:
    stage.offer("only-cloud", "text")
    show(stage.url, "only-cloud:cloud")
    assert show(stage.url, "only-cloud").status == 404


def test_verbose_and_plain_cloud_documents_are_apart_and_both_cached(stage: Stage) -> None:
    stage.offer("wordy", "text")
    for verbose, count in ((False, 0), (True, 269)):
        for _ in range(2):
            info = show(stage.url, "wordy:cloud", verbose=verbose).json()["model_info"]
            assert len(info["tokenizer.ggml.tokens"] or ()) == count
    stage.on.fault("/api/show", Error500(), times=None)
    assert show(stage.url, "wordy:cloud", verbose=True).status == 200


def test_a_cloud_overlay_bypasses_and_is_not_kept(stage: Stage) -> None:
    stage.offer("overlaid", "plain")
    for _ in range(2):
        answer = show(stage.url, "overlaid:cloud", system="laid over")
        assert (cache_of(answer), answer.json()["system"]) == ("bypass", "laid over")
    assert cache_of(show(stage.url, "overlaid:cloud")) == "miss"
    assert seen(stage, "overlaid:cloud") == {"plain"}


def test_copilot_gets_cloud_documents_as_they_are(stage: Stage) -> None:
    stage.offer("pilot", "text")
    for _ in range(2):
        answer = show(stage.url, "pilot:cloud", headers={"User-Agent": "GitHubCopilotChat/0.26"})
        assert "general.basename" not in answer.json()["model_info"]


def test_a_cloud_model_by_its_path(stage: Stage) -> None:
    stage.offer("listed", "text")
    answer = fetch(f"{stage.url}/v1/models/listed:cloud")
    assert (answer.status, answer.json()["id"]) == (200, "listed:cloud")


def test_an_unknown_cloud_model_by_its_path_is_a_404(stage: Stage) -> None:
    answer = fetch(f"{stage.url}/v1/models/never-offered:cloud")
    assert answer.status == 404
    assert answer.json()["error"]["type"] == "not_found_error"


def test_cloud_disabled_everywhere_is_ollamas_403_even_when_warm(stage: Stage) -> None:
    for base in ("warm", "still"):
        stage.offer(base, "text")
        assert show(stage.url, f"{base}:cloud").status == 200
    stage.on.cloud_disabled = True
    try:
        stage.process.wait_each(lambda: show(stage.url, "warm:cloud").status == 403, "cloud is off")
        for model in ("still:cloud", "STILL:cloud", "still:latest-cloud", "unknown:cloud"):
            answer = show(stage.url, model)
            assert (answer.status, answer.json()) == (403, DISABLED)
        assert show(stage.url, "still:cloud", system="overlay").json() == DISABLED
        assert show(stage.url, "tiny").status == 200
        # When it was cold. Of the other one, a refresh may still be on its way.
        assert len(stage.asked("still")) == 1
    finally:
        stage.on.cloud_disabled = False
    stage.process.wait_each(lambda: show(stage.url, "warm:cloud").status == 200, "cloud is back")


def test_cloud_documents_are_served_while_every_source_is_down(stage: Stage) -> None:
    stage.offer("afloat", "text")
    show(stage.url, "afloat:cloud")
    stage.on.kill()
    try:
        assert seen(stage, "afloat:cloud") == {"text"}
        until(lambda: show(stage.url, "never-seen:cloud").status == 503, "nobody can be asked")
    finally:
        stage.on.restart()


def test_asked_documents_are_fetched_at_the_next_start(redis_url: str, tmp_path: Path) -> None:
    """What somebody asked for in the last days is there before the first request of a new day."""
    own = {"CARAVAN_REDIS_PREFIX": "next-start"}
    with FakeOllama("on", ["tiny"]) as on:
        on.cloud_models = {"dear": FakeModel("dear")}
        with gateway([on], tmp_path, redis_url, **own) as process:
            assert show(process.url, "dear:cloud").status == 200
            assert show(process.url, "tiny", verbose=True).status == 200
            until(lambda: b"dear" in command(redis_url, "ZRANGE", "{next-start}:show:asked", "0", "-1"), "noted", 20.0)
        command(redis_url, "DEL", *documents(redis_url))
        on.forget_requests()
        with gateway([on], tmp_path, redis_url, **own):
            until(lambda: {("dear:cloud", False), ("tiny:latest", True)} <= asked_of(on), "hydrated")


def test_what_nobody_has_is_not_fetched_at_the_next_start(redis_url: str, tmp_path: Path) -> None:
    """A client may ask for any name: only what was found is remembered."""
    own = {"CARAVAN_REDIS_PREFIX": "junk"}
    with FakeOllama("on", ["tiny"]) as on:
        on.cloud_models = {"dear": FakeModel("dear")}
        with gateway([on], tmp_path, redis_url, **own) as process:
            assert show(process.url, "junk:cloud").status == 404
            assert show(process.url, "dear:cloud").status == 200
            until(lambda: b"dear" in command(redis_url, "ZRANGE", "{junk}:show:asked", "0", "-1"), "noted", 20.0)
            assert b"library/junk" not in command(redis_url, "ZRANGE", "{junk}:show:asked", "0", "-1")


def asked_of(fake: FakeOllama) -> set[tuple[str, bool]]:
    return {(each.json()["model"], each.json().get("verbose", False)) for each in fake.requests_for("/api/show")}


def documents(url: str) -> list[str]:
    return [word for word in command(url, "KEYS", "*:doc:*").decode().split("\r\n") if word.startswith("{")]


def command(url: str, *words: str) -> bytes:
    return PrivateRedis("", Path(url.removeprefix("unix://")).parent).command(*words)
