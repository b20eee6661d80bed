"""Show requests read as Ollama reads them, against all recorded cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proxy_app.dialects.ollama import SHOW_CLOUD_DISABLED, read_show, show_body
from proxy_app.domain import ShowQuery, parse_name
from proxy_app.errors import BadRequest, EmptyBody, RequestError

CASES: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parents[1] / "golden").glob("show_*.json"))
}
REFUSED = [name for name, case in CASES.items() if case.get("status") == 400]
NOT_FOUND = [name for name, case in CASES.items() if case.get("status") == 404]
CLOUD = [name for name, case in CASES.items() if case.get("status") == 403]
GOOD = [
    (name, body["request_body"])
    for name, case in CASES.items()
    for body in case.get("requests", [case])
    if body.get("status") == 200
]


def text_of(name: str) -> str:
    text: str = json.loads(CASES[name]["response_body"])["error"]
    return text


def test_every_recorded_case_is_used() -> None:
    assert {*REFUSED, *NOT_FOUND, *CLOUD, *(name for name, _ in GOOD)} == set(CASES)


@pytest.mark.parametrize("name", REFUSED)
def test_what_ollama_refuses_is_refused_with_its_text(name: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_name(read_show(CASES[name]["request_body"].encode()).model)
    assert refusal.value.status == 400
    # The words of Go's JSON parser are its own.
    if name != "show_not_json_400":
        assert refusal.value.message == text_of(name)


@pytest.mark.parametrize("name", NOT_FOUND)
def test_an_unknown_models_shortest_name_is_what_ollama_prints(name: str) -> None:
    asked = parse_name(read_show(CASES[name]["request_body"].encode()).model)
    assert f"model '{asked.shortest}' not found" == text_of(name)


@pytest.mark.parametrize("name", CLOUD)
def test_a_cloud_name_is_known_as_one(name: str) -> None:
    assert parse_name(read_show(CASES[name]["request_body"].encode()).model).is_cloud
    assert text_of(name) == SHOW_CLOUD_DISABLED


@pytest.mark.parametrize(("name", "body"), GOOD)
def test_every_accepted_form_names_its_model(name: str, body: str) -> None:
    query = read_show(body.encode())
    wanted = "ns/tiny2:v1" if "tiny2" in body.lower() else "tiny:latest"
    assert parse_name(query.model).shortest.lower() == wanted
    assert query.verbose == (name == "show_verbose_200")
    assert query.is_cacheable == (name != "show_overlays_200")


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b'{"model":"m","name":"n"}', ShowQuery("m")),
        (b'{"model":"","name":"n"}', ShowQuery("n")),
        (b'{"model":"m","model":null}', ShowQuery("m")),
        (b'{"model":"m","VERBOSE":true}', ShowQuery("m", verbose=True)),
        (b'{"model":"m","verbo\xc5\xbfe":true}', ShowQuery("m", verbose=True)),
        (b'{"model":"m","verbose":true,"verbose":false}', ShowQuery("m")),
        (b'{"model":"m","system":"s"}', ShowQuery("m", has_overlay=True)),
        (b'{"model":"m","system":"s","System":""}', ShowQuery("m")),
        (b'{"model":"m","options":{"a":1}}', ShowQuery("m", has_overlay=True)),
        (b'{"model":"m","options":{}}', ShowQuery("m")),
        (b'{"model":"m","options":null,"system":null}', ShowQuery("m")),
        (b'{"model":"m","template":"t","unknown":[1]}', ShowQuery("m")),
        (b' \n\t{"model":"m"}', ShowQuery("m")),
        (b"null", ShowQuery("")),
    ],
)
def test_keys_fold_the_last_one_wins_and_null_changes_nothing(body: bytes, wanted: ShowQuery) -> None:
    assert read_show(body) == wanted


@pytest.mark.parametrize("body", [b"", b"  \r\n\t"])
def test_a_body_of_nothing_is_missing(body: bytes) -> None:
    with pytest.raises(EmptyBody):
        read_show(body)


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf{}",
        b'{"model":"m"',
        b'{"model":NaN}',
        b"\x1f\x8b\x08",
        b'"m"',
        b"5",
        b"[" * 100_000,
        b'{"model":"m","options":' + b'{"a":' * 100_000,
        b'{"model":"' + b"m" * 5000,
    ],
)
def test_what_is_no_request_is_a_400(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read_show(body)


def test_an_options_map_of_one_reading_counts_as_in_go() -> None:
    """Go merges a duplicate map into the first one; either way there is an overlay."""
    assert read_show(b'{"model":"m","options":{"a":1},"options":{"b":2}}').has_overlay


def test_the_request_for_a_backend_says_verbose_only_where_it_is_meant() -> None:
    assert show_body("m", verbose=False) == b'{"model":"m"}'
    assert show_body("m", verbose=True) == b'{"model":"m","verbose":true}'
