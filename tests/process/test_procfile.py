"""The three lines of the Procfile, as a platform runs them: through a shell, each by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from tests.conftest import FakeFactory
from tests.fakes.procs import Process, free_port
from tests.process.checkout import checkout_view

# honcho itself kills what is left after 5 s; then its output says SIGKILL.
STOP_S = 8.0


@pytest.fixture
def env(tmp_path: Path, redis_url: str, fakes: FakeFactory) -> dict[str, str]:
    one, two = fakes("one", ["llama3.2:1b"]), fakes("two", ["qwen3:0.6b"])
    return {
        "DATA_DIR": str(tmp_path / "data"),
        "REDIS_URL": redis_url,
        "OLLAMA_BACKENDS": f"one={one.url},two={two.url}",
        # The web line listens on 0.0.0.0, and there are no keys.
        "CARAVAN_ANONYMOUS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def listed(url: str) -> set[str]:
    models = requests.get(f"{url}/api/tags", timeout=15).json()["models"]
    return {model["name"] for model in models}


def answers_chat(url: str, model: str) -> bool:
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": model, "messages": messages, "stream": False}
    answer = requests.post(f"{url}/api/chat", json=body, timeout=15)
    return answer.status_code == 200 and answer.json()["done"] is True


@pytest.mark.timeout(150)
def test_release_web_and_refresher_serve_and_stop(tmp_path: Path, env: dict[str, str]) -> None:
    folder = checkout_view(tmp_path / "app")

    with Process(["honcho", "start", "release"], env, tmp_path, cwd=folder) as release:
        assert release.wait() == 0, release.output
    assert (tmp_path / "data" / "caravan.db").is_file()

    port = free_port()
    command = ["honcho", "start", "--port", str(port), "web", "refresher"]
    with Process(command, env, tmp_path, port, cwd=folder) as honcho:
        honcho.wait_ready()
        both = {"llama3.2:1b", "qwen3:0.6b"}
        honcho.wait_until(lambda: listed(honcho.url) == both, "both models listed")
        assert answers_chat(honcho.url, "qwen3:0.6b")

        honcho.stop()
        honcho.assert_all_gone(STOP_S)
        assert "SIGKILL" not in honcho.output
