"""What a caller may: scopes, and the patterns of models."""

from __future__ import annotations

from typing import get_args

import pytest

from proxy_app.domain import Caller, parse_name
from proxy_app.domain.callers import ALL_SCOPES, ANYBODY, Scope


def may_use(pattern: str, model: str) -> bool:
    return Caller("k", frozenset(("infer",)), (pattern,)).may_use(parse_name(model))


@pytest.mark.parametrize("scope", get_args(Scope))
def test_a_caller_may_what_its_scopes_say(scope: Scope) -> None:
    caller = Caller("k", frozenset((scope,)))
    assert {other for other in ALL_SCOPES if caller.may(other)} == (ALL_SCOPES if scope == "admin" else {scope})


def test_somebody_without_scopes_may_nothing() -> None:
    assert not any(Caller().may(scope) for scope in ALL_SCOPES)


@pytest.mark.parametrize("scope", get_args(Scope))
def test_only_who_manages_is_told_of_absence(scope: Scope) -> None:
    assert Caller("k", frozenset((scope,))).is_told_of_absence is (scope in ("manage", "admin"))


def test_where_there_are_no_keys_nothing_is_hidden() -> None:
    assert ANYBODY.is_told_of_absence
    assert Caller(sees_all=True).is_told_of_absence


@pytest.mark.parametrize(
    "model", ["tiny", "TINY:latest", "me/tiny", "hf.co/me/tiny:q4", "gpt-oss:120b-cloud", "x:cloud"]
)
def test_without_a_list_every_model_may_be_used(model: str) -> None:
    assert Caller("k").may_use(parse_name(model))


@pytest.mark.parametrize(
    ("pattern", "model"),
    [
        ("tiny", "tiny"),
        ("tiny", "tiny:latest"),
        ("tiny:latest", "tiny"),
        ("tiny", "TINY"),
        ("tiny", "registry.ollama.ai/library/tiny:latest"),
        ("llama3*", "llama3.2:1b"),
        ("llama3.?:1b", "llama3.2:1b"),
        ("llama3.2:*", "llama3.2:1b"),
        ("*:1b", "llama3.2:1b"),
        ("me/*", "me/tiny"),
        ("hf.co/*", "hf.co/me/tiny:q4"),
        ("*", "hf.co/me/tiny:q4"),
        ("hf.co/*/tiny*", "hf.co/me/tiny:q4"),
        ("*", "tiny"),
        ("registry.ollama.ai/library/*", "tiny"),
    ],
)
def test_a_pattern_matches_a_name_however_it_is_written(pattern: str, model: str) -> None:
    assert may_use(pattern, model)


@pytest.mark.parametrize(
    ("pattern", "model"),
    [
        ("tiny", "tiny2"),
        ("tiny", "tiny:1b"),
        ("tin", "tiny"),
        ("tiny", "me/tiny"),
        ("tiny", "hf.co/me/tiny"),
        ("llama3*", "me/llama3"),
        ("me/*", "you/tiny"),
        ("tiny:1b", "tiny"),
        ("", "tiny"),
        ("llama*", "llama.example.com/me/tiny"),
        ("*tiny", "me/tiny"),
        ("me/*", "hf.co/me/tiny"),
    ],
)
def test_a_pattern_matches_nothing_else(pattern: str, model: str) -> None:
    assert not may_use(pattern, model)


@pytest.mark.parametrize("model", ["gpt-oss:120b-cloud", "gpt-oss:cloud", "GPT-OSS:120b-CLOUD"])
def test_a_cloud_model_needs_a_pattern_of_its_own(model: str) -> None:
    """It costs money, and what is said to it leaves the house."""
    for local in ("gpt-oss", "gpt-oss:120b", "gpt-oss:latest"):
        assert not may_use(local, model), local
    for wild in ("*", "gpt*", "gpt-oss:*"):
        assert not may_use(wild, model), wild
    assert may_use("*cloud", model)
    assert may_use("gpt-oss:*cloud", model)
    assert may_use(model.lower(), model)


def test_a_cloud_pattern_is_not_for_the_local_model() -> None:
    assert not may_use("*cloud", "gpt-oss:120b")
    assert not may_use("gpt-oss:120b-cloud", "gpt-oss:120b")
