"""How long the operator of a big fleet waits for a page: 200 backends, 2,000 models, all of them polled."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench import rounds, world
from bench.crowd import address_of
from bench.load import Spec
from bench.report import Ratio, Report
from bench.rounds import Row
from bench.world import Options, RunFailed, Target
from conformance.fakes.http import RawClient, fetch
from proxy_app.services import key_admin
from proxy_app.settings import load
from tests.admin import API, PAGES
from tests.fakes import procs

SERVERS, MODELS = 200, 2000
ABOUT = f"{SERVERS} backends, {MODELS} models, two people who rest 10 ms between two pages; api: what is under them"
PEOPLE, PAUSE_S = 2, 0.01
# What a person takes for at once, in ms.
BAR_MS = 300.0
CALLS = {
    "api, backends": f"{API}/backends",
    "api, models": f"{API}/models",
    "api, search": f"{API}/models?query=model-19",
}
SEARCH = {"search": f"{PAGES['models']}?query=model-19"}
LIVE, WATCHERS = "/admin/live", 20
# How long all backends may take until they are known.
KNOWN_S = 60.0


def measure(options: Options, folder: Path) -> Report:
    """All pages in turn, and beside them what the pages are made of."""
    report = Report("admin", ABOUT)
    with ExitStack() as stack:
        key = admin_key(folder)
        behind = stack.enter_context(crowd(folder))
        urls = {f"gpu-{number:03d}": f"http://{address_of(number)}:{behind.port}" for number in range(SERVERS)}
        # Polls as shipped in any case: hundreds of them in each fifth of a second would be what is measured.
        ours = stack.enter_context(world.caravan(replace(options, settings={}), folder, urls))
        wait_known(ours, key)
        paths = {**PAGES, **SEARCH, **CALLS}
        measures = {name: partial(one, options, ours, behind, key, path) for name, path in paths.items()}
        report.rows = rounds.in_turn(options.rounds, measures)
        report.notes.append(watching(options, ours, key))
    for name in (*PAGES, *SEARCH):
        row = report.row(target=name)
        assert row is not None
        p95_ms = row["p95_us"] / 1000
        report.ratios.append(
            Ratio(f"ms until the page {name} is there, p95", p95_ms, f"at most {BAR_MS:g}", p95_ms <= BAR_MS)
        )
    return report


def admin_key(folder: Path) -> str:
    settings = load({"DATA_DIR": str(folder / "data")}, None)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return key_admin.create(settings, key_admin.Wish("bench", scopes=("admin",))).text


@contextmanager
def crowd(folder: Path) -> Iterator[Target]:
    port = procs.free_port()
    command = [sys.executable, "-m", "bench.crowd", "--port", str(port)]
    command += ["--servers", str(SERVERS), "--models", str(MODELS)]
    with procs.Process(command, {}, folder, port) as process:
        process.wait_ready("/api/version")
        yield Target("backend", port, [process.pid])


def wait_known(target: Target, key: str) -> None:
    """Wait until every backend was asked what it holds."""
    end = time.monotonic() + KNOWN_S
    while (count := listed(target, key)) < MODELS:
        if time.monotonic() > end:
            raise RunFailed(f"{count} models are listed after {KNOWN_S:g} s, not {MODELS}")
        time.sleep(0.2)


def listed(target: Target, key: str) -> int:
    answer = fetch(f"{target.url}/api/tags", headers={"Authorization": f"Bearer {key}"})
    return len(json.loads(answer.body)["models"])


def one(options: Options, target: Target, behind: Target, key: str, path: str) -> Row:
    spec = Spec("requests", target.port, "GET", path, connections=PEOPLE)
    spec.check = "page" if path in (*PAGES.values(), *SEARCH.values()) else "json"
    spec.headers = {"Authorization": f"Bearer {key}"}
    spec.pause_s, spec.warm_s, spec.window_s = PAUSE_S, options.warm_s, options.window_s
    spec.watch = rounds.watched(target, behind)
    window = world.load(spec)["window"]
    return {"p95_us": window["p95_us"], **rounds.answers(window, target, 0.0)}


def watching(options: Options, target: Target, key: str) -> str:
    """What pages cost that are left open while nothing changes."""
    alone = rounds.idle_load(target, options.window_s)
    with ExitStack() as stack:
        for _ in range(WATCHERS):
            client = stack.enter_context(RawClient(target.url))
            client.send_request("GET", LIVE, headers={"Authorization": f"Bearer {key}"})
            client.read_until(b"retry: ")
        watched = rounds.idle_load(target, options.window_s)
    return f"idle, of one core: {alone:.2%}; with {WATCHERS} open pages {watched:.2%}"
