"""Numbered migrations: each in one transaction, once, and never backwards."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from proxy_app.errors import RegistryTooNew
from proxy_app.store import migrations
from proxy_app.store.registry import Registry
from tests.conftest import FakeFactory
from tests.fakes import procs
from tests.product import environment

SECOND = '''"""A second one."""

from sqlite_utils import Database


def migrate(db: Database) -> None:
    db.table("later").create({"id": int}, pk="id")
    db.table("later").insert({"id": 1})
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the project's migrations."""
    copy = tmp_path / "migrations"
    shutil.copytree(migrations.FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def tables(registry: Registry) -> set[str]:
    with closing(sqlite3.connect(registry.path)) as db:
        return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_everything_is_applied_once_in_order(tmp_path: Path, folder: Path) -> None:
    (folder / "9998_second.py").write_text(SECOND)
    (folder / "README.md").write_text("no migration")
    (folder / "helper.py").write_text("raise RuntimeError('not numbered')")
    with closing(Registry(tmp_path)) as registry:
        applied = registry.migrate(folder)
        assert applied == sorted(applied)
        assert applied[-1] == "9998_second"
        assert registry.migrate(folder) == []
        assert {"backends", "later"} <= tables(registry)


def test_a_failing_migration_leaves_those_before_it_and_nothing_of_itself(tmp_path: Path, folder: Path) -> None:
    (folder / "9998_second.py").write_text(SECOND + "    raise ValueError('in the middle')\n")
    with closing(Registry(tmp_path)) as registry:
        with pytest.raises(ValueError, match="in the middle"):
            registry.migrate(folder)
        assert "backends" in tables(registry)
        assert "later" not in tables(registry)
        (folder / "9998_second.py").write_text(SECOND)
        assert registry.migrate(folder) == ["9998_second"]
        assert "later" in tables(registry)


def test_a_newer_registry_is_refused_with_what_to_do(tmp_path: Path, folder: Path) -> None:
    (folder / "9998_second.py").write_text(SECOND)
    with closing(Registry(tmp_path)) as registry:
        registry.migrate(folder)
        before = tables(registry)
        with pytest.raises(RegistryTooNew, match=r"written by a newer Caravan \(it has 9998_second\): update this one"):
            registry.migrate()
        assert tables(registry) == before


def test_no_command_works_on_a_newer_registry(tmp_path: Path, folder: Path, fakes: FakeFactory) -> None:
    (folder / "9998_second.py").write_text(SECOND)
    with closing(Registry(tmp_path / "data")) as registry:
        registry.migrate(folder)
    env = environment([fakes()])
    for start in (
        procs.caravan(env, tmp_path, "migrate"),
        procs.caravan(env, tmp_path, "refresh"),
        procs.gunicorn(env, tmp_path),
    ):
        with start as process:
            assert process.wait() != 0, process.output
            assert "newer Caravan" in process.output
            assert str(tmp_path / "data" / "caravan.db") in process.output
    with closing(sqlite3.connect(tmp_path / "data" / "caravan.db")) as db:
        assert db.execute("SELECT count(*) FROM backends").fetchone() == (0,)


def test_migrate_says_what_it_did(tmp_path: Path, fakes: FakeFactory) -> None:
    env = environment([fakes()])
    with procs.caravan(env, tmp_path, "migrate") as first:
        assert first.wait() == 0
        assert "applied 0001_registry" in first.output
    with procs.caravan(env, tmp_path, "migrate") as second:
        assert second.wait() == 0
        assert "up to date" in second.output
