"""Which Fleet each worker of this data directory serves: told by each in a small file of its own."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from proxy_app.domain import Fleet
from proxy_app.services.role import FileLock

log = logging.getLogger(__name__)

Generation = tuple[int, int]


class Sightings:
    """Owned by: the worker's runtime. State: `workers/<pid>` in the data directory, locked while the worker lives."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "workers"
        self._own = self._folder / str(os.getpid())
        self._lock = FileLock(self._own)

    def note(self, fleet: Fleet) -> None:
        """Say what this worker serves from now on."""
        try:
            if self._lock.take():
                self._own.write_text("{} {}".format(*fleet.generation))
        except OSError as exc:
            # Who has no file is not waited for.
            log.debug("not told which Fleet is served: %s", exc)

    def reach(self, generation: Generation) -> bool:
        """Does every worker that lives serve this Fleet, or a later one?"""
        try:
            return all(_serves(file, generation) for file in self._folder.iterdir())
        except OSError:
            return True

    def close(self) -> None:
        if self._lock.held:
            with suppress(OSError):
                self._own.unlink()
            self._lock.free()


def _serves(file: Path, generation: Generation) -> bool:
    left_behind = FileLock(file)
    if left_behind.take():
        file.unlink(missing_ok=True)
        left_behind.free()
        return True
    try:
        catalogue, volatile = map(int, file.read_text().split())
    except FileNotFoundError:
        return True
    except ValueError:
        # It is being written.
        return False
    return (catalogue, volatile) >= generation
