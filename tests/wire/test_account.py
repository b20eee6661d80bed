"""The account at ollama.com: nobody's until the operator names a backend, then that backend's own answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.fakes import faults
from conformance.fakes.http import RawResponse, fetch
from tests.product import Stand, stand

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

GOLDEN = Path(__file__).parents[1] / "golden"
# Deadline in seconds for a hang-up to reach the backend: how soon it has to is the subject of test_cancel.py.
SOON_S = 10.0
ROUTES = (("POST", "/api/me"), ("POST", "/api/signout"), ("DELETE", "/api/user/keys/c3NoLWVkMjU1MTk"))
SIGN_IN = {"error": "unauthorized", "signin_url": "https://ollama.com/connect?name=a&key=c3No"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("account"), CARAVAN_ACCOUNT_BACKEND="b") as made:
        yield made


@pytest.fixture
def named(shared: Stand) -> Stand:
    shared.tidy()
    return shared


def ask(site: Stand, method: str, path: str, **headers: str) -> RawResponse:
    return fetch(site.url + path, method, b"", headers)


def test_without_a_named_backend_nobody_hears_of_it(tmp_path: Path) -> None:
    with stand(tmp_path) as site:
        for method, path in ROUTES:
            answer = ask(site, method, path)
            assert answer.status == 403
            assert "CARAVAN_ACCOUNT_BACKEND" in answer.json()["error"]
        assert not any(site.counts(path) != [0, 0] for _, path in ROUTES)
        assert site.counts("/api/signout") == [0, 0]


def test_a_backend_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with stand(tmp_path, names=("a",), CARAVAN_ACCOUNT_BACKEND="gpu9") as site:
        answer = ask(site, "POST", "/api/me")
    assert answer.status == 503
    assert "gpu9" in answer.json()["error"]


def test_the_named_backends_answer_comes_back_as_it_is(named: Stand) -> None:
    case = json.loads((GOLDEN / "me_503.json").read_text())
    answer = ask(named, "POST", "/api/me")
    assert (answer.status, answer.body.decode()) == (503, case["response_body"])
    assert answer.content_type == case["response_headers"]["Content-Type"]
    assert named.counts("/api/me") == [0, 1]


def test_a_backend_that_is_not_signed_in_says_where_to_do_that(named: Stand) -> None:
    named.fakes[1].fault("/api/me", faults.Status(401, json.dumps(SIGN_IN)))
    answer = ask(named, "POST", "/api/me")
    assert (answer.status, answer.json()) == (401, SIGN_IN)


@pytest.mark.parametrize(("method", "path"), ROUTES[1:])
def test_signing_out_has_two_spellings_and_no_key_of_a_clients_reaches_a_path(
    named: Stand, method: str, path: str
) -> None:
    named.fakes[1].fault("/api/signout", faults.Status(200, "null"))
    answer = ask(named, method, path)
    assert (answer.status, answer.body) == (200, b"null")
    assert (named.fakes[1].wait_for("/api/signout").method, named.counts("/api/signout")) == ("POST", [0, 1])


def test_a_backend_that_gives_no_answer_is_named_without_its_address(named: Stand) -> None:
    named.fakes[1].fault("/api/me", faults.RstBeforeHeaders(), times=None)
    answer = ask(named, "POST", "/api/me")
    assert (answer.status, answer.json()) == (502, {"error": "the backend b gave no answer"})


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_only_this_machine_itself_may_ask(named: Stand, method: str, path: str) -> None:
    assert ask(named, method, path, **{"X-Forwarded-For": "10.0.0.9"}).status == 403
    assert ask(named, method, path, Host="10.1.2.3").status == 403
    assert named.counts("/api/me") == named.counts("/api/signout") == [0, 0]


def test_a_client_that_leaves_ends_the_question(named: Stand) -> None:
    named.fakes[1].fault("/api/me", faults.StallBeforeHeaders())
    with named.client() as client:
        client.send_request("POST", "/api/me", b"")
        asked = named.fakes[1].wait_for("/api/me")
        client.close()
        assert asked.client_gone.wait(SOON_S)
