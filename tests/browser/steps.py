"""What people do on a page."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect

from tests.admin import PAGES, AdminSite

# How long in milliseconds anything may take that a test waits for; a healthy page needs a fraction.
SOON_MS = 30_000


def opened(site: AdminSite, page: Page, name: str) -> Page:
    """Open a page and mark it: the mark is gone when it is loaded again."""
    page.goto(site.url + PAGES[name])
    expect(page.locator("#pulse")).to_have_text("Live")
    page.evaluate("window.marked = true")
    return page


def assert_never_reloaded(page: Page) -> None:
    assert page.evaluate("window.marked") is True


def row(page: Page, name: str, part: str = "main") -> Locator:
    """The row of a table whose header has this name."""
    return page.locator(part).get_by_role("row").filter(has=page.get_by_role("rowheader", name=name))


def dialog(page: Page) -> Locator:
    return page.get_by_role("dialog")
