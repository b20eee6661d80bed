"""A fleet to play with: three simulated Ollama servers and Caravan in front (`make demo`)."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from conformance.fakes.models import FakeModel
from conformance.fakes.ollama import FakeOllama
from conformance.fakes.recorded import RecordedRequest
from conformance.fakes.wire import Exchange
from proxy_app.settings import load

ROOT = Path(__file__).parents[2]
DATA_DIR = "data/demo"
# How long in seconds Caravan may take for its own shutdown before it is killed.
STOP_S = 10.0
GIB = 1 << 30

CHAT = ("completion", "tools")
THINK = ("completion", "tools", "thinking")


def model(name: str, gib: float, family: str, size: str, **more: object) -> FakeModel:
    """A model that looks like one of the Ollama library."""
    values: dict[str, object] = {
        "capabilities": CHAT,
        "context_length": 131072,
        "embedding_length": 4096,
        "quantization_level": "Q4_K_M",
        "modified_at": "2026-10-01T08:30:00.5Z",
        **more,
    }
    return FakeModel(name, size=int(gib * GIB), family=family, parameter_size=size, **values)  # type: ignore[arg-type]


def fleet_models() -> dict[str, list[FakeModel]]:
    """Who holds what: one model on all three, a copy, a namespaced and an embedding model."""
    shared = model("llama3.2:3b", 1.9, "llama", "3.2B")
    coder = model("qwen3-coder:30b", 17.3, "qwen3moe", "30.5B", context_length=262144)
    thinker = model("qwen3:8b", 4.9, "qwen3", "8.2B", capabilities=THINK)
    copy = FakeModel("assistant:latest", digest=thinker.digest, size=thinker.size, family="qwen3")
    own = model("acme/support-bot:v2", 4.1, "llama", "7.2B", system="You answer for Acme.")
    embedding = model("nomic-embed-text:v1.5", 0.26, "nomic-bert", "137M", capabilities=("embedding",))
    vision = model("gemma3:12b", 7.6, "gemma3", "12.2B", capabilities=("completion", "vision"))
    return {
        "gpu-a": [shared, thinker, copy, embedding],
        "gpu-b": [shared, thinker, coder],
        "gpu-c": [shared, own, vision, embedding],
    }


class SlowOllama(FakeOllama):
    """A fake with the small random latency of a real machine before every inference answer."""

    async def _respond(self, exchange: Exchange) -> None:
        if is_inference(exchange.request):
            self.first_token_delay_s = random.uniform(0.1, 0.4)
        await super()._respond(exchange)


def is_inference(request: RecordedRequest) -> bool:
    return request.method == "POST" and request.target not in ("/api/show", "/api/pull")


def simulated_fleet() -> list[FakeOllama]:
    """Three servers, not started, of different speed."""
    paces = {"gpu-a": 40, "gpu-b": 60, "gpu-c": 25}
    servers: list[FakeOllama] = []
    for name, models in fleet_models().items():
        server = SlowOllama(name, models, tokens=60, token_delay_s=1 / paces[name])
        server.keep_requests(False)
        server.load_model(models[0].name)
        servers.append(server)
    return servers


def demo_environment(servers: list[FakeOllama]) -> dict[str, str]:
    """Our environment with the simulated fleet in place of any real one."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_")}
    # Empty, not absent: the real environment wins over .env, which may name a Redis or tokens.
    env["REDIS_URL"] = ""
    env["OLLAMA_BACKENDS"] = json.dumps([{"name": s.name, "url": s.url} for s in servers])
    env["DATA_DIR"] = DATA_DIR
    # As `make run` would find them: in the environment, else in .env.
    settings = load(env)
    return env | {"HOST": settings.host, "PORT": str(settings.port)}


def introduction(servers: list[FakeOllama], address: str) -> str:
    lines = ["Three simulated Ollama servers:"]
    for server in servers:
        names = ", ".join(each.shortest for each in server.store.listed())
        lines.append(f"  {server.name}  {server.url}  {names}")
    chat = '{"model": "llama3.2:3b", "messages": [{"role": "user", "content": "Hello"}]}'
    show = '{"model": "qwen3:8b"}'
    lines += [
        "",
        f"Caravan serves all of them on {address}. Try:",
        f"  curl {address}/api/tags",
        f"  curl {address}/api/show -d '{show}'",
        f"  curl -N {address}/api/chat -d '{chat}'",
        f"  curl -N {address}/v1/chat/completions -d '{chat[:-1]}, \"stream\": true}}'",
        f"  OLLAMA_HOST={address} ollama list",
        f"  OLLAMA_HOST={address} ollama run llama3.2:3b Hello",
        "",
        "Every answer names the server it came from. Ctrl-C ends the demo.",
    ]
    return "\n".join(lines)


@contextmanager
def stop_event() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(child: subprocess.Popen[bytes]) -> None:
    """Stop Caravan: SIGTERM first, so that it can end its own children."""
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def main() -> int:
    """Run the demo until a signal comes or Caravan ends; returns the exit code."""
    command = Path(sys.executable).parent / "caravan"
    with ExitStack() as stack:
        stop = stack.enter_context(stop_event())
        servers = simulated_fleet()
        for server in servers:
            stack.enter_context(server)
        env = demo_environment(servers)
        print(introduction(servers, f"http://{env['HOST']}:{env['PORT']}"), flush=True)
        # Its own session: Ctrl-C reaches us alone, and Caravan hears of it by SIGTERM once.
        child = subprocess.Popen([str(command), "up"], cwd=ROOT, env=env, start_new_session=True)
        stack.callback(end, child)
        while child.poll() is None and not stop.wait(0.2):
            pass
        return 0 if stop.is_set() else child.returncode


if __name__ == "__main__":
    sys.exit(main())
