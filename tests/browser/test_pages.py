"""Every page as people see it: full and empty, wide and narrow, light and dark, with and without a mouse."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from conformance.fakes.faults import Error500
from conformance.fakes.ollama import FakeOllama
from tests.admin import LOGIN, PAGES, AdminSite
from tests.browser import looks
from tests.browser.conftest import ZONE
from tests.browser.steps import assert_never_reloaded, opened, row
from tests.browser.watch import Watch
from tests.wire.shows import gateway, until

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky


@pytest.fixture(scope="module")
def busy(site: AdminSite, fakes_up: tuple[FakeOllama, ...]) -> AdminSite:
    """The product after some work: requests, one that failed, a drained server."""
    fakes_up[0].fault("/api/chat", Error500("the runner is out of memory"), times=1)
    for model in ("llama3.2:3b", "qwen3:8b", "acme/support-bot:v2", "gemma3:12b", "no-such-model"):
        site.chat(site.keys["user"], model)
    assert site.call("PATCH", "/backends/gpu-c", {"draining": True}).status == 200
    until(lambda: len(site.get("/requests")["finished"]) >= 5, "the requests are listed")
    until(lambda: any(each["requests"] for each in site.get("/backends")["backends"]), "the requests are counted")
    return site


def test_everybody_can_read(busy: AdminSite, admin: Page) -> None:
    for name, path in PAGES.items():
        admin.goto(busy.url + path)
        assert_readable(admin, name)


def test_everybody_can_log_in(site: AdminSite, page: Page) -> None:
    page.goto(site.url + LOGIN)
    assert_readable(page, "login")


def assert_readable(page: Page, name: str, only: Collection[str] = ()) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    looks.assert_readable(page, name, only)


@pytest.fixture
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A product that has just been started by somebody on the same machine, in front of a server without models."""
    with FakeOllama("new", []) as fake, gateway([fake], tmp_path_factory.mktemp("empty")) as process:
        yield process.url


def test_an_empty_page_says_what_to_do_next(empty: str, context: BrowserContext) -> None:
    watch, page = Watch(context, empty), context.new_page()
    for name, path in PAGES.items():
        page.goto(empty + path)
        assert_readable(page, f"empty-{name}", only=("390-dark",))
    watch.judge()


def test_every_page_leads_to_every_other_one(site: AdminSite, admin: Page) -> None:
    for path in PAGES.values():
        admin.goto(site.url + path)
        links = admin.get_by_role("navigation").get_by_role("link")
        found = {link.get_attribute("href") for link in links.all()}
        assert set(PAGES.values()) <= found
        here = admin.get_by_role("navigation").locator("[aria-current=page]")
        expect(here).to_have_attribute("href", path)


def test_titles_tell_the_pages_apart(site: AdminSite, admin: Page) -> None:
    titles = set()
    for path in PAGES.values():
        admin.goto(site.url + path)
        titles.add(admin.title())
    assert len(titles) == len(PAGES)


FOCUSED = """() => {
    const at = document.activeElement, style = getComputedStyle(at), box = at.getBoundingClientRect();
    const shown = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0 || style.boxShadow !== 'none';
    return {tag: at.tagName, text: (at.innerText || at.id || at.name || '').slice(0, 40), shown, wide: box.width > 0};
}"""


@pytest.mark.parametrize("name", PAGES)
def test_the_keyboard_reaches_everything_and_shows_where_it_is(busy: AdminSite, admin: Page, name: str) -> None:
    admin.goto(busy.url + PAGES[name])
    seen = []
    for _ in range(25):
        admin.keyboard.press("Tab")
        at = admin.evaluate(FOCUSED)
        if at["tag"] == "BODY":
            break
        seen.append(at)
    assert len(seen) > len(PAGES)
    hidden = [at for at in seen if not (at["shown"] and at["wide"])]
    assert not hidden


def test_times_are_in_the_readers_zone(busy: AdminSite, admin: Page) -> None:
    """As a text, or where the pointer rests."""
    admin.goto(busy.url + PAGES["events"])
    shown = admin.locator("time[datetime]")
    expect(shown.first).to_be_visible()
    written = shown.first.get_attribute("datetime")
    assert written is not None
    local = datetime.fromisoformat(written).astimezone(ZoneInfo(ZONE))
    expect(shown.first).to_have_attribute("title", re.compile(f"{local:%H:%M}"))


def test_a_page_left_open_does_not_grow(site: AdminSite, admin: Page, context: BrowserContext) -> None:
    """Each change is shown in place of what was there."""
    opened(site, admin, "fleet")
    counter = context.new_cdp_session(admin)

    def nodes() -> int:
        counter.send("HeapProfiler.collectGarbage")
        found: int = counter.send("Memory.getDOMCounters")["nodes"]
        return found

    turn(site, admin)
    before = nodes()
    turn(site, admin)
    # A page that kept what it showed would have most of itself twice more.
    assert nodes() < before * 1.3
    assert_never_reloaded(admin)


def turn(site: AdminSite, page: Page) -> None:
    """Drain and undrain a server while the page watches."""
    for draining, then in ((True, "Undrain"), (False, "Drain")):
        assert site.call("PATCH", "/backends/gpu-a", {"draining": draining}).status == 200
        button = row(page, "gpu-a").get_by_role("button", name=re.compile(f"^{then} "))
        expect(button).to_be_visible()
