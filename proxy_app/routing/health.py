"""When probes mark a backend up or down. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from proxy_app.domain import State


@dataclass(frozen=True, slots=True)
class Verdict:
    """A backend's state after a probe; `streak` counts probes in a row that contradict it."""

    state: State = "unknown"
    streak: int = 0


def judge(before: Verdict, *, probe_ok: bool, fall: int, rise: int) -> Verdict:
    """Weigh one probe: `fall` failures in a row mark it down, `rise` successes bring it back.

    The first probe ever decides alone: there is nothing yet that a flapping backend could disturb.
    """
    if before.state == "unknown":
        return Verdict("up" if probe_ok else "down")
    if probe_ok == (before.state == "up"):
        return Verdict(before.state)
    streak = before.streak + 1
    needed = rise if probe_ok else fall
    if streak >= needed:
        return Verdict("up" if probe_ok else "down")
    return Verdict(before.state, streak)
