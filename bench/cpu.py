"""CPU time of process trees and of the whole machine, in seconds, from the kernel's own clocks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
# clock_getcpuclockid(3): a process's clock is its inverted number and this kind (CPUCLOCK_SCHED).
_SCHED = 2


def tree(root: int) -> list[int]:
    """A process and all that live below it."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children(pid)
    return found


def children(pid: int) -> list[int]:
    below: list[int] = []
    for task in _tasks(pid):
        try:
            below += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return below


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def process_s(pid: int) -> float:
    """What a process and its exited children used; 0.0 when it is gone."""
    try:
        own = time.clock_gettime((~pid << 3) | _SCHED)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    # proc(5): fields 16 and 17, cutime and cstime; the first after the name is field 3.
    return own + (int(fields[13]) + int(fields[14])) / TICKS


def used_s(roots: Iterable[int]) -> float:
    """What the trees below these processes used so far."""
    return sum(process_s(pid) for root in roots for pid in tree(root))


def machine_s() -> tuple[float, float]:
    """Busy and total CPU seconds of all cores since boot; stolen time counts as busy."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / TICKS, sum(fields) / TICKS
