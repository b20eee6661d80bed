"""The registry: one SQLite file with the backends and what was last learned of them.

Owned by: the refresher (health, models, loaded, asked) and the operator (backends). Read by: every worker's
reloader, on a native thread. Survives restarts. Request code never touches it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlite_utils import Database

from proxy_app.domain import Backend, Health, Holding
from proxy_app.errors import Fenced, RegistryAway, RegistryDamaged, RegistryTooNew
from proxy_app.settings import BackendSettings
from proxy_app.store import migrations, rows

FILE = "caravan.db"
ROLE = "refresher"
# A refresher whose last beat is older has stopped.
STALE_S = 10.0

Part = Literal["catalogue", "volatile"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All rows that a Fleet is made of, read in one transaction."""

    backends: tuple[Backend, ...]
    health: Mapping[int, Health]
    holdings: tuple[Holding, ...]
    loaded: tuple[tuple[int, Mapping[str, Any]], ...]
    generation: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Learned:
    """What one round of polls changed for one backend; None means unchanged."""

    backend_id: int
    health: Health | None = None
    holdings: tuple[Holding, ...] | None = None
    loaded: tuple[Mapping[str, Any], ...] | None = None


class Registry:
    """One connection to the registry; not shared between threads.

    Args:
        busy_s: how long a call waits for another process's write lock.

    Raises:
        RegistryAway: from every method: locked, read-only, full or corrupt.
    """

    def __init__(self, data_dir: Path, busy_s: float = 0.05) -> None:
        self.path = data_dir / FILE
        with self._mapped():
            _make_private(data_dir, self.path)
            connection = sqlite3.connect(self.path, timeout=busy_s, isolation_level=None, check_same_thread=False)
            self._file = self.path.stat().st_ino
            self._db = Database(connection, execute_plugins=False)
            try:
                self._db.execute("PRAGMA synchronous=NORMAL")
                if self._value("PRAGMA journal_mode") != "wal":
                    self._db.execute("PRAGMA journal_mode=WAL")
            except BaseException:
                connection.close()
                raise

    def close(self) -> None:
        self._db.close()

    @property
    def is_replaced(self) -> bool:
        """Is the file that we have open no longer the one at its path? Then nobody else sees what we see."""
        try:
            return self.path.stat().st_ino != self._file
        except OSError:
            return True

    @staticmethod
    def put_away(data_dir: Path) -> Path:
        """Move a damaged registry out of the way, its log with it; returns where it lies now."""
        away = data_dir / f"{FILE}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        for suffix in ("-wal", "-shm", ""):
            part = data_dir / f"{FILE}{suffix}"
            if part.exists():
                part.replace(f"{away}{suffix}")
        return away

    def migrate(self, folder: Path = migrations.FOLDER) -> list[str]:
        """Apply what is pending; see `migrations.apply`."""
        with self._mapped():
            return migrations.apply(self._db, folder)

    # -- reading -----------------------------------------------------------------------------------

    def data_version(self) -> int:
        """A number that moves when another connection commits: cheap to ask often."""
        with self._mapped():
            return int(self._value("PRAGMA data_version"))

    def identity(self) -> int:
        """A number that no other registry has."""
        with self._mapped():
            return int(self._value("PRAGMA application_id"))

    def generation(self) -> tuple[int, int]:
        """(catalogue, volatile): which parts of a Fleet are out of date."""
        with self._mapped():
            numbers = dict(self._db.execute("SELECT part, number FROM generations").fetchall())
            return numbers["catalogue"], numbers["volatile"]

    def snapshot(self, configured: Sequence[BackendSettings] = ()) -> Snapshot:
        """Read everything. Tokens of environment rows come from `configured`: they are never stored."""
        secrets = {backend.name: backend for backend in configured}
        with self._mapped(), self._db.atomic():
            found = self._db.table("backends").rows_where(order_by="COALESCE(priority, place), place, id")
            return Snapshot(
                backends=tuple(rows.backend(row, secrets) for row in found),
                health={row["backend_id"]: rows.health(row) for row in self._db.table("health").rows},
                holdings=tuple(map(rows.holding, self._db.table("models").rows)),
                loaded=tuple((row["backend_id"], json.loads(row["item"])) for row in self._db.table("loaded").rows),
                generation=self.generation(),
            )

    def beat_age_s(self, now_s: float) -> float | None:
        """How long ago the holder of the refresher's role last beat; None where nobody holds it.

        Args:
            now_s: `time.monotonic()`, which all processes of a machine share.
        """
        with self._mapped():
            row = self._role()
        if row is None or not row["holder"]:
            return None
        # A beat from the future is one from before a reboot.
        age = now_s - row["beat_s"]
        return age if age >= 0 else STALE_S + 1

    def rounds(self) -> int:
        """How many rounds of polls the present holder has written."""
        with self._mapped():
            row = self._role()
            return int(row["rounds"]) if row else 0

    def asked(self, since: float) -> dict[str, str]:
        """Keys of show documents that somebody asked for since then, with the name as it was asked."""
        with self._mapped():
            found = self._db.table("asked").rows_where("asked_at >= ?", [since])
            return {row["key"]: row["name"] for row in found}

    def wishes(self) -> dict[int, int]:
        """The polls that are asked for and were not made yet: the number of the last one, by backend."""
        with self._mapped():
            found = self._db.execute("SELECT backend_id, asked FROM wishes WHERE asked > done").fetchall()
            return dict(found)

    def are_granted(self, wished: Mapping[int, int]) -> bool:
        """Were these polls made, and what they brought written? A backend that is gone needs none."""
        with self._mapped():
            done = dict(self._db.execute("SELECT backend_id, done FROM wishes").fetchall())
        return all(done.get(backend_id, number) >= number for backend_id, number in wished.items())

    # -- writing -----------------------------------------------------------------------------------

    def import_backends(self, configured: Sequence[BackendSettings]) -> list[str]:
        """Make the environment's rows equal to the environment; returns warnings.

        The operator's rows are not touched, unless the environment uses the same name: then it wins.
        """
        warnings: list[str] = []
        if self._has_imported(configured):
            # No write lock for nothing: another process may hold it for long.
            return warnings
        with self._writing():
            stored = {row["name"]: row for row in self._db.table("backends").rows}
            for place, backend in enumerate(configured):
                row = stored.get(backend.name)
                if row and row["origin"] == "operator":
                    warnings.append(f"the backend {backend.name!r} of the environment replaces the operator's")
                self._put_backend(backend, place, row)
            named = {backend.name for backend in configured}
            for row in stored.values():
                if row["origin"] == "env" and row["name"] not in named:
                    self.drop_backend(row["id"])
        return warnings

    def claim(self, holder: str, now_s: float, *, force: bool = False) -> int | None:
        """Take the refresher's role and return its new epoch; None while somebody else holds it and beats.

        Args:
            force: the caller knows that the old holder is dead.
        """
        age = self.beat_age_s(now_s)
        with self._writing():
            row = self._role()
            if not force and age is not None and age <= STALE_S:
                return None
            epoch = int(row["epoch"]) + 1 if row else 1
            self._db.table("roles").upsert(
                {"role": ROLE, "epoch": epoch, "holder": holder, "beat_s": now_s, "rounds": 0}, pk="role"
            )
            return epoch

    def beat(self, epoch: int, now_s: float) -> None:
        """Say that the holder lives and has finished a round.

        Raises:
            Fenced: the role has gone to somebody else.
        """
        with self._writing(epoch):
            self._db.execute("UPDATE roles SET beat_s = ?, rounds = rounds + 1 WHERE role = ?", [now_s, ROLE])

    def learn(self, epoch: int, learned: Iterable[Learned]) -> None:
        """Write what a round of polls changed, and move the generations that it touched.

        Raises:
            Fenced: the role has gone to somebody else.
        """
        with self._writing(epoch):
            for news in learned:
                if self._has_backend(news.backend_id):
                    self._learn(news)

    def note_asked(self, epoch: int, asked: Mapping[str, tuple[str, float]], before: float) -> None:
        """Remember which documents were asked for and when; drop what nobody asked for since `before`."""
        noted = [{"key": key, "name": name, "asked_at": at} for key, (name, at) in asked.items()]
        with self._writing(epoch):
            self._db.table("asked").upsert_all(noted, pk="key")
            self._db.execute("DELETE FROM asked WHERE asked_at < ?", [before])

    def wish(self, backends: Iterable[int]) -> dict[int, int]:
        """Ask the refresher to poll these backends at once; returns the numbers of these wishes, by backend."""
        with self._writing():
            return {each: self._wish(each) for each in backends if self._has_backend(each)}

    def grant(self, epoch: int, granted: Mapping[int, int]) -> None:
        """Note that the polls up to these numbers were made and written.

        Raises:
            Fenced: the role has gone to somebody else.
        """
        with self._writing(epoch):
            for backend_id, number in granted.items():
                self._db.execute("UPDATE wishes SET done = ? WHERE backend_id = ?", [number, backend_id])

    # -- for the other tables of the same file ---------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[Database]:
        """The database, for reads. Raises: RegistryAway."""
        with self._mapped():
            yield self._db

    @contextmanager
    def writing(self) -> Iterator[Database]:
        """The database, in one write transaction. Raises: RegistryAway."""
        with self._writing():
            yield self._db

    # -- inside ------------------------------------------------------------------------------------

    def _wish(self, backend_id: int) -> int:
        self._db.execute(
            "INSERT INTO wishes (backend_id, asked) VALUES (?, 1) "
            "ON CONFLICT (backend_id) DO UPDATE SET asked = asked + 1",
            [backend_id],
        )
        row = self._db.execute("SELECT asked FROM wishes WHERE backend_id = ?", [backend_id]).fetchone()
        return int(row[0])

    def _learn(self, news: Learned) -> None:
        if news.health is not None:
            row = rows.health_row(news.backend_id, news.health)
            old = next(self._db.table("health").rows_where("backend_id = ?", [news.backend_id]), None)
            self._db.table("health").upsert(row, pk="backend_id")
            self.bump("volatile")
            # The listings depend on who is live, not on latencies and versions.
            if old is None or old["state"] != news.health.state:
                self.bump("catalogue")
        if news.holdings is not None:
            self._replace("models", news.backend_id, [rows.holding_row(held) for held in news.holdings])
            self.bump("catalogue")
        if news.loaded is not None:
            loaded = [rows.loaded_row(news.backend_id, place, item) for place, item in enumerate(news.loaded)]
            self._replace("loaded", news.backend_id, loaded)
            self.bump("volatile")

    def _replace(self, table: str, backend_id: int, fresh: Sequence[dict[str, Any]]) -> None:
        self._db.table(table).delete_where("backend_id = ?", [backend_id])
        self._db.table(table).insert_all(fresh)

    def _has_imported(self, configured: Sequence[BackendSettings]) -> bool:
        with self._mapped():
            stored = {row["name"]: row for row in self._db.table("backends").rows_where("origin = 'env'")}
        wanted = {backend.name: rows.backend_row(backend, place) for place, backend in enumerate(configured)}
        return stored.keys() == wanted.keys() and all(
            stored[name][key] == value for name, row in wanted.items() for key, value in row.items()
        )

    def _put_backend(self, backend: BackendSettings, place: int, old: Mapping[str, Any] | None) -> None:
        row = rows.backend_row(backend, place)
        if old is None:
            self._db.table("backends").insert(row)
        elif any(old[key] != value for key, value in row.items()):
            self._db.table("backends").update(old["id"], row)
            if old["url"] != row["url"]:
                self.forget(old["id"])
        else:
            return
        self.bump("catalogue")

    def drop_backend(self, backend_id: int) -> None:
        """Remove a backend and all that was learned of it; inside of `writing`."""
        self.forget(backend_id)
        self._db.table("wishes").delete_where("backend_id = ?", [backend_id])
        self._db.table("backends").delete(backend_id)
        self.bump("catalogue")

    def forget(self, backend_id: int) -> None:
        """Forget what was learned of a backend; inside of `writing`."""
        for table in ("health", "models", "loaded"):
            self._db.table(table).delete_where("backend_id = ?", [backend_id])

    def bump(self, part: Part) -> None:
        """Have every worker read a part anew; inside of `writing`."""
        self._db.execute("UPDATE generations SET number = number + 1 WHERE part = ?", [part])

    def _has_backend(self, backend_id: int) -> bool:
        return bool(self._db.table("backends").count_where("id = ?", [backend_id]))

    def _role(self) -> dict[str, Any] | None:
        return next(self._db.table("roles").rows_where("role = ?", [ROLE]), None)

    def _value(self, sql: str) -> Any:
        return self._db.execute(sql).fetchone()[0]

    @contextmanager
    def _writing(self, epoch: int | None = None) -> Iterator[None]:
        """One write transaction; with an epoch, only while it is the current one."""
        with self._mapped():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                row = self._role() if epoch is not None else None
                if epoch is not None and (row is None or row["epoch"] != epoch):
                    raise Fenced("another refresher has taken over")
                yield
                self._db.commit()
            finally:
                self._db.rollback()

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except RegistryTooNew as exc:
            raise RegistryTooNew(f"{self.path}: {exc}") from exc
        except (sqlite3.Error, OSError) as exc:
            kind = RegistryDamaged if any(word in str(exc) for word in _DAMAGED) else RegistryAway
            raise kind(f"the registry {self.path} {_cause(exc)}") from exc


_DAMAGED = ("malformed", "not a database")
_CAUSES = {
    "database is locked": "is locked by another process; it will be tried again",
    "readonly": "is read-only: give this user the right to write it and its folder",
    "full": "cannot grow: the disk is full",
    "disk I/O": "cannot be read or written: the disk reports an error",
    "malformed": "is damaged",
    "not a database": "is no SQLite file",
    "unable to open": "cannot be opened: check its folder's owner and rights",
    "no such table": "is not set up: run caravan migrate",
}


def _cause(exc: Exception) -> str:
    text = str(exc)
    return next((cause for word, cause in _CAUSES.items() if word in text), f"cannot be used: {text}")


def _make_private(data_dir: Path, path: Path) -> None:
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
