"""The registry's schema: numbered migrations from the project's `migrations/` folder, applied in order."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from proxy_app.errors import RegistryTooNew

FOLDER = Path(__file__).resolve().parents[2] / "migrations"
_NUMBERED = re.compile(r"\d{4}_\w+\.py")


def names(folder: Path = FOLDER) -> list[str]:
    """All migrations that this version knows, oldest first."""
    return sorted(path.stem for path in folder.iterdir() if _NUMBERED.fullmatch(path.name))


def known(folder: Path = FOLDER) -> Migrations:
    """The same as a set that sqlite-utils can apply."""
    found = Migrations("caravan")
    for name in names(folder):
        found(name=name)(runpy.run_path(str(folder / f"{name}.py"))["migrate"])
    return found


def apply(db: Database, folder: Path = FOLDER) -> list[str]:
    """Bring a registry to this version; returns the names of what was applied.

    Each migration and its record are one transaction. Two processes may do this at once: what is pending is
    looked up again under the write lock.

    Raises:
        RegistryTooNew: it holds a migration that this version does not know.
    """
    migrations = known(folder)
    applied: list[str] = []
    while pending(db, migrations, folder):
        db.execute("BEGIN IMMEDIATE")
        try:
            due = pending(db, migrations, folder)
            if due:
                migrations.apply(db, stop_before=due[1:])
                applied.append(due[0])
            db.commit()
        except BaseException:
            db.rollback()
            raise
    return applied


def pending(db: Database, migrations: Migrations, folder: Path = FOLDER) -> list[str]:
    """The migrations that a registry lacks.

    Raises:
        RegistryTooNew: see `apply`.
    """
    strange = sorted({done.name for done in migrations.applied(db)} - set(names(folder)))
    if strange:
        raise RegistryTooNew(
            f"the registry was written by a newer Caravan (it has {', '.join(strange)}): "
            "update this one, or move the registry away"
        )
    return [migration.name for migration in migrations.pending(db)]
