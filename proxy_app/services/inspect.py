"""What the command line looks at: settings, stores, backends, models."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from proxy_app.domain import Backend, Fleet
from proxy_app.errors import CacheAway, RegistryAway, UpstreamError
from proxy_app.services.fleet import build
from proxy_app.services.key_admin import all_keys
from proxy_app.services.poller import prober_of
from proxy_app.services.private_redis import find_server
from proxy_app.services.setup import has_keys
from proxy_app.settings import Settings
from proxy_app.store.cache import ShowCache
from proxy_app.store.redis import RedisGate, private_socket, unix_now
from proxy_app.store.registry import STALE_S, Registry

# A first look is over when every backend was asked or could not be.
LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; an empty `cure` means it is well."""

    subject: str
    found: str
    cure: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {"ok": not self.cure, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Probed:
    """One backend, asked right now."""

    name: str
    url: str
    state: str
    version: str | None = None
    latency_ms: float | None = None
    models: int | None = None
    loaded: int | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def first_look(settings: Settings, patience_s: float, is_over: Callable[[], bool]) -> Fleet:
    """Wait until the refresher has looked at the backends once."""
    deadline = time.monotonic() + patience_s
    registry = _registry(settings)
    try:
        while True:
            fleet = build(registry.snapshot(settings.fleet))
            looked = all(member.health.state != "unknown" for member in fleet.members) and registry.rounds() > 0
            if looked or is_over() or time.monotonic() > deadline:
                return fleet
            time.sleep(LOOK_S)
    finally:
        registry.close()


def wait_listening(settings: Settings, patience_s: float, is_over: Callable[[], bool]) -> bool:
    """Wait until somebody listens where clients will call."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    deadline = time.monotonic() + patience_s
    while not is_over() and time.monotonic() < deadline:
        try:
            socket.create_connection((host, settings.port), timeout=1).close()
            return True
        except OSError:
            time.sleep(LOOK_S)
    return False


def check(settings: Settings) -> list[Finding]:
    """Look at everything that serving needs."""
    findings = [Finding("settings", f"{len(settings.fleet)} backend(s), listening on {settings.host}:{settings.port}")]
    findings.append(_check_redis(settings))
    findings += _check_registry(settings)
    findings.append(_check_keys(settings))
    findings += [_as_finding(found) for found in probe_all(settings)]
    return findings


def _check_keys(settings: Settings) -> Finding:
    """Who is let in, in one sentence."""
    try:
        keys = all_keys(settings)
    except RegistryAway as exc:
        return Finding("keys", str(exc), "as for the registry")
    if not keys and has_keys(settings) and not settings.admin_key:
        return Finding("keys", "they are lost: nobody is let in", "put DATA_DIR/caravan.db back, or make a new key")
    valid = sum(key.is_valid(unix_now()) for key in keys) + bool(settings.admin_key)
    if valid or keys:
        return Finding("keys", f"{valid} valid; nobody is let in without one" + _but_anonymous(settings))
    return Finding("keys", "none: this machine itself may do everything, whoever comes through a proxy may use models")


def _but_anonymous(settings: Settings) -> str:
    return f", but anonymously for {', '.join(settings.anonymous_scopes)}" if settings.anonymous else ""


def probe_all(settings: Settings) -> list[Probed]:
    """Ask all backends at once."""
    backends = _backends(settings)
    with ThreadPoolExecutor(max_workers=min(32, len(backends))) as pool:
        return list(pool.map(lambda backend: _probe(backend, settings), backends))


def list_models(settings: Settings) -> dict[str, Any]:
    """Models by backend as last seen, their union's size, and the cache's."""
    registry = _registry(settings)
    try:
        rows = registry.snapshot(settings.fleet)
    finally:
        registry.close()
    fleet = build(rows)
    return {
        "backends": [
            {
                "name": member.backend.name,
                "state": member.health.state,
                "models": [
                    {"name": held.name, "digest": held.digest}
                    for held in sorted(rows.holdings, key=lambda held: held.name)
                    if held.backend_id == member.backend.id
                ],
            }
            for member in fleet.members
        ],
        "union": len(fleet.holders),
        "cache": _cache_size(settings),
    }


def _registry(settings: Settings) -> Registry:
    """The registry, brought to this version.

    Raises:
        RegistryAway: it cannot be used.
    """
    registry = Registry(settings.data_dir, busy_s=1.0)
    try:
        registry.migrate()
    except BaseException:
        registry.close()
        raise
    return registry


def _backends(settings: Settings) -> list[Backend]:
    """The registry's, else those of the settings alone."""
    try:
        registry = _registry(settings)
        try:
            found = list(registry.snapshot(settings.fleet).backends)
        finally:
            registry.close()
    except RegistryAway:
        found = []
    known = {backend.name for backend in found}
    fresh = [b for b in settings.fleet if b.name not in known]
    return found + [
        Backend(id=-place, name=b.name, url=b.url, priority=place, headers=b.headers, auth_token=b.auth_token)
        for place, b in enumerate(fresh, 1)
    ]


def _probe(backend: Backend, settings: Settings) -> Probed:
    prober = prober_of(backend, settings)
    try:
        started = time.monotonic()
        models = len(prober.tags())
        latency = round((time.monotonic() - started) * 1000, 1)
        return Probed(backend.name, backend.url, "up", prober.version(), latency, models, len(prober.loaded()))
    except UpstreamError as exc:
        return Probed(backend.name, backend.url, "down", error=str(exc))
    finally:
        prober.close()


def _as_finding(found: Probed) -> Finding:
    subject = f"backend {found.name}"
    if found.error:
        return Finding(subject, f"{found.url}: {found.error}", cure(found.error))
    if not found.models:
        return Finding(
            subject, f"{found.url}: version {found.version}, no models", "pull one there: ollama pull llama3.2"
        )
    return Finding(subject, f"{found.url}: version {found.version}, {found.models} models, {found.latency_ms} ms")


_CURES = {
    "401": "check its auth_token",
    "403": "check its auth_token and headers",
    "404": "its URL is that of the server alone, without /api and /v1",
    "certificate": "add its authority to those this machine trusts, or name a bundle in SSL_CERT_FILE",
    "plain http": "write http:// in its URL",
    "is it https": "write https:// in its URL, or check what listens there",
    "resolved": "check the name in its URL",
    "no list of models": "that is no Ollama server: check its URL",
    "no JSON": "that is no Ollama server: check its URL",
}


def cure(error: str) -> str:
    """What to do about a failed probe."""
    known = (cure for word, cure in _CURES.items() if word in error)
    return next(
        known, "check that Ollama runs there and listens (OLLAMA_HOST=0.0.0.0), and that no firewall is between"
    )


def _check_redis(settings: Settings) -> Finding:
    size = _cache_size(settings)
    if size is not None:
        where = "REDIS_URL" if settings.redis_url else "the private Redis"
        return Finding("redis", f"{where} answers; {size['documents']} show documents, {size['bytes']} bytes")
    if settings.redis_url:
        return Finding(
            "redis", "REDIS_URL does not answer", "start that Redis, or check the URL; meanwhile caches are per worker"
        )
    if not private_socket(settings.data_dir).exists():
        server = find_server()
        if server:
            return Finding("redis", f"`caravan up` will run a private one ({server})")
        return Finding("redis", "there is none; caches are per worker", "apt install redis-server, or set REDIS_URL")
    return Finding("redis", "the private Redis does not answer", "restart caravan up")


def _cache_size(settings: Settings) -> dict[str, int] | None:
    gate = RedisGate.of(settings)
    try:
        documents, size = ShowCache(gate, settings.redis_prefix, settings.show_cache_bytes).size_bytes()
        return {"documents": documents, "bytes": size}
    except CacheAway:
        return None
    finally:
        gate.close()


def _check_registry(settings: Settings) -> list[Finding]:
    try:
        registry = _registry(settings)
        try:
            age = registry.beat_age_s(time.monotonic())
            found = [Finding("registry", f"{registry.path} is in order")]
        finally:
            registry.close()
    except RegistryAway as exc:
        return [Finding("registry", str(exc), "see above; serving goes on with what is known")]
    if age is None:
        found.append(Finding("refresher", "not running; `caravan up` starts one"))
    elif age > STALE_S:
        found.append(
            Finding("refresher", "not running", "start `caravan up`, or `caravan refresh`; a web worker starts one too")
        )
    else:
        found.append(Finding("refresher", f"running, last round {age:.0f} s ago"))
    return found
