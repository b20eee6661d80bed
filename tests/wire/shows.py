"""What the tests of metadata share: asking for shows, counting what reached a backend, waiting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conformance.fakes.http import RawResponse, fetch
from conformance.fakes.ollama import FakeModel, FakeOllama, RecordedRequest
from tests.fakes import procs
from tests.product import environment, listed

# Deadline in seconds of a wait: only a failure reaches it, a healthy run needs a fraction.
SOON_S = 15.0


@contextmanager
def gateway(fakes: Iterable[FakeOllama], folder: Path, redis_url: str = "", **changes: str) -> Iterator[procs.Process]:
    """As `product.gateway`, with a refresher beside gunicorn: ready without waiting for a worker to start its own."""
    env = environment(list(fakes), redis_url, **changes)
    with procs.caravan(env, folder, "refresh"), procs.gunicorn(env, folder) as process:
        process.wait_every_worker()
        yield process


def until(ready: Callable[[], bool], what: str, deadline_s: float = SOON_S) -> None:
    """Wait for a condition."""
    end = time.monotonic() + deadline_s
    while not ready():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.01)


def show(url: str, model: str, headers: dict[str, str] | None = None, **fields: Any) -> RawResponse:
    """One `POST /api/show` on a connection of its own."""
    return fetch(f"{url}/api/show", "POST", json={"model": model, **fields}, headers=headers)


def cache_of(answer: RawResponse) -> str | None:
    return answer.header("x-caravan-cache")


def shows(fake: FakeOllama, model: str) -> list[RecordedRequest]:
    """The show requests for one model that reached a backend, whatever the spelling's case."""
    asked = [request for request in fake.requests_for("/api/show") if request.body]
    return [request for request in asked if request.json().get("model", "").lower().startswith(model.lower())]


def publish(url: str, model: FakeModel | str, *fakes: FakeOllama) -> FakeModel:
    """Give a model to backends and wait until the gateway knows of each of them.

    A union does not tell who holds a model: a witness beside it does, since a backend's listing is learned as a whole.
    """
    for fake in fakes:
        added = fake.add_model(model)
        fake.add_model(f"witness-{added.canonical.model}:{fake.name}".lower())
    names = {f"witness-{added.canonical.model}:{fake.name}".lower() for fake in fakes}
    until(lambda: names | {added.shortest} <= listed(url), f"{added.shortest} is listed")
    return added


def digest_of(url: str, name: str) -> str | None:
    """The digest that the gateway lists for a model."""
    models = fetch(f"{url}/api/tags").json()["models"]
    return next((item["digest"] for item in models if item["name"] == name), None)


def change(url: str, model: FakeModel, *fakes: FakeOllama) -> None:
    """Replace a model, as a pull does, and wait until the gateway has seen its new digest."""
    for fake in fakes:
        fake.add_model(model)
    until(lambda: digest_of(url, model.shortest) == model.digest, f"the new digest of {model.name}")
