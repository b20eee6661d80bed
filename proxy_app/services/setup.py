"""Setting the registry up: its schema, and the environment's backends."""

from __future__ import annotations

import logging
import resource
import socket
from pathlib import Path

from proxy_app.errors import ConfigError, RegistryAway, RegistryDamaged, RegistryTooNew
from proxy_app.services.role import FileLock
from proxy_app.settings import Settings
from proxy_app.store.registry import Registry

log = logging.getLogger(__name__)

# The checkout: where `wsgi.py` and `gunicorn.conf.py` are.
ROOT = Path(__file__).resolve().parents[2]

# Longer than a migration by another process (20 ms), shorter than anybody notices at a start.
BOOT_BUSY_S = 0.5
# Lies beside a registry that has keys: a new and empty registry in its place must not open the door.
MARK = "has-keys"
# Client connections of one worker, far above what its GPUs can serve; descriptors for them, their backends and us.
CONNECTIONS = 2000
OWN_DESCRIPTORS = 60
DESCRIPTORS = 2 * CONNECTIONS + OWN_DESCRIPTORS


def open_registry(settings: Settings) -> None:
    """Migrate the registry and import the environment's backends.

    A registry that cannot be used delays nobody: the worker serves, says why, and looks again.

    Raises:
        RegistryTooNew: it was written by a newer version; going on could damage it.
    """
    try:
        prepare_registry(settings, BOOT_BUSY_S)
    except RegistryTooNew:
        raise
    except RegistryAway as exc:
        log.error("%s", exc)


def prepare_registry(settings: Settings, busy_s: float = 10.0) -> list[str]:
    """Migrate the registry and import the environment's backends; returns the migrations that ran.

    Args:
        busy_s: how long to wait for another process that writes.

    A damaged one is put aside first: what is in it can be learned again.

    Raises:
        RegistryAway: it cannot be used.
    """
    try:
        return _prepare(settings, busy_s)
    except RegistryDamaged as exc:
        _put_away(settings, exc)
    return _prepare(settings, busy_s)


def _put_away(settings: Settings, damage: RegistryDamaged) -> None:
    """Put a damaged registry aside, unless another process has just done it."""
    lock = FileLock(settings.data_dir / "mend.lock")
    try:
        if not lock.take():
            raise damage
        try:
            _prepare(settings, BOOT_BUSY_S)
        except RegistryDamaged:
            log.error("%s: it is kept as %s, and a new one is made", damage, Registry.put_away(settings.data_dir).name)
    except OSError as exc:
        raise damage from exc
    finally:
        lock.free()


def _prepare(settings: Settings, busy_s: float) -> list[str]:
    registry = Registry(settings.data_dir, busy_s=busy_s)
    try:
        applied = registry.migrate()
        for warning in registry.import_backends(settings.fleet):
            log.warning("%s", warning)
        return applied
    finally:
        registry.close()


def has_keys(settings: Settings) -> bool:
    """Was there ever a key?"""
    return (settings.data_dir / MARK).exists()


def room_for_connections() -> int:
    """How many client connections a worker has descriptors for; raises the limit as far as this process may.

    Each one may need another to a backend.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    soft = DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    return max(32, min(CONNECTIONS, (soft - OWN_DESCRIPTORS) // 2))


def start_lock(settings: Settings) -> FileLock:
    """Take the data directory for one `caravan up`: a second one would take the first one's Redis away.

    Raises:
        ConfigError: somebody has it, or it cannot be used.
    """
    lock = FileLock(settings.data_dir / "up.lock")
    try:
        if lock.take():
            return lock
    except OSError as exc:
        raise ConfigError([f"DATA_DIR: {settings.data_dir} cannot be used: {exc.strerror}"]) from exc
    raise ConfigError([f"DATA_DIR: another `caravan up` runs on {settings.data_dir}; stop it, or use another folder"])


def check_port_free(settings: Settings) -> None:
    """See to it that we can listen, before anything is started.

    Raises:
        ConfigError: we cannot.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as exc:
            raise ConfigError([f"PORT: cannot listen on {settings.host}:{settings.port}: {exc.strerror}"]) from exc
