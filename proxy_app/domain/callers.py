"""Who asks, and what that one may."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal, get_args

from proxy_app.domain.fleet import ModelName
from proxy_app.settings.limits import KeyLimits

NO_LIMITS = KeyLimits()
Scope = Literal["infer", "read", "metrics", "manage", "admin"]
ALL_SCOPES: frozenset[Scope] = frozenset(get_args(Scope))


@dataclass(frozen=True, slots=True)
class Caller:
    """One who asks, as the guards recognised them.

    Args:
        key_id: what the logs and the usage know them by; "" for somebody without a key.
        scopes: `admin` includes all others.
        models: patterns of names that may be used; none: all. `*` and `?` stand for text between slashes, and a last
            part that is `*` for all of the rest. A cloud model needs a pattern that says `cloud`.
        limits: its own, and the default's where those say nothing.
        sees_all: is there no key anywhere that anything would have to be hidden from?
    """

    key_id: str = ""
    scopes: frozenset[Scope] = frozenset()
    models: tuple[str, ...] = ()
    sees_all: bool = False
    limits: KeyLimits = NO_LIMITS

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes

    def may_use(self, name: ModelName) -> bool:
        """Is the model one that this caller may use? Says nothing about whether anybody hosts it."""
        return not self.models or _matches(self.models, name)

    @property
    def may_use_cloud(self) -> bool:
        """Is there any cloud model that this caller may use?"""
        return not self.models or bool(_of_cloud(self.models))

    @property
    def is_told_of_absence(self) -> bool:
        """May this caller learn that nobody hosts a model? Ollama's own command pulls on that answer."""
        return self.sees_all or self.may("manage")


ANYBODY = Caller(scopes=ALL_SCOPES, sees_all=True)
"""Whoever asks, where there are no keys and this machine itself is asked."""


# Small: each made-up name of a client stays in it.
@lru_cache(maxsize=2048)
def _matches(patterns: tuple[str, ...], name: ModelName) -> bool:
    reaching = _of_cloud(patterns) if name.is_cloud else patterns
    return any(_fits(spelling, pattern) for spelling in _spellings(name) for pattern in reaching)


def _of_cloud(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Those that mean cloud models, since they say so."""
    return tuple(pattern for pattern in patterns if "cloud" in pattern)


def _fits(spelling: str, pattern: str) -> bool:
    """Part by part: what looks like a family of models is no host on the internet."""
    parts, wanted = spelling.split("/"), pattern.split("/")
    if wanted[-1] == "*":
        parts[len(wanted) - 1 :] = ["all of the rest"]
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _spellings(name: ModelName) -> tuple[str, ...]:
    """The forms in which a person may have written a name: in full, short, and short without `:latest`.

    A cloud model keeps its mark: it costs money and leaves the house, so a pattern for the local one is not for it.
    """
    short = name.shortest.lower()
    plain = short.removesuffix(":latest")
    if name.is_cloud:
        return tuple(dict.fromkeys((f"{short}-cloud", f"{plain}:cloud" if plain != short else f"{short}-cloud")))
    return tuple(dict.fromkeys((name.canonical, short, plain)))
