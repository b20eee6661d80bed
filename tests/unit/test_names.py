"""Model names against Ollama's own vectors (names.json: tests of Ollama and measurements)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proxy_app.domain import parse_listed, parse_name
from proxy_app.errors import InvalidModelName, ModelRequired

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "golden" / "names.json").read_text())
VALID = [vector for vector in VECTORS if vector.get("valid")]
INVALID = [vector for vector in VECTORS if not vector.get("valid") and not vector.get("error")]
REFUSED = [vector for vector in VECTORS if vector.get("error")]


def ids(vectors: list[dict[str, Any]]) -> list[str]:
    return [repr(vector["input"])[:40] for vector in vectors]


def test_every_vector_is_used() -> None:
    assert len(VALID) + len(INVALID) + len(REFUSED) == len(VECTORS) >= 111
    assert min(len(VALID), len(INVALID), len(REFUSED)) > 5


@pytest.mark.parametrize("vector", VALID, ids=ids(VALID))
def test_a_valid_name_has_ollamas_parts(vector: dict[str, Any]) -> None:
    name = parse_name(vector["input"])
    assert (name.source, name.base) == (vector["source"], vector["base"])
    assert (name.full, name.shortest) == (vector["full"], vector["shortest"])
    assert name.canonical == vector["full"].lower()
    assert name.is_cloud == (vector["source"] == "cloud")
    assert name.space == ("cloud" if vector["source"] == "cloud" else "local")


@pytest.mark.parametrize("vector", INVALID, ids=ids(INVALID))
def test_an_invalid_name_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(InvalidModelName) as refusal:
        parse_name(vector["input"])
    assert refusal.value.message == "invalid model name"


@pytest.mark.parametrize("vector", REFUSED, ids=ids(REFUSED))
def test_a_reference_that_ollama_refuses_is_refused_with_its_text(vector: dict[str, Any]) -> None:
    with pytest.raises((ModelRequired, InvalidModelName)) as refusal:
        parse_name(vector["input"])
    assert vector["error"].split(":")[0] in refusal.value.message


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("llama3", "llama3:latest"),
        ("LLAMA3", "library/llama3"),
        ("https://registry.ollama.ai/library/llama3", "Registry.Ollama.AI/library/llama3:LATEST"),
        ("m:8B", "m:8b"),
        ("gpt-oss:20b-cloud", "gpt-oss:20b:cloud"),
    ],
)
def test_spellings_of_one_model_meet_under_one_key(left: str, right: str) -> None:
    assert parse_name(left).canonical == parse_name(right).canonical
    assert parse_name(left).space == parse_name(right).space


@pytest.mark.parametrize(
    ("left", "right"),
    [("llama3", "user/llama3"), ("registry.ollama.ai:443/library/m", "m"), ("hf.co/u/m", "huggingface.co/u/m")],
)
def test_different_models_have_different_keys(left: str, right: str) -> None:
    assert parse_name(left).canonical != parse_name(right).canonical


def test_a_listed_name_keeps_a_cloud_tag_as_a_tag() -> None:
    name = parse_listed("gpt-oss:20b-cloud")
    assert (name.tag, name.is_cloud) == ("20b-cloud", False)


def test_letters_that_fold_to_ascii_are_no_valid_names() -> None:
    for text in ("\u212a", "li\u017ft", "m:\u212a"):
        with pytest.raises(InvalidModelName):
            parse_name(text)
