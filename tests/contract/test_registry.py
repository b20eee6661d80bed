"""The registry: who may write it, what follows the environment, and what it says when it is sick."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from proxy_app.domain import Digest, Health, Holding
from proxy_app.errors import Fenced, RegistryAway
from proxy_app.settings import BackendSettings
from proxy_app.store.registry import STALE_S, Learned, Registry
from tests.fakes.procs import ROOT

TOKEN = "s3cret-token-of-a-backend"
HEADER = "s3cret-header-of-a-backend"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with closing(Registry(tmp_path / "data", busy_s=0.2)) as opened:
        opened.migrate()
        yield opened


def env(name: str, **fields: object) -> BackendSettings:
    return BackendSettings(name, str(fields.pop("url", f"http://{name}:11434")), **fields)  # type: ignore[arg-type]


def raw(registry: Registry, sql: str, *values: object) -> list[tuple[object, ...]]:
    """SQL on a connection of its own, as another process would."""
    with closing(sqlite3.connect(registry.path, timeout=2)) as db, db:
        return db.execute(sql, values).fetchall()


def names(registry: Registry) -> list[str]:
    return [backend.name for backend in registry.snapshot().backends]


def add_operators(registry: Registry, name: str) -> None:
    raw(
        registry,
        "INSERT INTO backends (name, url, place, origin, auth_token)"
        " VALUES (?, 'http://op:1', 9, 'operator', 'op-token')",
        name,
    )


def held(backend_id: int, name: str = "m:1") -> Holding:
    return Holding(backend_id, f"registry.ollama.ai/library/{name}", name, Digest("d"), {"name": name})


# -- the file --------------------------------------------------------------------------------------


def test_the_file_is_private_and_journals_ahead(registry: Registry) -> None:
    assert stat.S_IMODE(registry.path.parent.stat().st_mode) == 0o700
    registry.import_backends([env("a")])
    files = list(registry.path.parent.glob("caravan.db*"))
    assert len(files) >= 2, "the write-ahead log is a file of its own"
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert raw(registry, "PRAGMA journal_mode") == [("wal",)]


def test_the_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(Registry(tmp_path / "data")) as opened:
            opened.migrate()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "data" / "caravan.db").stat().st_mode) == 0o600


# -- what follows the environment ------------------------------------------------------------------


def test_environment_rows_follow_the_environment(registry: Registry) -> None:
    registry.import_backends([env("a"), env("b")])
    assert names(registry) == ["a", "b"]
    registry.import_backends([env("b"), env("c"), env("a", priority=7)])
    found = {backend.name: backend.priority for backend in registry.snapshot().backends}
    assert found == {"b": 0, "c": 1, "a": 7}
    registry.import_backends([env("c", url="http://elsewhere:1", slots=3, cloud=False, kind="openai")])
    [only] = registry.snapshot().backends
    assert (only.name, only.url, only.slots, only.cloud, only.kind) == ("c", "http://elsewhere:1", 3, False, "openai")


def test_a_backend_that_left_takes_what_was_learned_with_it(registry: Registry) -> None:
    registry.import_backends([env("a"), env("b")])
    epoch = registry.claim("me", 1.0) or 0
    a, b = (backend.id for backend in registry.snapshot().backends)
    registry.learn(epoch, [Learned(n, Health("up"), (held(n),), ({"name": "m:1"},)) for n in (a, b)])
    registry.import_backends([env("b")])
    rows = registry.snapshot()
    assert ({h.backend_id for h in rows.holdings}, set(rows.health), {owner for owner, _ in rows.loaded}) == (
        {b},
        {b},
        {b},
    )


def test_a_backend_at_another_address_is_another_backend(registry: Registry) -> None:
    registry.import_backends([env("a")])
    epoch = registry.claim("me", 1.0) or 0
    [backend] = registry.snapshot().backends
    registry.learn(epoch, [Learned(backend.id, Health("up"), (held(backend.id),))])
    registry.import_backends([env("a", url="http://other:1")])
    rows = registry.snapshot()
    assert (rows.holdings, rows.health) == ((), {})


def test_secrets_of_the_environment_are_used_and_never_stored(registry: Registry) -> None:
    configured = [env("a", auth_token=TOKEN, headers=(("X-Key", HEADER),))]
    registry.import_backends(configured)
    [backend] = registry.snapshot(configured).backends
    assert (backend.auth_token, backend.headers) == (TOKEN, (("X-Key", HEADER),))
    [unknown] = registry.snapshot().backends
    assert (unknown.auth_token, unknown.headers) == (None, ())
    for file in registry.path.parent.iterdir():
        content = file.read_bytes()
        assert TOKEN.encode() not in content
        assert HEADER.encode() not in content


def test_the_operators_rows_are_not_touched(registry: Registry) -> None:
    add_operators(registry, "mine")
    registry.import_backends([env("a")])
    registry.import_backends([])
    [row] = raw(registry, "SELECT name, url, origin, auth_token FROM backends")
    assert row == ("mine", "http://op:1", "operator", "op-token")


def test_the_environment_wins_a_clash_of_names_with_a_warning(registry: Registry) -> None:
    add_operators(registry, "mine")
    [warning] = registry.import_backends([env("mine", url="http://env:1")])
    assert "mine" in warning
    [backend] = registry.snapshot().backends
    assert (backend.url, backend.origin) == ("http://env:1", "env")
    assert backend.auth_token != "op-token", "the operator's token belongs to the operator's server"


# -- who may write ---------------------------------------------------------------------------------


def test_a_role_is_taken_by_one_and_given_on_when_its_beat_is_old(registry: Registry) -> None:
    assert registry.claim("one", 100.0) == 1
    assert registry.claim("two", 100.0 + STALE_S) is None
    assert registry.claim("two", 100.0 + STALE_S + 0.1) == 2
    registry.beat(2, 120.0)
    assert registry.claim("one", 121.0) is None
    assert registry.claim("one", 121.0, force=True) == 3


def test_a_beat_from_before_a_reboot_is_old(registry: Registry) -> None:
    registry.claim("one", 1_000_000.0)
    assert registry.claim("two", 5.0) == 2


def test_an_old_epoch_can_write_nothing(registry: Registry) -> None:
    registry.import_backends([env("a")])
    [backend] = registry.snapshot().backends
    old = registry.claim("one", 1.0) or 0
    registry.claim("two", 2.0, force=True)
    before = registry.snapshot()
    for write in (
        lambda: registry.beat(old, 3.0),
        lambda: registry.learn(old, [Learned(backend.id, Health("up"), (held(backend.id),))]),
        lambda: registry.note_asked(old, {"local:m:p": ("m", 3.0)}, 0.0),
    ):
        with pytest.raises(Fenced):
            write()
    assert registry.snapshot() == before
    assert registry.asked(0.0) == {}


def test_generations_move_with_what_they_stand_for(registry: Registry) -> None:
    registry.import_backends([env("a")])
    [backend] = registry.snapshot().backends
    epoch = registry.claim("me", 1.0) or 0

    def moved(write: object) -> tuple[bool, bool]:
        before = registry.generation()
        write()  # type: ignore[operator]
        after = registry.generation()
        return after[0] != before[0], after[1] != before[1]

    up = Health("up", 1.0)
    assert moved(lambda: registry.import_backends([env("a")])) == (False, False)
    assert moved(lambda: registry.beat(epoch, 2.0)) == (False, False)
    assert moved(lambda: registry.learn(epoch, [Learned(backend.id, up)])) == (True, True)
    assert moved(lambda: registry.learn(epoch, [Learned(backend.id, Health("up", 1.0, version="2"))])) == (False, True)
    assert moved(lambda: registry.learn(epoch, [Learned(backend.id, holdings=(held(backend.id),))]))[0]
    assert moved(lambda: registry.learn(epoch, [Learned(backend.id, loaded=({"name": "m:1"},))])) == (False, True)
    assert moved(lambda: registry.learn(epoch, [])) == (False, False)
    assert moved(lambda: registry.import_backends([env("a", priority=3)]))[0]
    assert moved(lambda: registry.learn(epoch, [Learned(999, up)])) == (False, False), "an unknown backend"


def test_what_was_asked_is_remembered_and_dropped_in_time(registry: Registry) -> None:
    epoch = registry.claim("me", 1.0) or 0
    registry.note_asked(epoch, {"cloud:a:p": ("a:cloud", 100.0), "local:b:v": ("b", 200.0)}, 0.0)
    assert registry.asked(0.0) == {"cloud:a:p": "a:cloud", "local:b:v": "b"}
    registry.note_asked(epoch, {"cloud:a:p": ("a:cloud", 300.0)}, 250.0)
    assert registry.asked(0.0) == {"cloud:a:p": "a:cloud"}


# -- sick files ------------------------------------------------------------------------------------


def test_a_locked_registry_can_be_read_and_says_why_it_cannot_be_written(registry: Registry) -> None:
    registry.import_backends([env("a")])
    with closing(sqlite3.connect(registry.path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        assert names(registry) == ["a"]
        with pytest.raises(RegistryAway, match="is locked by another process"):
            registry.import_backends([env("b")])
    registry.import_backends([env("b")])
    assert names(registry) == ["b"]


def test_a_read_only_registry_says_so(registry: Registry) -> None:
    # Modes do not stop root: this is what SQLite reports where they do.
    registry._db.execute("PRAGMA query_only=1")
    with pytest.raises(RegistryAway, match="is read-only"):
        registry.import_backends([env("a")])


def test_a_full_disk_is_said_and_nothing_is_half_written(registry: Registry) -> None:
    registry.import_backends([env("a")])
    [backend] = registry.snapshot().backends
    epoch = registry.claim("me", 1.0) or 0
    registry._db.execute("PRAGMA max_page_count=1")
    big = tuple(held(backend.id, f"{n}-{'x' * 3000}:1") for n in range(100))
    with pytest.raises(RegistryAway, match="the disk is full"):
        registry.learn(epoch, [Learned(backend.id, Health("up"), big)])
    rows = registry.snapshot()
    assert (rows.holdings, rows.health) == ((), {})


def test_what_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "caravan.db").write_bytes(b"not a database at all" * 500)
    with pytest.raises(RegistryAway, match="is no SQLite file"):
        Registry(tmp_path).migrate()


def test_a_damaged_database_is_said(registry: Registry) -> None:
    registry.import_backends([env(f"b{n}") for n in range(50)])
    raw(registry, "PRAGMA wal_checkpoint(TRUNCATE)")
    registry.close()
    size = registry.path.stat().st_size
    with registry.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(RegistryAway, match="is damaged"):
        read_all(registry.path.parent)


def read_all(folder: Path) -> None:
    with closing(Registry(folder)) as opened:
        opened.migrate()
        opened.snapshot()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryAway, match=str(tmp_path)):
        Registry(tmp_path / "file" / "data")


def test_a_registry_without_tables_says_how_to_get_them(tmp_path: Path) -> None:
    with closing(Registry(tmp_path)) as opened, pytest.raises(RegistryAway, match="run caravan migrate"):
        opened.generation()


def test_many_processes_may_open_and_fill_it_at_once(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from proxy_app.settings import BackendSettings; "
        "from proxy_app.store.registry import Registry; sys.stdin.read(1); "
        "r = Registry(Path(sys.argv[1]), busy_s=10.0); r.migrate(); "
        "r.import_backends([BackendSettings('a','http://a:1')]); "
        "r.close()"
    )
    for turn in range(2):
        folder = tmp_path / str(turn)
        command = [sys.executable, "-c", script, str(folder)]
        children = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) for _ in range(6)
        ]
        for child in children:
            assert child.stdin is not None
            child.stdin.write(b"g")
            child.stdin.flush()
        errors = [child.communicate(timeout=30)[1].decode() for child in children]
        assert errors == [""] * len(children)
        with closing(Registry(folder)) as opened:
            assert names(opened) == ["a"]
