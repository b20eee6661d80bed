"""Which backends get what is new: a pull, an upload, a created model. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy_app.domain import Backend, Fleet, Member
from proxy_app.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Targets:
    """Who is asked; and who should be and cannot, with the reason."""

    backends: tuple[Backend, ...]
    missing: tuple[tuple[str, str], ...] = ()


def targets(fleet: Fleet, pull_to: Sequence[str]) -> Targets:
    """The backends that CARAVAN_PULL_TO means right now, best first.

    Raises:
        Unavailable: it names backends that do not exist.
    """
    ready = tuple(member.backend for member in fleet.members if member.takes_work)
    if tuple(pull_to) == ("first",):
        return Targets(ready[:1])
    if tuple(pull_to) == ("all",):
        return Targets(ready)
    _check_known(fleet, pull_to)
    named = [member for member in fleet.members if member.backend.name in pull_to]
    missing = ((member.backend.name, _why(member)) for member in named if not member.takes_work)
    return Targets(tuple(m.backend for m in named if m.takes_work), tuple(missing))


def _check_known(fleet: Fleet, pull_to: Sequence[str]) -> None:
    known = [member.backend.name for member in fleet.members]
    strange = [name for name in pull_to if name not in known]
    if strange:
        raise Unavailable(
            f"CARAVAN_PULL_TO names {', '.join(strange)}: no backend is called that; there are {', '.join(known)}"
        )


def _why(member: Member) -> str:
    return "it is draining" if member.is_live else "it is down"
