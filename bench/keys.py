"""What a key and all its limits add to a small chat, in CPU µs: the same Caravan with and without, in one run."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench import rounds, world
from bench.backend import MODEL, TEXT
from bench.load import Spec
from bench.report import Ratio, Report
from bench.rounds import Row
from bench.world import Options, Target
from proxy_app.services import key_admin
from proxy_app.settings import load

ABOUT = "small chats that do not stream, from somebody without a key, with one, and with one that has every limit"
CONNECTIONS = 4
# What one request may ask for is small, what all of them may is more than anything here asks for.
LIMITS = (
    "rpm=100000000,burst=1000,concurrent=1000000,tpm=1000000000000,tpd=1000000000000,gpu=1000000000,"
    "num_ctx=8192,num_predict=2048,images=4,body=1048576,keep_alive=600"
)
KEYS = {"key": "", "limits": LIMITS}
OPEN = "open"
# What they may cost, in µs of CPU for each request.
BARS = {"key": 50.0, "limits": 300.0}


def measure(options: Options, folder: Path) -> Report:
    report = Report("keys", ABOUT)
    settings = load({"DATA_DIR": str(folder / "data")}, None)
    options = replace(options, settings={**options.settings, "CARAVAN_ANONYMOUS": "1"})
    with ExitStack() as stack:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        keys = {name: key_admin.create(settings, key_admin.Wish(name, limits=text)).text for name, text in KEYS.items()}
        behind = stack.enter_context(world.backend(options, folder))
        ours = stack.enter_context(world.caravan(options, folder, {"a": behind.url}))
        idle = {ours.name: rounds.idle_load(ours, options.window_s / 2)}
        measures = {
            name: partial(one, options, replace(ours, name=name), behind, idle[ours.name], keys.get(name))
            for name in (OPEN, *KEYS)
        }
        report.rows = rounds.in_turn(options.rounds, measures)
    compare(report)
    report.note_idle(idle)
    return report


def one(options: Options, target: Target, behind: Target, idle: float, key: str | None) -> Row:
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": False}
    body = json.dumps(chat, separators=(",", ":"))
    spec = Spec("requests", target.port, "POST", "/api/chat", body, CONNECTIONS, "chat", TEXT)
    spec.headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    spec.warm_s, spec.window_s, spec.watch = options.warm_s, options.window_s, rounds.watched(target, behind)
    return rounds.answers(world.load(spec)["window"], target, idle)


def compare(report: Report) -> None:
    """What each adds to what was there before it."""
    for before, after in ((OPEN, "key"), ("key", "limits")):
        pair = report.pair(after, before)
        assert pair is not None
        added = pair[0]["cpu_us"] - pair[1]["cpu_us"]
        report.ratios.append(
            Ratio(f"CPU µs per chat, {after} - {before}", added, f"at most {BARS[after]:g}", added <= BARS[after])
        )
