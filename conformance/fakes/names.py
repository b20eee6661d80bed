"""Ollama's model names, written a second time on purpose.

The fakes must not borrow the product's parser: a mistake shared by both sides would be invisible.
`tests/contract/test_fake_ollama.py` holds this file against the recorded vectors of names.json.

Source: types/model/name.go and internal/modelref/modelref.go of Ollama v0.33.0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

MISSING = "!MISSING!"
# Part name -> allowed form. Only ASCII: Ollama checks bytes, so a long s or a Kelvin sign fails.
PART_FORMS = {
    "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}", re.ASCII),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}", re.ASCII),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", re.ASCII),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", re.ASCII),
}


class BadReference(ValueError):
    """A model reference that Ollama refuses before it looks at any model; str() is its text."""


@dataclass(frozen=True)
class Name:
    """A full model name; two names are one model when their keys are equal."""

    host: str = "registry.ollama.ai"
    namespace: str = "library"
    model: str = MISSING
    tag: str = "latest"

    @property
    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def key(self) -> str:
        return self.full.lower()

    @property
    def shortest(self) -> str:
        """The form of listings: defaults dropped, the tag always kept."""
        if self.host.lower() != Name.host:
            return self.full
        if self.namespace.lower() != Name.namespace:
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"

    @property
    def valid(self) -> bool:
        return all(form.fullmatch(getattr(self, part)) for part, form in PART_FORMS.items())


def cut_last(text: str, separator: str) -> tuple[str, str, bool]:
    """Split at the last separator; a part it promised that nobody wrote is MISSING."""
    before, found, after = text.rpartition(separator)
    if not found:
        return text, "", False
    return before or MISSING, after or MISSING, True


def parse_name(text: str) -> Name:
    """Parse as Ollama does: never fails, the result may be invalid."""
    name = Name()
    if text.rfind(":") > text.rfind("/"):
        text, tag, _ = cut_last(text, ":")
        name = replace(name, tag=tag)
    text, model, more = cut_last(text, "/")
    if not more:
        return replace(name, model=text)
    text, namespace, more = cut_last(text, "/")
    name = replace(name, model=model, namespace=namespace if more else text)
    if more:
        name = replace(name, host=text.partition("://")[2] or text)
    return name


def source_suffix(text: str) -> tuple[str, str]:
    """Cut a trailing `:cloud`, `:local` or `-cloud` tag end; returns (source, base)."""
    base, found, suffix = text.rpartition(":")
    word = suffix.strip().lower()
    if not found:
        return "unspecified", text
    if word in ("cloud", "local"):
        return word, base.strip()
    if "/" not in suffix and word.endswith("-cloud"):
        return "cloud", text.rstrip()[: -len("-cloud")]
    return "unspecified", text


def parse_reference(text: str) -> tuple[str, str]:
    """Return (source, base) of what a client wrote, source being cloud, local or unspecified."""
    trimmed = text.strip()
    if not trimmed:
        raise BadReference("model is required")
    source, base = source_suffix(trimmed)
    if source != "unspecified" and source_suffix(base)[0] != "unspecified":
        raise BadReference(f'use either :local or :cloud, not both: "{trimmed}"')
    return source, base
