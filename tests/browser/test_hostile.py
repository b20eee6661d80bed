"""Texts that others write, and that want to be more than text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Page

from conformance.fakes.faults import Status
from conformance.fakes.http import fetch
from conformance.fakes.ollama import FakeOllama
from tests.admin import LOGIN, PAGES, AdminSite, admin_site
from tests.browser import looks
from tests.fakes.redis import PrivateRedis
from tests.hostile import HOSTILE
from tests.keys import bearer
from tests.wire.shows import until

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

WRITTEN = {
    "family": "<b>family</b>",
    "families": ["<i>"],
    "parameter_size": "\"7B\" onclick='alert(1)'",
    "quantization_level": "</td><td>Q4",
    "format": "gguf",
    "parent_model": "",
}


def listed(text: str, number: int) -> dict[str, Any]:
    """A model of a server that means ill."""
    return {
        "name": text,
        "model": text,
        "modified_at": "2026-11-21T11:58:56.190013695Z",
        "size": 1 << number * 8,
        "digest": f"{number:064x}",
        "details": WRITTEN,
    }


def models() -> list[dict[str, Any]]:
    return [listed(text, number) for number, text in enumerate(HOSTILE.values())] + [listed("good:latest", 1)]


@pytest.fixture(scope="module")
def fakes_up() -> Iterator[tuple[FakeOllama, ...]]:
    """Two servers that write whatever they like, and one that works."""
    with FakeOllama("bad", []) as bad, FakeOllama("broken", []) as broken, FakeOllama("good", ["tiny"]) as good:
        bad.fault("/api/tags", Status(200, json.dumps({"models": models()})), times=None)
        loaded = [{**model, "size_vram": 1, "expires_at": HOSTILE["script"]} for model in models()]
        bad.fault("/api/ps", Status(200, json.dumps({"models": loaded})), times=None)
        bad.fault("/api/version", Status(200, json.dumps({"version": HOSTILE["attribute"]})), times=None)
        bad.fault("/api/show", Status(200, json.dumps(document())), times=None)
        broken.fault("/api/tags", Status(500, json.dumps({"error": HOSTILE["script"] * 50})), times=None)
        yield bad, broken, good


def document() -> dict[str, Any]:
    return {
        "license": HOSTILE["script"],
        "details": WRITTEN,
        "capabilities": list(HOSTILE.values()),
        "model_info": {"general.architecture": HOSTILE["attribute"], "llama.context_length": "<b>"},
    }


@pytest.fixture(scope="module")
def site(
    fakes_up: tuple[FakeOllama, ...], redis_server: PrivateRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AdminSite]:
    redis_server.flush()
    with admin_site(tmp_path_factory.mktemp("hostile"), fakes_up, redis_server.url) as made:
        write_everywhere(made)
        yield made


def write_everywhere(site: AdminSite) -> None:
    """Everything that a client may say and a page may show."""
    for text in HOSTILE.values():
        site.call("POST", "/keys", {"label": text, "models": [text[:1000]]})
        site.call("POST", "/keys", {"label": text[:200], "models": ["*"]})
        fetch(
            f"{site.url}/api/chat",
            "POST",
            json={"model": text[:1000], "messages": []},
            headers=bearer(site.keys["user"]) | {"User-Agent": "<script>alert(1)</script>"},
        )
    site.chat(site.keys["user"], "tiny")
    # Each worker writes its own, now and then.
    until(lambda: HOSTILE["script"] in {each["model"] for each in site.get("/requests")["finished"]}, "they are listed")


def assert_harmless(page: Page, name: str) -> None:
    assert (
        page.evaluate("document.querySelectorAll('img[src=x], a[href^=javascript], [onclick], [onerror]').length") == 0
    )
    looks.assert_readable(page, f"hostile-{name}", only=looks.SEARCHED)


def test_a_page_shows_it_and_does_nothing_else(site: AdminSite, admin: Page) -> None:
    for name, path in PAGES.items():
        admin.goto(site.url + path)
        assert_harmless(admin, name)


def test_it_is_there_to_be_read(site: AdminSite, admin: Page) -> None:
    """Else the test above has looked at nothing."""
    for name in ("models", "traffic", "keys"):
        admin.goto(site.url + PAGES[name])
        assert HOSTILE["script"] in admin.locator("body").inner_text(), name


@pytest.mark.parametrize("what", HOSTILE)
def test_an_address_may_hold_it(site: AdminSite, admin: Page, what: str) -> None:
    text = quote(HOSTILE[what][:300], safe="")
    for path in ("/admin/models?query=", "/admin/models?page=", "/admin/events?kind=", "/admin/events?before="):
        answer = admin.goto(site.url + path + text)
        assert answer is not None
        assert answer.status == 200, path
    admin.goto(f"{site.url}{LOGIN}?next={text}")
