"""`caravan backends`: adding, draining and removing while Caravan runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.fakes.ollama import FakeOllama
from tests.fakes.procs import Process
from tests.product import Stand, environment, stand

pytestmark = pytest.mark.leaky


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backends")


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Stand]:
    with stand(folder, ["a"]) as made:
        yield made


@pytest.fixture(scope="module")
def spare() -> Iterator[FakeOllama]:
    with FakeOllama("spare", ["only-spare"]) as fake:
        yield fake


def caravan(site: Stand, folder: Path, *words: str, code: int = 0) -> str:
    with Process(
        ["caravan", "backends", *words], environment(site.fakes, DATA_DIR=str(folder / "data")), folder
    ) as run:
        assert run.wait() == code, run.output
        return run.output


def test_a_backend_comes_and_goes_without_a_restart(site: Stand, spare: FakeOllama, folder: Path) -> None:
    assert "spare is added, and up" in caravan(site, folder, "add", "spare", spare.url)
    site.wait_seen(spare)
    assert "gets no new work" in caravan(site, folder, "drain", "spare")
    asked = {"model": "only-spare", "messages": [], "stream": False}
    site.process.wait_until(lambda: site.post("/api/chat", asked).status == 503, "it is drained")
    caravan(site, folder, "undrain", "spare")
    site.process.wait_until(lambda: site.post("/api/chat", asked).status == 200, "it is drained no more")
    assert "operator" in caravan(site, folder, "list")
    assert "spare is removed" in caravan(site, folder, "remove", "spare")
    site.wait_unseen(spare)


def test_an_address_that_another_has_is_refused(site: Stand, folder: Path) -> None:
    assert "a has this address already" in caravan(site, folder, "add", "again", site.fakes[0].url, code=1)


def test_its_token_comes_from_a_file(site: Stand, spare: FakeOllama, folder: Path) -> None:
    (folder / "token").write_text("hunter2\n")
    # A poll without it, of when the backend was there before, may still be on its way.
    spare.forget_requests()
    try:
        assert "hunter2" not in caravan(site, folder, "add", "spare", spare.url, "--token-file", str(folder / "token"))
        assert "Bearer hunter2" in {request.header("authorization") for request in spare.requests}
    finally:
        caravan(site, folder, "remove", "spare")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "a", "http://127.0.0.1:9", "--no-test"), "there is a backend of the name a already"),
        (("add", "x", "http://127.0.0.1:9"), "does not work"),
        (("add", "x", "gpu1:11434"), "expected a URL"),
        (("remove", "a"), "a comes from the environment"),
        (("drain", "nobody"), "there is no backend of the name nobody"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    site: Stand, folder: Path, words: tuple[str, ...], said: str
) -> None:
    output = caravan(site, folder, *words, code=1)
    assert said in output
    assert "Traceback" not in output
