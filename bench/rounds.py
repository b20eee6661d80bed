"""Measuring several targets in turn, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median_low
from typing import Any

from bench import cpu
from bench.world import DIRECT, Target

Row = dict[str, Any]


def in_turn(rounds: int, measures: Mapping[str, Callable[[], Row]]) -> list[Row]:
    """Call all measures, again and again; the median of each figure, a row for each measure in `target`."""
    found: dict[str, list[Row]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    return [{"target": name, **middle(rows)} for name, rows in found.items()]


def middle(rows: Sequence[Row]) -> Row:
    return {column: median_low(row[column] for row in rows) for column in rows[0]}


def idle_load(target: Target, seconds: float) -> float:
    """CPU seconds per second that a target uses with nothing to do: polls, heartbeats."""
    before = cpu.used_s(target.pids)
    time.sleep(seconds)
    return (cpu.used_s(target.pids) - before) / seconds


def cost_us(window: Row, target: Target, idle: float) -> float:
    """CPU µs of a target for each thing that a window counted, what it uses when idle taken off."""
    used: float = window["cpu_s"][target.name]
    return (used - idle * float(window["seconds"])) / int(window["count"]) * 1e6


def busy_percent(window: Row) -> float:
    """How busy the whole machine was."""
    used = window["cpu_s"]
    return 100 * used["busy"] / used["machine"] if used["machine"] else 0.0


def others_percent(window: Row, target: Target) -> float:
    """How much of the whole machine was used by what is no part of the bench: noise in every figure but CPU time."""
    used = window["cpu_s"]
    # The backend measured alone is watched under two names.
    known = used["load"] + used["backend"] + (used[target.name] if target.name != DIRECT else 0.0)
    return 100 * max(0.0, used["busy"] - known) / used["machine"] if used["machine"] else 0.0


def watched(target: Target, behind: Target) -> dict[str, list[int]]:
    return {target.name: target.pids, "backend": behind.pids}


def answers(window: Row, target: Target, idle: float) -> Row:
    """The columns of a bench that asks and is answered."""
    return {
        "rate": window["rate"],
        "p50_us": window["p50_us"],
        "p99_us": window["p99_us"],
        "cpu_us": cost_us(window, target, idle),
        "backend_us": window["cpu_s"]["backend"] / window["count"] * 1e6,
        "load_%": 100 * window["cpu_s"]["load"] / window["seconds"],
        "busy_%": busy_percent(window),
        "others_%": others_percent(window, target),
    }
