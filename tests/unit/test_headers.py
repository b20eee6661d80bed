"""Which headers pass to a backend and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_app.domain import Backend
from proxy_app.upstream.headers import HOP_BY_HOP, Origin, own_headers, to_client, to_upstream

PLAIN = Backend(1, "a", "http://a", 0)
OWN = Backend(2, "b", "http://b", 1, auth_token="sk-b", headers=(("X-Tenant", "one"),))
ASKED = Origin("id", "1.1 caravan-1")
tokens = st.from_regex(r"X-[A-Za-z]{1,10}", fullmatch=True)


def lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def test_a_request_says_via_and_its_id() -> None:
    assert to_upstream([], PLAIN, ASKED) == {"Via": "1.1 caravan-1", "X-Request-Id": "id"}


def test_a_request_says_who_asked_as_far_as_that_is_known() -> None:
    sent = to_upstream(
        [("X-Forwarded-For", "6.6.6.6"), ("Via", "1.0 fred")], PLAIN, replace(ASKED, address="9.9.9.9", scheme="https")
    )
    assert sent["X-Forwarded-For"] == "9.9.9.9"
    assert sent["X-Forwarded-Proto"] == "https"
    assert sent["Via"] == "1.0 fred, 1.1 caravan-1"


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "COOKIE",
        "x-api-key",
        "Api-Key",
        "x-goog-api-key",
        "Origin",
        "Host",
        "Referer",
        "X-Forwarded-For",
    ],
)
def test_credentials_and_what_a_browser_says_never_go_on(name: str) -> None:
    assert name.lower() not in lower(to_upstream([(name, "secret")], PLAIN, ASKED))
    assert "secret" not in str(to_upstream([(name, "secret")], OWN, ASKED))


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_headers_of_one_connection_stay_there(name: str) -> None:
    pairs = [(name.title(), "x"), ("X-Kept", "y")]
    assert name not in lower(to_upstream(pairs, PLAIN, ASKED))
    assert to_client(pairs) == [("X-Kept", "y")]


@given(st.lists(tokens, min_size=1, max_size=5, unique_by=str.lower), st.data())
def test_what_connection_names_is_dropped_both_ways(names: list[str], data: st.DataObject) -> None:
    named = data.draw(st.lists(st.sampled_from(names), unique=True))
    pairs = [(name, "v") for name in names] + [("Connection", " , ".join(named).upper())]
    kept = {name.lower() for name in names} - {name.lower() for name in named}
    assert set(lower(to_upstream(pairs, PLAIN, ASKED))) == kept | {"via", "x-request-id"}
    assert {name.lower() for name, _ in to_client(pairs)} == kept


def test_a_client_cannot_name_caravans_own_headers_away() -> None:
    sent = lower(to_upstream([("Connection", "Authorization, Via, X-Request-Id, X-Tenant")], OWN, ASKED))
    assert sent == {"via": "1.1 caravan-1", "x-request-id": "id", "authorization": "Bearer sk-b", "x-tenant": "one"}


@pytest.mark.parametrize("name", ["X-Tenant", "x-tenant", "X-TENANT"])
def test_a_client_cannot_send_a_backends_own_header_beside_ours(name: str) -> None:
    sent = to_upstream([(name, "two")], OWN, ASKED)
    assert [value for key, value in sent.items() if key.lower() == "x-tenant"] == ["one"]


@pytest.mark.parametrize("name", ["X-Request-Id", "x-request-id"])
def test_a_clients_id_is_replaced_not_doubled(name: str) -> None:
    sent = to_upstream([(name, "client's")], PLAIN, ASKED)
    assert sorted(lower(sent)) == ["via", "x-request-id"]
    assert "client's" not in sent.values()


@pytest.mark.parametrize("name", ["Via", "via"])
def test_a_clients_via_is_kept_in_one_header(name: str) -> None:
    assert lower(to_upstream([(name, "1.0 fred")], PLAIN, ASKED))["via"] == "1.0 fred, 1.1 caravan-1"


def test_own_headers_are_those_of_the_settings() -> None:
    assert own_headers(PLAIN) == {}
    assert own_headers(OWN) == {"X-Tenant": "one", "Authorization": "Bearer sk-b"}


def test_an_answer_keeps_its_headers_in_order_and_twice_where_they_are() -> None:
    pairs = [("Content-Type", "a"), ("X-B", "1"), ("X-B", "2")]
    dropped = [("Set-Cookie", "x"), ("Date", "y"), ("Server", "z"), ("X-Request-Id", "w"), ("Content-Length", "5")]
    assert to_client([*pairs, *dropped]) == pairs


def test_what_is_no_header_is_left_out_of_an_answer() -> None:
    """The server would refuse the whole answer for it, after the backend has worked."""
    assert to_client([("X-Bad", "a\x01b"), ("X B", "1"), ("X-Good", "caf\xe9")]) == [("X-Good", "caf\xe9")]
