"""A row of the suite: one promise, and the function that finds out whether a gateway keeps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.site import Site

Play = Callable[["Site"], None]


# A busy machine may hold up one try; a gateway that is too slow misses all of them.
TRIES = 4


class Broken(Exception):
    """A promise that was not kept; the text says what happened instead."""


def check(kept: bool, instead: str) -> None:
    """Fail the row unless a condition holds.

    Raises:
        Broken: with what happened instead.
    """
    if not kept:
        raise Broken(instead)


def check_in_time(limit_s: float, measure: Callable[[], float], what: str = "it") -> None:
    """Fail the row unless one of a few measurements, in seconds, is below a limit.

    Raises:
        Broken: with the best of them.
    """
    took_s: list[float] = []
    while not took_s or took_s[-1] >= limit_s:
        check(len(took_s) < TRIES, f"{what} took {min(took_s, default=0.0) * 1000:.0f} ms")
        took_s.append(measure())


@dataclass(frozen=True)
class Row:
    """One promise.

    Args:
        promise: the first paragraph of the function's docstring, as one line.
        waits: the row mostly waits for a time limit of the gateway, so it runs beside all others.
    """

    group: str
    name: str
    promise: str
    play: Play
    waits: bool = False

    @property
    def id(self) -> str:
        return f"{self.group}/{self.name}"


@dataclass
class Group:
    """Rows that belong together.

    Args:
        name: the first part of its rows' ids.
        title: its heading in the table.
    """

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)

    def row(self, play: Play) -> Play:
        """Register a function as a row: its name is the row's, its docstring the promise."""
        return self._add(play, waits=False)

    def waiting_row(self, play: Play) -> Play:
        """Register a row that runs beside the others."""
        return self._add(play, waits=True)

    def _add(self, play: Play, waits: bool) -> Play:
        name = play.__name__.replace("_", "-")
        promise = " ".join((play.__doc__ or "").partition("\n\n")[0].split())
        self.rows.append(Row(self.name, name, promise, play, waits))
        return play
