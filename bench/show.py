"""Cached `/api/show`, with the Flask view that does `requests.post` beside it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import rounds, world
from bench.backend import MODEL, show_document
from bench.load import Spec
from bench.report import Report, ratio
from bench.rounds import Row
from bench.world import Options, Target

ABOUT = "POST /api/show from the cache, {connections} clients; flask is a view that does requests.post to the backend"
BAR = 2.5


def measure(options: Options, folder: Path) -> Report:
    """Requests/s and latency of all three; `direct` is what the backend alone reaches."""
    report = Report("show", ABOUT.format(connections=options.connections))
    with ExitStack() as stack:
        behind = stack.enter_context(world.backend(options, folder))
        ours = stack.enter_context(world.caravan(options, folder, {"a": behind.url}))
        theirs = stack.enter_context(world.naive(options, folder, behind))
        targets = [behind, ours, theirs]
        idle = {target.name: rounds.idle_load(target, options.window_s / 2) for target in targets}
        measures = {t.name: partial(one, options, t, behind, idle[t.name]) for t in targets}
        report.rows = rounds.in_turn(options.rounds, measures)
    pair = report.pair("caravan", "flask")
    assert pair is not None
    report.ratios.append(ratio("requests/s, caravan / flask", pair[0]["rate"], pair[1]["rate"], at_least=BAR))
    report.ratios.append(ratio("CPU per request, caravan / flask", pair[0]["cpu_us"], pair[1]["cpu_us"]))
    report.notes.append(limit(report))
    return report


def one(options: Options, target: Target, behind: Target, idle: float) -> Row:
    body = json.dumps({"model": MODEL})
    spec = Spec("requests", target.port, "POST", "/api/show", body, options.connections, "document")
    spec.expected = json.loads(show_document())
    spec.warm_s, spec.window_s, spec.watch = options.warm_s, options.window_s, rounds.watched(target, behind)
    return rounds.answers(world.load(spec)["window"], target, idle)


def limit(report: Report) -> str:
    """Say what held the baseline back, so that nobody takes the backend's limit for its own."""
    direct, flask = report.row(target="direct"), report.row(target="flask")
    assert direct is not None
    assert flask is not None
    share = flask["rate"] / direct["rate"]
    return f"flask reaches {share:.0%} of what the backend alone does: " + (
        "the backend may be its limit" if share > 0.5 else "the backend is not its limit"
    )
