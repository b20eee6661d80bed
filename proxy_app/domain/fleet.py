"""The fleet: backends, their health, and what they hold."""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NewType

from proxy_app.errors import InvalidModelName, ModelRequired

Digest = NewType("Digest", str)
"""A manifest's sha256 in hex, as `/api/tags` gives it: the freshness boundary of a show document."""

Buffer = bytes | mmap.mmap
"""Bytes in memory, or in a file that the kernel reads where it is looked at."""

Pair = tuple[int, str]
"""A backend's id and the canonical name of a model on it."""

Source = Literal["unspecified", "local", "cloud"]

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

# Ollama types/model/name.go:333-376 (v0.33.0-rc2): bytes, not runes; ':' only in a host, '.' not in a namespace.
_PART = {
    "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
}


# RFC 3986 §3.1; Ollama takes anything, and a name goes into logs, keys and requests.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}")
# All four parts at their longest, a scheme and a source suffix.
LONGEST_NAME = 1024


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model's name as Ollama reads it; see `parse`.

    `given` is the client's own text, `base` the same without its source suffix.
    """

    given: str
    source: Source
    base: str
    host: str
    namespace: str
    model: str
    tag: str

    @property
    def full(self) -> str:
        """All four parts: `host/namespace/model:tag`."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def canonical(self) -> str:
        """The key under which all spellings of one model meet (names compare without case)."""
        return self.full.lower()

    @property
    def shortest(self) -> str:
        """Ollama's display form: default host and namespace dropped, the tag always kept."""
        short = f"{self.model}:{self.tag}"
        if self.host.lower() != DEFAULT_HOST:
            return self.full
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{short}"
        return short

    @property
    def is_cloud(self) -> bool:
        """Does the name ask for Ollama's cloud by its suffix (`:cloud`, `-cloud`)?"""
        return self.source == "cloud"

    @property
    def space(self) -> str:
        """The key space of the name's show documents: a local model and its cloud namesake never meet."""
        return "cloud" if self.is_cloud else "local"


def parse_name(text: str) -> ModelName:
    """Read a name that a client wrote: source suffix first, then the four parts.

    Raises:
        ModelRequired: nothing but blanks.
        InvalidModelName: two source suffixes, or a part that breaks the rules.

    Source: Ollama internal/modelref/modelref.go:109-199 and types/model/name.go:140-176 (v0.33.0-rc2).
    """
    text = text.strip(_GO_SPACE)
    if not text:
        raise ModelRequired
    if len(text) > LONGEST_NAME:
        # Before it could become a key of anything that remembers.
        raise InvalidModelName
    return _parse(text)


@lru_cache(maxsize=4096)
def _parse(text: str) -> ModelName:
    base, source = _cut_source(text)
    if source != "unspecified" and _cut_source(base)[1] != "unspecified":
        raise InvalidModelName(f'use either :local or :cloud, not both: "{text}"')
    return _parse_parts(text, source, base)


@lru_cache(maxsize=4096)
def parse_listed(text: str) -> ModelName:
    """Read a name that a backend listed: `x:8b-cloud` in a listing is a manifest with just that tag.

    Raises:
        InvalidModelName: a part breaks the rules.
    """
    return _parse_parts(text, "unspecified", text)


_GO_SPACE = "\t\n\v\f\r \x85\xa0"


def _cut_source(text: str) -> tuple[str, Source]:
    head, colon, tail = text.rpartition(":")
    word = tail.strip(_GO_SPACE).lower()
    if not colon:
        return text, "unspecified"
    if word == "cloud":
        return head, "cloud"
    if word == "local":
        return head, "local"
    if "/" not in tail and word.endswith("-cloud"):
        return f"{head}:{tail.strip(_GO_SPACE)[: -len('-cloud')]}", "cloud"
    return text, "unspecified"


def _parse_parts(given: str, source: Source, base: str) -> ModelName:
    rest, tag = _cut_tag(base)
    scheme, scheme_mark, after_scheme = rest.partition("://")
    rest = after_scheme if scheme_mark else rest
    if scheme_mark and not _SCHEME.fullmatch(scheme):
        raise InvalidModelName
    pieces = rest.rsplit("/", 2)
    defaults = [DEFAULT_HOST, DEFAULT_NAMESPACE]
    host, namespace, model = defaults[: 3 - len(pieces)] + pieces
    parts = {"host": host, "namespace": namespace, "model": model, "tag": tag}
    for kind, part in parts.items():
        if not _PART[kind].fullmatch(part):
            raise InvalidModelName
    return ModelName(given=given, source=source, base=base, **parts)


def _cut_tag(text: str) -> tuple[str, str]:
    head, colon, tail = text.rpartition(":")
    if not colon or "/" in tail:
        return text, DEFAULT_TAG
    return head, tail


@dataclass(frozen=True, slots=True)
class Backend:
    """A configured server: a durable row of the registry.

    Args:
        priority: lower goes first; equal numbers form a tier that shares load.
        slots: how many requests it takes at once; None where nobody said.
        cloud: may it use Ollama's cloud? None: as its own `/api/status` says.
        origin: `env` rows follow the environment, `operator` rows only the operator.
    """

    id: int
    name: str
    url: str
    priority: int
    slots: int | None = None
    kind: str = "ollama"
    cloud: bool | None = None
    origin: Literal["env", "operator"] = "env"
    draining: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    auth_token: str | None = field(default=None, repr=False)


State = Literal["unknown", "up", "down"]


@dataclass(frozen=True, slots=True)
class Health:
    """What the refresher last learned of a backend.

    Args:
        since: UTC seconds.
        latency_s: of the last good probe.
        cloud_source: what switched the cloud off: env, config or both.
        recommendations: its `/api/experimental/model-recommendations`, as JSON.
    """

    state: State = "unknown"
    since: float = 0.0
    version: str | None = None
    cloud_disabled: bool | None = None
    latency_s: float | None = None
    error: str | None = None
    cloud_source: str | None = None
    recommendations: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Holding:
    """One model on one backend, as its `/api/tags` listed it (`item` is that record)."""

    backend_id: int
    canonical: str
    name: str
    digest: Digest
    item: Mapping[str, Any] = field(repr=False)

    @property
    def is_remote_stub(self) -> bool:
        """A manifest that only points at another host; Ollama never caches its show document either."""
        return bool(self.item.get("remote_host"))


@dataclass(frozen=True, slots=True)
class Member:
    """A backend and its health, as one Fleet saw them."""

    backend: Backend
    health: Health

    @property
    def is_live(self) -> bool:
        return self.health.state == "up"

    @property
    def takes_work(self) -> bool:
        return self.is_live and not self.backend.draining

    @property
    def allows_cloud(self) -> bool:
        """The `cloud` field of its settings, else what its `/api/status` said; silence means yes (old servers)."""
        if self.backend.cloud is not None:
            return self.backend.cloud
        return not self.health.cloud_disabled


@dataclass(frozen=True, slots=True)
class Listing:
    """A finished answer: bytes that go out unparsed, and their entity tag."""

    body: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Fleet:
    """What all backends are and hold, at one moment. Immutable; one reference per request.

    Args:
        members: by config order (priority, then position).
        holders: canonical name -> holdings, live backends first, those with the current digest before
            those that drifted, then by config order. Dead backends' holdings come last: remembered.
        warm: canonical name -> backends that had it loaded at the last poll.
        status, recommendations: finished answers of Ollama's routes of these names.
        discovered: is a backend up, or was every one probed at least once?
        complete: was every one probed at least once?
    """

    members: tuple[Member, ...] = ()
    holders: Mapping[str, tuple[Holding, ...]] = field(default_factory=dict)
    by_id: Mapping[int, Member] = field(default_factory=dict)
    tags: Listing = Listing(b'{"models":[]}', '"empty"')
    models: Listing = Listing(b'{"object":"list","data":[]}', '"empty"')
    loaded: bytes = b'{"models":[]}'
    warm: Mapping[str, frozenset[int]] = field(default_factory=dict)
    status: bytes = b'{"cloud":{"disabled":false,"source":"none"}}'
    recommendations: bytes = b'{"recommendations":[]}'
    version: str = "0.0.0"
    discovered: bool = False
    complete: bool = False
    generation: tuple[int, int] = (-1, -1)

    def digest(self, canonical: str) -> Digest | None:
        """The name's digest: that of its best live holder, else of the best remembered one."""
        holders = self.holders.get(canonical)
        return holders[0].digest if holders else None

    def drifted(self) -> dict[str, tuple[str, ...]]:
        """Models that live backends hold with different digests, and the backends that rank last for it."""
        found = {}
        for canonical in self.holders:
            live = self.live_holders(canonical)
            odd = [held for held in live if held.digest != live[0].digest]
            if odd:
                found[live[0].name] = tuple(self.by_id[held.backend_id].backend.name for held in odd)
        return found

    @property
    def forbids_cloud(self) -> bool:
        """Is there no backend that may use Ollama's cloud, up or down?"""
        return bool(self.members) and not any(member.allows_cloud for member in self.members)

    @property
    def is_dark(self) -> bool:
        """Is no backend up at all? Then nobody can say what does not exist."""
        return not any(member.is_live for member in self.members)

    def live_holders(self, canonical: str) -> tuple[Holding, ...]:
        """Who hosts it and is alive, best first."""
        return tuple(h for h in self.holders.get(canonical, ()) if self.by_id[h.backend_id].is_live)


@dataclass(frozen=True, slots=True)
class ShowQuery:
    """A request for a model's document, read as Ollama reads it."""

    model: str
    verbose: bool = False
    has_overlay: bool = False

    @property
    def is_cacheable(self) -> bool:
        """Only a request without `system` and `options` has an answer that others share."""
        return not self.has_overlay


@dataclass(frozen=True, slots=True)
class ShowKey:
    """Where a show document lives: (space, canonical name, verbose)."""

    space: str
    canonical: str
    verbose: bool

    def __str__(self) -> str:
        return f"{self.space}:{self.canonical}:{'v' if self.verbose else 'p'}"


@dataclass(frozen=True, slots=True)
class ShowEntry:
    """A show document as a backend sent it.

    Args:
        digest: the digest that backend listed for the model when it answered; "" for cloud documents.
        stored_at: UTC seconds.
    """

    digest: Digest
    stored_at: float
    body: bytes = field(repr=False)
