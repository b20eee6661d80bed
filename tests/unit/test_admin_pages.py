"""The admin pages show texts of others as texts, whatever those are, and keep to their own Content-Security-Policy."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import TypeVar

import pytest
from flask import Flask, g
from flask.testing import FlaskClient
from msgspec.structs import replace

from proxy_app.services.admin import shapes
from proxy_app.services.relayed import is_fault
from proxy_app.web import admin_pages

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}"
T = TypeVar("T")
HOSTILE = (EVIL, "x" * 10_000, "\u202eשלום עולם", "🦙👩‍👩‍👧‍👦", "' autofocus onfocus=alert(3) x='")
PAGES = tuple(path for _, path, _ in admin_pages.NAV)


class Hostile:
    """A reader whose every text is the one it was given; empty where there is none."""

    def __init__(self, text: str | None) -> None:
        self.text = text or ""
        self.is_empty = text is None
        self.server = SimpleNamespace(key_in_path=False)

    def fleet(self) -> shapes.FleetView:
        t = self.text
        loaded = [shapes.LoadedModel(name=t, size=2, size_vram=1, expires_at=t)]
        backend = shapes.BackendView(
            id=1,
            name=t,
            url=t,
            origin="operator",
            priority=0,
            state="down",
            since=0.0,
            error=t,
            version=t,
            draining=True,
            in_flight=1,
            breaker="open",
            models=1,
            alone=[t],
            loaded=loaded,
            header_names=[t],
        )
        notice = shapes.Notice(kind="one-holder", level="warning", text=t, subjects=[t])
        return shapes.FleetView(at=0.0, backends=self._all(backend), notices=self._all(notice))

    def backend_names(self) -> list[str]:
        return self._all(self.text)

    def models(self, query: str, page: int) -> shapes.ModelsView:
        t = self.text
        holder = shapes.HolderView(backend=t, digest=t, is_live=True, is_current=False, is_loaded=True)
        model = shapes.ModelView(
            name=t,
            digest=t,
            holders=[holder],
            size=1,
            modified_at=t,
            family=t,
            parameter_size=t,
            quantization=t,
            capabilities=[t],
            context_length=1,
            cache=shapes.CacheView(stored_at=0.0, size=1),
        )
        return shapes.ModelsView(models=self._all(model), total=1, page=page, pages=page + 1, query=query)

    def traffic(self) -> shapes.TrafficView:
        t = self.text
        running = shapes.Running(id=t, request_id=t, route=t, model=t, key=t, started_at=0.0)
        finished = shapes.Finished(
            id=t,
            request_id=t,
            at=0.0,
            route=t,
            model=t,
            key=t,
            status=502,
            outcome=t,
            is_fault=True,
            attempts=[t, t],
            backend=t,
            total_s=1.0,
            explanation=t,
        )
        return shapes.TrafficView(running=self._all(running), finished=self._all(finished), is_partial=True)

    def chart(self, span_s: float) -> shapes.ChartView:
        used = shapes.GpuPoint(at=0.0, gpu_s={self.text: 1.0})
        return shapes.ChartView(span_s=span_s, step_s=60, points=[shapes.Point(at=0.0)], gpu_points=[used])

    def keys(self) -> shapes.KeysView:
        t = self.text
        key = shapes.KeyView(
            id=t,
            label=t,
            scopes=[t],
            models=[t],
            networks=[t],
            limits=t,
            has_signer=True,
            created_at=0.0,
            replaces=t,
            state="valid",
        )
        return shapes.KeysView(keys=self._all(key))

    def events(self, kind: str, before: int | None) -> shapes.EventsView:
        t = self.text
        event = shapes.EventView(id=1, at=0.0, kind=t, level="error", who=t, subject=t, text=t)
        return shapes.EventsView(events=self._all(event), more=True)

    def settings(self) -> shapes.SettingsView:
        t = self.text
        one = shapes.SettingView(name=t, value=t, origin="environment", unit=t, help=t, is_secret=False)
        return shapes.SettingsView(settings=self._all(one))

    def usage(self, since_s: float, by: tuple[str, ...]) -> shapes.UsageView:
        parts = dict.fromkeys(by, self.text)
        row = shapes.UsageRow(
            parts=parts, requests=1, errors=0, tokens_in=1, tokens_out=1, gpu_s=1.0, load_s=0.0, estimated=0
        )
        return shapes.UsageView(since=since_s, by=list(by), rows=self._all(row))

    def _all(self, *items: T) -> list[T]:
        return [] if self.is_empty else list(items)


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def client(text: str | None, key_id: str = "abcdefgh", **changes: object) -> FlaskClient:
    """The pages over a hostile reader. changes: what it answers differently."""
    admin = Hostile(text)
    for name, value in changes.items():
        setattr(admin, name, value)
    app = Flask("proxy_app", template_folder="web/templates", static_folder=None)
    app.extensions["proxy"] = SimpleNamespace(
        admin=admin, access=SimpleNamespace(labels=lambda: {key_id: admin.text, admin.text: admin.text})
    )
    app.before_request(lambda: setattr(g, "caller", SimpleNamespace(key_id=key_id)))
    for name, path, _ in admin_pages.NAV:
        app.add_url_rule(path, name, getattr(admin_pages, name))
    app.add_url_rule("/admin/login", "login", admin_pages.login)
    app.add_url_rule("/admin/static/<name>", "asset", admin_pages.asset)
    return app.test_client()


@pytest.mark.parametrize("text", [*HOSTILE, None])
@pytest.mark.parametrize("path", PAGES)
def test_no_text_becomes_markup(path: str, text: str | None) -> None:
    answer = client(text).get(path, query_string={"query": text, "kind": text})
    assert answer.status_code == 200
    tags = Tags(answer.get_data(as_text=True)).found
    assert [attrs for tag, attrs in tags if tag == "script"] == [
        {"type": "module", "src": admin_pages._address("admin.js")}
    ]
    assert not [tag for tag, _ in tags if tag in ("img", "style", "iframe", "object", "base")]
    assert not [attrs for _, attrs in tags for name in attrs if name.startswith("on") or name == "style"]
    assert {tag for tag, attrs in tags if "autofocus" in attrs} <= {"button"}


@pytest.mark.parametrize(
    ("status", "outcome", "kind"),
    [
        (200, "complete", "good"),
        (400, "complete", "warning"),
        (429, "limited", "warning"),
        (200, "client_gone", "warning"),
        (200, "cancelled", "warning"),
        (503, "cancelled", "warning"),
        (200, "truncated", "bad"),
        (200, "silent", "bad"),
        (502, "all_backends_failed", "bad"),
    ],
)
def test_the_mark_of_a_request_is_that_of_its_end(status: int, outcome: str, kind: str) -> None:
    row = replace(
        Hostile("x").traffic().finished[0], status=status, outcome=outcome, is_fault=is_fault(status, outcome)
    )
    view = shapes.TrafficView(running=[], finished=[row])
    page = client("x", traffic=lambda: view).get("/admin/traffic").get_data(as_text=True)
    (found,) = re.findall(rf'<span class="badge (\w+)">[^/]*</span> {outcome}<', page)
    assert found == kind


@pytest.mark.parametrize("path", PAGES)
def test_ids_are_given_once(path: str) -> None:
    ids = re.findall(r'\bid="([^"]*)"', client("one").get(path).get_data(as_text=True))
    assert len(ids) == len(set(ids))


def test_a_file_is_kept_for_as_long_as_its_address_says_its_content() -> None:
    assert "immutable" in client("one").get(admin_pages._address("admin.js")).headers["Cache-Control"]


@pytest.mark.parametrize("name", ["..%2fadmin_pages.py", "admin.py", "", "admin.css%00"])
def test_nothing_but_the_files_of_the_pages_is_served(name: str) -> None:
    assert client("one").get(f"/admin/static/{name}").status_code == 404


@pytest.mark.parametrize(
    ("wanted", "to"),
    [
        ("/admin/models?page=2", "/admin/models?page=2"),
        ("https://evil.example/", "/admin/"),
        ("//evil.example", "/admin/"),
        ("/admin/api/usage.csv", "/admin/"),
        ("", "/admin/"),
    ],
)
def test_a_login_leads_to_a_page_of_ours(wanted: str, to: str) -> None:
    page = client("one").get("/admin/login", query_string={"next": wanted}).get_data(as_text=True)
    assert f'data-next="{to}"' in page


@pytest.mark.parametrize(
    ("base", "is_warned"),
    [("http://127.0.0.1:8080", False), ("http://10.1.2.3:8080", True), ("https://10.1.2.3", False)],
)
def test_a_connection_that_others_can_read_is_said(base: str, is_warned: bool) -> None:
    page = client("one").get("/admin/login", base_url=base).get_data(as_text=True)
    assert ("not encrypted" in page) == is_warned


def test_without_keys_there_is_no_logout_but_a_hint() -> None:
    page = client("one", key_id="").get("/admin/").get_data(as_text=True)
    assert "Make a key" in page
    assert "Log out" not in page


@pytest.mark.parametrize("query", ["page=0", "page=-1", "page=x", "page=" + "9" * 40, "query=%FF"])
def test_no_query_breaks_a_page(query: str) -> None:
    assert client("one").get(f"/admin/models?{query}").status_code == 200


@pytest.mark.parametrize("name", ["a; rm -rf ~", "$(id)", "`id`", "a'b", 'a"b', "-x", "a b"])
def test_lines_to_paste_name_no_model_that_a_shell_would_run(name: str) -> None:
    page = client(name).get("/admin/keys").get_data(as_text=True)
    assert "ollama run MODEL" in page


@pytest.mark.parametrize("key_in_path", [True, False])
def test_a_key_stands_in_an_address_only_where_that_works(key_in_path: bool) -> None:
    answer = client("one", server=SimpleNamespace(key_in_path=key_in_path)).get("/admin/keys")
    page = answer.get_data(as_text=True)
    assert ("/k/<span" in page) == key_in_path
    assert ("ollamaEndpoint" in page) == key_in_path


def test_all_but_the_newest_requests_are_folded() -> None:
    row = Hostile("x").traffic().finished[0]
    view = shapes.TrafficView(running=[], finished=[replace(row, id=str(n)) for n in range(23)])
    page = client("x", traffic=lambda: view).get("/admin/traffic").get_data(as_text=True)
    newest, older = page.split('<details id="older">')
    assert [len(re.findall(r'id="finished-\d', part)) for part in (newest, older)] == [20, 3]
    assert "Show 3 older ones" in older


def test_keys_are_called_by_their_labels() -> None:
    event = shapes.EventView(id=1, at=0.0, kind="key.revoked", level="info", who="abcdefgh", subject="other", text="x")
    view = shapes.EventsView(events=[event], more=False)
    answer = client("Ann", events=lambda kind, before: view).get("/admin/events")
    page = answer.get_data(as_text=True)
    assert "Key <bdi>Ann</bdi></button>" in page
    assert "<bdi>Ann</bdi><small><code>abcdefgh</code></small>" in page
    assert "<bdi>other</bdi>" in page, "a key that is not known any more"
