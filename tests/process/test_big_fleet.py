"""A fleet of hundreds of backends starts, and keeps its refresher."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.crowd import address_of
from tests.fakes import procs
from tests.product import listed

SERVERS, MODELS = 200, 2000

# It uses all of the machine for seconds.
pytestmark = pytest.mark.alone


def test_two_hundred_backends_are_known_and_nobody_takes_their_refresher_for_dead(tmp_path: Path) -> None:
    port = procs.free_port()
    crowd = [sys.executable, "-m", "bench.crowd", "--port", str(port)]
    crowd += ["--servers", str(SERVERS), "--models", str(MODELS)]
    backends = [{"name": f"b{n}", "url": f"http://{address_of(n)}:{port}"} for n in range(SERVERS)]
    env = {"OLLAMA_BACKENDS": json.dumps(backends), "WEB_CONCURRENCY": "1"}
    with procs.Process(crowd, {}, tmp_path, port) as behind:
        behind.wait_ready("/api/version")
        with procs.gunicorn(env, tmp_path) as process:
            process.wait_ready(deadline_s=40)
            process.wait_until(lambda: len(listed(process.url)) == MODELS, "all models are listed", 40)
            assert "killing it" not in process.output
