"""Keys over the wire: every way to present one, what each may, and what is said to those who may not."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import anthropic
import ollama
import openai
import pytest

from conformance.fakes.http import RawClient, RawResponse, fetch
from conformance.fakes.models import FakeModel
from conformance.fakes.ollama import FakeOllama
from proxy_app.domain.callers import ALL_SCOPES
from proxy_app.web.guards import Route
from proxy_app.web.routes import TABLE
from tests.keys import ADMIN, STRANGER, Signer, basic, bearer, new_key, revoke, ways
from tests.product import NO_BREAKER, question
from tests.wire.shows import gateway, until

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

HELLO = [{"role": "user", "content": "hi"}]
SAID = "Hello from one."
SIGNER = Signer()
PAGE = "https://chat.example"
FORM = "application/x-www-form-urlencoded"


@dataclass
class Site:
    """A product with keys, shared by the module's tests. `keys`: by label."""

    url: str
    folder: Path
    fake: FakeOllama
    keys: dict[str, str] = field(default_factory=dict)

    def ask(
        self, path: str, key: str | None = None, method: str | None = None, asked: Any = None, **headers: str
    ) -> RawResponse:
        """One request; `key` is a label. A path of an inference route gets its usual question."""
        if asked is None and path.startswith(("/api/chat", "/v1/chat", "/v1/messages", "/api/generate")):
            asked = question(path)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        given = bearer(self.keys[key]) if key else {}
        return fetch(self.url + path, method or ("GET" if asked is None else "POST"), json=asked, headers=given | sent)

    def show(self, model: str, key: str, **fields: Any) -> RawResponse:
        return self.ask("/api/show", key, asked={"model": model, **fields})


def make_keys(folder: Path) -> dict[str, str]:
    made = {f"only-{scope}": new_key(folder, f"only-{scope}", scopes=(scope,)) for scope in sorted(ALL_SCOPES)}
    for scope in sorted(ALL_SCOPES - {"admin"}):
        others = tuple(sorted(ALL_SCOPES - {scope, "admin"}))
        made[f"not-{scope}"] = new_key(folder, f"not-{scope}", scopes=others)
    made["user"] = new_key(folder, "user")
    made["tiny"] = new_key(folder, "tiny", models=("Tiny*",))
    made["other"] = new_key(folder, "other", models=("me/*",))
    made["cloud"] = new_key(folder, "cloud", models=("big:120b-cloud",))
    made["local"] = new_key(folder, "local", models=("big:120b",))
    made["store"] = new_key(folder, "store", scopes=("manage", "read"), models=("mine*",))
    made["here"] = new_key(folder, "here", networks=("127.0.0.0/8",))
    made["away"] = new_key(folder, "away", networks=("10.0.0.0/8", "2001:db8::/32"))
    made["signer"] = new_key(folder, "signer", signer=SIGNER.line)
    made["short"] = new_key(folder, "short", lives_s=0.001)
    made["ended"] = new_key(folder, "ended")
    revoke(folder, "ended")
    return made


MODELS = ["tiny", "tiny2", "me/one", FakeModel("big:120b"), "mine"]


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeOllama]:
    with FakeOllama("one", MODELS) as started:
        started.cloud_models = {"big:120b": FakeModel("big:120b")}
        yield started


@pytest.fixture(scope="module")
def site(fake: FakeOllama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("keys")
    made = make_keys(folder)
    more = {"CARAVAN_ADMIN_KEY": ADMIN, "CARAVAN_KEY_IN_PATH": "1", "CARAVAN_ORIGINS": PAGE}
    with gateway([fake], folder, **more, **NO_BREAKER) as process:
        yield Site(process.url, folder, fake, made | {"bootstrap": ADMIN})


@pytest.fixture(scope="module")
def behind(fake: FakeOllama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One behind a proxy, that takes no key in the path."""
    folder = tmp_path_factory.mktemp("behind")
    made = make_keys(folder)
    with gateway([fake], folder, CARAVAN_TRUSTED_HOPS="1", **NO_BREAKER) as process:
        yield Site(process.url, folder, fake, made)


# -- what is no model --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/experimental/web_search", "/api/experimental/web_fetch"])
def test_who_may_use_no_cloud_model_searches_with_nobodys_account(site: Site, path: str) -> None:
    asked = {"query": "x", "url": "https://example.com"}
    site.fake.forget_requests()
    for key in ("tiny", "local"):
        answer = site.ask(path, key, asked=asked)
        assert (answer.status, "cloud" in answer.json()["error"]) == (403, True)
    assert site.fake.count(path) == 0
    for key in ("user", "cloud"):
        site.ask(path, key, asked=asked)
    assert site.fake.count(path) == 2


def test_a_body_that_is_packed_is_no_form(site: Site) -> None:
    """It has to be read as it will be by whoever unpacks it."""
    form = b"\x1f\x8b\x08\x08aaaaaa&model=tiny&\x00" + gzip.compress(b'{"model":"mine"}')[10:]
    for path in ("/api/chat", "/v1/chat/completions", "/v1/messages"):
        headers = {**bearer(site.keys["tiny"]), "Content-Type": FORM, "Content-Encoding": "gzip"}
        site.fake.forget_requests()
        assert fetch(site.url + path, "POST", form, headers).status == 400
        assert site.fake.count(path) == 0


def test_a_form_names_the_model_that_the_backend_will_take(site: Site) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n--x--\r\n'
    headers = {**bearer(site.keys["tiny"]), "Content-Type": "multipart/form-data; boundary=x"}
    path = "/v1/audio/transcriptions"
    for query in ("?model=mine", "?%6dodel=mine"):
        assert fetch(site.url + path + query, "POST", body, headers).status == 400


# -- ways to present a key ---------------------------------------------------------------------------

ASKED = ("/api/tags", "/api/chat", "/v1/models", "/v1/chat/completions", "/v1/messages")


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("way", ways(""))
def test_a_key_is_taken_in_every_way(site: Site, way: str, path: str) -> None:
    assert site.ask(path, **ways(site.keys["user"])[way]).status == 200


@pytest.mark.parametrize("path", ASKED)
def test_a_key_is_taken_from_the_path_where_that_was_said(site: Site, path: str) -> None:
    asked = None if "models" in path or "tags" in path else question(path)
    assert site.ask(f"/k/{site.keys['user']}{path}", asked=asked).status == 200
    assert site.ask(f"/k/{STRANGER}{path}", asked=asked).status == 401


def test_a_key_of_the_path_is_the_one_that_counts(site: Site) -> None:
    path = f"/k/{site.keys['ended']}/api/tags"
    assert site.ask(path, "user").status == 401


@pytest.mark.parametrize("form", ["/k//api/tags", "/k/{}", "/k/{}x/api/tags", "/K/{}/api/tags", "/api/tags/k/{}"])
def test_no_other_path_has_a_key_in_it(site: Site, form: str) -> None:
    answer = site.ask(form.format(site.keys["user"]))
    assert answer.status != 200 or answer.body == b"Ollama is running"
    assert site.keys["user"].encode() not in answer.head + answer.body


def test_a_redirect_stays_below_the_key(site: Site) -> None:
    prefix = f"/k/{site.keys['user']}"
    assert site.ask(f"{prefix}/api/tags/").header("location") == f"{prefix}/api/tags"
    assert site.ask(f"{prefix}//api/tags").header("location") == f"{prefix}/api/tags"


def test_a_key_in_the_path_is_none_unless_that_was_said(behind: Site) -> None:
    answer = behind.ask(f"/k/{behind.keys['user']}/api/tags")
    assert (answer.status, answer.body) == (404, b"404 page not found")


@pytest.mark.parametrize("method", ["POST", "GET", "HEAD"])
def test_the_signature_of_ollamas_command_is_taken(site: Site, method: str) -> None:
    path = "/api/show" if method == "POST" else "/api/tags"
    target, headers = SIGNER.request(method, path)
    assert site.ask(target, None, method, {"model": "tiny"} if method == "POST" else None, **headers).status == 200


@pytest.mark.parametrize(
    ("method", "signed_path", "off_s"),
    [("GET", "/api/tags", 0), ("POST", "/api/tags", 0), ("POST", "/api/show", -400), ("POST", "/api/show", 400)],
)
def test_a_signature_for_something_else_or_another_time_is_refused(
    site: Site, method: str, signed_path: str, off_s: int
) -> None:
    target, headers = SIGNER.request(method, signed_path, int(time.time()) + off_s)
    answer = site.ask("/api/show?" + target.partition("?")[2], asked={"model": "tiny"}, **headers)
    assert answer.status == 401


def test_a_signature_of_somebody_else_is_refused(site: Site) -> None:
    target, headers = Signer(bytes(32)).request("POST", "/api/show")
    assert site.ask(target, asked={"model": "tiny"}, **headers).status == 401


def wrong(site: Site) -> dict[str, dict[str, str]]:
    good = site.keys["user"]
    return {
        "none": {},
        "empty": {"Authorization": ""},
        "no scheme": {"Authorization": good},
        "other scheme": {"Authorization": f"Token {good}"},
        "dummy": bearer("ollama"),
        "stranger": bearer(STRANGER),
        "truncated": bearer(good[:-1]),
        "longer": bearer(f"{good}A"),
        "upper": bearer(good.upper()),
        "id": bearer(good[3:11]),
        "revoked": bearer(site.keys["ended"]),
        "expired": bearer(site.keys["short"]),
        "revoked, x-api-key": {"X-API-Key": site.keys["ended"]},
        "revoked, basic": {"Authorization": basic("me", site.keys["ended"])},
        "elsewhere": bearer(site.keys["away"]),
        "admin's beginning": bearer(ADMIN[:-1]),
        "two": {"Authorization": f"Bearer {STRANGER}, Bearer {good}"},
        "cookie": {"Cookie": f"key={good}"},
        "proxy": {"Proxy-Authorization": f"Bearer {good}"},
    }


def test_anything_else_is_a_401_and_reaches_no_backend(site: Site) -> None:
    before = site.fake.count("/api/chat")
    bodies = set()
    for name, headers in wrong(site).items():
        for path in ("/api/tags", "/api/chat"):
            answer = site.ask(path, **headers)
            assert answer.status == 401, name
            bodies.add(answer.body)
    assert site.fake.count("/api/chat") == before
    # Why a key is not good is nobody's business but its owner's.
    assert len(bodies) == 1


def test_a_query_is_no_place_for_a_key(site: Site) -> None:
    for name in ("key", "api_key", "token", "access_token"):
        assert site.ask(f"/api/tags?{name}={site.keys['user']}").status == 401


def test_a_key_counts_from_its_network_alone(site: Site) -> None:
    assert site.ask("/api/tags", "here").status == 200
    assert site.ask("/api/tags", "away").status == 401


@pytest.mark.parametrize(
    ("address", "status"),
    [("10.1.2.3", 200), ("::ffff:10.1.2.3", 200), ("2001:db8::7", 200), ("11.1.2.3", 401), ("2001:db9::1", 401)],
)
def test_behind_a_proxy_the_client_is_who_it_says_asks(behind: Site, address: str, status: int) -> None:
    assert behind.ask("/api/tags", "away", X_Forwarded_For=f"8.8.8.8, {address}").status == status


def test_without_a_proxy_nobody_says_who_asks(site: Site) -> None:
    assert site.ask("/api/tags", "away", X_Forwarded_For="10.1.2.3", X_Real_IP="10.1.2.3").status == 401


def test_a_key_that_is_revoked_ends_what_it_may_at_once(site: Site) -> None:
    key = new_key(site.folder, "brief")
    until(lambda: site.ask("/api/tags", **bearer(key)).status == 200, "a new key is let in")
    revoke(site.folder, "brief")
    until(lambda: site.ask("/api/tags", **bearer(key)).status == 401, "it is refused")


# -- the 401 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ASKED)
def test_a_401_has_the_form_of_its_route(site: Site, path: str) -> None:
    answer = site.ask(path)
    said = answer.json()
    assert answer.header("www-authenticate") == 'Bearer realm="caravan"'
    assert answer.header("retry-after") is None
    message = "unauthorized: a valid API key is needed"
    if path.startswith("/api/"):
        # Ollama's own command shows `status` of a 401, and nothing else (api/client.go:48-52, v0.33.0-rc2).
        assert said == {"error": message, "status": message}
    elif path == "/v1/messages":
        assert (said["type"], said["error"]) == ("error", {"type": "authentication_error", "message": message})
    else:
        assert said["error"]["type"] == "authentication_error"
        assert said["error"]["message"] == message


def test_a_401_says_nothing_of_what_exists(site: Site) -> None:
    bodies = {site.ask("/api/show", asked={"model": model}).body for model in ("tiny", "nobody", "../x", "")}
    assert len(bodies) == 1


def test_what_needs_no_key_needs_none(site: Site) -> None:
    for path in ("/", "/livez", "/readyz"):
        for headers in ({}, bearer(STRANGER), bearer(site.keys["ended"])):
            assert site.ask(path, **headers).status == 200
    assert site.ask("/", method="HEAD").status == 200


def test_an_unknown_path_is_the_same_for_everybody(site: Site) -> None:
    for key in (None, "user", "bootstrap"):
        answer = site.ask("/no/such/path", key)
        assert (answer.status, answer.body) == (404, b"404 page not found")


# -- scopes -----------------------------------------------------------------------------------------

# What a login opens too has tests of its own.
ROWS = [(route, method) for route in TABLE for method in route.methods if route.scope != "open" and not route.login]


def send(site: Site, route: Route, method: str, key: str | None) -> RawResponse:
    head, _, rest = route.path.partition("<")
    asked = {} if method in ("POST", "DELETE") else None
    return site.ask(head + ("sha256-0" if rest else ""), key, method, asked)


@pytest.mark.parametrize(("route", "method"), ROWS, ids=lambda part: getattr(part, "endpoint", part))
def test_every_route_needs_its_scope(site: Site, route: Route, method: str) -> None:
    assert send(site, route, method, None).status == 401
    refused = send(site, route, method, f"not-{route.scope}")
    assert refused.status == 403
    if method != "HEAD":
        assert f"this key does not have the scope '{route.scope}'" in refused.body.decode()
    for key in (f"only-{route.scope}", "only-admin", "bootstrap"):
        answer = send(site, route, method, key)
        assert answer.status not in (401, 500), key
        assert b"scope" not in answer.body, key
        assert method != "HEAD" or answer.status != 403


def test_the_403_of_a_missing_scope_has_the_form_of_its_route(site: Site) -> None:
    said = "this key does not have the scope 'infer'"
    assert site.ask("/api/chat", "not-infer").json() == {"error": said}
    assert site.ask("/v1/chat/completions", "not-infer").json()["error"]["type"] == "permission_error"
    answer = site.ask("/v1/messages", "not-infer").json()
    assert (answer["type"], answer["error"]) == ("error", {"type": "permission_error", "message": said})


# -- pages of other origins -------------------------------------------------------------------------


def test_a_preflight_needs_no_key_and_lets_keys_through(site: Site) -> None:
    for path in ("/api/chat", "/v1/messages", "/v1/models"):
        answer = site.ask(path, None, "OPTIONS", Origin=PAGE, Access_Control_Request_Method="POST")
        assert answer.status == 204
        assert answer.header("access-control-allow-origin") == PAGE
        allowed = {name.strip().lower() for name in (answer.header("access-control-allow-headers") or "").split(",")}
        assert {"authorization", "x-api-key", "content-type", "anthropic-version"} <= allowed


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [
        ("/api/tags", None, 401),
        ("/v1/models", None, 401),
        ("/api/chat", "not-infer", 403),
        ("/api/chat", "other", 403),
        ("/no/such", None, 404),
        ("/api/tags", "user", 200),
    ],
)
def test_an_allowed_page_can_read_every_answer(site: Site, path: str, key: str | None, status: int) -> None:
    answer = site.ask(path, key, Origin=PAGE)
    assert (answer.status, answer.header("access-control-allow-origin")) == (status, PAGE)
    vary = {word.strip().lower() for value in answer.all("vary") for word in value.split(",")}
    assert "origin" in vary
    # With `*` or credentials, any page could use what a browser remembers.
    assert answer.header("access-control-allow-credentials") is None


def test_a_page_that_is_not_allowed_gets_nothing_with_the_best_key(site: Site) -> None:
    answer = site.ask("/api/tags", "bootstrap", Origin="https://evil.example")
    assert (answer.status, answer.body, answer.header("access-control-allow-origin")) == (403, b"", None)


# -- models that may be used ------------------------------------------------------------------------

CHATS = ("/api/chat", "/api/generate", "/v1/chat/completions", "/v1/messages")


def names(answer: RawResponse) -> set[str]:
    said = answer.json()
    return {item.get("name") or item["id"] for item in said.get("models") or said.get("data") or ()}


def hidden(name: str) -> str:
    return f"model '{name}' is not available with this key"


@pytest.mark.parametrize("path", CHATS)
def test_a_key_chats_with_its_own_models_alone(site: Site, path: str) -> None:
    for model in ("tiny", "TINY:latest", "tiny2"):
        assert site.ask(path, "tiny", asked=question(path, model, stream=False)).status == 200
    before = site.fake.count(path)
    for model in ("me/one", "big:120b", "big:120b-cloud", "nobody", "tin", "x/tiny"):
        answer = site.ask(path, "tiny", asked=question(path, model))
        assert answer.status == 403
        assert hidden(model) in answer.body.decode()
    assert site.fake.count(path) == before


@pytest.mark.parametrize("path", CHATS)
def test_no_content_type_hides_which_model_is_asked(site: Site, path: str) -> None:
    """A backend reads JSON whatever the content type says, and ignores what follows the first value."""
    asked = json.dumps(question(path, "me/one", stream=False)).encode()
    form = b'\r\n--X\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n--X--\r\n'
    words = b" " * 70 + asked[:-1] + b',"x":"&model=tiny&"}'
    sent = {"multipart/form-data; boundary=X": asked + form, "application/x-www-form-urlencoded": words}
    before = site.fake.count(path)
    for content_type, body in sent.items():
        with RawClient(site.url) as client:
            headers = {"Content-Type": content_type, **bearer(site.keys["tiny"])}
            answer = client.request("POST", path, body, headers)
        assert answer.status == 403
        assert hidden("me/one") in answer.body.decode()
    assert site.fake.count(path) == before


def test_a_key_sees_its_own_models_alone(site: Site) -> None:
    assert site.show("tiny", "tiny").status == 200
    assert site.show("me/one", "other").status == 200
    assert site.ask("/v1/models/tiny2", "tiny").status == 200
    assert site.ask("/v1/models/me/one", "other").status == 200
    for model, key in (("me/one", "tiny"), ("tiny", "other"), ("big:120b", "tiny")):
        assert (site.show(model, key).status, site.show(model, key).json()) == (403, {"error": hidden(model)})
        assert site.ask(f"/v1/models/{model}", key).status == 403


@pytest.mark.parametrize("path", ["/api/tags", "/v1/models"])
def test_a_listing_has_what_the_key_may_use(site: Site, path: str) -> None:
    everything = {"tiny:latest", "tiny2:latest", "me/one:latest", "big:120b", "mine:latest"}
    assert names(site.ask(path, "user")) == names(site.ask(path, "bootstrap")) == everything
    assert names(site.ask(path, "tiny")) == {"tiny:latest", "tiny2:latest"}
    assert names(site.ask(path, "other")) == {"me/one:latest"}
    assert names(site.ask(path, "local")) == {"big:120b"}
    assert names(site.ask(path, "cloud")) == set()


@pytest.mark.parametrize("path", ["/api/tags", "/v1/models"])
def test_an_entry_of_a_short_listing_is_the_entry_of_the_long_one(site: Site, path: str) -> None:
    def entries(key: str) -> list[str]:
        said = site.ask(path, key).json()
        return [json.dumps(item) for item in said.get("models") or said["data"]]

    long = entries("user")
    assert [entry for entry in long if '"me/one' in entry] == entries("other")
    assert [entry for entry in long if '"tiny' in entry] == entries("tiny")


def test_ps_has_what_the_key_may_use(site: Site) -> None:
    for model in ("tiny", "me/one"):
        site.fake.load_model(model)
    until(lambda: names(site.ask("/api/ps", "user")) >= {"tiny:latest", "me/one:latest"}, "both are loaded")
    assert "me/one:latest" not in names(site.ask("/api/ps", "tiny"))
    assert names(site.ask("/api/ps", "other")) == {"me/one:latest"}
    assert names(site.ask("/api/ps", "cloud")) == set()


def test_a_cloud_model_needs_a_pattern_of_its_own(site: Site) -> None:
    name = "big:120b-cloud"
    assert site.ask("/api/chat", "cloud", asked=question("/api/chat", name, stream=False)).status == 200
    assert site.show(name, "cloud").status == 200
    for asked in (
        site.ask("/api/chat", "local", asked=question("/api/chat", name)),
        site.show(name, "local"),
        site.ask("/api/chat", "cloud", asked=question("/api/chat", "big:120b")),
    ):
        assert asked.status == 403


STORE: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/api/pull", {"model": "yours"}),
    ("POST", "/api/push", {"model": "tiny"}),
    ("POST", "/api/create", {"model": "yours", "from": "mine"}),
    ("POST", "/api/create", {"model": "mine2", "from": "tiny"}),
    ("POST", "/api/create", {"model": "mine2", "from": "big:120b-cloud"}),
    ("POST", "/api/copy", {"source": "tiny", "destination": "mine2"}),
    ("POST", "/api/copy", {"source": "mine", "destination": "tiny"}),
    ("DELETE", "/api/delete", {"model": "tiny"}),
]


@pytest.mark.parametrize(("method", "path", "asked"), STORE)
def test_a_key_changes_its_own_models_alone(site: Site, method: str, path: str, asked: dict[str, Any]) -> None:
    before = site.fake.count(path)
    answer = site.ask(path, "store", method, asked)
    assert (answer.status, site.fake.count(path)) == (403, before)
    assert "is not available with this key" in answer.json()["error"]


@pytest.mark.parametrize("more", [{"from": "mine", "remote_host": "https://ollama.com"}, {"from": "-"}])
def test_a_key_with_models_makes_none_of_another_hosts(site: Site, more: dict[str, str]) -> None:
    before = site.fake.count("/api/create")
    answer = site.ask("/api/create", "store", "POST", {"model": "mine2", **more})
    assert (answer.status, site.fake.count("/api/create")) == (403, before)


def test_a_key_that_manages_changes_what_is_its_own(site: Site) -> None:
    assert site.ask("/api/copy", "store", "POST", {"source": "mine", "destination": "mine3"}).status == 200
    # The answer is held until the change is seen, but not for ever.
    until(lambda: "mine3:latest" in names(site.ask("/api/tags", "store")), "the copy is seen")
    assert site.ask("/api/delete", "store", "DELETE", {"model": "mine3"}).status == 200
    until(lambda: "mine3:latest" not in names(site.ask("/api/tags", "store")), "the next test finds what was there")


# -- what a cache may do ----------------------------------------------------------------------------

METADATA = ("/api/tags", "/v1/models", "/v1/models/tiny", "/api/ps", "/api/version", "/api/status")


@pytest.mark.parametrize("path", METADATA)
def test_an_answer_is_for_who_asked(site: Site, path: str) -> None:
    for key in ("user", "tiny"):
        answer = site.ask(path, key)
        directives = {word.strip() for value in answer.all("cache-control") for word in value.split(",")}
        assert "private" in directives
        assert "public" not in directives
        vary = {word.strip().lower() for value in answer.all("vary") for word in value.split(",")}
        assert {"authorization", "x-api-key"} <= vary


def test_a_show_is_for_who_asked(site: Site) -> None:
    answer = site.show("tiny", "tiny")
    assert "private" in (answer.header("cache-control") or "")
    vary = {word.strip().lower() for value in answer.all("vary") for word in value.split(",")}
    assert {"authorization", "x-api-key"} <= vary


@pytest.mark.parametrize("path", ["/api/tags", "/v1/models"])
def test_every_view_has_its_own_etag(site: Site, path: str) -> None:
    etags = {key: site.ask(path, key).header("etag") or "" for key in ("user", "tiny", "other", "bootstrap")}
    assert etags["user"] == etags["bootstrap"]
    assert len({etags[key] for key in ("user", "tiny", "other")}) == 3
    for key, own in etags.items():
        for etag in set(etags.values()):
            answer = site.ask(path, key, If_None_Match=etag)
            assert answer.status == (304 if etag == own else 200)
            assert "private" in (answer.header("cache-control") or "")


def test_views_follow_the_fleet(site: Site) -> None:
    before = site.ask("/api/tags", "tiny").header("etag")
    site.fake.add_model("tiny3")
    try:
        until(lambda: "tiny3:latest" in names(site.ask("/api/tags", "tiny")), "the new model is listed")
        assert site.ask("/api/tags", "tiny").header("etag") != before
        assert names(site.ask("/api/tags", "other")) == {"me/one:latest"}
    finally:
        site.fake.remove_model("tiny3")
    until(lambda: site.ask("/api/tags", "tiny").header("etag") == before, "it is gone again")


def test_many_views_are_all_right_at_once(site: Site) -> None:
    """More allow-lists than a worker remembers, asked in turn."""
    made = {n: new_key(site.folder, f"view-{n}", models=(f"x{n}", "tiny" if n % 2 else "tiny2")) for n in range(70)}
    until(lambda: site.ask("/api/tags", **bearer(made[69])).status == 200, "the last key is known")
    for _ in range(2):
        for n, key in made.items():
            wanted = {"tiny:latest" if n % 2 else "tiny2:latest"}
            assert names(site.ask("/api/tags", **bearer(key))) == wanted


# -- the official clients, with a key from where they usually have it --------------------------------


@pytest.fixture
def environment() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def given(stack: ExitStack, **variables: str) -> None:
    stack.enter_context(mock.patch.dict("os.environ", variables))


def test_ollamas_client_has_its_key_from_its_variable(site: Site, environment: ExitStack) -> None:
    given(environment, OLLAMA_HOST=site.url, OLLAMA_API_KEY=site.keys["tiny"])
    client = environment.enter_context(ollama.Client())
    assert {model.model for model in client.list().models} == {"tiny:latest", "tiny2:latest"}
    assert client.chat("tiny", HELLO).message.content == SAID
    assert "".join(part.message.content or "" for part in client.chat("tiny", HELLO, stream=True)) == SAID
    with pytest.raises(ollama.ResponseError, match="not available with this key") as caught:
        client.chat("me/one", HELLO)
    assert caught.value.status_code == 403


def test_ollamas_client_hears_that_it_needs_a_key(site: Site, environment: ExitStack) -> None:
    given(environment, OLLAMA_HOST=site.url, OLLAMA_API_KEY="")
    client = environment.enter_context(ollama.Client())
    with pytest.raises(ollama.ResponseError, match="unauthorized: a valid API key is needed") as caught:
        client.list()
    assert caught.value.status_code == 401


def test_openais_client_has_its_key_from_its_variable(site: Site, environment: ExitStack) -> None:
    given(environment, OPENAI_BASE_URL=f"{site.url}/v1", OPENAI_API_KEY=site.keys["tiny"])
    client = environment.enter_context(openai.OpenAI(max_retries=0))
    assert {model.id for model in client.models.list()} == {"tiny:latest", "tiny2:latest"}
    answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content == SAID
    with pytest.raises(openai.PermissionDeniedError, match="not available with this key"):
        client.models.retrieve("nobody")


def test_openais_client_hears_that_it_needs_a_key(site: Site, environment: ExitStack) -> None:
    client = environment.enter_context(openai.OpenAI(base_url=f"{site.url}/v1", api_key="ollama", max_retries=0))
    with pytest.raises(openai.AuthenticationError, match="a valid API key is needed"):
        client.models.list()


@pytest.mark.parametrize("variable", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"])
def test_anthropics_client_has_its_key_from_its_variables(
    site: Site, environment: ExitStack, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    given(environment, **{"ANTHROPIC_BASE_URL": site.url, variable: site.keys["tiny"]})
    client = environment.enter_context(anthropic.Anthropic(max_retries=0))
    answer = client.messages.create(model="tiny", max_tokens=100, messages=[{"role": "user", "content": "hi"}])
    assert answer.content[0].text == SAID  # type: ignore[union-attr]
    with pytest.raises(anthropic.PermissionDeniedError, match="not available with this key"):
        client.messages.create(model="me/one", max_tokens=100, messages=[{"role": "user", "content": "hi"}])


def test_anthropics_client_hears_that_it_needs_a_key(site: Site, environment: ExitStack) -> None:
    client = environment.enter_context(anthropic.Anthropic(base_url=site.url, api_key="ollama", max_retries=0))
    with pytest.raises(anthropic.AuthenticationError, match="a valid API key is needed"):
        client.messages.create(model="tiny", max_tokens=100, messages=[{"role": "user", "content": "hi"}])
