"""`caravan keys`: what it prints, what it refuses, and that a running Caravan obeys."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from conformance.fakes.http import fetch
from conformance.fakes.ollama import FakeOllama
from proxy_app.cli import caravan
from proxy_app.store.registry import FILE
from tests.fakes.procs import Process
from tests.keys import ADMIN, Signer, bearer, keys, make_key, new_key
from tests.process.checkout import run
from tests.wire.shows import gateway

KEY = re.compile(r"cv_[a-z2-9]{8}_[A-Za-z0-9_-]{43}")

pytestmark = pytest.mark.leaky


def said(folder: Path, *words: str, **env: str) -> tuple[int, str, str]:
    done = run(env, folder, "keys", *words)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose keys are for reading: what ends them takes a folder of its own."""
    folder = tmp_path_factory.mktemp("keys")
    new_key(folder, "shared", models=("llama3*",), networks=("10.0.0.0/8",))
    return folder


def test_a_key_is_printed_once_and_alone(tmp_path: Path) -> None:
    code, out, err = said(tmp_path, "create", "--label", "me")
    assert code == 0
    key = out.strip()
    assert KEY.fullmatch(key)
    assert key not in err
    assert f"Its id is {key[3:11]}" in err
    for words in (("list",), ("list", "--json"), ("show", "me"), ("show", key[3:11], "--json")):
        code, out, err = said(tmp_path, *words)
        assert code == 0
        assert key[12:] not in out + err
        assert key[3:11] in out
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or key[12:].encode() not in path.read_bytes(), path


def test_a_program_finds_the_secret_under_key(tmp_path: Path) -> None:
    signer = tmp_path / "id_ed25519.pub"
    signer.write_text(f"{Signer().line} me@here\n")
    made = make_key(
        *(tmp_path, "--label", "me", "--scope", "read", "--scope", "manage", "--model", "llama3*", "--model", "me/*"),
        *("--from", "10.1.2.3/8", "--expires", "90d", "--signer", str(signer)),
    )
    assert KEY.fullmatch(made["key"])
    assert made["id"] == made["key"][3:11]
    assert (made["label"], made["state"], made["scopes"]) == ("me", "valid", ["manage", "read"])
    assert (made["models"], made["networks"], made["signer"]) == (["llama3*", "me/*"], ["10.0.0.0/8"], Signer().public)
    stamp = "%Y-%m-%dT%H:%M:%SZ"
    lives_s = time.mktime(time.strptime(made["expires_at"], stamp)) - time.mktime(
        time.strptime(made["created_at"], stamp)
    )
    assert lives_s == pytest.approx(90 * 86400, abs=1)
    listed = keys(tmp_path, "list")
    assert listed == [{name: value for name, value in made.items() if name != "key"}]
    assert keys(tmp_path, "show", "me") == listed[0]


def test_a_key_may_infer_and_read_unless_said_otherwise(tmp_path: Path) -> None:
    assert make_key(tmp_path)["scopes"] == ["infer", "read"]


def test_the_list_is_for_people_too(folder: Path) -> None:
    code, out, _ = said(folder, "list")
    assert code == 0
    (line,) = out.splitlines()
    for word in ("valid", "infer,read", "llama3*", "shared"):
        assert word in line


def test_without_keys_the_list_says_what_that_means(tmp_path: Path) -> None:
    code, out, _ = said(tmp_path, "list")
    assert code == 0
    assert "There are no keys" in out
    assert keys(tmp_path, "list") == []


def test_revoke_and_rotate_end_keys(tmp_path: Path) -> None:
    first = make_key(tmp_path)
    second = keys(tmp_path, "rotate", first["id"], "--overlap", "1h")
    assert second["replaces"] == first["id"]
    assert second["key"] != first["key"]
    assert {name: second[name] for name in ("label", "scopes")} == {name: first[name] for name in ("label", "scopes")}
    assert {key["id"]: key["state"] for key in keys(tmp_path, "list")} == {
        first["id"]: "ending",
        second["id"]: "valid",
    }
    assert keys(tmp_path, "revoke", second["id"])["state"] == "revoked"
    third = keys(tmp_path, "rotate", first["id"], "--overlap", "0s")
    assert keys(tmp_path, "show", first["id"])["state"] == "revoked"
    assert third["state"] == "valid"


def test_a_key_is_changed_in_place(tmp_path: Path) -> None:
    made = make_key(tmp_path, "--label", "me", "--model", "llama3*", "--limit", "rpm=60", "--from", "10.0.0.0/8")
    secret = made.pop("key")
    words = ("--label", "her", "--scope", "read", "--all-models", "--from-anywhere", "--expires", "90d")
    changed = keys(tmp_path, "edit", "me", *words, "--limit", "rpm=5", "--limit", "tpm=9")
    assert changed["expires_at"] > made["created_at"]
    wanted = {"label": "her", "scopes": ["read"], "models": [], "networks": [], "limits": ["rpm=5", "tpm=9"]}
    assert changed == {**made, **wanted, "expires_at": changed["expires_at"]}
    assert keys(tmp_path, "edit", "her", "--expires", "never")["expires_at"] is None
    assert keys(tmp_path, "show", made["id"]) == {**changed, "expires_at": None}
    assert secret not in json.dumps(changed)


REFUSED: list[tuple[tuple[str, ...], int, str]] = [
    (("create",), 2, "--label"),
    (("create", "--label", " "), 1, "label: expected"),
    (("create", "--label", "a\nb"), 1, "label: expected"),
    (("create", "--label", "me", "--scope", "root"), 2, "root"),
    (("create", "--label", "me", "--from", "here"), 1, "'here' is no network"),
    (("create", "--label", "me", "--expires", "soon"), 2, "such as 90d"),
    (("create", "--label", "me", "--expires", "-1d"), 2, "such as 90d"),
    (("create", "--label", "me", "--signer", "/dev/null"), 1, "ed25519"),
    (("create", "--label", "me", "--signer", "/no/such/file"), 2, "/no/such/file"),
    (("show", "nobody"), 1, "there is no key with the id or label 'nobody'"),
    (("revoke", "nobody"), 1, "there is no key"),
    (("rotate", "nobody"), 1, "there is no key"),
    (("edit", "nobody", "--label", "me"), 1, "there is no key"),
    (("edit", "shared"), 2, "nothing to change"),
    (("edit", "shared", "--limit", "rpm"), 1, "'rpm': expected one of"),
    (("edit", "shared", "--model", "x", "--all-models"), 2, "--all-models says the opposite"),
    (("edit", "shared", "--from", "10.0.0.0/8", "--from-anywhere"), 2, "--from-anywhere says the opposite"),
    (("edit", "shared", "--expires", "soon"), 2, "such as 90d, or never"),
    (("rotate", "shared", "--overlap", "x"), 2, "such as 90d"),
    (("list", "nobody"), 2, "nobody"),
]


@pytest.mark.parametrize(("words", "code", "why"), REFUSED)
def test_what_cannot_be_done_is_one_sentence(folder: Path, words: tuple[str, ...], code: int, why: str) -> None:
    """In this process: they are many, and a process of their own has nothing to add."""
    done = CliRunner().invoke(caravan, ["keys", *words], env={"DATA_DIR": str(folder / "data")})
    assert (done.exit_code, done.stdout) == (code, "")
    assert why in done.stderr
    assert len(done.stderr.strip().splitlines()) <= (1 if code == 1 else 4)


def test_an_ended_key_is_not_rotated_and_not_changed(tmp_path: Path) -> None:
    new_key(tmp_path, "me")
    assert keys(tmp_path, "revoke", "me")["state"] == "revoked"
    for words in (("rotate", "me"), ("edit", "me", "--label", "her")):
        code, _, err = said(tmp_path, *words)
        assert code == 1
        assert "has ended" in err


def test_a_label_that_means_two_is_refused(tmp_path: Path) -> None:
    for _ in range(2):
        new_key(tmp_path, "twin")
    code, _, err = said(tmp_path, "revoke", "twin")
    assert code == 1
    assert "2 keys have the label 'twin'" in err


@pytest.mark.parametrize("words", [("list",), ("create", "--label", "me")])
def test_a_registry_that_cannot_be_used_is_a_sentence(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "data").write_text("a file")
    code, out, err = said(tmp_path, *words)
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    assert err.startswith("caravan: ")


def test_a_key_that_was_made_is_shown_though_it_cannot_be_noted(tmp_path: Path) -> None:
    """Its text is nowhere else."""
    said(tmp_path, "create", "--label", "first")
    (registry,) = tmp_path.rglob(FILE)
    with closing(sqlite3.connect(registry)) as opened:
        opened.execute("CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'full'); END")
    code, printed, _ = said(tmp_path, "create", "--label", "second")
    assert (code, bool(KEY.fullmatch(printed.strip()))) == (0, True)


def test_settings_that_are_wrong_are_a_sentence(tmp_path: Path) -> None:
    code, out, err = said(tmp_path, "list", CARAVAN_ADMIN_KEY="weak")
    assert (code, out) == (2, "")
    assert "CARAVAN_ADMIN_KEY: expected at least 128 random bits" in err
    assert "weak" not in err.replace("CARAVAN_ADMIN_KEY", "")


def test_what_knows_of_keys_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Whatever the umask says."""
    before = os.umask(0)
    try:
        make_key(tmp_path)
    finally:
        os.umask(before)
    data = tmp_path / "data"
    for path in (data, *data.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


# -- a running Caravan obeys ------------------------------------------------------------------------

WORKERS = 4
# Many times more than it takes until each worker has had one.
CONNECTIONS = 60
PROMISE_S = 1.0
# Far longer than it takes to tell all workers of a key.
OVERLAP_S = 15


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Path]]:
    """Four workers, with the interval that is shipped."""
    folder = tmp_path_factory.mktemp("four")
    more = {"WEB_CONCURRENCY": str(WORKERS), "CARAVAN_RELOAD_INTERVAL": "", "CARAVAN_ADMIN_KEY": ADMIN}
    with FakeOllama("one", ["tiny"]) as fake, gateway([fake], folder, **more) as process:
        yield process, folder


def status(process: Process, key: str) -> int:
    return fetch(f"{process.url}/api/tags", headers=bearer(key)).status


def known(process: Process, key: str) -> None:
    process.wait_each(lambda: status(process, key) == 200, "the key is known")


@pytest.mark.alone
def test_when_a_command_returns_every_worker_obeys(four: tuple[Process, Path]) -> None:
    """Two seconds is the longest that it waits for them."""
    process, folder = four

    def statuses(key: str) -> list[int]:
        return process.each(lambda: status(process, key))

    key = make_key(folder, "--label", "prompt", "--scope", "infer")["key"]
    assert statuses(key) == [403] * WORKERS
    keys(folder, "edit", "prompt", "--scope", "read")
    assert statuses(key) == [200] * WORKERS
    new = keys(folder, "rotate", "prompt", "--overlap", "0s")
    assert (statuses(key), statuses(new["key"])) == ([401] * WORKERS, [200] * WORKERS)
    keys(folder, "revoke", new["id"])
    assert statuses(new["key"]) == [401] * WORKERS


@pytest.mark.alone
def test_every_worker_obeys_a_revocation_within_a_second(four: tuple[Process, Path]) -> None:
    process, folder = four
    key = new_key(folder, "brief")
    known(process, key)
    assert run({}, folder, "keys", "revoke", "brief").returncode == 0
    revoked = time.monotonic()
    late: list[int] = []
    while len(late) < CONNECTIONS:
        began = time.monotonic()
        found = status(process, key)
        late += [found] if began > revoked + PROMISE_S else []
    assert set(late) == {401}
    # However the kernel shared those out.
    assert process.each(lambda: status(process, key)) == [401] * WORKERS


def test_a_rotated_key_and_its_successor_are_good_together_for_a_while(four: tuple[Process, Path]) -> None:
    process, folder = four
    old = new_key(folder, "turning")
    known(process, old)
    new: dict[str, Any] = json.loads(
        run({}, folder, "keys", "rotate", "turning", "--overlap", f"{OVERLAP_S}s", "--json").stdout
    )
    rotated = time.monotonic()
    known(process, new["key"])
    assert time.monotonic() < rotated + OVERLAP_S, "too slow a machine for this overlap"
    assert status(process, old) == 200
    process.wait_each(lambda: status(process, old) == 401, "the old one has ended", 2 * OVERLAP_S)
    assert process.each(lambda: status(process, new["key"])) == [200] * WORKERS


def test_the_last_use_of_a_key_is_shown_once_the_workers_have_ended(tmp_path: Path) -> None:
    key = new_key(tmp_path, "used")
    with FakeOllama("one", ["tiny"]) as fake, gateway([fake], tmp_path) as process:
        assert fetch(f"{process.url}/api/tags", headers=bearer(key)).status == 200
    assert keys(tmp_path, "show", "used")["used_at"] is not None
