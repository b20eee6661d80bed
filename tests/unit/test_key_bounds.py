"""Holding a request to what its key may ask for: clamped or refused, and no spelling is a way around it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy_app.dialects.bounds import Bounds, bounded
from proxy_app.dialects.errors import Dialect
from proxy_app.errors import BadRequest


def left(asked: dict[str, Any], bounds: Bounds, dialect: Dialect = "ollama") -> dict[str, Any]:
    """What a backend gets of a request."""
    changed = bounded(json.dumps(asked).encode(), dialect, bounds)
    found: dict[str, Any] = asked if changed is None else json.loads(changed)
    return found


@pytest.mark.parametrize("name", ["num_ctx", "num_predict"])
@pytest.mark.parametrize(
    ("value", "becomes"), [(1, 1), (99, 99), (100, 100), (101, 100), (-1, 100), (-2, 100), (10**19, 100), (1e9, 100)]
)
def test_options_are_clamped(name: str, value: float, becomes: int) -> None:
    bounds = Bounds(**{name: 100})
    assert left({"options": {name: value, "seed": 7}}, bounds) == {"options": {name: becomes, "seed": 7}}


@pytest.mark.parametrize("value", [0, 0.5, 0.999])
def test_a_length_that_means_no_end_is_bounded(value: float) -> None:
    """Ollama's runner stops at a length above 0 alone, and cuts fractions off."""
    assert left({"options": {"num_predict": value}}, Bounds(num_predict=100)) == {"options": {"num_predict": 100}}
    assert left({"max_tokens": value}, Bounds(num_predict=100), "openai") == {"max_tokens": 100}


def test_a_body_of_countless_parts_is_refused() -> None:
    body = b'{"messages":[' + b",".join([b"[]"] * 600_000) + b"]}"
    with pytest.raises(BadRequest, match="too many parts"):
        bounded(body, "ollama", Bounds(images=1))


@pytest.mark.parametrize("asked", [{}, {"options": None}, {"options": {}}, {"options": {"num_predict": None}}])
def test_an_answer_whose_length_nobody_said_is_bounded(asked: dict[str, Any]) -> None:
    assert left({"model": "tiny", **asked}, Bounds(num_predict=100))["options"]["num_predict"] == 100


@pytest.mark.parametrize("asked", [{}, {"options": {}}, {"options": {"seed": 1}}])
def test_the_context_stays_the_backends_own_where_nobody_said_it(asked: dict[str, Any]) -> None:
    assert bounded(json.dumps(asked).encode(), "ollama", Bounds(num_ctx=100)) is None


ANSWERS: list[tuple[Dialect, dict[str, Any], dict[str, Any]]] = [
    ("openai", {}, {"max_tokens": 100}),
    ("openai", {"max_tokens": None}, {"max_tokens": 100}),
    ("openai", {"max_tokens": 101}, {"max_tokens": 100}),
    ("openai", {"max_tokens": -1}, {"max_tokens": 100}),
    ("openai", {"max_tokens": 5}, {"max_tokens": 5}),
    ("openai", {"max_tokens": 5, "max_completion_tokens": 101}, {"max_tokens": 5, "max_completion_tokens": 100}),
    ("responses", {}, {"max_output_tokens": 100}),
    ("responses", {"max_output_tokens": 101}, {"max_output_tokens": 100}),
    ("responses", {"max_output_tokens": 5}, {"max_output_tokens": 5}),
    ("anthropic", {"max_tokens": 101}, {"max_tokens": 100}),
    ("anthropic", {"max_tokens": 5}, {"max_tokens": 5}),
]


@pytest.mark.parametrize(("dialect", "asked", "becomes"), ANSWERS)
def test_an_answer_is_clamped_in_every_dialect(
    dialect: Dialect, asked: dict[str, Any], becomes: dict[str, Any]
) -> None:
    assert left({"model": "tiny", **asked}, Bounds(num_predict=100), dialect) == {"model": "tiny", **becomes}


@pytest.mark.parametrize("more", [101, 5])
def test_an_answer_is_bounded_by_the_field_that_ollama_reads(more: int) -> None:
    """It passes over `max_completion_tokens` (openai/openai.go, v0.33.0-rc2)."""
    got = left({"max_completion_tokens": more}, Bounds(num_predict=100), "openai")
    assert got["max_tokens"] <= 100
    assert got["max_completion_tokens"] == min(more, 100)


KEPT = [0, 1, 60, 59.5, "60s", "1m", "0", "0s", "1m0s", "0.5m", ".5m", "1.m", "60000ms", None]
LONG = [
    61,
    -1,
    -0.1,
    1e300,
    "61s",
    "2m",
    "1h",
    "-1s",
    "-1",
    "+2m",
    "999999.h",
    "9999.h1s",
    "1h1s",
    "1m0.5s",
    "1000000h",
]


@pytest.mark.parametrize("value", [value for value in KEPT if value != "0"])
def test_a_keep_alive_within_the_bound_is_left_alone(value: Any) -> None:
    assert bounded(json.dumps({"keep_alive": value}).encode(), "ollama", Bounds(keep_alive=60)) is None


@pytest.mark.parametrize("value", [value for value in LONG if value != "-1"])
def test_a_keep_alive_beyond_the_bound_is_clamped_or_refused(value: Any) -> None:
    assert left({"keep_alive": value}, Bounds(keep_alive=60)) == {"keep_alive": 60}
    with pytest.raises(BadRequest, match="keep_alive"):
        left({"keep_alive": value}, Bounds(keep_alive=60, refuses=True))


@pytest.mark.parametrize(
    ("dialect", "asked"),
    [
        ("ollama", {"options": {"num_ctx": 101}}),
        ("ollama", {"options": {"num_predict": 101}}),
        ("ollama", {"options": {"num_predict": -1}}),
        ("openai", {"max_tokens": 101}),
        ("openai", {"max_completion_tokens": 101}),
        ("responses", {"max_output_tokens": 101}),
        ("anthropic", {"max_tokens": 101}),
    ],
)
def test_what_is_too_much_is_refused_where_that_was_said(dialect: Dialect, asked: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="up to 100"):
        left(asked, Bounds(num_ctx=100, num_predict=100, refuses=True), dialect)


@pytest.mark.parametrize("dialect", ["ollama", "openai", "responses", "anthropic"])
def test_who_says_nothing_of_the_length_is_not_refused(dialect: Dialect) -> None:
    assert left({"model": "tiny"}, Bounds(num_predict=100, refuses=True), dialect) != {"model": "tiny"}


PICTURES: list[tuple[Dialect, dict[str, Any]]] = [
    ("ollama", {"images": ["a", "b"]}),
    ("ollama", {"Images": ["a", "b"]}),
    ("ollama", {"messages": [{"images": ["a"]}, {"images": ["b"]}]}),
    ("ollama", {"messages": [{"IMAGES": ["a", "b"]}]}),
    ("ollama", {"MESSAGES": [{"images": ["a", "b"]}]}),
    ("openai", {"messages": [{"content": [{"type": "image_url"}, {"type": "text"}, {"type": "image_url"}]}]}),
    ("responses", {"input": [{"role": "user", "content": [{"type": "input_image"}, {"type": "input_image"}]}]}),
    ("anthropic", {"messages": [{"content": [{"type": "image"}]}, {"content": [{"type": "image"}]}]}),
    ("anthropic", {"messages": [{"Content": [{"Type": "image"}, {"type": "image"}]}]}),
    (
        "anthropic",
        {"messages": [{"content": [{"type": "tool_result", "content": [{"type": "image"}, {"type": "image"}]}]}]},
    ),
]


@pytest.mark.parametrize(("dialect", "asked"), PICTURES)
def test_images_are_counted_wherever_they_stand(dialect: Dialect, asked: dict[str, Any]) -> None:
    body = json.dumps(asked).encode()
    with pytest.raises(BadRequest, match="this one has 2"):
        bounded(body, dialect, Bounds(images=1))
    assert bounded(body, dialect, Bounds(images=2)) is None


TWICE = [
    b'{"options":{"num_ctx":9999},"options":{"seed":1}}',
    b'{"Options":{"num_ctx":9999},"options":{"seed":1}}',
    b'{"options":{"seed":1},"OPTIONS":{"num_ctx":9999}}',
    b'{"option\xc5\xbf":{"num_ctx":9999},"options":{"seed":1}}',
    b'{"options":{"num_ctx":9999},"options":null}',
    b'{"keep_alive":-1,"KEEP_ALIVE":1}',
    b'{"messages":[{"images":["a","b"]}],"messages":[{"content":"x"}]}',
    b'{"images":["a","b"],"Images":[]}',
    b'{"model":"a","MODEL":"b","model":"c","options":{"num_ctx":9999}}',
]


@pytest.mark.parametrize("body", TWICE)
def test_keys_that_mean_the_same_field_are_no_way_around(body: bytes) -> None:
    """Go reads the last of them, or both into one another: there is no telling what a backend makes of it."""
    with pytest.raises(BadRequest):
        bounded(body, "ollama", Bounds(num_ctx=100, keep_alive=60, images=1))


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_a_second_length_is_no_way_around(dialect: Dialect) -> None:
    for body in (b'{"max_tokens":9999,"MAX_TOKENS":1}', b'{"max_tokens":9999,"max_tokens":1}'):
        with pytest.raises(BadRequest):
            bounded(body, dialect, Bounds(num_predict=100))


@pytest.mark.parametrize("key", ["Options", "OPTIONS", "option\u017f"])
def test_a_folded_key_is_the_field_that_go_takes_it_for(key: str) -> None:
    got = left({key: {"num_ctx": 9999}}, Bounds(num_ctx=100))
    assert [value for name, value in got.items() if name.lower() == "options" or name == key] == [{"num_ctx": 100}]


@pytest.mark.parametrize("key", ["MAX_TOKENS", "max_To\u212aens"])
def test_a_folded_length_likewise(key: str) -> None:
    assert list(left({key: 9999}, Bounds(num_predict=100), "anthropic").values()) == [100]


ODD = [
    b'{"options":{"num_ctx":9999}} x',
    b'{"options":{"num_ctx":9999}}{}',
    b'{"prompt":"\\ud800","options":{"num_ctx":9999}}',
    b'{"options":{"num_ctx":9999,"stop":["\\ud800"]}}',
    b'{"options":{"num_ctx":9999,"stop":["\xff"]}}',
    b'{"prompt":"\xff","options":{"num_ctx":9999}}',
    b'{"options":{"num_ctx":9999,"x":' + b"[" * 2000 + b"]" * 2000 + b"}}",
    b'{"x":' + b"[" * 2000 + b"]" * 2000 + b',"options":{"num_ctx":9999}}',
    b' \t\r\n{"options":{"num_ctx":9999}}',
]


@pytest.mark.parametrize("body", ODD, ids=range(len(ODD)))
def test_what_go_reads_and_a_strict_reader_does_not_is_no_way_around(body: bytes) -> None:
    """It is refused, or forwarded within the bound."""
    try:
        changed = bounded(body, "ollama", Bounds(num_ctx=100))
    except BadRequest:
        return
    assert changed is not None
    assert b"9999" not in changed


def test_all_other_fields_keep_their_bytes() -> None:
    body = (
        b'{"model": "t\\u0069ny", "seed": 12345678901234567890123, "t": 1.50, "options": {"num_ctx": 9999},'
        b' "tools": [ {"b": 1, "a": 1e2} ], "x": "\\/\\ud83d\\ude00"}'
    )
    changed = bounded(body, "ollama", Bounds(num_ctx=100))
    assert changed is not None
    for kept in (
        b'"t\\u0069ny"',
        b"12345678901234567890123",
        b"1.50",
        b'[ {"b": 1, "a": 1e2} ]',
        b'"\\/\\ud83d\\ude00"',
    ):
        assert kept in changed
    assert json.loads(changed)["options"] == {"num_ctx": 100}


@pytest.mark.parametrize("dialect", ["ollama", "openai", "responses", "anthropic"])
def test_a_body_within_all_bounds_needs_no_change(dialect: Dialect) -> None:
    asked = {
        "model": "tiny",
        "options": {"num_ctx": 5, "num_predict": 5},
        "keep_alive": 5,
        "messages": [{"images": []}],
    }
    asked |= {"max_tokens": 5, "max_output_tokens": 5, "max_completion_tokens": 5}
    bounds = Bounds(num_ctx=5, num_predict=5, images=0, keep_alive=5)
    assert bounded(json.dumps(asked).encode(), dialect, bounds) is None


@pytest.mark.parametrize("value", ["x", [], {}, True, False])
def test_a_wrong_type_is_for_the_backend_to_refuse(value: Any) -> None:
    for asked in ({"options": {"num_ctx": value}}, {"keep_alive": value}):
        got = left(asked, Bounds(num_ctx=100, keep_alive=60))
        assert got == asked or got == {"options": {"num_ctx": 100}}
