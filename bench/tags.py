"""`/api/tags`, beside the backend's own and nginx's, and with one backend that is a black hole."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import rounds, world
from bench.backend import tags
from bench.load import Spec
from bench.report import Report, ratio
from bench.rounds import Row
from bench.world import Options, RunFailed, Target
from conformance.fakes.http import fetch
from conformance.fakes.ollama import FakeOllama

ABOUT = """GET /api/tags, {connections} clients; calm: caravan, whose clients rest 10 ms between two requests, so that
delays are its own; hole: the same, one of two backends has just become a black hole; dead: it is marked dead by now"""
PAUSE_S = 0.01
# A black hole that cost something would cost a timeout, thousands of times this; what is left is the machine's noise.
BAR = 1.5
FAR = "far:latest"
MODELS = [model["name"] for model in json.loads(tags(world.MODELS))["models"]]
# How long a black hole may take to be marked dead, or to be found alive again.
NOTICE_S = 60.0


def measure(options: Options, folder: Path) -> Report:
    """All targets in turn; the second backend goes and comes back once each round."""
    report = Report("tags", ABOUT.format(connections=options.connections))
    with ExitStack() as stack:
        behind = stack.enter_context(world.backend(options, folder))
        other = stack.enter_context(FakeOllama("b", [FAR]))
        ours = stack.enter_context(world.caravan(options, folder, {"a": behind.url, "b": other.url}))
        theirs = stack.enter_context(world.nginx(options, behind))
        report.rows = rounds.in_turn(options.rounds, measures(options, behind, ours, theirs, other))
    compare(report)
    return report


def measures(
    options: Options, behind: Target, ours: Target, theirs: Target | None, other: FakeOllama
) -> dict[str, Callable[[], Row]]:
    """What is done in each round, in this order."""

    def steady() -> Row:
        wait_listed(ours, FAR, True)
        return one(options, ours, behind, PAUSE_S)

    def hole() -> Row:
        other.black_hole()
        return one(options, ours, behind, PAUSE_S)

    def dead() -> Row:
        wait_listed(ours, FAR, False)
        row = one(options, ours, behind, PAUSE_S)
        other.restart()
        return row

    found: dict[str, Callable[[], Row]] = {"direct": partial(one, options, behind, behind)}
    if theirs is not None:
        found["nginx"] = partial(one, options, theirs, behind)
    found["caravan"] = partial(one, options, ours, behind)
    return {**found, "calm": steady, "calm, hole": hole, "calm, dead": dead}


def wait_listed(target: Target, model: str, listed: bool) -> None:
    """Wait until a model is in the listing, or is not."""
    end = time.monotonic() + NOTICE_S
    while (model in fetch(f"{target.url}/api/tags").body.decode()) is not listed:
        if time.monotonic() > end:
            raise RunFailed(f"{model} is {'not ' if listed else 'still '}listed after {NOTICE_S:g} s")
        time.sleep(0.1)


def one(options: Options, target: Target, behind: Target, pause_s: float = 0.0) -> Row:
    spec = Spec("requests", target.port, "GET", "/api/tags", "", options.connections, "listing")
    spec.expected = {"required": MODELS, "allowed": [FAR]}
    spec.pause_s = pause_s
    spec.warm_s, spec.window_s, spec.watch = options.warm_s, options.window_s, rounds.watched(target, behind)
    return rounds.answers(world.load(spec)["window"], target, 0.0)


def compare(report: Report) -> None:
    steady = report.row(target="calm")
    assert steady is not None
    for state in ("hole", "dead"):
        row = report.row(target=f"calm, {state}")
        assert row is not None
        report.ratios.append(ratio(f"p99, {state} / without", row["p99_us"], steady["p99_us"], at_most=BAR))
    for name in ("direct", "nginx"):
        pair = report.pair("caravan", name)
        if pair is None:
            report.incomplete.append(world.NO_NGINX)
        else:
            report.ratios.append(ratio(f"requests/s, caravan / {name}", pair[0]["rate"], pair[1]["rate"]))
