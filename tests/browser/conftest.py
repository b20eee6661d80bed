"""A chromium for all tests of this folder, pages that are watched, and a product to look at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from http.cookies import SimpleCookie

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from conformance.fakes.ollama import FakeOllama
from tests.admin import AdminSite, admin_site, fakes_of
from tests.browser.steps import SOON_MS
from tests.browser.watch import Watch
from tests.fakes.fleet import fleet_models
from tests.fakes.redis import PrivateRedis

CHROMIUM = shutil.which("chromium")
# What the browser would ask others for ends in the browser, too.
NO_OTHER_HOST = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
ZONE = "Asia/Kathmandu"


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Debian's chromium. Not for the whole session: Playwright keeps an event loop running in the main thread, where
    the tests of other folders may need one of their own."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt install chromium)")
    expect.set_options(timeout=SOON_MS)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[NO_OTHER_HOST])
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """A browser of somebody who was never here."""
    made = chromium.new_context(timezone_id=ZONE, locale="en-GB")
    made.set_default_timeout(SOON_MS)
    yield made
    made.close()


@pytest.fixture(scope="module")
def fakes_up() -> Iterator[tuple[FakeOllama, ...]]:
    """Three servers that look like real ones; the first model of each is loaded."""
    with fakes_of(fleet_models(), tokens=12) as started:
        for fake in started:
            fake.load_model(fake.store.listed()[0].name)
        yield started


@pytest.fixture(scope="module")
def site(
    fakes_up: tuple[FakeOllama, ...], redis_server: PrivateRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AdminSite]:
    """A product in front of them."""
    redis_server.flush()
    with admin_site(tmp_path_factory.mktemp("site"), fakes_up, redis_server.url, CARAVAN_LOGIN_ATTEMPTS="1000") as made:
        yield made


@pytest.fixture
def watch(context: BrowserContext, site: AdminSite) -> Iterator[Watch]:
    """Fails the test on whatever a page of ours never does."""
    made = Watch(context, site.url)
    yield made
    made.judge()


@pytest.fixture
def page(context: BrowserContext, watch: Watch) -> Page:
    """A tab that is watched, and not logged in."""
    return context.new_page()


@pytest.fixture
def admin(site: AdminSite, context: BrowserContext, page: Page) -> Page:
    """A tab that is watched, and logged in."""
    context.add_cookies([{**cookie, "url": site.url} for cookie in cookies(site)])  # type: ignore[list-item]
    return page


def cookies(site: AdminSite) -> list[dict[str, str]]:
    """Those of a new session."""
    answer = site.call("POST", "/session", {"key": site.keys["admin"]}, key=None)
    assert answer.status < 300, answer.body
    found = [morsel for line in answer.all("set-cookie") for morsel in SimpleCookie(line).values()]
    return [{"name": morsel.key, "value": morsel.value} for morsel in found]
