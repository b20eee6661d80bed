"""`python -m bench [BENCH ...]`: measure, print a table and the ratios.

Exit codes: 0 measured; 1 an answer was wrong, so that no figure counts; 3 something could not be measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from bench import admin, chat, keys, relay, show, tags
from bench.report import Report
from bench.world import Options, RunFailed

BENCHES: dict[str, Callable[[Options, Path], Report]] = {
    "relay": relay.measure,
    "chat": chat.measure,
    "show": show.measure,
    "tags": tags.measure,
    "keys": keys.measure,
    "admin": admin.measure,
}
# Polls so quick that a dead backend is noticed at once; costs of a gateway at rest are higher then.
QUICK_POLLS = {"CARAVAN_POLL_INTERVAL": "0.2", "CARAVAN_POLL_TIMEOUT": "0.3"}
QUICK = Options(rounds=1, window_s=1.0, ramp_s=0.3, warm_s=0.2, spare_s=1.5, settings=QUICK_POLLS)
FAILED, INCOMPLETE = 1, 3


def parse(arguments: list[str] | None) -> argparse.Namespace:
    default = Options()
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    parser.add_argument("bench", nargs="*", help=f"{', '.join(BENCHES)}; default: all of them")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="one short round: to see that it runs, not to compare")
    parser.add_argument("--rounds", type=int, help=f"how often each is measured; default: {default.rounds}")
    parser.add_argument("--window-s", type=float, help=f"seconds of each measurement; default: {default.window_s:g}")
    parser.add_argument("--workers", type=int, help=f"of every gateway; default: {default.workers}")
    parser.add_argument("--connections", type=int, help=f"clients of show and tags; default: {default.connections}")
    parser.add_argument("--streams", type=int, nargs="+", help=f"of relay; default: {default.streams}")
    parser.add_argument("--fail-after", type=int, help="the backend answers 500 after so many chats or shows")
    options = parser.parse_args(arguments)
    if unknown := set(options.bench) - set(BENCHES):
        parser.error(f"no such bench: {', '.join(sorted(unknown))}")
    return options


def options_of(said: argparse.Namespace) -> Options:
    given = {name: value for name, value in vars(said).items() if value is not None}
    known = {field.name for field in fields(Options)} & given.keys()
    base = QUICK if said.quick else Options()
    return replace(base, **{name: given[name] for name in known})


def main(arguments: list[str] | None = None) -> int:
    said = parse(arguments)
    reports = []
    for name in said.bench or BENCHES:
        try:
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                report = BENCHES[name](options_of(said), Path(folder))
        except RunFailed as exc:
            print(f"bench {name} FAILED, its figures are worth nothing: {exc}", file=sys.stderr)
            return FAILED
        report.note_busy()
        report.note_others()
        reports.append(report)
        if not said.json:
            print(report, end="\n\n", flush=True)
    if said.json:
        print(json.dumps([report.to_json() for report in reports], indent=2))
    return INCOMPLETE if any(report.incomplete for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
