"""What the relay of one streamed token costs, in CPU µs of the whole gateway, with nginx beside it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import rounds, world
from bench.backend import MODEL
from bench.load import Spec
from bench.report import Report, ratio
from bench.rounds import Row
from bench.world import Options, Target

ABOUT = "streams of {rate:g} tokens/s; CPU µs of the gateway for each relayed token, what it uses when idle taken off"
BAR = 2.0
BAR_STREAMS = 200


def measure(options: Options, folder: Path) -> Report:
    """50 and 200 streams through Caravan and nginx in turn.

    The window lies inside the streams' life; `with_setup` counts everything from the first connect to the last end.
    """
    report = Report("relay", ABOUT.format(rate=options.rate))
    with ExitStack() as stack:
        behind = stack.enter_context(world.backend(options, folder))
        ours = stack.enter_context(world.caravan(options, folder, {"a": behind.url}))
        theirs = stack.enter_context(world.nginx(options, behind))
        targets = [target for target in (behind, ours, theirs) if target is not None]
        idle = {target.name: rounds.idle_load(target, options.window_s / 2) for target in targets}
        for streams in options.streams:
            measures = {t.name: partial(one, options, t, behind, streams, idle[t.name]) for t in targets}
            report.rows += rounds.in_turn(options.rounds, measures)
    compare(report, options)
    report.note_idle(idle)
    return report


def one(options: Options, target: Target, behind: Target, streams: int, idle: float) -> Row:
    """One run of so many streams; all must be whole."""
    window_s = 2 * options.window_s
    tokens = int(options.rate * (options.ramp_s + options.warm_s + window_s + options.spare_s))
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": tokens}}
    spec = Spec("streams", target.port, "POST", "/api/chat", json.dumps(chat))
    spec.connections, spec.tokens = streams, tokens
    spec.ramp_s, spec.warm_s, spec.window_s = options.ramp_s, options.warm_s, window_s
    spec.watch = rounds.watched(target, behind)
    result = world.load(spec)
    window, whole = result["window"], result["whole"]
    return {
        "streams": streams,
        "tokens_s": window["rate"],
        "cpu_us": rounds.cost_us(window, target, idle),
        "with_setup_us": rounds.cost_us(whole, target, idle),
        "delay_p50_us": window["p50_us"],
        "delay_p99_us": window["p99_us"],
        "busy_%": rounds.busy_percent(window),
        "others_%": rounds.others_percent(window, target),
    }


def compare(report: Report, options: Options) -> None:
    for streams in options.streams:
        pair = report.pair("caravan", "nginx", streams=streams)
        if pair is None:
            report.incomplete.append(world.NO_NGINX)
            return
        at_most = BAR if streams == BAR_STREAMS else None
        what = f"CPU per token, {streams} streams, caravan / nginx"
        report.ratios.append(ratio(what, pair[0]["cpu_us"], pair[1]["cpu_us"], at_most=at_most))
