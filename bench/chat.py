"""What a small chat that does not stream costs in CPU µs, and how much later its answer comes, with nginx beside it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import rounds, world
from bench.backend import MODEL, TEXT
from bench.load import Spec
from bench.report import Report, ratio
from bench.rounds import Row
from bench.world import Options, Target

ABOUT = "small chats that do not stream; CPU µs of the gateway for each, and latency with a single client"
CONNECTIONS = 4


def measure(options: Options, folder: Path) -> Report:
    """CPU from several clients at once, latency from one: there nothing waits for anything else."""
    report = Report("chat", ABOUT)
    with ExitStack() as stack:
        behind = stack.enter_context(world.backend(options, folder))
        ours = stack.enter_context(world.caravan(options, folder, {"a": behind.url}))
        theirs = stack.enter_context(world.nginx(options, behind))
        targets = [target for target in (behind, ours, theirs) if target is not None]
        idle = {target.name: rounds.idle_load(target, options.window_s / 2) for target in targets}
        measures = {t.name: partial(one, options, t, behind, idle[t.name]) for t in targets}
        report.rows = rounds.in_turn(options.rounds, measures)
    compare(report)
    report.note_idle(idle)
    return report


def one(options: Options, target: Target, behind: Target, idle: float) -> Row:
    many = ask(options, target, behind, CONNECTIONS)
    single = ask(options, target, behind, 1)
    return {
        "chats_s": many["rate"],
        "cpu_us": rounds.cost_us(many, target, idle),
        "p50_us": single["p50_us"],
        "p99_us": single["p99_us"],
        "busy_%": rounds.busy_percent(many),
        "others_%": rounds.others_percent(many, target),
    }


def ask(options: Options, target: Target, behind: Target, connections: int) -> Row:
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": False}
    body = json.dumps(chat, separators=(",", ":"))
    spec = Spec("requests", target.port, "POST", "/api/chat", body, connections, "chat", TEXT)
    spec.warm_s, spec.window_s, spec.watch = options.warm_s, options.window_s, rounds.watched(target, behind)
    window: Row = world.load(spec)["window"]
    return window


def compare(report: Report) -> None:
    """Add what each gateway puts on top of the backend's own latency, and the ratios."""
    direct = report.row(target="direct")
    assert direct is not None
    for row in report.rows:
        row["added_p50_us"] = row["p50_us"] - direct["p50_us"]
    pair = report.pair("caravan", "nginx")
    if pair is None:
        report.incomplete.append(world.NO_NGINX)
        return
    for what, column in (("CPU per chat", "cpu_us"), ("p50 added", "added_p50_us")):
        report.ratios.append(ratio(f"{what}, caravan / nginx", pair[0][column], pair[1][column]))
