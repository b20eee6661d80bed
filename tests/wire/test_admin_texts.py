"""What people type into the fields of the admin page: any text, and it never breaks anything."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from conformance.fakes.ollama import FakeOllama
from tests.admin import AdminSite, admin_site
from tests.fakes.redis import PrivateRedis
from tests.hostile import HOSTILE
from tests.wire.shows import until

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky


@pytest.fixture(scope="module")
def site(redis_server: PrivateRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminSite]:
    redis_server.flush()
    folder = tmp_path_factory.mktemp("texts")
    with (
        FakeOllama("good", ["tiny"]) as fake,
        admin_site(folder, [fake], redis_server.url, CARAVAN_LOGIN_ATTEMPTS="1000") as made,
    ):
        yield made


FIELDS: dict[str, dict[str, Any]] = {
    "/keys": {"label": "x", "scopes": ["read"], "models": ["x"], "networks": ["x"], "limits": "rpm=1", "signer": "x"},
    "/backends": {"name": "x", "url": "http://127.0.0.1:9", "auth_token": "x", "headers": {"x": "x"}, "test": False},
    "/backends/test": {"name": "x", "url": "http://127.0.0.1:9", "auth_token": "x", "headers": {"x": "x"}},
    "/models/pull": {"model": "x", "backends": ["good"]},
    "/models/copy": {"source": "tiny", "destination": "x"},
    "/models/delete": {"model": "x"},
    "/models/load": {"model": "x", "backend": "good"},
    "/models/unload": {"model": "x", "backend": "good"},
    "/session": {"key": "x"},
}
PLACES = [(path, field) for path, fields in FIELDS.items() for field in fields if field != "test"]


def filled(path: str, field: str, text: str) -> dict[str, Any]:
    old = FIELDS[path][field]
    new: Any = [text] if isinstance(old, list) else {text: text} if isinstance(old, dict) else text
    return {**FIELDS[path], field: new}


@pytest.mark.parametrize(("path", "field"), PLACES)
def test_a_field_takes_it_or_says_why_not(site: AdminSite, path: str, field: str) -> None:
    for what, text in HOSTILE.items():
        answer = site.call("POST", path, filled(path, field, text))
        assert answer.status < 500 or answer.status == 502, (what, answer.body)
        if answer.status >= 400:
            assert answer.json()["error"], what


def test_a_label_comes_back_as_it_was_written(site: AdminSite) -> None:
    for what in ("script", "attribute", "template", "comment"):
        made = site.call("POST", "/keys", {"label": HOSTILE[what]})
        assert made.status == 201, (what, made.body)
        assert site.get(f"/keys/{made.json()['key']['id']}")["label"] == HOSTILE[what]


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_a_table_of_usage_has_no_formulas_in_it(site: AdminSite, start: str) -> None:
    """Who opens it with a spreadsheet runs what a label says (OWASP, CSV injection)."""
    label = f"{start}HYPERLINK(A1)"
    made = site.call("POST", "/keys", {"label": label, "scopes": ["infer"]}).json()
    assert site.chat(made["secret"], "tiny").status == 200

    def cells() -> list[str]:
        body = site.call("GET", "/usage.csv?by=key&by=model").body.decode()
        return [row["key"] for row in csv.DictReader(io.StringIO(body))]

    until(lambda: any(label in cell for cell in cells()), "the request is in the table", 15)
    assert f"'{label}" in cells()
    assert not [cell for cell in cells() if cell.startswith(start)]


def test_a_search_for_anything_is_answered(site: AdminSite) -> None:
    for what, text in HOSTILE.items():
        answer = site.call("GET", f"/models?query={quote(text[:1000], safe='')}")
        assert (answer.status, answer.json()["total"]) == (200, 0), what
        assert answer.json()["query"] == text[:1000]
