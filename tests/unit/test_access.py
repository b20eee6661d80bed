"""Who is let in: with keys, without keys, anonymously, and where the keys are lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from proxy_app.dialects.credentials import Signed
from proxy_app.domain import ANYBODY, Caller, parse_name
from proxy_app.errors import Forbidden, Hidden, RegistryAway, Unauthorized, Unavailable
from proxy_app.services import key_admin
from proxy_app.services.access import Access, check_allowed, check_scope
from proxy_app.services.key_admin import Wish
from proxy_app.services.setup import MARK
from proxy_app.settings import Settings, load
from proxy_app.store.registry import FILE, Registry
from tests.keys import ADMIN, STRANGER

PUBLIC = {"HOST": "0.0.0.0"}
OPEN = {"CARAVAN_ANONYMOUS": "1"}
Made = Callable[..., Access]


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    return lambda **env: load({"DATA_DIR": str(tmp_path), **env}, None)


@pytest.fixture
def access(settings: Callable[..., Settings]) -> Made:
    """One that has read the registry."""

    def make(**env: str) -> Access:
        asked = settings(**env)
        made = Access(asked)
        follow(made, asked.data_dir)
        return made

    return make


def follow(access: Access, data_dir: Path) -> None:
    with closing(Registry(data_dir)) as registry:
        registry.migrate()
        access.follow(registry)


@pytest.fixture
def key(settings: Callable[..., Settings]) -> str:
    return key_admin.create(settings(), Wish("test")).text


def ask(access: Access, given: Any = None, *, is_local: bool = False) -> Caller:
    return access.caller(given, "10.0.0.1", is_local=is_local)


# -- where there never was a key --------------------------------------------------------------------


def test_without_keys_this_machine_itself_may_everything(access: Made) -> None:
    assert ask(access(), is_local=True) == ANYBODY
    assert ask(access(), "any text", is_local=True) == ANYBODY


def test_without_keys_others_may_use_but_not_change(access: Made) -> None:
    """Such as whoever comes through a proxy on this machine."""
    caller = ask(access())
    assert caller.scopes == {"infer", "read"}
    assert caller.is_told_of_absence


def test_without_keys_a_public_address_is_for_nobody(access: Made) -> None:
    """It would not have started so; its settings may have come another way."""
    with pytest.raises(Unauthorized):
        ask(access(**PUBLIC))


def test_without_keys_anybody_is_anonymous_where_that_was_said(access: Made) -> None:
    assert ask(access(**PUBLIC, **OPEN)).scopes == {"infer", "read"}
    assert ask(access(**PUBLIC, **OPEN, CARAVAN_ANONYMOUS_SCOPES="read")).scopes == {"read"}


# -- with keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, "", "ollama", STRANGER, Signed("A" * 60, b"", b"", 0)])
@pytest.mark.parametrize("is_local", [False, True])
def test_with_a_key_nobody_comes_in_without(access: Made, key: str, given: Any, is_local: bool) -> None:
    with pytest.raises(Unauthorized):
        ask(access(), given, is_local=is_local)
    assert ask(access(), key).key_id


def test_a_key_that_has_ended_keeps_the_door_closed(access: Made, settings: Any, key: str) -> None:
    key_admin.revoke(settings(), "test")
    for given in (None, key):
        with pytest.raises(Unauthorized):
            ask(access(), given, is_local=True)


def test_the_key_of_the_settings_is_a_key(access: Made) -> None:
    made = access(CARAVAN_ADMIN_KEY=ADMIN)
    assert ask(made, ADMIN).may("admin")
    with pytest.raises(Unauthorized):
        ask(made, None, is_local=True)


def test_use_is_remembered_of_whom_it_was(access: Made, key: str) -> None:
    made = access()
    found = ask(made, key)
    assert set(made.used) == {found.key_id}


# -- anonymous beside keys --------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, "", "ollama", "sk-123", "no-key-needed"])
def test_where_anybody_may_a_dummy_key_is_as_good_as_none(access: Made, key: str, given: str | None) -> None:
    caller = ask(access(**OPEN), given)
    assert (caller.key_id, caller.scopes) == ("", {"infer", "read"})
    assert not caller.is_told_of_absence


def test_where_anybody_may_a_good_key_is_that_key(access: Made, key: str) -> None:
    made = access(**OPEN, CARAVAN_ADMIN_KEY=ADMIN)
    assert ask(made, key).key_id == key[3:11]
    assert ask(made, ADMIN).may("admin")


def test_where_anybody_may_an_ended_key_is_refused(access: Made, settings: Any, key: str) -> None:
    """Its owner hears of it, rather than wonder where the rights are."""
    key_admin.revoke(settings(), "test")
    for given in (key, STRANGER, Signed("A" * 60, b"", b"", 0)):
        with pytest.raises(Unauthorized):
            ask(access(**OPEN), given)


def test_where_anybody_may_this_machine_is_anybody_too(access: Made, key: str) -> None:
    assert ask(access(**OPEN), None, is_local=True).scopes == {"infer", "read"}


# -- keys that cannot be read -----------------------------------------------------------------------


@pytest.mark.parametrize("env", [{}, OPEN, PUBLIC | OPEN, {"CARAVAN_ADMIN_KEY": ADMIN}])
def test_before_the_keys_are_read_nobody_comes_in(settings: Any, env: dict[str, str]) -> None:
    access = Access(settings(**env))
    for given in (None, ADMIN, STRANGER):
        with pytest.raises(Unavailable, match="not read its keys") as caught:
            ask(access, given, is_local=True)
        assert caught.value.retry_after_s == 1


def test_a_registry_that_is_not_set_up_yet_is_away_and_nobody_comes_in(settings: Any, tmp_path: Path) -> None:
    """As a worker finds it that starts while another process still migrates."""
    access = Access(settings())
    with closing(Registry(tmp_path)) as registry:
        with pytest.raises(RegistryAway):
            access.follow(registry)
        registry.migrate()
        with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
            other.execute("DROP TABLE keys")
            other.execute("DELETE FROM generations WHERE part = 'keys'")
        with pytest.raises(RegistryAway):
            access.follow(registry)
    with pytest.raises(Unavailable):
        ask(access, is_local=True)


@pytest.mark.parametrize("env", [{}, OPEN, PUBLIC | OPEN])
def test_lost_keys_open_the_door_to_nobody(access: Made, tmp_path: Path, key: str, env: dict[str, str]) -> None:
    (tmp_path / FILE).unlink()
    for given in (None, key, "ollama"):
        with pytest.raises(Unavailable, match="lost its keys"):
            ask(access(**env), given, is_local=True)


def test_the_key_of_the_settings_survives_lost_keys(access: Made, tmp_path: Path, key: str) -> None:
    (tmp_path / FILE).unlink()
    made = access(CARAVAN_ADMIN_KEY=ADMIN)
    assert ask(made, ADMIN).may("admin")
    for given in (None, key):
        with pytest.raises(Unauthorized):
            ask(made, given, is_local=True)


def test_keys_that_are_made_again_open_the_door_again(access: Made, settings: Any, tmp_path: Path, key: str) -> None:
    made = access()
    (tmp_path / FILE).unlink()
    follow(made, tmp_path)
    with pytest.raises(Unavailable):
        ask(made, key)
    again = key_admin.create(settings(), Wish("again")).text
    follow(made, tmp_path)
    assert ask(made, again).key_id
    with pytest.raises(Unauthorized):
        ask(made, key)


def test_another_registry_in_the_place_of_the_first_is_read_whatever_its_number(
    access: Made, settings: Any, tmp_path: Path, key: str
) -> None:
    """A backup that was put back, or one that was made anew, may have come to the same number."""
    made = access()
    (tmp_path / FILE).unlink()
    again = key_admin.create(settings(), Wish("again")).text
    follow(made, tmp_path)
    assert ask(made, again).key_id
    with pytest.raises(Unauthorized):
        ask(made, key)


def test_a_worker_that_had_keys_is_not_opened_by_the_loss_of_all_files(access: Made, tmp_path: Path, key: str) -> None:
    """Not even by that of the mark which says that there were keys."""
    made = access()
    for part in (FILE, MARK):
        (tmp_path / part).unlink()
    follow(made, tmp_path)
    with pytest.raises(Unavailable):
        ask(made, is_local=True)


# -- scopes and names -------------------------------------------------------------------------------


def test_a_missing_scope_is_named() -> None:
    check_scope(Caller("k", frozenset(("read",))), "read")
    with pytest.raises(Forbidden, match="this key does not have the scope 'manage'"):
        check_scope(Caller("k", frozenset(("read", "infer"))), "manage")
    with pytest.raises(Forbidden, match="needs a key with the scope 'manage'"):
        check_scope(Caller("", frozenset(("read",))), "manage")


def test_a_change_is_for_models_that_may_be_used() -> None:
    caller = Caller("k", frozenset(("manage",)), ("mine*",))
    check_allowed(caller, parse_name("mine"), parse_name("mine2:1b"))
    with pytest.raises(Hidden) as caught:
        check_allowed(caller, parse_name("mine"), parse_name("Yours"))
    assert "Yours" in caught.value.message
    check_allowed(Caller("k"), parse_name("anything"))


@pytest.mark.parametrize(
    ("overlap_s", "said"),
    [(0, "at once"), (1, "in 1 second"), (90, "in 90 seconds"), (5400, "in 90 minutes"), (86400, "in 1 day")],
)
def test_the_end_of_a_key_that_is_rotated_is_said_in_words(overlap_s: float, said: str) -> None:
    assert key_admin.in_words(overlap_s) == said
