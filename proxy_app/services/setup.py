"""Setting the registry up: its schema, and the environment's backends."""

from __future__ import annotations

import logging

from proxy_app.errors import RegistryAway, RegistryTooNew
from proxy_app.settings import Settings
from proxy_app.store.registry import Registry

log = logging.getLogger(__name__)

# Longer than a migration by another process (20 ms), shorter than anybody notices at a start.
BOOT_BUSY_S = 0.5


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

    Raises:
        RegistryAway: it cannot be used.
    """
    registry = Registry(settings.data_dir, busy_s=busy_s)
    try:
        applied = registry.migrate()
        for warning in registry.import_backends(settings.fleet):
            log.warning("%s", warning)
        return applied
    finally:
        registry.close()
