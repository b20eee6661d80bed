"""The watch sees what it is there for: pages that misbehave, made up here."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import BrowserContext, Page

from tests.browser.watch import Watch

pytestmark = pytest.mark.leaky

PATIENCE_S = 30.0
URL = "http://127.0.0.1:9/"
POLICY = "default-src 'self'; script-src 'unsafe-inline'; connect-src *; img-src *"


def shown(context: BrowserContext, body: str) -> tuple[Watch, Page]:
    """A page of this body, and what was seen of it."""
    head = "<!doctype html><title>A page</title>"
    sent = {"Content-Type": "text/html", "Content-Security-Policy": POLICY}
    context.route("**/*", lambda route: route.fulfill(body=head + body, headers=sent))
    watch, page = Watch(context, URL), context.new_page()
    page.goto(URL)
    return watch, page


FAULTS = {
    "an error in the console": ("<script>console.error('oh')</script>", "console error: oh"),
    "a warning": ("<script>console.warn('hm')</script>", "console warning: hm"),
    "an error that nobody caught": ("<script>throw new Error('oh')</script>", "uncaught: .*oh"),
    "a promise that nobody caught": ("<script>Promise.reject(new Error('oh'))</script>", "uncaught: .*oh"),
    "a box": ("<script>alert(1)</script>", "a box: alert 1"),
    "a style that the policy forbids": ("<p style='color:red'>oh</p>", "Content Security Policy"),
    "a style sheet of another host": ("<link rel=stylesheet href='http://fonts.example/a.css'>", "fonts.example"),
    "a request to another port": ("<img alt='' src='http://127.0.0.1:10/a.png'>", "another host: .*:10"),
    "a call of another host": (
        "<script>fetch('http://evil.example/', {mode: 'no-cors'})</script>",
        "another host: http://evil",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_sees(context: BrowserContext, fault: str) -> None:
    body, said = FAULTS[fault]
    watch, page = shown(context, body)
    # The browser tells of requests and of its console on ways of their own, so none of them says that all is told.
    deadline = time.monotonic() + PATIENCE_S
    while not any(re.search(said, fault) for fault in watch.faults) and time.monotonic() < deadline:
        page.wait_for_timeout(10)
    with pytest.raises(AssertionError, match=said):
        watch.judge()
    watch.forgive(said)


def test_it_has_nothing_against_a_good_page(context: BrowserContext) -> None:
    watch, _ = shown(context, "<h1>Hi</h1><script>console.log('fine')</script>")
    watch.judge()
    with pytest.raises(AssertionError, match="nothing like"):
        watch.forgive("fine")
