"""An operator's day: everything that can be changed on a page is changed there, and seen there without reloading."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from playwright.sync_api import Page, expect

from conformance.fakes.answers import NDJSON, Answer, go_json
from conformance.fakes.faults import Fault, Stall, StreamThen
from conformance.fakes.http import RawClient, RawResponse
from conformance.fakes.ollama import FakeOllama
from conformance.fakes.wire import LAST_CHUNK, Exchange
from tests.admin import LOGIN, PAGES, AdminSite
from tests.browser.steps import SOON_MS, assert_never_reloaded, dialog, opened, row
from tests.browser.watch import Watch
from tests.keys import STRANGER, Signer, bearer
from tests.product import question

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

SHARED = "llama3.2:3b"
GIB = 1 << 30


@dataclass(frozen=True)
class HalfPull(Fault):
    """Half of a model comes; the rest, and the model, when the event is set."""

    go_on: threading.Event

    async def play(self, exchange: Exchange) -> None:
        half = {"status": "pulling 0123456789ab", "digest": "sha256:01", "total": 4 * GIB, "completed": GIB}
        head = exchange.head(Answer(200, (("Content-Type", NDJSON),), chunked=True))
        await exchange.send(head + exchange.frame(go_json(half) + b"\n"))
        await exchange.wait(self.go_on)
        await exchange.send(exchange.frame(exchange.plan().flat()) + LAST_CHUNK)


@pytest.fixture
def spare() -> Iterator[FakeOllama]:
    """A server that nobody knows yet."""
    with FakeOllama("gpu-d", [SHARED, "only-here:latest"]) as fake:
        yield fake


# -- in and out --------------------------------------------------------------------------------------


def test_somebody_logs_in_and_out_with_the_keyboard_alone(site: AdminSite, page: Page) -> None:
    page.goto(site.url + PAGES["fleet"])
    expect(page).to_have_url(re.compile(LOGIN))
    # The field has the focus already.
    page.keyboard.type(site.keys["admin"])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Fleet")
    (cookie,) = page.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    page.get_by_role("button", name=re.compile("^Key")).press("Enter")
    dialog(page).get_by_role("button", name="Log out", exact=True).press("Enter")
    expect(page).to_have_url(re.compile(LOGIN))
    assert page.context.cookies() == []
    page.go_back()
    expect(page).to_have_url(re.compile(LOGIN))


def test_a_login_leads_to_the_page_that_was_asked_for(site: AdminSite, page: Page) -> None:
    page.goto(f"{site.url}{PAGES['models']}?query=qwen")
    page.get_by_label("Your key").fill(site.keys["admin"])
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(re.compile(r"/admin/models\?query=qwen"))


@pytest.mark.parametrize(("key", "status", "said"), [("stranger", 401, "no key that is valid"), ("user", 403, "admin")])
def test_a_login_that_fails_says_why(
    site: AdminSite, page: Page, watch: Watch, key: str, status: int, said: str
) -> None:
    page.goto(site.url + LOGIN)
    page.get_by_label("Your key").fill(site.keys.get(key, STRANGER))
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert").filter(has_text=said)).to_be_visible()
    expect(page).to_have_url(re.compile(LOGIN))
    watch.forgive(f"status of {status}.*/session")


def test_a_login_that_was_ended_elsewhere_leads_to_the_login(site: AdminSite, admin: Page, watch: Watch) -> None:
    opened(site, admin, "fleet")
    assert site.call("DELETE", "/sessions").status == 204
    row(admin, "gpu-a").get_by_role("button", name="Drain").click()
    expect(admin).to_have_url(re.compile(LOGIN))
    watch.forgive("status of 401")


# -- the fleet ---------------------------------------------------------------------------------------


def test_a_backend_is_tested_added_and_removed(site: AdminSite, admin: Page, spare: FakeOllama, other: Page) -> None:
    """And somebody who looks at the same page sees it, too."""
    opened(site, admin, "fleet")
    opened(site, other, "fleet")
    admin.get_by_role("button", name="Add a backend").first.click()
    box = dialog(admin)
    box.get_by_label("Name", exact=True).fill("gpu-d")
    box.get_by_label("Address").fill(spare.url)
    box.get_by_role("button", name="Test").click()
    expect(box.get_by_role("status")).to_contain_text("It answers")
    box.get_by_role("button", name="Add", exact=True).click()
    for page in (admin, other):
        expect(row(page, "gpu-d")).to_contain_text("up")
        assert_never_reloaded(page)
    # The page shows what one worker knows.
    wait_told(site, site.keys["user"], "only-here", 200)
    remove(admin, "gpu-d")
    for page in (admin, other):
        expect(row(page, "gpu-d")).to_have_count(0)
        assert_never_reloaded(page)


def wait_told(site: AdminSite, key: str, model: str, status: int) -> None:
    """Wait until every worker answers a chat so."""
    site.process.wait_each(lambda: site.chat(key, model).status == status, f"a chat with {model} is {status}")


def remove(page: Page, name: str) -> None:
    row(page, name).get_by_role("button", name="Remove").click()
    # What is lost is spelled out first.
    expect(dialog(page)).to_contain_text("only-here")
    dialog(page).get_by_role("button", name="Remove").click()


@pytest.fixture
def other(site: AdminSite, admin: Page) -> Page:
    """Another tab, which is watched like the first one."""
    return admin.context.new_page()


def test_a_backend_that_does_not_answer_is_not_added(
    site: AdminSite, admin: Page, watch: Watch, fakes_up: tuple[FakeOllama, ...]
) -> None:
    opened(site, admin, "fleet")
    admin.get_by_role("button", name="Add a backend").first.click()
    dialog(admin).get_by_label("Name", exact=True).fill("nobody")
    dialog(admin).get_by_label("Address").fill("http://127.0.0.1:9")
    dialog(admin).get_by_role("button", name="Add", exact=True).click()
    expect(dialog(admin).get_by_role("alert")).to_contain_text("does not work")
    watch.forgive("status of 409")
    # What was typed is still there.
    expect(dialog(admin).get_by_label("Address")).to_have_value("http://127.0.0.1:9")
    dialog(admin).get_by_label("Address").fill("http://127.0.0.1:99")
    expect(dialog(admin).get_by_role("alert")).to_have_count(0)
    assert "nobody" not in [each["name"] for each in site.get("/backends")["backends"]]


def test_a_backend_is_drained_and_undrained(site: AdminSite, admin: Page) -> None:
    opened(site, admin, "fleet")
    row(admin, "gpu-b").get_by_role("button", name="Drain").click()
    expect(row(admin, "gpu-b")).to_contain_text("draining")
    wait_told(site, site.keys["user"], "qwen3-coder:30b", 503)
    row(admin, "gpu-b").get_by_role("button", name="Undrain").click()
    expect(row(admin, "gpu-b")).not_to_contain_text("draining")
    wait_told(site, site.keys["user"], "qwen3-coder:30b", 200)
    assert_never_reloaded(admin)


def test_a_backend_that_dies_and_comes_back_is_seen(
    site: AdminSite, admin: Page, fakes_up: tuple[FakeOllama, ...]
) -> None:
    opened(site, admin, "fleet")
    fakes_up[2].kill()
    try:
        expect(row(admin, "gpu-c")).to_contain_text("down")
    finally:
        fakes_up[2].restart()
    expect(row(admin, "gpu-c")).to_contain_text("up")
    assert_never_reloaded(admin)


# -- keys --------------------------------------------------------------------------------------------


def test_a_key_is_made_used_and_revoked(site: AdminSite, admin: Page) -> None:
    opened(site, admin, "keys")
    admin.get_by_role("button", name="Make a key").click()
    dialog(admin).get_by_label("Label").fill("alice")
    dialog(admin).get_by_role("button", name="Make the key").click()
    secret = admin.get_by_role("region", name="The new key").inner_text().strip()
    assert secret.startswith("cv_")
    assert secret in dialog(admin).get_by_role("region", name="Lines for curl").inner_text()
    dialog(admin).get_by_role("button", name="I have copied it").click()
    expect(admin.locator("#secret")).not_to_contain_text(secret)
    assert secret not in admin.content()
    expect(row(admin, "alice", "#keys")).to_contain_text("0 requests")
    assert site.chat(secret, SHARED).status == 200
    expect(row(admin, "alice", "#keys")).to_contain_text("1 request")
    row(admin, "alice", "#keys").get_by_role("button", name="Revoke").click()
    dialog(admin).get_by_role("button", name="Revoke").click()
    expect(row(admin, "alice", "#keys")).to_contain_text("revoked")
    wait_told(site, secret, SHARED, 401)
    assert_never_reloaded(admin)


@pytest.mark.parametrize("signer", [Signer(b"a journey of a key, as it begins").line, None])
def test_a_new_key_comes_with_the_lines_that_work_with_it(site: AdminSite, admin: Page, signer: str | None) -> None:
    opened(site, admin, "keys")
    admin.get_by_role("button", name="Make a key").click()
    dialog(admin).get_by_label("Label").fill("lines")
    if signer:
        dialog(admin).get_by_text("Networks and the ollama command").click()
        dialog(admin).get_by_label("Public key of an ollama command").fill(signer)
    dialog(admin).get_by_role("button", name="Make the key").click()
    expect(dialog(admin).get_by_text("The ollama command", exact=True)).to_be_visible(visible=bool(signer))
    expect(dialog(admin).get_by_text("The ollama command has no place")).to_be_visible(visible=not signer)
    dialog(admin).get_by_text("Claude Code", exact=True).click()
    lines = dialog(admin).get_by_role("region", name="Lines for Claude Code").inner_text()
    assert f"ANTHROPIC_BASE_URL={site.url}\n" in lines
    assert "ANTHROPIC_AUTH_TOKEN=cv_" in lines
    (made,) = [key for key in site.get("/keys")["keys"] if key["label"] == "lines" and key["state"] == "valid"]
    assert site.call("DELETE", f"/keys/{made['id']}").status == 200
    dialog(admin).get_by_role("button", name="I have copied it").click()


def test_a_key_is_edited(site: AdminSite, admin: Page) -> None:
    order = {"label": "team", "models": ["only-*", "team/*"], "limits": "rpm=1,num_ctx=4096", "lives_s": 86400}
    made = site.call("POST", "/keys", order).json()
    assert site.chat(made["secret"], SHARED).status == 403
    opened(site, admin, "keys")
    row(admin, "team", "#keys").get_by_role("button", name="Edit").click()
    form = dialog(admin)
    expect(form.get_by_label("infer:")).to_be_checked()
    expect(form.get_by_label("manage:")).not_to_be_checked()
    expect(form.get_by_label("Models", exact=True)).to_have_value("only-*\nteam/*")
    expect(form.get_by_label("Requests a minute")).to_have_value("1")
    form.get_by_label("Requests a minute").fill("")
    form.get_by_label("Models", exact=True).fill("")
    form.get_by_label("It never ends").check()
    with admin.expect_request(lambda request: request.method == "PATCH") as sent:
        form.get_by_role("button", name="Save").click()
    assert sent.value.post_data_json == {"models": [], "limits": "num_ctx=4096", "lives_s": None}
    expect(row(admin, "team", "#keys")).to_contain_text("num_ctx=4096")
    expect(row(admin, "team", "#keys")).to_contain_text("for ever")
    assert site.chat(made["secret"], SHARED).status == 200


def test_a_key_is_rotated(site: AdminSite, admin: Page) -> None:
    made = site.call("POST", "/keys", {"label": "robot"}).json()
    opened(site, admin, "keys")
    row(admin, "robot", "#keys").get_by_role("button", name="Rotate").click()
    dialog(admin).get_by_label("The old key works").select_option("no longer: it ends now")
    dialog(admin).get_by_role("button", name="Make the new key").click()
    secret = admin.get_by_role("region", name="The new key").inner_text().strip()
    wait_told(site, secret, SHARED, 200)
    wait_told(site, made["secret"], SHARED, 401)


# -- models ------------------------------------------------------------------------------------------


def test_a_pull_is_watched_to_its_end(site: AdminSite, admin: Page, fakes_up: tuple[FakeOllama, ...]) -> None:
    go_on = threading.Event()
    fakes_up[1].fault("/api/pull", HalfPull(go_on))
    opened(site, admin, "models")
    admin.get_by_text("Pull a model").click()
    admin.get_by_label("Model", exact=True).fill("fresh:1b")
    admin.get_by_label("gpu-b").check()
    admin.get_by_role("button", name="Pull", exact=True).click()
    try:
        expect(admin.get_by_role("progressbar")).to_have_js_property("value", 25)
        expect(admin.get_by_role("status").filter(has_text="pulling")).to_be_visible()
    finally:
        go_on.set()
    expect(admin.get_by_role("status").filter(has_text="fresh:1b was pulled")).to_be_visible()
    expect(row(admin, "fresh:1b")).to_contain_text("gpu-b")
    assert_never_reloaded(admin)


def test_a_pull_that_fails_says_why(
    site: AdminSite, admin: Page, fakes_up: tuple[FakeOllama, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fakes_up[1], "pullable", set())
    opened(site, admin, "models")
    admin.get_by_text("Pull a model").click()
    admin.get_by_label("Model", exact=True).fill("nowhere:1b")
    admin.get_by_label("gpu-b").check()
    admin.get_by_role("button", name="Pull", exact=True).click()
    expect(admin.get_by_role("alert").filter(has_text="no such host")).to_be_visible()


def test_a_model_is_copied_loaded_unloaded_and_deleted(
    site: AdminSite, admin: Page, fakes_up: tuple[FakeOllama, ...]
) -> None:
    opened(site, admin, "models")
    row(admin, "gemma3:12b").get_by_role("button", name="Copy").click()
    dialog(admin).get_by_label("New name").fill("eyes:latest")
    dialog(admin).get_by_role("button", name="Copy", exact=True).click()
    expect(row(admin, "eyes:latest")).to_be_visible()
    for what, is_loaded in (("Load", True), ("Unload", False)):
        row(admin, "eyes:latest").get_by_role("button", name="Load or unload").click()
        dialog(admin).get_by_role("button", name=what, exact=True).click()
        shown = row(admin, "eyes:latest").get_by_text(re.compile("loaded"))
        expect(shown).to_have_count(1 if is_loaded else 0)
    row(admin, "eyes:latest").get_by_role("button", name="Delete").click()
    expect(dialog(admin)).to_contain_text("gpu-c")
    dialog(admin).get_by_role("button", name="Delete everywhere").click()
    expect(row(admin, "eyes:latest")).to_have_count(0)
    assert_never_reloaded(admin)


def test_a_copy_asks_before_it_replaces_a_model(site: AdminSite, admin: Page, watch: Watch) -> None:
    opened(site, admin, "models")

    def copy_onto(name: str, answer: str) -> None:
        row(admin, "gemma3:12b").get_by_role("button", name="Copy").click()
        dialog(admin).get_by_label("New name").fill(name)
        dialog(admin).get_by_role("button", name="Copy", exact=True).click()
        expect(dialog(admin)).to_contain_text(f"{name} exists already: replace it?")
        expect(dialog(admin)).to_contain_text("is lost, unless it has another name")
        dialog(admin).get_by_role("button", name=answer).click()
        expect(admin.get_by_role("dialog")).to_have_count(0)

    asked = {"source": "gemma3:12b", "destination": "spare-eyes"}
    assert site.call("POST", "/models/copy", asked).status == 204
    events = len(site.get("/events?kind=model.copied")["events"])
    copy_onto("spare-eyes", "Keep it")
    assert len(site.get("/events?kind=model.copied")["events"]) == events
    copy_onto("spare-eyes", "Replace it")
    assert len(site.get("/events?kind=model.copied")["events"]) == events + 1
    assert site.call("POST", "/models/delete", {"model": "spare-eyes"}).status == 204
    watch.forgive("status of 409")


# -- traffic -----------------------------------------------------------------------------------------


def chat_in_background(site: AdminSite, pool: ThreadPoolExecutor) -> Future[RawResponse]:
    """It is silent for as long as a person needs to end it."""
    asked = question("/api/chat", "acme/support-bot:v2")

    def ask() -> RawResponse:
        with RawClient(site.url, 3 * SOON_MS / 1000) as client:
            return client.request("POST", "/api/chat", json=asked, headers=bearer(site.keys["user"]))

    return pool.submit(ask)


def test_a_running_request_is_seen_and_cancelled(
    site: AdminSite, admin: Page, fakes_up: tuple[FakeOllama, ...]
) -> None:
    fakes_up[2].forget_requests()
    fakes_up[2].fault("/api/chat", StreamThen(3, Stall()))
    opened(site, admin, "traffic")
    with ThreadPoolExecutor(1) as pool:
        answer = chat_in_background(site, pool)
        running = admin.get_by_role("row").filter(has=admin.get_by_role("button", name="Cancel the request"))
        expect(running).to_contain_text("acme/support-bot:v2")
        expect(running).to_contain_text("gpu-c")
        running.get_by_role("button").click()
        expect(dialog(admin)).to_contain_text("acme/support-bot:v2")
        dialog(admin).get_by_role("button", name="Cancel the request").click()
        expect(running).to_have_count(0)
        last = answer.result(timeout=SOON_MS / 1000).body.splitlines()[-1]
    assert "error" in json.loads(last), "the client was told nothing"
    assert fakes_up[2].wait_for("/api/chat").client_gone.wait(15), "the backend went on writing"
    over = admin.locator("#finished").get_by_role("row").nth(1)
    expect(over).to_contain_text("acme/support-bot:v2")
    expect(over).to_contain_text("cancel")
    assert_never_reloaded(admin)


def test_what_was_done_is_noted(site: AdminSite, admin: Page) -> None:
    """By whom, too."""
    opened(site, admin, "events")
    who = site.keys["admin"].split("_")[1]
    made = site.call("POST", "/keys", {"label": "noted"}).json()["key"]["id"]
    expect(admin.get_by_role("row").filter(has_text=made)).to_contain_text(who)
    assert_never_reloaded(admin)
    admin.get_by_label("Show", exact=True).select_option("Backends")
    admin.get_by_role("button", name="Show").click()
    expect(admin).to_have_url(re.compile("kind=backend"))
    expect(admin.get_by_role("row").filter(has_text=made)).to_have_count(0)
