"""The models one fake server holds, has loaded, and can reach in its cloud."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from conformance.fakes.models import FakeModel, as_model
from conformance.fakes.names import Name, parse_name


def later_text(seconds: float) -> str:
    """A time from now in Go's form; negative seconds mean for ever, about 292 years in Ollama."""
    if seconds < 0:
        return "2319-03-03T11:33:11.427387903Z"
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


class ModelStore:
    """Owned by one FakeOllama; changed by tests and by the fake's own store routes.

    Every change replaces the dictionary, so the serving thread reads without a lock.
    """

    def __init__(self, models: Iterable[str | FakeModel]) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, FakeModel] = {}
        self._loaded: dict[str, tuple[FakeModel, str]] = {}
        self.cloud_models: dict[str, FakeModel] = {}
        # Digest -> size of what was uploaded.
        self.blobs: dict[str, int] = {}
        for model in models:
            self.add(model)

    def add(self, model: str | FakeModel) -> FakeModel:
        added = as_model(model)
        with self._lock:
            self._models = self._models | {added.canonical.key: added}
        return added

    def remove(self, name: str) -> None:
        """Forget a model; like Ollama, a loaded one stays in /api/ps until it is unloaded."""
        key = parse_name(name).key
        with self._lock:
            self._models = {k: m for k, m in self._models.items() if k != key}

    def set_digest(self, name: str, digest: str) -> None:
        model = self.get(name)
        self.add(replace(model, digest=digest))

    def get(self, name: str) -> FakeModel:
        return self._models[parse_name(name).key]

    def find(self, name: Name) -> FakeModel | None:
        return self._models.get(name.key)

    def find_cloud(self, base: str) -> FakeModel | None:
        """Look in the cloud mapping; its keys are names in any form."""
        wanted = parse_name(base).key
        for key, model in self.cloud_models.items():
            if parse_name(key).key == wanted:
                return model
        return None

    def listed(self) -> list[FakeModel]:
        return sorted(self._models.values(), key=lambda m: m.modified_unix, reverse=True)

    def load(self, name: str, keep_alive_s: float = 300.0) -> None:
        model = self.get(name)
        with self._lock:
            entry = (model, later_text(keep_alive_s))
            self._loaded = self._loaded | {model.canonical.key: entry}

    def unload(self, name: str) -> None:
        key = parse_name(name).key
        with self._lock:
            self._loaded = {k: entry for k, entry in self._loaded.items() if k != key}

    def resident(self) -> list[tuple[FakeModel, str]]:
        """The loaded models with their expiry, as /api/ps lists them, deleted ones included."""
        return list(self._loaded.values())
