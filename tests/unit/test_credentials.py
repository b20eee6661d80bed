"""What a client presents: which text of a request counts as a key, and in which form."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from proxy_app.dialects.credentials import ID_LETTERS, Signed, digest, key_id_of, new_key, presented

KEY = "cv_abcdefgh_" + "s" * 43
PUBLIC = "AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
SIGNATURE = base64.b64encode(bytes(64)).decode()


def read(authorization: str = "", query: str = "", method: str = "POST", path: str = "/api/chat", **more: str) -> Any:
    environ = {"HTTP_AUTHORIZATION": authorization, "QUERY_STRING": query, **more}
    return presented({name: value for name, value in environ.items() if value}, method, path)


def basic(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_a_new_key_has_an_id_that_may_be_shown_and_256_random_bits() -> None:
    made = [new_key() for _ in range(200)]
    assert len({key_id for key_id, _ in made}) == len({text for _, text in made}) == 200
    for key_id, text in made:
        assert re.fullmatch(r"cv_[a-z2-9]{8}_[A-Za-z0-9_-]{43}", text)
        assert set(key_id) <= set(ID_LETTERS)
        assert key_id_of(text) == key_id


@pytest.mark.parametrize(
    "text",
    ["", "ollama", "cv_", KEY[:-30], "cv_ABCDEFGH_" + "s" * 43, f" {KEY}", f"{KEY}\n", f"{KEY} ", "sk-" + "s" * 43],
)
def test_what_has_another_form_is_no_key_of_ours(text: str) -> None:
    assert key_id_of(text) is None


def test_a_digest_is_of_the_whole_key_and_takes_any_text() -> None:
    assert re.fullmatch("[0-9a-f]{64}", digest(KEY))
    assert digest(KEY) != digest(KEY + "s")
    assert digest("\udc80") != digest("")


def test_without_any_credential_nothing_is_presented() -> None:
    assert read() is None


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_a_bearer_token_counts_in_any_case_of_its_scheme(scheme: str) -> None:
    assert read(f"{scheme} {KEY}") == KEY
    assert read(f"{scheme}   {KEY} ") == KEY


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
def test_a_basic_password_is_a_key(scheme: str) -> None:
    assert read(f"{scheme} {basic('anybody:' + KEY)}") == KEY
    assert read(f"{scheme} {basic(':' + KEY)}") == KEY


def test_a_basic_user_without_a_password_is_a_key() -> None:
    assert read(f"Basic {basic(KEY + ':')}") == KEY
    assert read(f"Basic {basic(KEY)}") == KEY


@pytest.mark.parametrize("rest", ["", "*", "====", "Zm9v!", base64.b64encode(b"\xff\xfe:\xff").decode()])
def test_what_is_no_basic_is_a_wrong_key_and_not_none(rest: str) -> None:
    assert read(f"Basic {rest}") == ""


def test_an_x_api_key_counts_and_comes_before_authorization() -> None:
    assert read(HTTP_X_API_KEY=KEY) == KEY
    assert read("Bearer other", HTTP_X_API_KEY=f" {KEY} ") == KEY


@pytest.mark.parametrize("dummy", ["ollama", "sk-none", "x", f" {KEY[3:]}"])
def test_a_dummy_beside_authorization_hides_no_key(dummy: str) -> None:
    """Some programs always send an X-Api-Key."""
    assert read(f"Bearer {KEY}", HTTP_X_API_KEY=dummy) == KEY
    assert read(f"Basic {basic('me:' + KEY)}", HTTP_X_API_KEY=dummy) == KEY
    assert read(HTTP_X_API_KEY=dummy) == dummy.strip()


def test_a_key_of_the_path_comes_first() -> None:
    assert read("Bearer other", HTTP_X_API_KEY="another", **{"caravan.key": KEY}) == KEY


def test_a_signature_says_what_was_signed_and_when() -> None:
    signed = read(f"{PUBLIC}:{SIGNATURE}", "a=1&ts=1700000000&b=2")
    assert signed == Signed(PUBLIC, bytes(64), b"POST,/api/chat?ts=1700000000", 1700000000)
    other = read(f"{PUBLIC}:{SIGNATURE}", "ts=1", method="GET", path="/api/tags")
    assert (other.challenge, other.at_s) == (b"GET,/api/tags?ts=1", 1)


@pytest.mark.parametrize("query", ["", "ts=", "ts=abc", "ts=-5", "xts=17", "ts=1e9", "ts=" + "9" * 13])
def test_a_signature_without_a_time_is_a_wrong_key(query: str) -> None:
    assert read(f"{PUBLIC}:{SIGNATURE}", query) == ""


@pytest.mark.parametrize(
    "header",
    [
        PUBLIC,
        f"{PUBLIC}:",
        f":{SIGNATURE}",
        f"{PUBLIC}:{SIGNATURE[:-10]}",
        f"{PUBLIC}:{SIGNATURE}:{SIGNATURE}",
        f"{PUBLIC}:{SIGNATURE}, Bearer x",
        "Digest username=x",
        "Bearer",
        "A" * 100_000,
    ],
)
def test_any_other_form_is_a_wrong_key(header: str) -> None:
    assert read(header, "ts=1") == ""
