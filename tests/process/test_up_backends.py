"""A start in front of backends that are off, hang, or come later; and what /readyz says meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.fakes.http import RawResponse, fetch
from conformance.fakes.ollama import FakeOllama
from conformance.fakes.raw import tarpit
from tests.fakes.procs import Process
from tests.process.checkout import fleet_of, server, up

MODEL = "llama3.2:1b"
# Seconds. The project's bars are 5 for each; a busy machine adds to that.
FIRST_ANSWER_S = 30.0
BACK_S = 30.0
# Of a connection that is never accepted: far longer than a start that does not wait for it.
PATIENCE = {"CARAVAN_CONNECT_TIMEOUT": "60", "CARAVAN_POLL_TIMEOUT": "60"}

pytestmark = pytest.mark.leaky

Starter = Callable[[dict[str, str], Path], Process]


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama("one", [MODEL]) as fake:
        yield fake


def models(process: Process) -> list[str]:
    return [item["name"] for item in process.get("/api/tags").json()["models"]]


def chat(process: Process) -> RawResponse:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": False}
    return fetch(f"{process.url}/api/chat", "POST", json=body)


def sentences(process: Process) -> list[str]:
    """What is written for people; everything else is lines of JSON."""
    lines = process.output.splitlines()
    logged = [line for line in lines if line.startswith("{")]
    assert all(json.loads(line)["message"] for line in logged)
    return [line for line in lines if not line.startswith("{")]


def test_with_no_backend_it_starts_and_says_so_in_one_sentence(tmp_path: Path, ollama: FakeOllama) -> None:
    ollama.kill()
    with up(fleet_of([ollama]), tmp_path) as caravan:
        caravan.wait_ready("/", FIRST_ANSWER_S)
        caravan.wait_output("no backend answers")
        (sentence,) = sentences(caravan)
        for word in (caravan.url, ollama.url, "OLLAMA_BACKENDS", ".env", "make demo"):
            assert word in sentence
        # Looked at once, and known to be down: ready, with nothing to offer.
        caravan.wait_ready()
        assert models(caravan) == []
        assert "Traceback" not in caravan.output


def test_where_it_says_that_it_serves_it_does(tmp_path: Path, ollama: FakeOllama) -> None:
    """Also where the first look at the backends is over sooner than the server is up."""
    ollama.kill()
    with up(fleet_of([ollama]), tmp_path) as caravan:
        caravan.wait_output("Caravan serves")
        assert caravan.get("/").status == 200


def test_with_no_setting_at_all_the_sentence_names_the_local_ollama(tmp_path: Path) -> None:
    with up({"OLLAMA_BASE_URL": "http://127.0.0.1:1"}, tmp_path) as caravan:
        caravan.wait_output("no backend answers")
        assert "http://127.0.0.1:1)" in sentences(caravan)[0]


def test_a_backend_that_appears_later_is_picked_up(tmp_path: Path, ollama: FakeOllama) -> None:
    ollama.kill()
    with up(fleet_of([ollama]), tmp_path) as caravan:
        caravan.wait_ready()
        assert chat(caravan).status >= 400
        ollama.restart()
        caravan.wait_until(lambda: models(caravan) == [MODEL], "its model is listed", BACK_S)
        caravan.wait_until(lambda: chat(caravan).status == 200, "it answers a chat", BACK_S)


def test_a_backend_that_returns_is_picked_up(tmp_path: Path, ollama: FakeOllama) -> None:
    with up(fleet_of([ollama]), tmp_path) as caravan:
        caravan.wait_ready()
        assert chat(caravan).status == 200
        ollama.kill()
        caravan.wait_until(lambda: models(caravan) == [], "it is marked down", BACK_S)
        ollama.restart()
        at = time.monotonic()
        caravan.wait_until(lambda: models(caravan) == [MODEL], "its model is listed", BACK_S)
        caravan.wait_until(lambda: chat(caravan).status == 200, "a chat", BACK_S - (time.monotonic() - at))


def test_a_backend_in_a_black_hole_delays_neither_the_start_nor_the_others(tmp_path: Path, ollama: FakeOllama) -> None:
    with tarpit() as (host, port):
        env = {"OLLAMA_BACKENDS": f"hole=http://{host}:{port},one={ollama.url}", **PATIENCE}
        with up(env, tmp_path) as caravan:
            caravan.wait_ready("/", FIRST_ANSWER_S)
            caravan.wait_until(lambda: models(caravan) == [MODEL], "the other's model", BACK_S)
            caravan.wait_output("1 models of 1 backends")
            caravan.stop()


@pytest.mark.parametrize("start", [up, server], ids=["up", "gunicorn"])
def test_it_is_not_ready_before_the_first_look_and_lives_all_the_same(
    tmp_path: Path, ollama: FakeOllama, start: Starter
) -> None:
    ollama.pause()
    with start({**fleet_of([ollama]), "CARAVAN_POLL_TIMEOUT": "30", "WEB_CONCURRENCY": "1"}, tmp_path) as caravan:
        caravan.wait_ready("/livez")
        ollama.wait_for("/api/tags", deadline_s=20)
        answer = caravan.get("/readyz")
        assert (answer.status, answer.body) == (503, b"the backends were not looked at yet\n")
        assert caravan.get("/").status == 200
        ollama.resume()
        caravan.wait_ready()
        assert models(caravan) == [MODEL]


def test_without_polling_nobody_asks_a_backend_anything(tmp_path: Path, ollama: FakeOllama) -> None:
    """0 is off: for a fleet that a cron line looks at."""
    with server({**fleet_of([ollama]), "CARAVAN_POLL_INTERVAL": "0"}, tmp_path) as caravan:
        caravan.wait_ready("/livez")
        caravan.wait_until(lambda: caravan.get("/api/version").status != 0, "a second answer")
        assert not caravan.named("proxy_app.cli refresh")
        assert ollama.count("/api/tags") == 0
