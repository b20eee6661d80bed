"""The page of an error, as somebody sees it who opens an address of the API."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.admin import AdminSite
from tests.browser import looks
from tests.browser.watch import Watch

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky


@pytest.fixture
def refused(site: AdminSite, page: Page, watch: Watch) -> Page:
    answer = page.goto(f"{site.url}/api/tags")
    assert answer is not None
    assert answer.status == 401
    # What the browser itself says of the status.
    watch.forgive("status of 401.*/api/tags")
    return page


def test_it_says_what_happened(refused: Page) -> None:
    expect(refused.get_by_role("heading")).to_contain_text("401")
    expect(refused.locator("body")).to_contain_text("a valid API key is needed")


def test_everybody_can_read_it_on_every_device(refused: Page, screenshot: Callable[[Page, str], None]) -> None:
    screenshot(refused, "error")
    for form in looks.forms(refused):
        assert looks.barriers(refused) == [], form
        assert looks.overflow(refused) <= 0, form
        assert looks.is_dark(refused) is form.endswith("dark"), form
