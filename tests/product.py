"""Starting the product itself for a test: real gunicorn workers in front of fakes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fakes import procs
from tests.fakes.http import fetch
from tests.fakes.ollama import FakeOllama

# Polls and health as quick as a test wants them; everything else as shipped.
QUICK = {
    "CARAVAN_POLL_INTERVAL": "0.2",
    "CARAVAN_DOWN_POLL_INTERVAL": "0.1",
    "CARAVAN_SLOW_POLL_INTERVAL": "0.5",
    "CARAVAN_RELOAD_INTERVAL": "0.05",
}


def backends_of(fakes: Iterable[FakeOllama], **common: Any) -> str:
    """OLLAMA_BACKENDS for these fakes, in this order; `common` fields for all of them, such as priority=0."""
    return json.dumps([{"name": fake.name, "url": fake.url, **common} for fake in fakes])


def environment(fakes: Iterable[FakeOllama], redis_url: str = "", **changes: str) -> dict[str, str]:
    """The environment of a product in front of these fakes."""
    return {**QUICK, "OLLAMA_BACKENDS": backends_of(fakes), "REDIS_URL": redis_url, "WEB_CONCURRENCY": "1", **changes}


@contextmanager
def gateway(
    fakes: Iterable[FakeOllama], folder: Path, redis_url: str = "", **changes: str
) -> Iterator[procs.Process]:
    """gunicorn in front of these fakes, ready: every backend was looked at and this worker knows it.

    Args:
        redis_url: a Redis to share; "" runs without.
        changes: more environment variables.
    """
    fakes = list(fakes)
    with procs.gunicorn(environment(fakes, redis_url, **changes), folder) as process:
        process.wait_ready(deadline_s=20)
        yield process


def listed(url: str) -> set[str]:
    """The names that `/api/tags` lists right now."""
    return {item["name"] for item in fetch(f"{url}/api/tags").json()["models"]}
