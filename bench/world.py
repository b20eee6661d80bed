"""Everything a bench starts: the backend, Caravan, nginx and the naive gateway. Nothing outlives its `with` block."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.load import Spec
from tests.fakes import procs
from tests.fakes.redis import PrivateRedis, find_redis_server
from tests.process.checkout import checkout_view

BASELINES = Path(__file__).parent / "baselines"
# Debian puts it where only root's PATH looks.
NGINX = shutil.which("nginx", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin")
NO_NGINX = "nginx is not installed (Debian: apt install nginx): nothing to compare with"
# The backend measured without anything in front of it.
DIRECT = "direct"
# How many models the backend lists.
MODELS = 20
# How much longer in seconds than its window a run may take.
LOAD_SPARE_S = 120.0


class RunFailed(Exception):
    """Something did not answer as it has to; the figures of such a run are worth nothing."""


@dataclass(slots=True)
class Options:
    """How to measure.

    Attributes:
        workers: of Caravan and of every baseline alike.
        rounds: how often each target is measured, in turn with the others; the median counts.
        window_s: how long one measurement lasts.
        rate: tokens per second of each stream.
        fail_after: the backend answers 500 after this many requests of a path; to see that a run fails.
        ramp_s, warm_s: over how long streams are opened, and how long they run before the window.
        spare_s: how long they go on after it; more than a busy machine is late.
        settings: of Caravan, beyond those as shipped.
    """

    workers: int = 2
    rounds: int = 3
    window_s: float = 5.0
    ramp_s: float = 1.0
    warm_s: float = 1.0
    spare_s: float = 3.0
    rate: float = 50.0
    streams: tuple[int, ...] = (50, 200)
    connections: int = 8
    fail_after: int | None = None
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Target:
    """Something that answers requests. `pids`: the roots of its processes."""

    name: str
    port: int
    pids: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def backend(options: Options, folder: Path) -> Iterator[Target]:
    """The cheap backend, as a process of its own."""
    arguments = ["--rate", str(options.rate), "--models", str(MODELS)]
    if options.fail_after is not None:
        arguments += ["--fail-after", str(options.fail_after)]
    port = procs.free_port()
    command = [sys.executable, "-m", "bench.backend", "--port", str(port), *arguments]
    with procs.Process(command, {}, folder, port) as process:
        process.wait_ready("/api/version")
        yield Target(DIRECT, port, [process.pid])


@contextmanager
def caravan(options: Options, folder: Path, backends: Mapping[str, str]) -> Iterator[Target]:
    """Caravan as it is shipped, with a Redis of its own where there is one; its CPU time counts as Caravan's.

    Args:
        backends: URL by name.
    """
    with ExitStack() as stack:
        listed = json.dumps([{"name": name, "url": url} for name, url in backends.items()])
        env = {"OLLAMA_BACKENDS": listed, "WEB_CONCURRENCY": str(options.workers), **options.settings}
        pids = []
        if binary := find_redis_server():
            redis = stack.enter_context(PrivateRedis(binary, folder))
            env["REDIS_URL"] = redis.url
            pids.append(redis.pid)
        process = procs.gunicorn(env, folder)
        # Not the checkout itself: it may hold somebody's own .env.
        process.cwd = checkout_view(folder / "app")
        stack.enter_context(process).wait_ready()
        assert process.port is not None
        yield Target("caravan", process.port, [process.pid, *pids])


@contextmanager
def nginx(options: Options, behind: Target) -> Iterator[Target | None]:
    """nginx in front of the backend; None where it is not installed."""
    if NGINX is None:
        yield None
        return
    # Started by root, nginx's workers are another user, whom private folders bar.
    with tempfile.TemporaryDirectory(prefix="bench-nginx-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        port = procs.free_port()
        conf = (BASELINES / "nginx.conf").read_text()
        values = {"WORKERS": options.workers, "FOLDER": folder, "BACKEND": behind.port, "PORT": port}
        for word, value in values.items():
            conf = conf.replace(f"@{word}@", str(value))
        (folder / "nginx.conf").write_text(conf)
        command = [NGINX, "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
        with procs.Process(command, {}, folder, port) as process:
            process.wait_ready("/api/version")
            yield Target("nginx", port, [process.pid])


@contextmanager
def naive(options: Options, folder: Path, behind: Target) -> Iterator[Target]:
    """The Flask view that does `requests.post`, on the same server with as many workers as Caravan."""
    port = procs.free_port()
    command = ["gunicorn", "--config", "python:bench.baselines.gunicorn_conf", "--worker-class", "gevent"]
    command += ["--workers", str(options.workers), "--bind", f"127.0.0.1:{port}", "bench.baselines.naive:app"]
    env = {"BENCH_BACKEND": behind.url}
    with procs.Process(command, env, folder, port) as process:
        process.wait_ready("/livez")
        yield Target("flask", port, [process.pid])


def load(spec: Spec) -> dict[str, Any]:
    """Run the load generator in its own process.

    Raises:
        RunFailed: one answer was not what it has to be.
    """
    command = [sys.executable, "-m", "bench.load", json.dumps(asdict(spec))]
    limit_s = spec.warm_s + spec.window_s + spec.ramp_s + LOAD_SPARE_S
    done = subprocess.run(command, cwd=procs.ROOT, capture_output=True, text=True, timeout=limit_s, check=False)
    if done.returncode != 0:
        raise RunFailed(f"port {spec.port}: {done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
