"""Starting the product itself for a test: real gunicorn workers in front of fakes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.fakes.http import RawClient, RawResponse, fetch
from conformance.fakes.ollama import FakeModel, FakeOllama
from tests.fakes import procs

# Polls and health as quick as a test wants them; everything else as shipped.
QUICK = {
    "CARAVAN_POLL_INTERVAL": "0.2",
    "CARAVAN_DOWN_POLL_INTERVAL": "0.1",
    "CARAVAN_SLOW_POLL_INTERVAL": "0.5",
    "CARAVAN_RELOAD_INTERVAL": "0.05",
}
# A breaker that is never in the way: for products that many tests share.
NO_BREAKER = {"CARAVAN_BREAKER_FAILURES": "100", "CARAVAN_BREAKER_OPEN": "0.05"}

# A fleet that hears nothing of a backend's death from its polls.
SELDOM_POLLED = {"CARAVAN_POLL_INTERVAL": "60", "CARAVAN_DOWN_POLL_INTERVAL": "60"}
# Where a test is not about a Redis that is away: as shipped, a machine that is busy for 0.25 s makes each worker go on
# without it, and what the workers share is not shared any more.
PATIENT = {"CARAVAN_REDIS_TIMEOUT": "10"}
# The same for tests of whole processes: nor is a document that comes late one that is not to be had.
UNHURRIED = {"CARAVAN_REDIS_TIMEOUT": "5", "CARAVAN_HYDRATE_TIMEOUT": "20"}

# What each inference route is asked in these tests; `model` and `stream` come on top.
INFERENCE: dict[str, dict[str, Any]] = {
    "/api/chat": {"messages": [{"role": "user", "content": "hi"}]},
    "/api/generate": {"prompt": "hi"},
    "/api/embed": {"input": "hi"},
    "/api/embeddings": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100},
}
STREAMING = tuple(path for path in INFERENCE if "embed" not in path)


def question(path: str, model: str = "tiny", stream: bool | None = None, **more: Any) -> dict[str, Any]:
    """The body of a request that an inference route answers; without `stream`, the route's own default holds."""
    asked = {"model": model, **INFERENCE[path], **more}
    return asked if stream is None else {**asked, "stream": stream}


def backends_of(fakes: Iterable[FakeOllama], **common: Any) -> str:
    """OLLAMA_BACKENDS for these fakes, in this order; `common` fields for all of them, such as priority=0."""
    return json.dumps([{"name": fake.name, "url": fake.url, **common} for fake in fakes])


def environment(fakes: Iterable[FakeOllama], redis_url: str = "", **changes: str) -> dict[str, str]:
    """The environment of a product in front of these fakes."""
    return {**QUICK, "OLLAMA_BACKENDS": backends_of(fakes), "REDIS_URL": redis_url, "WEB_CONCURRENCY": "1", **changes}


@contextmanager
def gateway(fakes: Iterable[FakeOllama], folder: Path, redis_url: str = "", **changes: str) -> Iterator[procs.Process]:
    """gunicorn in front of these fakes, ready: every backend was looked at and this worker knows it.

    Args:
        redis_url: a Redis to share; "" runs without.
        changes: more environment variables.
    """
    fakes = list(fakes)
    with procs.gunicorn(environment(fakes, redis_url, **changes), folder) as process:
        process.wait_every_worker()
        yield process


def listed(url: str) -> set[str]:
    """The names that `/api/tags` lists right now."""
    return {item["name"] for item in fetch(f"{url}/api/tags").json()["models"]}


def mark(fake: FakeOllama) -> str:
    """The name of a model that this fake alone holds: where it is listed, Caravan sees this fake."""
    return f"only-{fake.name}:latest"


@dataclass(eq=False)
class Stand:
    """A product in front of fakes that hold the same models, shared by the tests of a module."""

    process: procs.Process
    fakes: tuple[FakeOllama, ...]

    @property
    def url(self) -> str:
        return self.process.url

    def post(self, path: str, asked: Any = None, **options: Any) -> RawResponse:
        """POST on a connection of its own; without a question, the route's usual one."""
        return fetch(self.url + path, "POST", json=question(path) if asked is None else asked, **options)

    def client(self, timeout_s: float = 10.0) -> RawClient:
        return RawClient(self.url, timeout_s)

    def counts(self, path: str) -> list[int]:
        """How many requests for a path each fake has got, in order."""
        return [fake.count(path) for fake in self.fakes]

    def logged(self, request_id: str) -> dict[str, Any]:
        """The log line of a relayed request, as soon as all of it is there: it is written behind the answer."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            whole = self.process.output.rpartition("\n")[0].splitlines()
            found[:] = [json.loads(line) for line in whole if f'"request_id": "{request_id}"' in line]
            found[:] = [fields for fields in found if "outcome" in fields]
            return bool(found)

        self.process.wait_until(is_there, f"the log line of {request_id}")
        return found[0]

    def wait_seen(self, *fakes: FakeOllama, deadline_s: float = 10.0) -> None:
        """Wait until these (all by default) are listed."""
        wanted = {mark(fake) for fake in fakes or self.fakes}
        what = f"{sorted(wanted)} are listed"
        self.process.wait_until(lambda: wanted <= listed(self.url), what, deadline_s)

    def wait_unseen(self, fake: FakeOllama, deadline_s: float = 10.0) -> None:
        self.process.wait_until(lambda: mark(fake) not in listed(self.url), f"{fake.name} is marked down", deadline_s)

    def tidy(self) -> None:
        """Bring everything back to its first state, for the next test of the module."""
        for fake in self.fakes:
            fake.clear_faults()
            fake.resume()
            fake.tokens, fake.token_delay_s, fake.first_token_delay_s = None, 0.0, 0.0
            fake.wait_idle()
        self.wait_seen()
        for fake in self.fakes:
            fake.forget_requests()


@contextmanager
def stand(
    folder: Path,
    names: Iterable[str] = ("a", "b"),
    models: Iterable[str | FakeModel] = ("tiny",),
    redis_url: str = "",
    backends: Mapping[str, Any] | None = None,
    **changes: str,
) -> Iterator[Stand]:
    """A product in front of new fakes that all hold `models`.

    Args:
        backends: fields for all backends, such as {"priority": 0}.
        changes: more environment variables; `**NO_BREAKER` where tests must not see each other's failures.
    """
    with ExitStack() as stack:
        fakes = tuple(stack.enter_context(FakeOllama(name, [*models, f"only-{name}"])) for name in names)
        if backends is not None:
            changes["OLLAMA_BACKENDS"] = backends_of(fakes, **backends)
        yield stack.enter_context(served(fakes, folder, redis_url, **changes))


@contextmanager
def served(fakes: Iterable[FakeOllama], folder: Path, redis_url: str = "", **changes: str) -> Iterator[Stand]:
    """A product in front of these fakes, each of which holds the model that marks it.

    Its refresher runs beside it, as in the Procfile: that is sooner ready than one that a worker misses first.
    """
    fakes = tuple(fakes)
    with (
        procs.caravan(environment(fakes, redis_url, **changes), folder, "refresh"),
        gateway(fakes, folder, redis_url, **changes) as process,
    ):
        made = Stand(process, fakes)
        made.wait_seen()
        yield made
