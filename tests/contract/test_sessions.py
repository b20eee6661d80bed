"""Logins with a real registry: from where one may be begun and used, and every way in which one ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy_app.domain import Scope
from proxy_app.errors import Unauthorized
from proxy_app.services import key_admin
from proxy_app.services.access import Access
from proxy_app.services.admin.sessions import SEEN_S, Sessions
from proxy_app.services.desk import RegistryDesk
from proxy_app.services.limiter import Limiter
from proxy_app.settings import Settings, load
from proxy_app.store.limits import LimitStore
from proxy_app.store.redis import RedisGate
from proxy_app.store.registry import Registry
from tests.keys import ADMIN

HERE, NEAR, FAR = "127.0.0.1", "10.1.2.3", "11.1.2.3"
IDLE_S, LENGTH_S = 3600, 86400
# What a busy machine may take for a test, in seconds.
SPARE_S = 120


@dataclass
class Stage:
    """A worker's sessions. `more`: settings of the next worker."""

    stack: ExitStack
    registry: Registry
    folder: Path

    def settings(self, **more: str) -> Settings:
        lengths = {"CARAVAN_SESSION_IDLE": str(IDLE_S), "CARAVAN_SESSION_LENGTH": str(LENGTH_S)}
        return load({"DATA_DIR": str(self.folder), **lengths, **more}, None)

    def key(self, label: str, *networks: str, scopes: tuple[Scope, ...] = ("admin",)) -> str:
        return key_admin.create(self.settings(), key_admin.Wish(label, scopes, networks=networks)).text

    def worker(self, **more: str) -> Sessions:
        """One that has read the keys as they are now."""
        settings = self.settings(**more)
        access = Access(settings)
        access.follow(self.registry)
        gate = self.stack.enter_context(closing(RedisGate(f"unix://{self.folder}/none", self.folder / "none", 0.2)))
        limiter = self.stack.enter_context(closing(Limiter(LimitStore(gate, "test"), 1)))
        desk = self.stack.enter_context(closing(RegistryDesk(self.folder, 5.0)))
        return Sessions(settings, access, desk, limiter)

    def age(self, seen_s: float = 0, created_s: float = 0) -> None:
        """Let time pass for all sessions: since their last use, and since they began."""
        with self.registry.writing() as db:
            db.execute("UPDATE sessions SET seen_at = seen_at - ?, created_at = created_at - ?", [seen_s, created_s])


@pytest.fixture
def stage(registry: Registry, tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(stack, registry, tmp_path)


def test_a_session_lives_while_it_is_used_now_and_then_and_ends_when_it_is_not(stage: Stage) -> None:
    key = stage.key("me")
    sessions = stage.worker()
    token = sessions.login(key, HERE)
    for _ in range(3):
        # Each use begins the time anew: three of them are longer than one may be idle.
        stage.age(seen_s=IDLE_S - SPARE_S)
        assert sessions.caller(token, HERE) is not None
    stage.age(seen_s=IDLE_S + 1)
    assert sessions.caller(token, HERE) is None
    assert sessions.caller(token, HERE) is None, "asking does not bring it back"


def test_a_use_is_written_now_and_then_only(stage: Stage) -> None:
    """A page that asks each second would write each second."""
    key = stage.key("me")
    sessions = stage.worker()
    token = sessions.login(key, HERE)
    stage.age(seen_s=SEEN_S / 2)
    before = seen_at(stage)
    assert sessions.caller(token, HERE) is not None
    assert seen_at(stage) == before
    stage.age(seen_s=SEEN_S)
    assert sessions.caller(token, HERE) is not None
    assert seen_at(stage) > before


def seen_at(stage: Stage) -> float:
    with stage.registry.reading() as db:
        return float(db.execute("SELECT seen_at FROM sessions").fetchone()[0])


def test_a_session_ends_in_any_case(stage: Stage) -> None:
    key = stage.key("me")
    sessions = stage.worker()
    token = sessions.login(key, HERE)
    stage.age(created_s=LENGTH_S - SPARE_S)
    assert sessions.caller(token, HERE) is not None
    stage.age(created_s=SPARE_S + 1)
    assert sessions.caller(token, HERE) is None, "however lately it was used"


def test_a_login_counts_from_the_networks_of_its_key_alone(stage: Stage) -> None:
    near, here = stage.key("near", "10.0.0.0/8"), stage.key("here", "127.0.0.0/8")
    sessions = stage.worker()
    for key, address in ((near, HERE), (near, FAR), (here, NEAR)):
        with pytest.raises(Unauthorized):
            sessions.login(key, address)
    assert sessions.login(near, NEAR)
    assert sessions.login(here, HERE)


def test_a_cookie_is_good_in_the_networks_of_its_key_alone(stage: Stage) -> None:
    key = stage.key("near", "10.0.0.0/8")
    sessions = stage.worker()
    token = sessions.login(key, NEAR)
    assert sessions.caller(token, "10.9.9.9") is not None
    assert sessions.caller(token, FAR) is None
    assert sessions.caller(token, HERE) is None
    assert sessions.caller(token, NEAR) is not None, "who stole it ends nothing"


def test_a_new_key_of_the_settings_ends_the_sessions_of_the_old_one(stage: Stage) -> None:
    token = stage.worker(CARAVAN_ADMIN_KEY=ADMIN).login(ADMIN, HERE)
    assert stage.worker(CARAVAN_ADMIN_KEY=ADMIN).caller(token, HERE) is not None, "a restart ends none"
    assert stage.worker(CARAVAN_ADMIN_KEY=ADMIN[::-1]).caller(token, HERE) is None
    assert stage.worker().caller(token, HERE) is None


def test_a_session_ends_with_its_key(stage: Stage) -> None:
    key = stage.key("me")
    token = stage.worker().login(key, HERE)
    assert stage.worker().caller(token, HERE) is not None
    key_admin.revoke(stage.settings(), "me")
    assert stage.worker().caller(token, HERE) is None
