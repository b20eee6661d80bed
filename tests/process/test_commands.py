"""The commands: what they print, for people and for programs, and with which exit code they end."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.fakes.ollama import FakeOllama
from tests.fakes.procs import Process
from tests.process.checkout import command, run, server, up
from tests.product import UNHURRIED

SHARED, OWN = "llama3.2:1b", "qwen3:0.6b"
TOKEN = "token-that-nobody-may-see"
# Every command that reads the settings, as words.
COMMANDS = (
    ("up",),
    ("migrate",),
    ("refresh",),
    ("refresh", "--once"),
    ("check",),
    ("backends", "probe"),
    ("backends", "probe", "--json"),
    ("models", "list"),
    ("models", "list", "--json"),
)


pytestmark = pytest.mark.leaky


@pytest.fixture(scope="module")
def fleet() -> Iterator[list[FakeOllama]]:
    with FakeOllama("one", [SHARED, OWN]) as one, FakeOllama("two", [SHARED], version="0.32.1") as two:
        yield [one, two]


@pytest.fixture(scope="module")
def env(fleet: list[FakeOllama]) -> dict[str, str]:
    backends = [{"name": fake.name, "url": fake.url, "auth_token": TOKEN} for fake in fleet]
    return {"OLLAMA_BACKENDS": json.dumps(backends), **UNHURRIED}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def running(env: dict[str, str], folder: Path) -> Iterator[Process]:
    """A healthy `caravan up`, whose data directory the commands look at."""
    with up(env, folder) as process:
        process.wait_ready()
        process.wait_output("Caravan serves")
        yield process


@pytest.fixture
def broken_env(env: dict[str, str]) -> Iterator[dict[str, str]]:
    """One backend of two, whose machine is off."""
    with FakeOllama("gone", [OWN]) as gone:
        gone.kill()
        backends = [*json.loads(env["OLLAMA_BACKENDS"])[:1], {"name": "gone", "url": gone.url}]
        yield {"OLLAMA_BACKENDS": json.dumps(backends)}


def printed(env: dict[str, str], folder: Path, *words: str) -> Any:
    """What a command prints as JSON; nothing else may be on standard output, and nothing at all on the other."""
    done = run(env, folder, *words, "--json")
    assert done.stderr == ""
    return json.loads(done.stdout)


# -- of a healthy system ---------------------------------------------------------------------------


def test_check_finds_a_healthy_system_healthy(running: Process, env: dict[str, str], folder: Path) -> None:
    done = run(env, folder, "check")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert all(line.startswith("ok ") for line in lines), lines
    subjects = [line.split()[1].rstrip(":") for line in lines]
    assert subjects == ["settings", "redis", "registry", "refresher", "keys", "backend", "backend"]


def test_check_tells_programs_the_same(running: Process, env: dict[str, str], folder: Path) -> None:
    findings = printed(env, folder, "check")
    assert [finding["subject"] for finding in findings] == [
        "settings",
        "redis",
        "registry",
        "refresher",
        "keys",
        "backend one",
        "backend two",
    ]
    assert all(finding["ok"] and not finding["cure"] for finding in findings)


def test_probe_tells_reachability_version_latency_and_models(
    running: Process, env: dict[str, str], folder: Path, fleet: list[FakeOllama]
) -> None:
    one, two = printed(env, folder, "backends", "probe")
    assert (one["name"], one["url"], one["state"]) == ("one", fleet[0].url, "up")
    assert (one["version"], one["models"], one["loaded"], one["error"]) == ("0.33.0", 2, 0, None)
    assert 0 < one["latency_ms"] < 5000
    assert (two["version"], two["models"]) == ("0.32.1", 1)


def test_probe_prints_a_table_for_people(running: Process, env: dict[str, str], folder: Path) -> None:
    done = run(env, folder, "backends", "probe")
    assert (done.returncode, done.stderr) == (0, "")
    head, one, two = done.stdout.splitlines()
    assert head.split()[:4] == ["name", "url", "state", "version"]
    assert one.split()[0] == "one"
    assert two.split()[3] == "0.32.1"


def test_models_are_grouped_by_backend_with_the_unions_count_and_the_caches_size(
    running: Process, env: dict[str, str], folder: Path, fleet: list[FakeOllama]
) -> None:
    # They are fetched ahead, behind the start.
    running.wait_until(lambda: printed(env, folder, "models", "list")["cache"]["documents"] >= 1, "a document")
    found = printed(env, folder, "models", "list")
    held = {backend["name"]: [model["name"] for model in backend["models"]] for backend in found["backends"]}
    assert held == {"one": [SHARED, OWN], "two": [SHARED]}
    assert {backend["state"] for backend in found["backends"]} == {"up"}
    assert found["union"] == 2
    assert found["cache"]["bytes"] > 0


def test_models_are_listed_for_people(running: Process, env: dict[str, str], folder: Path) -> None:
    done = run(env, folder, "models", "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "one (up, 2 models)"
    assert "2 different models in all" in done.stdout
    assert "show cache: " in done.stdout.splitlines()[-1]


def test_no_command_prints_a_token(running: Process, env: dict[str, str], folder: Path) -> None:
    for words in COMMANDS[4:]:
        done = run({**env, "CARAVAN_LOG_LEVEL": "debug"}, folder, *words)
        assert TOKEN not in done.stdout + done.stderr
    assert TOKEN not in running.output


def test_no_token_is_stored(running: Process, folder: Path) -> None:
    for path in (folder / "data").glob("caravan.db*"):
        assert TOKEN.encode() not in path.read_bytes()


def test_a_single_round_leaves_the_role_to_the_refresher_at_work(
    running: Process, env: dict[str, str], folder: Path
) -> None:
    done = run(env, folder, "refresh", "--once")
    assert done.returncode == 0
    assert "another refresher is at work" in done.stderr


# -- of a sick one ---------------------------------------------------------------------------------


def test_check_names_a_dead_backend_and_what_to_do(tmp_path: Path, broken_env: dict[str, str]) -> None:
    done = run(broken_env, tmp_path, "check")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    (place,) = [n for n, line in enumerate(lines) if line.startswith("!!") and "backend gone" in line]
    assert lines[place + 1].strip().startswith("->")


def test_probe_ends_with_1_where_a_backend_is_down(tmp_path: Path, broken_env: dict[str, str]) -> None:
    done = run(broken_env, tmp_path, "backends", "probe", "--json")
    assert done.returncode == 1
    one, gone = json.loads(done.stdout)
    assert (one["state"], gone["state"]) == ("up", "down")
    assert "refused" in gone["error"]
    assert gone["models"] is None


def test_check_before_the_first_start_says_what_is_missing(tmp_path: Path, env: dict[str, str]) -> None:
    """And leaves no half-made registry behind that a later start would trip over."""
    done = run(env, tmp_path, "check")
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr
    assert "no such table" not in done.stdout
    assert run(env, tmp_path, "migrate").returncode == 0


@pytest.mark.parametrize("words", [("models", "list"), ("backends", "probe")], ids=" ".join)
def test_looking_before_the_first_start_is_no_error(
    tmp_path: Path, env: dict[str, str], words: tuple[str, ...]
) -> None:
    done = run(env, tmp_path, *words)
    assert (done.returncode, done.stderr) == (0, "")


# -- migrate and refresh ---------------------------------------------------------------------------


def test_migrate_makes_the_registry_once(tmp_path: Path, env: dict[str, str]) -> None:
    first, second = run(env, tmp_path, "migrate"), run(env, tmp_path, "migrate")
    assert (first.returncode, second.returncode) == (0, 0)
    assert "0001_registry" in first.stdout
    assert second.stdout == "the registry is up to date\n"
    assert first.stderr + second.stderr == ""


def test_two_migrations_at_once_apply_everything_once(tmp_path: Path, env: dict[str, str]) -> None:
    both = [command(env, tmp_path, "migrate") for _ in range(2)]
    with both[0] as one, both[1] as two:
        assert (one.wait(), two.wait()) == (0, 0)
        assert (one.output + two.output).count("0001_registry") == 1


def test_one_round_from_cron_fills_the_registry(tmp_path: Path, env: dict[str, str]) -> None:
    done = run(env, tmp_path, "refresh", "--once")
    assert done.returncode == 0
    assert '"level": "error"' not in done.stderr
    assert printed(env, tmp_path, "models", "list")["union"] == 2


def test_one_round_with_every_backend_down_ends_all_the_same(tmp_path: Path, broken_env: dict[str, str]) -> None:
    done = run(broken_env, tmp_path, "refresh", "--once")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


# -- wrong settings --------------------------------------------------------------------------------

WRONG = {"PORT": "eighty", "CARAVAN_FALL": "0", "CARAVAN_TYPO": "1", "OLLAMA_BACKENDS": "gpu1=ftp://x"}


def gunicorn(env: dict[str, str], folder: Path) -> Process:
    """The server with a PORT that it has no chance to use."""
    process = server({**env, "PORT": "1"}, folder)
    process.env |= env
    return process


def assert_refused(process: Process) -> None:
    assert process.wait() == 2, process.output
    assert "Traceback" not in process.output
    for name in WRONG:
        assert name in process.output


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] != "check"], ids=" ".join)
def test_wrong_settings_are_all_named_and_nothing_starts(tmp_path: Path, words: tuple[str, ...]) -> None:
    with command(WRONG, tmp_path, *words) as process:
        assert_refused(process)
    assert not (tmp_path / "data").exists()


def test_wrong_settings_stop_gunicorn_too(tmp_path: Path) -> None:
    with gunicorn(WRONG, tmp_path) as process:
        assert_refused(process)


def test_check_lists_wrong_settings_as_findings(tmp_path: Path) -> None:
    done = run(WRONG, tmp_path, "check", "--json")
    findings = json.loads(done.stdout)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    for name in WRONG:
        assert any(name in finding["found"] for finding in findings if not finding["ok"])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_a_public_address_needs_to_be_meant(tmp_path: Path, env: dict[str, str], host: str) -> None:
    for process in (
        command({**env, "HOST": host}, tmp_path, "up"),
        gunicorn({**env, "HOST": host, "PORT": "1"}, tmp_path),
    ):
        with process:
            assert process.wait() == 2
            assert "HOST" in process.output
            assert "CARAVAN_ANONYMOUS=1" in process.output
            assert "Traceback" not in process.output


def test_a_public_address_that_is_meant_is_served(tmp_path: Path, env: dict[str, str]) -> None:
    with server({**env, "HOST": "0.0.0.0", "CARAVAN_ANONYMOUS": "1"}, tmp_path) as process:
        process.wait_ready("/")


# -- a registry from the future --------------------------------------------------------------------


@pytest.fixture
def newer(tmp_path: Path, env: dict[str, str]) -> Path:
    """A folder whose registry holds a migration that this version does not know."""
    assert run(env, tmp_path, "migrate").returncode == 0
    path = tmp_path / "data" / "caravan.db"
    with sqlite3.connect(path) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(_sqlite_migrations)")]
        values = {"migration_set": "caravan", "name": "9999_future", "applied_at": "2099-01-01"}
        chosen = {key: value for key, value in values.items() if key in columns}
        marks = ", ".join("?" for _ in chosen)
        db.execute(f"INSERT INTO _sqlite_migrations ({', '.join(chosen)}) VALUES ({marks})", list(chosen.values()))
    db.close()
    return tmp_path


def assert_too_new(process: Process) -> None:
    assert process.wait() not in (0, 2), process.output
    assert "9999_future" in process.output
    assert "newer Caravan" in process.output
    assert "Traceback" not in process.output
    assert "traceback" not in process.output


@pytest.mark.parametrize("words", [("up",), ("migrate",), ("refresh",), ("refresh", "--once")], ids=" ".join)
def test_a_newer_registry_is_refused(newer: Path, env: dict[str, str], words: tuple[str, ...]) -> None:
    with command(env, newer, *words) as process:
        assert_too_new(process)


def test_a_newer_registry_stops_gunicorn_too(newer: Path, env: dict[str, str]) -> None:
    with server(env, newer) as process:
        assert_too_new(process)


def test_check_says_that_the_registry_is_newer(newer: Path, env: dict[str, str]) -> None:
    done = run(env, newer, "check")
    assert done.returncode == 1
    assert "newer Caravan" in done.stdout
