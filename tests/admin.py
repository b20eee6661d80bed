"""What the tests of the admin page and of its API share: a product with keys, and ways to call it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance.fakes.http import RawResponse, fetch
from conformance.fakes.ollama import FakeModel, FakeOllama
from tests.fakes import procs
from tests.keys import bearer, new_key
from tests.product import NO_BREAKER, question
from tests.wire.shows import gateway

API = "/admin/api"
PAGES = {
    "fleet": "/admin/",
    "models": "/admin/models",
    "traffic": "/admin/traffic",
    "keys": "/admin/keys",
    "events": "/admin/events",
    "settings": "/admin/settings",
}
LOGIN = "/admin/login"
LIVE = "/admin/live"
# Of a session over plain http.
COOKIE = "caravan"
# Whose keys every site has, by label; their scopes.
KEYS: dict[str, tuple[str, ...]] = {
    "admin": ("admin",),
    "user": ("infer", "read"),
    "everything-else": ("infer", "read", "metrics", "manage"),
}


@dataclass(frozen=True)
class Call:
    """One operation of the admin API. `path`: as its OpenAPI document has it; `target`: one that exists."""

    method: str
    path: str
    target: str
    asked: Any = None


def call(operation: str, target: str = "", asked: Any = None) -> Call:
    method, _, path = operation.partition(" ")
    return Call(method, path, target or path, asked)


# Every change, each so that it would do something if it were let through.
CHANGES = (
    call("POST /backends", asked={"name": "evil", "url": "http://127.0.0.1:9", "test": False}),
    call("POST /backends/test", asked={"name": "evil", "url": "http://127.0.0.1:9"}),
    call("PATCH /backends/{name}", "/backends/one", {"draining": True}),
    call("DELETE /backends/{name}", "/backends/one"),
    call("POST /models/pull", asked={"model": "pulled", "backends": ["one"]}),
    call("POST /models/copy", asked={"source": "tiny", "destination": "copied"}),
    call("POST /models/delete", asked={"model": "tiny"}),
    call("POST /models/load", asked={"model": "tiny", "backend": "one"}),
    call("POST /models/unload", asked={"model": "tiny", "backend": "one"}),
    call("DELETE /requests/{run_id}", "/requests/0123456789abcdef"),
    call("POST /keys", asked={"label": "evil", "scopes": ["admin"]}),
    call("PATCH /keys/{key_id}", "/keys/abcdefgh", {"scopes": ["admin"]}),
    call("DELETE /keys/{key_id}", "/keys/abcdefgh"),
    call("POST /keys/{key_id}/rotate", "/keys/abcdefgh/rotate", {"overlap_s": 0}),
    call("DELETE /sessions"),
)
READS = (
    call("GET /backends"),
    call("GET /models"),
    call("GET /requests"),
    call("GET /charts"),
    call("GET /keys"),
    call("GET /keys/{key_id}", "/keys/abcdefgh"),
    call("GET /events"),
    call("GET /settings"),
    call("GET /usage"),
    call("GET /openapi.json"),
)
CALLS = CHANGES + READS
# For whoever wants in or out.
DOORS = (call("POST /session"), call("DELETE /session"))


@dataclass(eq=False)
class AdminSite:
    """A product with keys in front of fakes, shared by the tests of a module. `keys`: by label."""

    process: procs.Process
    folder: Path
    fakes: tuple[FakeOllama, ...]
    keys: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def url(self) -> str:
        return self.process.url

    def call(
        self,
        method: str,
        path: str,
        asked: Any = None,
        key: str | None = "admin",
        headers: Mapping[str, str] | None = None,
    ) -> RawResponse:
        """One call of the admin API on a connection of its own; `path` below it, `key` a label or None."""
        given = bearer(self.keys[key]) if key else {}
        return fetch(self.url + API + path, method, json=asked, headers={**given, **(headers or {})})

    def get(self, path: str, **options: Any) -> Any:
        """What the admin API says to an admin."""
        answer = self.call("GET", path, **options)
        assert answer.status == 200, (answer.status, answer.body)
        return answer.json()

    def chat(self, key: str, model: str, **more: Any) -> RawResponse:
        """One chat that does not stream, with the text of a key."""
        asked = question("/api/chat", model, stream=False, **more)
        return fetch(f"{self.url}/api/chat", "POST", json=asked, headers=bearer(key))


@contextmanager
def admin_site(
    folder: Path, fakes: Iterable[FakeOllama], redis_url: str = "", workers: int = 2, **changes: str
) -> Iterator[AdminSite]:
    """A product in front of these running fakes, with two workers: what one shows, the other may have done."""
    made = {label: new_key(folder, label, scopes=scopes) for label, scopes in KEYS.items()}
    # A Redis that is there answers, however slow the machine is.
    settings = {"WEB_CONCURRENCY": str(workers), "CARAVAN_REDIS_TIMEOUT": "5", **NO_BREAKER, **changes}
    with gateway(fakes, folder, redis_url, **settings) as process:
        yield AdminSite(process, folder, tuple(fakes), made)


@contextmanager
def fakes_of(models: Mapping[str, Iterable[str | FakeModel]], **options: Any) -> Iterator[tuple[FakeOllama, ...]]:
    """Running fakes by name, each with its models."""
    with ExitStack() as stack:
        yield tuple(stack.enter_context(FakeOllama(name, held, **options)) for name, held in models.items())
