"""The shapes of the admin API, which are what the pages show, too. The OpenAPI document is made of these.

Times are UTC seconds, sizes bytes, spans seconds, unless a name says otherwise. None: nobody knows.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

State = Literal["unknown", "up", "down"]
Breaker = Literal["closed", "open", "half-open"]
Level = Literal["info", "warning", "error"]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Url = Annotated[str, Meta(min_length=8, max_length=2000)]
Label = Annotated[str, Meta(min_length=1, max_length=200)]
Priority = Annotated[int, Meta(ge=-1_000_000, le=1_000_000)]
Model = Annotated[str, Meta(min_length=1, max_length=1024)]


class Shape(Struct, frozen=True):
    """One that goes out."""


class Order(Struct, frozen=True, forbid_unknown_fields=True):
    """One that comes in: a field that nobody knows is a mistake."""


# -- the fleet ---------------------------------------------------------------------------------------


class LoadedModel(Shape, kw_only=True, frozen=True):
    """A model in a backend's memory. expires_at: as the backend wrote it (RFC 3339)."""

    name: str
    size: int | None = None
    size_vram: int | None = None
    expires_at: str | None = None
    context_length: int | None = None


class BackendView(Shape, kw_only=True, frozen=True):
    """One server.

    origin: `env` backends follow the environment, `operator` ones are changed here.
    since: when its state began. latency_s: of the last poll that changed it. in_flight: requests of all workers.
    tokens_per_s, requests: of the present hour. errors: of these, what the fleet failed: a status of 500 or more, or an
    answer that broke; not what clients did wrong, gave up or were refused, and not what an operator ended.
    alone: live models that no other live backend holds, which would be gone with it; None: nobody counted them.
    """

    id: int
    name: str
    url: str
    origin: Literal["env", "operator"]
    priority: int
    slots: int | None = None
    cloud: bool | None = None
    state: State
    since: float
    error: str | None = None
    version: str | None = None
    latency_s: float | None = None
    draining: bool
    in_flight: int
    breaker: Breaker
    models: int
    alone: list[str] | None = None
    loaded: list[LoadedModel]
    tokens_per_s: float | None = None
    requests: int = 0
    errors: int = 0
    has_token: bool = False
    header_names: list[str] = msgspec.field(default_factory=list)


class Notice(Shape, kw_only=True, frozen=True):
    """Something about the fleet that its operator should know.

    kind: digest-drift, version-skew, old-version, one-holder, reload-storm, no-backend, redis-away, refresher-away.
    """

    kind: str
    level: Level
    text: str
    subjects: list[str] = msgspec.field(default_factory=list)


class FleetView(Shape, kw_only=True, frozen=True):
    """All backends, best first."""

    at: float
    backends: list[BackendView]
    notices: list[Notice]


class NewBackend(Order, kw_only=True, frozen=True):
    """A backend to add. test: ask it first, and add it only where it answers."""

    name: Name
    url: Url
    priority: Priority | None = None
    slots: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    cloud: bool | None = None
    auth_token: Annotated[str, Meta(max_length=4096)] | None = None
    headers: dict[str, str] = {}
    test: bool = True


class BackendChange(Order, kw_only=True, frozen=True):
    """What is to change of an operator's backend; of one from the environment only `draining`. Left out: stays."""

    url: Url | msgspec.UnsetType = msgspec.UNSET
    priority: Priority | msgspec.UnsetType | None = msgspec.UNSET
    slots: Annotated[int, Meta(ge=1, le=10000)] | msgspec.UnsetType | None = msgspec.UNSET
    cloud: bool | msgspec.UnsetType | None = msgspec.UNSET
    auth_token: Annotated[str, Meta(max_length=4096)] | msgspec.UnsetType | None = msgspec.UNSET
    headers: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    draining: bool | msgspec.UnsetType = msgspec.UNSET
    test: bool = True


class Tested(Shape, kw_only=True, frozen=True):
    """What a backend said when it was asked. warnings: what is odd about it, though it works."""

    ok: bool
    error: str | None = None
    version: str | None = None
    latency_s: float | None = None
    models: list[str] = msgspec.field(default_factory=list)
    warnings: list[str] = msgspec.field(default_factory=list)


# -- models ------------------------------------------------------------------------------------------


class HolderView(Shape, kw_only=True, frozen=True):
    """Who holds a model. is_current: is it the digest that listings and routing go by?"""

    backend: str
    digest: str
    is_live: bool
    is_current: bool
    is_loaded: bool


class CacheView(Shape, kw_only=True, frozen=True):
    """A model's show document in the cache. stored_at None: it is not there. hits: how often it was served."""

    stored_at: float | None = None
    size: int | None = None
    hits: int | None = None


class ModelView(Shape, kw_only=True, frozen=True):
    """One model, whoever holds it. capabilities, context_length: of its show document, where that is known."""

    name: str
    digest: str
    holders: list[HolderView]
    size: int | None = None
    modified_at: str | None = None
    family: str | None = None
    parameter_size: str | None = None
    quantization: str | None = None
    capabilities: list[str] = msgspec.field(default_factory=list)
    context_length: int | None = None
    cache: CacheView = CacheView()


class ModelsView(Shape, kw_only=True, frozen=True):
    """A page of models. total: how many there are that match."""

    models: list[ModelView]
    total: int
    page: int
    pages: int
    query: str


# -- traffic -----------------------------------------------------------------------------------------


class Running(Shape, kw_only=True, frozen=True):
    """A request that is being worked on.

    id: its own, for cancelling it. request_id: its X-Request-Id, which a client may have chosen.
    backend None: it still looks for one. tokens: that the client has got.
    """

    id: str
    request_id: str
    route: str
    model: str
    key: str
    backend: str | None = None
    started_at: float
    first_byte_s: float | None = None
    tokens: int = 0


class Finished(Shape, kw_only=True, frozen=True):
    """A request that is over.

    id, request_id: as while it ran. first_byte_s, total_s: since it came. load_s: of that, loading the model.
    attempts: backends, in order. explanation: why it went the way it went, for people. is_fault: did the fleet fail it?
    """

    id: str
    request_id: str
    at: float
    route: str
    model: str
    key: str
    status: int
    outcome: str
    is_fault: bool
    attempts: list[str]
    backend: str | None = None
    wait_s: float | None = None
    first_byte_s: float | None = None
    total_s: float
    load_s: float | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_per_s: float | None = None
    explanation: str = ""


class TrafficView(Shape, kw_only=True, frozen=True):
    """What runs now, newest first, and what has ended, newest first. is_partial: Redis is away, and only this worker's
    requests are known."""

    running: list[Running]
    finished: list[Finished]
    is_partial: bool = False


class Point(Shape, kw_only=True, frozen=True):
    """One step of a chart. errors: as of a BackendView. loads: those of a second or longer. first_byte: seconds."""

    at: float
    requests: int = 0
    errors: int = 0
    tokens_per_s: float = 0.0
    loads: int = 0
    first_byte_p50: float | None = None
    first_byte_p95: float | None = None
    first_byte_p99: float | None = None


class GpuPoint(Shape, kw_only=True, frozen=True):
    """GPU seconds by key, of an hour or of several."""

    at: float
    gpu_s: dict[str, float] = msgspec.field(default_factory=dict)


class ChartView(Shape, kw_only=True, frozen=True):
    """step_s: the time between two points. gpu_step_s: the same of gpu_points, at least an hour: nobody knows more."""

    span_s: float
    step_s: float
    points: list[Point]
    gpu_step_s: float = 3600.0
    gpu_points: list[GpuPoint] = msgspec.field(default_factory=list)


# -- keys --------------------------------------------------------------------------------------------

Scope = Literal["infer", "read", "metrics", "manage", "admin"]


class KeyView(Shape, kw_only=True, frozen=True):
    """A key, without its secret. state: valid, expired, revoked."""

    id: str
    label: str
    scopes: list[str]
    models: list[str]
    networks: list[str]
    limits: str
    has_signer: bool
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    used_at: float | None = None
    replaces: str | None = None
    state: Literal["valid", "expired", "revoked"]
    requests_today: int = 0
    tokens_today: int = 0
    gpu_s_today: float = 0.0


class KeysView(Shape, kw_only=True, frozen=True):
    """All keys, newest first."""

    keys: list[KeyView]


class NewKey(Order, kw_only=True, frozen=True):
    """A key to make. limits: as `--limit` of the command, `rpm=60,concurrent=4`. lives_s: until it ends."""

    label: Label
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=5)] = msgspec.field(
        default_factory=lambda: ["infer", "read"]
    )
    models: Annotated[list[Model], Meta(max_length=100)] = []
    networks: Annotated[list[str], Meta(max_length=100)] = []
    limits: Annotated[str, Meta(max_length=500)] = ""
    lives_s: Annotated[float, Meta(gt=0, le=10 * 365 * 86400)] | None = None
    signer: Annotated[str, Meta(max_length=1000)] | None = None


class KeyChange(Order, kw_only=True, frozen=True):
    """What is to change of a key, whose secret stays. Left out: stays. lives_s: from now on; null: for ever."""

    label: Label | msgspec.UnsetType = msgspec.UNSET
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=5)] | msgspec.UnsetType = msgspec.UNSET
    models: Annotated[list[Model], Meta(max_length=100)] | msgspec.UnsetType = msgspec.UNSET
    networks: Annotated[list[str], Meta(max_length=100)] | msgspec.UnsetType = msgspec.UNSET
    limits: Annotated[str, Meta(max_length=500)] | msgspec.UnsetType = msgspec.UNSET
    lives_s: Annotated[float, Meta(gt=0, le=10 * 365 * 86400)] | msgspec.UnsetType | None = msgspec.UNSET


class Rotation(Order, kw_only=True, frozen=True):
    """overlap_s: how long the old key stays valid."""

    overlap_s: Annotated[float, Meta(ge=0, le=90 * 86400)] = 86400.0


class MadeKey(Shape, kw_only=True, frozen=True):
    """A key that was just made. secret: its whole text, which is never shown again."""

    key: KeyView
    secret: str


# -- the rest ----------------------------------------------------------------------------------------


class EventView(Shape, kw_only=True, frozen=True):
    """Something that changed. who: the key that did it, or `caravan`. subject: the backend, model or key."""

    id: int
    at: float
    kind: str
    level: Level
    who: str
    subject: str
    text: str


class EventsView(Shape, kw_only=True, frozen=True):
    """Newest first. more: is there an older one?"""

    events: list[EventView]
    more: bool


class SettingView(Shape, kw_only=True, frozen=True):
    """A setting as it holds now. value: masked where it is a secret. origin: where it came from."""

    name: str
    value: str
    origin: Literal["default", "environment", ".env", "file"]
    unit: str
    help: str
    is_secret: bool


class SettingsView(Shape, kw_only=True, frozen=True):
    """All settings, in the order of docs/settings.md."""

    settings: list[SettingView]


class UsageRow(Shape, kw_only=True, frozen=True):
    """What was used; `parts` are what was asked to be counted apart, such as {"key": "alice"}.

    errors: requests that did not end well, whoever's fault that is: refusals and hang-ups of clients, too.
    """

    parts: dict[str, str]
    requests: int
    errors: int
    tokens_in: int
    tokens_out: int
    gpu_s: float
    load_s: float
    estimated: int


class UsageView(Shape, kw_only=True, frozen=True):
    """Rows for each combination of `by`."""

    since: float
    by: list[str]
    rows: list[UsageRow]


class Error(Shape, kw_only=True, frozen=True):
    """Why a request was refused."""

    error: str
