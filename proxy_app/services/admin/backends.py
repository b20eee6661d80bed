"""Adding, changing, draining and removing backends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from proxy_app.domain import Backend, Fleet, Member
from proxy_app.errors import BadRequest, Conflict, Missing, UpstreamError
from proxy_app.routing.versions import is_older
from proxy_app.services.admin.events import EventBook
from proxy_app.services.admin.shapes import BackendChange, NewBackend, Tested
from proxy_app.services.desk import RegistryDesk
from proxy_app.services.inspect import cure
from proxy_app.services.poller import prober_of
from proxy_app.services.visibility import Visibility
from proxy_app.settings import BackendSettings, Settings, read_backend
from proxy_app.store.backends import BackendStore

# No backend of the registry has this number.
NOBODYS_ID = -1
_WORDS = ("all", "first")


@dataclass(frozen=True, slots=True)
class BackendAdmin:
    """Owned by: the worker's runtime, or a command. Methods raise RegistryAway, and RequestErrors with texts for the
    operator.

    Args:
        fleet: what there is now.
    """

    settings: Settings
    fleet: Callable[[], Fleet]
    desk: RegistryDesk
    visibility: Visibility
    events: EventBook

    def test(self, order: NewBackend) -> Tested:
        """Ask a backend that is not (yet) one of ours. Raises: BadRequest: its fields make no sense."""
        return self._ask(_settings_of(order))

    def add(self, order: NewBackend, who: str) -> Member:
        """Add a backend, where it answers.

        Raises:
            BadRequest: its fields make no sense.
            Conflict: the name or the address is taken, or it does not answer.
        """
        wanted = _settings_of(order)
        self._check(wanted, is_tested=order.test)
        if not self.desk.run(lambda registry: BackendStore(registry).add(wanted)):
            raise Conflict(f"there is a backend of the name {wanted.name} already")
        self.events.note("backend.added", who, wanted.name, f"{wanted.url} was added")
        return self._settled(wanted.name)

    def change(self, name: str, change: BackendChange, who: str) -> Member:
        """Change a backend; what the environment says of its own is changed there, but for the drain.

        Raises:
            Missing: there is none of that name.
            BadRequest, Conflict: as `add`; Conflict also for one of the environment.
        """
        member = self.find(name)
        fields = {key: value for key, value in msgspec.structs.asdict(change).items() if value is not msgspec.UNSET}
        draining = fields.pop("draining", None)
        is_tested = fields.pop("test")
        if fields:
            self._check_operators(member.backend)
            self._replace(member.backend, fields, who, is_tested=is_tested)
        if draining is not None and draining != member.backend.draining:
            self.desk.run(lambda registry: BackendStore(registry).drain(name, draining=draining))
            told = "takes no new work; what runs there ends" if draining else "takes work again"
            self.events.note("backend.drained" if draining else "backend.undrained", who, name, f"{name} {told}")
        return self._settled(name)

    def remove(self, name: str, who: str) -> None:
        """Raises: Missing: there is none of that name. Conflict: the environment names it."""
        backend = self.find(name).backend
        self._check_operators(backend)
        if not self.desk.run(lambda registry: BackendStore(registry).remove(name)):
            raise Missing(f"there is no backend of the name {name} any more")
        self.events.note("backend.removed", who, name, f"{backend.url} was removed", "warning")
        self.visibility.spread()

    def find(self, name: str) -> Member:
        """Raises: Missing."""
        found = next((member for member in self.fleet().members if member.backend.name == name), None)
        if found is None:
            raise Missing(f"there is no backend of the name {name}")
        return found

    def _replace(self, old: Backend, fields: dict[str, Any], who: str, *, is_tested: bool) -> None:
        before = {
            "name": old.name,
            "url": old.url,
            "priority": old.priority,
            "slots": old.slots,
            "cloud": old.cloud,
            "auth_token": old.auth_token,
            "headers": dict(old.headers),
        }
        wanted = _read({**before, **fields})
        self._check(wanted, is_tested=is_tested)
        if not self.desk.run(lambda registry: BackendStore(registry).change(old.name, wanted, fields)):
            raise Missing(f"there is no backend of the name {old.name} any more")
        self.events.note("backend.changed", who, old.name, f"changed: {', '.join(sorted(fields))}")

    def _check(self, wanted: BackendSettings, *, is_tested: bool) -> None:
        if not is_tested:
            return
        answer = self._ask(wanted)
        if not answer.ok:
            raise Conflict(f"{wanted.url} does not work: {answer.error}; {cure(answer.error or '')}")

    def _ask(self, wanted: BackendSettings) -> Tested:
        backend = Backend(NOBODYS_ID, wanted.name, wanted.url, 0, headers=wanted.headers, auth_token=wanted.auth_token)
        prober = prober_of(backend, self.settings)
        try:
            started = time.monotonic()
            models = sorted(str(item.get("name", "")) for item in prober.tags())
            latency_s = time.monotonic() - started
            version = prober.version()
        except UpstreamError as exc:
            return Tested(ok=False, error=str(exc))
        finally:
            prober.close()
        warnings = _warnings(version, models, self.settings.safe_version)
        return Tested(ok=True, version=version, latency_s=latency_s, models=models, warnings=warnings)

    def _settled(self, name: str) -> Member:
        """The backend as all workers know it now, asked once."""
        self.visibility.spread()
        member = self.find(name)
        self.visibility.hold([member.backend])
        return self.find(name)

    @staticmethod
    def _check_operators(backend: Backend) -> None:
        if backend.origin == "env":
            raise Conflict(
                f"{backend.name} comes from the environment: change OLLAMA_BACKENDS, and start Caravan again"
            )


def _settings_of(order: NewBackend) -> BackendSettings:
    fields = msgspec.structs.asdict(order)
    fields.pop("test")
    return _read(fields)


def _read(fields: dict[str, Any]) -> BackendSettings:
    try:
        read = read_backend(fields)
    except ValueError as exc:
        raise BadRequest(str(exc)) from None
    if read.name in _WORDS:
        raise BadRequest(f"{read.name} is no name for a backend: CARAVAN_PULL_TO means something else by it")
    return replace(read, auth_token=read.auth_token or None)


def _warnings(version: str, models: list[str], safe: str) -> list[str]:
    found = []
    if is_older(version, safe):
        found.append(f"its Ollama {version} has a known hole; {safe} or newer has not")
    if not models:
        found.append("it has no models yet: pull one to it")
    return found
