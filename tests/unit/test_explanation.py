"""A finished request in a sentence."""

from __future__ import annotations

import pytest

from proxy_app.dialects.usage import Spent
from proxy_app.services.explanation import explanation
from proxy_app.services.relayed import Trace


def told(outcome: str, *attempts: str, reasons: tuple[str, ...] = (), status: int = 200, begun: bool = True) -> str:
    trace = Trace("r", "/api/chat", "tiny", "k", status, outcome, list(attempts), reasons=list(reasons))
    trace.first_byte_s = 0.1 if begun else None
    return explanation(trace, Spent())


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        ("complete", "a answered"),
        ("client_gone", "the client hung up in the middle of a's answer"),
        ("truncated", "a's answer was cut off"),
        ("silent", "a fell silent in the middle of its answer"),
        ("stopped", "Caravan was stopped in the middle of a's answer"),
        ("cancelled", "an operator ended it in the middle of a's answer"),
    ],
)
def test_an_answer_that_has_begun(outcome: str, sentence: str) -> None:
    assert told(outcome, "a") == sentence
    assert told(outcome, "b", "a", reasons=("was busy (503)",)) == f"b was busy (503), {sentence}"


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        ("client_gone", "the client hung up while a worked on it"),
        ("unavailable", "Caravan was stopped while a worked on it"),
        ("cancelled", "an operator ended it while a worked on it"),
        ("model_hidden", "a did not know the model"),
    ],
)
def test_a_search_that_was_left(outcome: str, sentence: str) -> None:
    assert told(outcome, "a", status=503, begun=False) == sentence


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        ("all_backends_failed", "a failed (500), b failed (502), nobody else could be asked"),
        ("failed", "a failed (500), b failed (502), nobody else could be asked"),
        ("passed_on", "a failed (500), b failed (502), the same error came twice and was passed on"),
        ("client_gone", "a failed (500), b failed (502), the client hung up before another one was asked"),
        ("cancelled", "a failed (500), b failed (502), an operator ended it before another one was asked"),
    ],
)
def test_a_search_in_vain(outcome: str, sentence: str) -> None:
    reasons = ("failed (500)", "failed (502)")
    assert told(outcome, "a", "b", reasons=reasons, status=502, begun=False) == sentence


def test_one_that_took_too_long() -> None:
    said = told("upstream_timeout", "a", reasons=("did not begin to answer in time",), status=504, begun=False)
    assert said == (
        "a did not begin to answer in time, nobody else was asked, since the work may have been nearly done"
    )


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        ("limited", "a limit of its key is used up"),
        ("model_hidden", "its key may not use the model, or nobody hosts it"),
        ("unavailable", "no backend that could answer is up"),
        ("cancelled", "an operator ended it before a backend was asked"),
        ("something_new", "it was refused"),
    ],
)
def test_one_that_nobody_was_asked_for(outcome: str, sentence: str) -> None:
    assert told(outcome, status=503, begun=False) == sentence


def test_an_error_that_is_the_clients_own() -> None:
    assert told("complete", "a", status=400, begun=False) == "a refused it (400)"


def test_a_load_is_told() -> None:
    trace = Trace("r", "/api/chat", "tiny", "k", 200, "complete", ["a"])
    assert explanation(trace, Spent(load_ms=12_340)) == "a answered after loading the model for 12.3 s"
    assert explanation(trace, Spent(load_ms=523)) == "a answered"
