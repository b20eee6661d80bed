"""What stands around the admin pages: whose page may ask for a change, what a browser is told, what is never shown."""

from __future__ import annotations

import pytest
from flask import Flask, Response

from proxy_app.errors import Forbidden
from proxy_app.services.admin.settings import HIDDEN, view
from proxy_app.settings import load
from proxy_app.web.admin_headers import protect
from proxy_app.web.callers import check_origin
from tests.keys import ADMIN

HOST = "caravan.example:8080"


def check(method: str = "POST", needs_proof: bool = False, **said: str) -> None:
    headers = {f"HTTP_{name}": value for name, value in said.items()}
    check_origin({"REQUEST_METHOD": method, "HTTP_HOST": HOST, **headers}, needs_proof=needs_proof)


@pytest.mark.parametrize("needs_proof", [False, True])
@pytest.mark.parametrize("origin", [f"http://{HOST}", f"https://{HOST}"])
def test_caravans_own_page_may_ask_for_a_change(origin: str, needs_proof: bool) -> None:
    check(ORIGIN=origin, needs_proof=needs_proof)
    check(ORIGIN=origin, SEC_FETCH_SITE="same-origin", needs_proof=needs_proof)


@pytest.mark.parametrize("needs_proof", [False, True])
@pytest.mark.parametrize(
    "origin",
    [
        f"https://evil{HOST}",
        f"https://evil.{HOST}",
        f"https://{HOST}.evil.example",
        f"https://{HOST}1",
        f"ftp://{HOST}",
        f"https://x@{HOST}",
        f"https://{HOST}/",
        "https://caravan.example",
        HOST,
        "null",
        "",
    ],
)
def test_no_other_page_may(origin: str, needs_proof: bool) -> None:
    with pytest.raises(Forbidden, match="own page"):
        check(ORIGIN=origin, needs_proof=needs_proof)
    with pytest.raises(Forbidden, match="own page"):
        check(ORIGIN=origin, SEC_FETCH_SITE="same-origin", needs_proof=needs_proof)
    check("GET", ORIGIN=origin, needs_proof=needs_proof)


def test_who_says_nothing_may_with_a_key_and_not_with_a_login() -> None:
    check()
    with pytest.raises(Forbidden):
        check(needs_proof=True)


# -- what a browser is told --------------------------------------------------------------------------


def told(url: str) -> dict[str, str]:
    response = Response()
    with Flask(__name__).test_request_context(base_url=url):
        protect(response)
    return dict(response.headers)


POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data:",
    "connect-src 'self'",
    "form-action 'self'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@pytest.mark.parametrize("url", ["http://caravan.example", "https://caravan.example"])
def test_a_browser_is_told_exactly_this(url: str) -> None:
    said = told(url)
    assert {part.strip() for part in said["Content-Security-Policy"].split(";")} == POLICY
    assert {name: said[name] for name in HEADERS} == HEADERS


def test_a_browser_that_came_by_https_stays_with_it() -> None:
    assert told("https://caravan.example")["Strict-Transport-Security"] == "max-age=31536000"
    assert "Strict-Transport-Security" not in told("http://caravan.example")


# -- settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:canary-pw@cache:6379/0", "redis://...@cache:6379/0"),
        ("rediss://me:canary-pw@cache:6379/1", "rediss://...@cache:6379/1"),
        ("redis://:canary%40p@cache/0?password=canary-too", "redis://...@cache/0"),
        ("redis://cache:6379/0", "redis://cache:6379/0"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    found = {each.name: each.value for each in view(load({"REDIS_URL": url}, None)).settings}
    assert found["REDIS_URL"] == shown
    assert not [name for name, value in found.items() if "canary" in value or ADMIN in value]


def test_no_secret_is_shown() -> None:
    backends = '[{"name":"a","url":"http://a","auth_token":"canary","headers":{"X-T":"canary"}}]'
    env = {"CARAVAN_ADMIN_KEY": ADMIN, "OLLAMA_BACKENDS": backends}
    found = {each.name: each.value for each in view(load(env, None)).settings}
    assert found["CARAVAN_ADMIN_KEY"] == HIDDEN
    assert found["OLLAMA_BACKENDS"] == "a=http://a"
    assert not [name for name, value in found.items() if "canary" in value or ADMIN in value]
