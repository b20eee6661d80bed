"""Safe by default: a public address needs keys, and keys that are lost open the door to nobody."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from conformance.fakes.http import RawResponse, fetch
from conformance.fakes.ollama import FakeOllama
from proxy_app.services.setup import MARK
from proxy_app.store.registry import FILE
from tests.fakes import procs
from tests.fakes.procs import Process
from tests.keys import ADMIN, STRANGER, bearer, new_key, revoke
from tests.product import environment, question
from tests.wire.shows import gateway, until

pytestmark = pytest.mark.leaky

PUBLIC = {"HOST": "0.0.0.0"}
ANYBODY = {"CARAVAN_ANONYMOUS": "1"}
STARTS: dict[str, Callable[[dict[str, str], Path], Process]] = {"up": procs.caravan_up, "gunicorn": procs.gunicorn}


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeOllama]:
    with FakeOllama("one", ["tiny"]) as started:
        yield started


def tags(process: Process, key: str | None = None) -> RawResponse:
    return fetch(f"{process.url}/api/tags", headers=bearer(key) if key else {})


def chat(process: Process, key: str | None = None) -> RawResponse:
    asked = question("/api/chat", stream=False)
    return fetch(f"{process.url}/api/chat", "POST", json=asked, headers=bearer(key) if key else {})


def delete(process: Process, key: str | None = None) -> RawResponse:
    headers = bearer(key) if key else {}
    return fetch(f"{process.url}/api/delete", "DELETE", json={"model": "nobody"}, headers=headers)


# -- at the start -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "host"), [("up", "0.0.0.0"), ("gunicorn", "::")])
def test_a_public_address_without_keys_is_refused_in_one_sentence(
    fake: FakeOllama, tmp_path: Path, start: str, host: str
) -> None:
    with STARTS[start](environment([fake], HOST=host), tmp_path) as process:
        assert process.wait() == 2
        lines = process.output.strip().splitlines()
    assert len(lines) == 1
    assert f"HOST: {host} is a public address" in lines[0]
    for way in ("caravan keys create", "CARAVAN_ADMIN_KEY", "CARAVAN_ANONYMOUS=1"):
        assert way in lines[0]


@pytest.mark.parametrize(("start", "key"), [("up", "a" * 64), ("gunicorn", f"changeme{ADMIN}")])
def test_a_weak_admin_key_is_refused_and_not_repeated(fake: FakeOllama, tmp_path: Path, start: str, key: str) -> None:
    with STARTS[start](environment([fake], CARAVAN_ADMIN_KEY=key, **PUBLIC), tmp_path) as process:
        assert process.wait() == 2
        assert "CARAVAN_ADMIN_KEY: expected at least 128 random bits" in process.output
        assert "Traceback" not in process.output
        assert key not in process.output


def test_a_public_address_starts_with_the_key_of_the_settings(fake: FakeOllama, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{ADMIN}\n")
    env = environment([fake], CARAVAN_ADMIN_KEY_FILE=str(tmp_path / "key"), **PUBLIC)
    with procs.caravan_up(env, tmp_path) as process:
        process.wait_ready()
        assert tags(process).status == 401
        assert tags(process, ADMIN).status == chat(process, ADMIN).status == 200
        assert delete(process, ADMIN).status == 404
        assert ADMIN not in process.output


def test_a_public_address_starts_with_a_stored_key(fake: FakeOllama, tmp_path: Path) -> None:
    key = new_key(tmp_path)
    with gateway([fake], tmp_path, **PUBLIC) as process:
        assert tags(process).status == tags(process, STRANGER).status == 401
        assert tags(process, key).status == chat(process, key).status == 200
        assert delete(process, key).status == 403


def test_a_public_address_starts_where_all_keys_have_ended_and_is_for_nobody(fake: FakeOllama, tmp_path: Path) -> None:
    key = new_key(tmp_path, "ended")
    revoke(tmp_path, "ended")
    with gateway([fake], tmp_path, **PUBLIC) as process:
        assert {tags(process, given).status for given in (None, key, "ollama")} == {401}


def test_gunicorns_own_option_is_seen_too(fake: FakeOllama, tmp_path: Path) -> None:
    with procs.gunicorn(environment([fake]), tmp_path, "-b", "0.0.0.0:0") as process:
        assert process.wait() == 2
        assert "HOST: 0.0.0.0 is a public address" in process.output


def test_a_socket_that_is_handed_over_is_seen_too(fake: FakeOllama, tmp_path: Path) -> None:
    """As systemd does it."""
    handing_over = (
        "import os, socket; listener = socket.create_server(('0.0.0.0', 0)); fd = listener.fileno(); "
        "os.set_inheritable(fd, True); os.execvp('gunicorn', ['gunicorn', 'wsgi:app', '-b', f'fd://{fd}'])"
    )
    with Process(["python", "-c", handing_over], environment([fake]), tmp_path) as process:
        assert process.wait() == 2
        assert "HOST: 0.0.0.0 is a public address" in process.output


def test_gunicorns_own_option_makes_the_address_public_for_the_workers(fake: FakeOllama, tmp_path: Path) -> None:
    """They would take whoever comes from this machine for its operator."""
    port = procs.free_port()
    env = environment([fake], PORT=str(port), **ANYBODY)
    with procs.gunicorn(env, tmp_path, "-b", f"0.0.0.0:{port}") as process:
        process.wait_ready("/livez")
        assert tags(process).status == 200
        assert delete(process).status == 403
        # Pages on somebody's own machine may call a server there, not one for everybody.
        assert fetch(f"{process.url}/api/version", headers={"Origin": "http://localhost:3000"}).status == 403
        assert fetch(f"{process.url}/api/version", headers={"Origin": process.url}).status == 200


# -- anybody ----------------------------------------------------------------------------------------


def test_anybody_may_use_and_not_change(fake: FakeOllama, tmp_path: Path) -> None:
    with gateway([fake], tmp_path, **PUBLIC, **ANYBODY) as process:
        for key in (None, "ollama"):
            assert tags(process, key).status == chat(process, key).status == 200
            assert delete(process, key).status == 403
        # A key that was made while it runs counts from then on.
        key = new_key(tmp_path, scopes=("manage",))
        until(lambda: delete(process, key).status == 404, "the key is known")
        assert (tags(process).status, tags(process, key).status) == (200, 403)


def test_anybody_may_what_the_setting_says(fake: FakeOllama, tmp_path: Path) -> None:
    scopes = {"CARAVAN_ANONYMOUS_SCOPES": "read"}
    key = new_key(tmp_path, "test")
    ended = new_key(tmp_path, "ended")
    revoke(tmp_path, "ended")
    with gateway([fake], tmp_path, **PUBLIC, **ANYBODY, **scopes) as process:
        for given in (None, "ollama"):
            assert (tags(process, given).status, chat(process, given).status) == (200, 403)
        assert chat(process, key).status == 200
        assert tags(process, ended).status == tags(process, STRANGER).status == 401


# -- keys that are lost -----------------------------------------------------------------------------


@contextmanager
def other_writer(folder: Path) -> Iterator[None]:
    """Somebody holds the registry, as a long backup does."""
    with closing(sqlite3.connect(folder / "data" / FILE, isolation_level=None)) as db:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        yield
        db.execute("ROLLBACK")


def damage(folder: Path, how: str) -> None:
    for path in (folder / "data").glob(f"{FILE}*"):
        if how == "deleted":
            path.unlink()
        elif how == "damaged":
            path.write_bytes(b"no database" * 1000)
        else:
            path.write_bytes(b"")
    assert (folder / "data" / MARK).exists()


@pytest.mark.parametrize(("how", "env"), [("deleted", {}), ("damaged", ANYBODY), ("emptied", {})])
def test_lost_keys_open_the_door_to_nobody(fake: FakeOllama, tmp_path: Path, how: str, env: dict[str, str]) -> None:
    key = new_key(tmp_path)
    damage(tmp_path, how)
    with gateway([fake], tmp_path, **env) as process:
        for given in (None, key, "ollama"):
            answer = tags(process, given)
            assert answer.status == 503
            assert "lost its keys" in answer.json()["error"]
            assert answer.header("retry-after")
            assert chat(process, given).status == delete(process, given).status == 503
        again = new_key(tmp_path)
        until(lambda: tags(process, again).status == 200, "a new key opens it again")
        assert tags(process, key).status == 401


def test_the_key_of_the_settings_survives_lost_keys(fake: FakeOllama, tmp_path: Path) -> None:
    key = new_key(tmp_path)
    damage(tmp_path, "deleted")
    with gateway([fake], tmp_path, CARAVAN_ADMIN_KEY=ADMIN) as process:
        assert tags(process, ADMIN).status == 200
        assert tags(process).status == tags(process, key).status == 401


@pytest.mark.parametrize("how", ["deleted", "damaged"])
def test_keys_that_are_lost_while_it_runs_open_the_door_to_nobody(fake: FakeOllama, tmp_path: Path, how: str) -> None:
    key = new_key(tmp_path)
    seen: set[int] = set()
    with gateway([fake], tmp_path) as process:
        assert tags(process, key).status == 200
        damage(tmp_path, how)

        def is_seen() -> bool:
            seen.add(tags(process).status)
            return tags(process, key).status == 503

        until(is_seen, "the loss is seen", 15)
        seen.add(tags(process).status)
    assert seen <= {401, 503}


def test_before_the_keys_are_read_nobody_comes_in(fake: FakeOllama, tmp_path: Path) -> None:
    key = new_key(tmp_path)
    with procs.gunicorn(environment([fake], CARAVAN_ADMIN_KEY=ADMIN), tmp_path) as process:
        with other_writer(tmp_path):
            process.wait_ready("/livez")
            for given in (None, key, ADMIN, "ollama"):
                answer = tags(process, given)
                assert answer.status == 503
                assert answer.header("retry-after")
        process.wait_until(lambda: tags(process, key).status == 200, "the keys are read")
        assert tags(process).status == 401
