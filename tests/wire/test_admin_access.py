"""Who may call the admin API and open its pages, and how somebody stays logged in."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http.cookies import Morsel, SimpleCookie
from pathlib import Path
from typing import Any

import pytest

from conformance.fakes.http import RawResponse, fetch
from conformance.fakes.ollama import FakeOllama
from tests.admin import API, CALLS, CHANGES, COOKIE, LIVE, LOGIN, PAGES, AdminSite, Call, admin_site
from tests.keys import STRANGER, Signer, bearer, new_key, revoke, ways
from tests.product import question
from tests.wire.shows import gateway, until

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

EVIL = "https://evil.example"
# A page that may use the models, as CARAVAN_ORIGINS says: it is no admin page.
CHAT = "https://chat.example"
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
NO_COOKIE = f"{COOKIE}={'a' * 43}"
PASSWORD = "canary-of-redis"
# More than anybody mistypes, and less than a dictionary has.
GUESSES = 40


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeOllama]:
    with FakeOllama("one", ["tiny", "other"]) as started:
        yield started


@pytest.fixture(scope="module")
def site(fake: FakeOllama, redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminSite]:
    redis_server.flush()
    folder = tmp_path_factory.mktemp("admin")
    with admin_site(folder, [fake], redis_server.url, CARAVAN_ORIGINS=CHAT, CARAVAN_LOGIN_ATTEMPTS="100000") as made:
        yield made


@pytest.fixture(scope="module")
def behind(fake: FakeOllama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminSite]:
    """One behind a proxy that ends TLS, with sessions in Redis's absence."""
    with admin_site(tmp_path_factory.mktemp("behind"), [fake], workers=1, CARAVAN_TRUSTED_HOPS="1") as made:
        yield made


@pytest.fixture
def lone(fake: FakeOllama, redis_url: str, tmp_path: Path) -> Iterator[AdminSite]:
    """One that a test may lock itself out of."""
    with admin_site(tmp_path, [fake], redis_url) as made:
        yield made


@pytest.fixture(scope="module")
def slow(fake: FakeOllama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminSite]:
    """One whose workers look at the registry once in a while only, and whose Redis, with a password, is gone."""
    folder = tmp_path_factory.mktemp("slow")
    with admin_site(folder, [fake], f"redis://:{PASSWORD}@127.0.0.1:9/0", CARAVAN_RELOAD_INTERVAL="0.5") as made:
        yield made


def log_in(site: AdminSite, key: str = "admin", **headers: str) -> RawResponse:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return site.call("POST", "/session", {"key": site.keys.get(key, key)}, key=None, headers=sent)


def cookie_of(answer: RawResponse) -> Morsel[str]:
    (line,) = answer.all("set-cookie")
    (morsel,) = SimpleCookie(line).values()
    return morsel


def session(site: AdminSite, key: str = "admin") -> dict[str, str]:
    """What a browser with a new session sends from a page of the site itself."""
    cookie = cookie_of(log_in(site, key))
    return {"Cookie": f"{cookie.key}={cookie.value}", "Origin": site.url}


def named(call: Call) -> str:
    return f"{call.method} {call.path}"


# -- who may -----------------------------------------------------------------------------------------


def refused(site: AdminSite, call: Call, **options: Any) -> RawResponse:
    """Send a call that has to be refused, and change nothing."""
    answer = site.call(call.method, call.target, call.asked, **options)
    assert answer.status in (401, 403), (named(call), answer.status, answer.body)
    # What Ollama refuses too, it refuses without a word.
    assert not answer.body or "error" in answer.json()
    return answer


@pytest.fixture
def own_session(site: AdminSite) -> dict[str, str]:
    return session(site)


@pytest.fixture
def nothing_changes(site: AdminSite, fake: FakeOllama) -> Iterator[None]:
    """What a test has tried has left no trace, here and at the backend."""

    def state() -> Any:
        fleet = [(each["name"], each["url"], each["draining"]) for each in site.get("/backends")["backends"]]
        keys = [(each["id"], each["state"]) for each in site.get("/keys")["keys"]]
        return fleet, keys, sorted(model["name"] for model in site.get("/models")["models"])

    before = state()
    fake.forget_requests()
    yield
    assert state() == before
    touched = {request.path for request in fake.requests if request.method != "GET"}
    # The refresher reads what models are.
    assert touched <= {"/api/show"}


@pytest.mark.parametrize("call", CALLS, ids=named)
def test_nobody_may(site: AdminSite, call: Call, nothing_changes: None) -> None:
    for way, headers in ways(STRANGER).items():
        assert refused(site, call, key=None, headers=headers).status == 401, way
    assert refused(site, call, key=None).status == 401
    assert refused(site, call, key=None, headers={"Cookie": NO_COOKIE, "Origin": site.url}).status == 401


@pytest.mark.parametrize("call", CALLS, ids=named)
def test_a_key_without_the_scope_may_not(site: AdminSite, call: Call, nothing_changes: None) -> None:
    for key in ("user", "everything-else"):
        assert refused(site, call, key=key).status == 403
    assert b"scope 'admin'" in refused(site, call, key="user").body


FOREIGN = {
    "another page": {"Origin": EVIL},
    "a page that may chat": {"Origin": CHAT},
    "no page at all": {"Origin": "null"},
    "the same host over https": {"Origin": "https://127.0.0.1"},
    "another port": {"Origin": "http://127.0.0.1:1"},
    "a browser that says so": {"Sec-Fetch-Site": "cross-site"},
    "a neighbour's page": {"Sec-Fetch-Site": "same-site"},
}


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("call", CHANGES, ids=named)
def test_a_foreign_page_may_not_use_the_session(
    site: AdminSite, own_session: dict[str, str], call: Call, foreign: str, nothing_changes: None
) -> None:
    assert refused(site, call, key=None, headers={**own_session, **FOREIGN[foreign]}).status == 403


@pytest.mark.parametrize("call", CHANGES, ids=named)
def test_a_foreign_page_may_not_use_a_key_either(site: AdminSite, call: Call, nothing_changes: None) -> None:
    """Somebody may have typed it into the wrong page."""
    for way, headers in ways(site.keys["admin"]).items():
        for foreign in FOREIGN.values():
            assert refused(site, call, key=None, headers={**headers, **foreign}).status == 403, (way, foreign)


def test_a_foreign_page_may_not_log_in(site: AdminSite) -> None:
    """Else it would make somebody work in a session of its own."""
    for headers in FOREIGN.values():
        answer = site.call("POST", "/session", {"key": site.keys["admin"]}, key=None, headers=headers)
        assert answer.status == 403, headers
        assert not answer.all("set-cookie")


@pytest.mark.parametrize("foreign", ["another page", "a page that may chat"])
def test_a_foreign_page_reads_nothing(site: AdminSite, own_session: dict[str, str], foreign: str) -> None:
    for path in ("/backends", "/keys"):
        answer = site.call("GET", path, key=None, headers={**own_session, **FOREIGN[foreign]})
        # Without this word of the server's, no browser gives a page what it was told.
        assert answer.header("access-control-allow-origin") is None
        assert answer.header("access-control-allow-credentials") is None


def test_where_there_are_no_keys_a_page_that_may_chat_still_reads_nothing(fake: FakeOllama, tmp_path: Path) -> None:
    with gateway([fake], tmp_path, CARAVAN_ORIGINS=CHAT) as process:
        for origin in (CHAT, "http://localhost:3000"):
            headers = {"Origin": origin}
            assert fetch(f"{process.url}/api/tags", headers=headers).header("access-control-allow-origin") == origin
            for path in (f"{API}/settings", f"{API}/keys", *PAGES.values()):
                assert fetch(process.url + path, headers=headers).header("access-control-allow-origin") is None
                preflight = fetch(process.url + path, "OPTIONS", headers=headers)
                assert preflight.header("access-control-allow-origin") is None


def test_a_form_of_another_page_changes_nothing(site: AdminSite, own_session: dict[str, str]) -> None:
    """A browser sends these without asking first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        sent = {**own_session, "Content-Type": kind, "Sec-Fetch-Site": "cross-site"}
        asked = json.dumps({"label": "from-a-form"}).encode()
        answer = fetch(f"{site.url}{API}/keys", "POST", asked, sent)
        assert answer.status in (401, 403, 415)
    assert "from-a-form" not in [key["label"] for key in site.get("/keys")["keys"]]


@pytest.mark.parametrize("call", [call for call in CALLS if call.method == "GET"], ids=named)
def test_an_admin_key_and_a_session_may_read(site: AdminSite, own_session: dict[str, str], call: Call) -> None:
    assert site.call("GET", call.target).status in (200, 404)
    assert site.call("GET", call.target, key=None, headers=own_session).status in (200, 404)


def test_a_session_changes_things_from_its_own_page(site: AdminSite, own_session: dict[str, str]) -> None:
    for headers in (own_session, {"Cookie": own_session["Cookie"], "Sec-Fetch-Site": "same-origin"}):
        made = site.call("POST", "/keys", {"label": "mine"}, key=None, headers=headers)
        assert made.status == 201, made.body
        gone = site.call("DELETE", f"/keys/{made.json()['key']['id']}", key=None, headers=headers)
        assert gone.status == 200, gone.body


@pytest.mark.parametrize("call", CHANGES, ids=named)
def test_a_session_alone_changes_nothing(
    site: AdminSite, own_session: dict[str, str], call: Call, nothing_changes: None
) -> None:
    """A browser that says nothing of where a request comes from may have been led to it."""
    assert refused(site, call, key=None, headers={"Cookie": own_session["Cookie"]}).status == 403


def test_a_session_is_no_key_for_models(site: AdminSite, own_session: dict[str, str]) -> None:
    """Any page that a browser has open could use it to chat."""
    for path in ("/api/chat", "/v1/chat/completions"):
        assert fetch(site.url + path, "POST", json=question(path), headers=own_session).status == 401
    assert fetch(f"{site.url}/api/tags", headers=own_session).status == 401


def test_a_signature_is_no_way_into_the_admin_api(site: AdminSite) -> None:
    """It covers no body: whoever sees one could send it again with another."""
    signer = Signer(bytes(range(32)))
    new_key(site.folder, "signs", scopes=("admin", "read"), signer=signer.line)

    def status(path: str, **more: str) -> int:
        target, headers = signer.request("GET", path)
        return fetch(site.url + target, headers={**headers, **more}).status

    site.process.wait_each(lambda: status("/api/tags") == 200, "its signatures are known")
    for path in (f"{API}/backends", f"{API}/keys", LIVE):
        assert status(path) == 403
        assert status(path, Cookie=NO_COOKIE) == 403


def statuses(site: AdminSite, secret: str) -> list[int]:
    """What each worker answers to who has a key."""
    return site.process.each(lambda: fetch(f"{site.url}/api/tags", headers=bearer(secret)).status)


@pytest.mark.alone
def test_every_worker_obeys_when_a_revocation_is_answered(slow: AdminSite) -> None:
    """However rarely the workers look by themselves. An answer is held for two seconds at most until they all know."""
    for number in range(3):
        made = slow.call("POST", "/keys", {"label": f"brief {number}", "scopes": ["read"]}).json()
        assert statuses(slow, made["secret"]) == [200, 200]
        assert slow.call("DELETE", f"/keys/{made['key']['id']}").status == 200
        assert statuses(slow, made["secret"]) == [401, 401]


@pytest.mark.alone
def test_every_worker_knows_what_a_key_may_when_its_change_is_answered(slow: AdminSite) -> None:
    made = slow.call("POST", "/keys", {"label": "grows", "scopes": ["infer"], "limits": "rpm=1"}).json()
    path, secret = f"/keys/{made['key']['id']}", made["secret"]
    assert statuses(slow, secret) == [403, 403]
    changed = slow.call("PATCH", path, {"scopes": ["read"], "label": "grown", "lives_s": 3600}).json()
    assert (changed["label"], changed["scopes"], changed["limits"]) == ("grown", ["read"], "rpm=1")
    assert changed["expires_at"] == pytest.approx(time.time() + 3600, abs=60)
    assert statuses(slow, secret) == [200, 200]
    assert slow.call("PATCH", path, {"networks": ["10.0.0.0/8"]}).status == 200
    assert statuses(slow, secret) == [401, 401]
    changed = slow.call("PATCH", path, {"networks": [], "lives_s": None, "limits": "", "models": ["tiny"]}).json()
    assert [changed[name] for name in ("networks", "expires_at", "limits", "models")] == [[], None, "", ["tiny"]]
    assert statuses(slow, secret) == [200, 200]
    event = next(each for each in slow.get("/events")["events"] if each["kind"] == "key.changed")
    assert event["text"] == "grown was changed: models, networks, limits, its end"


@pytest.mark.parametrize(
    ("order", "status", "why"),
    [
        ({"limits": "rpm=many"}, 400, "rpm=many"),
        ({"networks": ["here"]}, 400, "'here' is no network"),
        ({"label": " "}, 400, "label: expected"),
        ({"scopes": []}, 400, "scopes"),
        ({"lives_s": 0}, 400, "lives_s"),
        ({"secret": "cv_x"}, 400, "secret"),
    ],
)
def test_a_change_of_a_key_that_makes_no_sense_changes_nothing(
    site: AdminSite, order: dict[str, Any], status: int, why: str
) -> None:
    made = site.call("POST", "/keys", {"label": "stays"}).json()["key"]
    answer = site.call("PATCH", f"/keys/{made['id']}", order)
    assert answer.status == status
    assert why in answer.json()["error"]
    assert site.get(f"/keys/{made['id']}") == made
    assert site.call("DELETE", f"/keys/{made['id']}").status == 200
    answer = site.call("PATCH", f"/keys/{made['id']}", {"label": "again"})
    assert (answer.status, answer.json()) == (409, {"error": f"the key {made['id']} has ended: make a new one"})


@pytest.mark.alone
def test_every_worker_knows_a_rotated_key_when_that_is_answered(slow: AdminSite) -> None:
    old = slow.call("POST", "/keys", {"label": "old", "scopes": ["read"]}).json()
    made = slow.call("POST", f"/keys/{old['key']['id']}/rotate", {"overlap_s": 0}).json()
    assert statuses(slow, made["secret"]) == [200, 200]
    assert statuses(slow, old["secret"]) == [401, 401]


# -- logging in --------------------------------------------------------------------------------------


def test_logging_in_needs_the_scope(site: AdminSite) -> None:
    for key in ("user", "everything-else", STRANGER, "", "x" * 10_000):
        answer = log_in(site, key)
        assert answer.status in (400, 401, 403), key
        assert not answer.all("set-cookie")


def test_over_http_the_cookie_is_plain_and_still_safe(site: AdminSite) -> None:
    cookie = cookie_of(log_in(site))
    assert not cookie.key.startswith("__")
    assert not cookie["secure"]
    assert_safe(cookie)


def test_behind_a_proxy_with_tls_the_cookie_is_bound_to_the_host(behind: AdminSite) -> None:
    cookie = cookie_of(log_in(behind, X_Forwarded_Proto="https", X_Forwarded_For="203.0.113.7"))
    assert cookie.key.startswith("__Host-")
    assert cookie["secure"]
    assert not cookie["domain"]
    assert_safe(cookie)


def test_nobody_makes_the_cookie_secure_where_no_proxy_is_trusted(site: AdminSite) -> None:
    """It would never come back."""
    answer = log_in(site, X_Forwarded_Proto="https")
    assert not answer.all("set-cookie") or not cookie_of(answer)["secure"]


def assert_safe(cookie: Morsel[str]) -> None:
    assert cookie["httponly"]
    assert cookie["samesite"].lower() == "strict"
    assert cookie["path"] == "/"
    # Nobody guesses 128 bits.
    assert len(cookie.value) >= 22


def test_each_login_has_a_session_of_its_own(site: AdminSite) -> None:
    assert cookie_of(log_in(site)).value != cookie_of(log_in(site)).value


def test_the_cookie_says_nothing_of_the_key(site: AdminSite) -> None:
    key, value = site.keys["admin"], cookie_of(log_in(site)).value
    assert value not in key
    assert key not in value
    assert key.split("_", 2)[2] not in value


def test_a_session_holds_with_every_worker(site: AdminSite) -> None:
    own = session(site)
    answers = site.process.each(lambda: site.call("GET", "/backends", key=None, headers=own).status)
    assert answers == [200, 200]


def test_a_cookie_over_http_is_none_over_https(behind: AdminSite) -> None:
    """Who can write plain cookies, as any page of a neighbouring port can, must not choose the session."""
    over_tls = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}
    cookie = cookie_of(log_in(behind, X_Forwarded_Proto="https", X_Forwarded_For="203.0.113.7"))
    good = {"Cookie": f"{cookie.key}={cookie.value}", **over_tls}
    plain = {"Cookie": f"{cookie.key.removeprefix('__Host-')}={cookie.value}", **over_tls}
    assert behind.call("GET", "/backends", key=None, headers=good).status == 200
    assert behind.call("GET", "/backends", key=None, headers=plain).status == 401


def test_a_password_of_a_proxy_in_front_hides_no_login(site: AdminSite) -> None:
    """A browser sends it with everything, and nginx passes it on."""
    headers = {**session(site), "Authorization": "Basic bWU6cHJveHk="}
    assert site.call("GET", "/backends", key=None, headers=headers).status == 200
    assert site.call("GET", "/backends", key=None, headers={"Authorization": "Basic bWU6cHJveHk="}).status == 401
    foreign = {**headers, "Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert site.call("DELETE", "/sessions", key=None, headers=foreign).status == 403


def test_logging_out_ends_this_session_alone(site: AdminSite) -> None:
    mine, other = session(site), session(site)
    assert site.call("DELETE", "/session", key=None, headers=mine).status in (200, 204)
    assert site.call("GET", "/backends", key=None, headers=mine).status == 401
    assert site.call("GET", "/backends", key=None, headers=other).status == 200


def test_logging_out_ends_the_session_though_a_key_is_beside_it(site: AdminSite) -> None:
    """A proxy in front may add one."""
    own = session(site)
    assert site.call("DELETE", "/session", headers=own).status == 204
    assert site.call("GET", "/backends", key=None, headers=own).status == 401


def test_logging_out_everywhere_ends_them_all(site: AdminSite) -> None:
    sessions = [session(site) for _ in range(3)]
    assert site.call("DELETE", "/sessions", key=None, headers=sessions[0]).status in (200, 204)
    for own in sessions:
        assert site.call("GET", "/backends", key=None, headers=own).status == 401


def test_a_session_ends_with_its_key(site: AdminSite) -> None:
    site.keys["brief"] = new_key(site.folder, "brief", scopes=("admin",))
    # By a question that writes nothing: a worker that is made to stand still may be writing, and then nobody else can.
    site.process.wait_each(lambda: site.call("GET", "/backends", key="brief").status == 200, "a new key is let in")
    own = session(site, "brief")
    revoke(site.folder, "brief")

    def is_out() -> bool:
        return site.call("GET", "/backends", key=None, headers=own).status == 401

    until(is_out, "the session is refused")


def test_guessing_is_throttled(lone: AdminSite) -> None:
    """Whoever guesses, and whatever worker is asked."""
    answers = [log_in(lone, f"cv_abcdefgh_{number:043d}") for number in range(GUESSES)]
    assert {answer.status for answer in answers} <= {401, 403, 429}
    assert answers[0].status in (401, 403)
    assert_throttled(answers)
    # Who has the key is not held up by who guesses beside them.
    assert log_in(lone).status == 204
    assert lone.call("GET", "/backends").status == 200


def assert_throttled(answers: list[RawResponse]) -> None:
    """Ten guesses are free, and one more in each six seconds that a slow machine needs."""
    late = [answer for answer in answers if answer.status == 429]
    assert len(late) >= GUESSES // 2
    assert all(int(answer.header("retry-after") or 0) > 0 for answer in late)


def test_who_guesses_locks_nobody_else_out(behind: AdminSite) -> None:
    answers = [log_in(behind, STRANGER, X_Forwarded_For="203.0.113.8") for _ in range(GUESSES)]
    assert_throttled(answers)
    assert log_in(behind, X_Forwarded_For="203.0.113.9").status == 204


def test_who_has_a_whole_network_guesses_no_more_often(behind: AdminSite) -> None:
    """An IPv6 host may take any address of its /64; IPv4 written as IPv6 is many hosts."""
    answers = [log_in(behind, STRANGER, X_Forwarded_For=f"2001:db8::{number:x}") for number in range(GUESSES)]
    assert_throttled(answers)
    assert log_in(behind, STRANGER, X_Forwarded_For="2001:db8:0:1::1").status == 401
    mapped = [log_in(behind, STRANGER, X_Forwarded_For=f"::ffff:192.0.2.{number}") for number in range(GUESSES)]
    assert {answer.status for answer in mapped} == {401}


# -- pages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_a_page_without_a_session_leads_to_the_login(site: AdminSite, page: str) -> None:
    for headers in (HTML, {**HTML, "Cookie": NO_COOKIE}):
        answer = fetch(site.url + PAGES[page], headers=headers)
        assert answer.status in (302, 303)
        assert (answer.header("location") or "").startswith(LOGIN)


@pytest.mark.parametrize("page", [*PAGES, "login"])
def test_every_page_has_its_headers(site: AdminSite, own_session: dict[str, str], page: str) -> None:
    answer = fetch(site.url + (PAGES | {"login": LOGIN})[page], headers={**HTML, **own_session})
    assert answer.status == 200
    assert_guarded(answer)
    assert policy_of(answer)["script-src"] == ["'self'"]
    assert answer.header("cross-origin-resource-policy") == "same-origin"


def test_a_login_that_others_could_read_says_so(site: AdminSite, behind: AdminSite) -> None:
    """It works all the same: one that loops without a word would be worse."""
    warning = b"This connection is not encrypted"
    assert warning in fetch(site.url + LOGIN, headers={**HTML, "Host": "box.local"}).body
    assert warning not in fetch(site.url + LOGIN, headers=HTML).body
    over_tls = {**HTML, "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7", "Host": "box.local"}
    assert warning not in fetch(behind.url + LOGIN, headers=over_tls).body


def assert_guarded(answer: RawResponse) -> None:
    policy = policy_of(answer)
    assert policy["default-src"] in (["'none'"], ["'self'"])
    sources = {source for values in policy.values() for source in values}
    assert not sources & {"'unsafe-inline'", "'unsafe-eval'", "*", "https:", "http:"}
    assert policy["frame-ancestors"] == ["'none'"]
    assert policy["base-uri"] in (["'none'"], ["'self'"])
    assert policy["form-action"] in (["'none'"], ["'self'"])
    assert answer.header("x-content-type-options") == "nosniff"
    assert answer.header("referrer-policy") in ("no-referrer", "same-origin")
    assert "no-store" in (answer.header("cache-control") or "")


def test_a_page_says_over_https_that_it_is_never_to_be_asked_for_otherwise(site: AdminSite, behind: AdminSite) -> None:
    over_tls = {**HTML, "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}
    assert fetch(behind.url + LOGIN, headers=over_tls).header("strict-transport-security") == "max-age=31536000"
    # A word that nobody can trust, and none at all.
    assert fetch(site.url + LOGIN, headers=over_tls).header("strict-transport-security") is None
    assert fetch(behind.url + LOGIN, headers=HTML).header("strict-transport-security") is None


def policy_of(answer: RawResponse) -> dict[str, list[str]]:
    (line,) = answer.all("content-security-policy")
    parts = [part.split() for part in line.split(";") if part.strip()]
    return {name: values for name, *values in parts}


@pytest.mark.parametrize("path", ["/admin/nope", "/admin/../admin/nope", "/admin/api/nope"])
def test_what_is_not_there_is_guarded_too(site: AdminSite, own_session: dict[str, str], path: str) -> None:
    answer = fetch(site.url + path, headers={**HTML, **own_session})
    assert answer.status == 404
    if "html" in (answer.header("content-type") or ""):
        assert_guarded(answer)


def test_what_the_api_says_stays_nowhere(site: AdminSite, own_session: dict[str, str]) -> None:
    for path in ("/backends", "/keys", "/requests", "/settings"):
        answer = site.call("GET", path, key=None, headers=own_session)
        assert "no-store" in (answer.header("cache-control") or "")
        assert answer.header("x-content-type-options") == "nosniff"


def test_the_login_leads_to_no_other_host(site: AdminSite) -> None:
    for target in ("https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)"):
        body = fetch(f"{site.url}{LOGIN}?next={target}", headers=HTML).body
        assert b"evil.example" not in body
        assert b"javascript:" not in body


def test_secrets_are_on_no_page(site: AdminSite, own_session: dict[str, str]) -> None:
    secrets = [key.split("_", 2)[2].encode() for key in site.keys.values()]
    for path in PAGES.values():
        body = fetch(site.url + path, headers={**HTML, **own_session}).body
        assert not [secret for secret in secrets if secret in body], path


def test_the_password_of_redis_is_told_nowhere(slow: AdminSite) -> None:
    shown = {each["name"]: each["value"] for each in slow.get("/settings")["settings"]}
    assert shown["REDIS_URL"] == "redis://...@127.0.0.1:9/0"
    page = fetch(slow.url + PAGES["settings"], headers={**HTML, **session(slow)}).body.decode()
    assert "redis://...@127.0.0.1:9/0" in page
    for text in (page, str(shown), slow.process.output):
        assert PASSWORD not in text


# -- without keys ------------------------------------------------------------------------------------


def test_a_cookie_of_another_caravan_locks_nobody_out_where_there_are_no_keys(fake: FakeOllama, tmp_path: Path) -> None:
    """Cookies ignore ports."""
    with gateway([fake], tmp_path) as process:
        answer = fetch(f"{process.url}{API}/backends", headers={"Cookie": f"{COOKIE}=stale"})
        assert answer.status == 200


def test_without_keys_this_machine_is_the_admin(fake: FakeOllama, tmp_path: Path) -> None:
    with gateway([fake], tmp_path) as process:
        url = process.url
        assert fetch(f"{url}{API}/backends").status == 200
        assert fetch(url + PAGES["fleet"], headers=HTML).status == 200
        for headers in (
            {"X-Forwarded-For": "203.0.113.7"},
            {"Forwarded": "for=203.0.113.7"},
            {"Origin": EVIL},
            {"Sec-Fetch-Site": "cross-site"},
            {"Host": "caravan.example"},
        ):
            answer = fetch(f"{url}{API}/backends/one", "PATCH", json={"draining": True}, headers=headers)
            assert answer.status in (401, 403), headers
        (backend,) = fetch(f"{url}{API}/backends").json()["backends"]
        assert backend["draining"] is False
