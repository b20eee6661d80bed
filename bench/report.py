"""What a bench found: a table for people, JSON for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

# From this share of all cores on, rates tell more about the machine than about what is measured. Percent.
BUSY = 95.0
# More than this and somebody else is at work here; interrupts alone stay below it. Percent.
OTHERS = 10.0


@dataclass(slots=True)
class Ratio:
    """One figure over the same figure of a baseline. `bar`: what it has to be, in words."""

    what: str
    value: float | None
    bar: str = ""
    holds: bool | None = None

    def __str__(self) -> str:
        verdict = {None: "", True: f"   bar: {self.bar}, holds", False: f"   bar: {self.bar}, MISSED"}
        value = "none" if self.value is None else f"{self.value:.2f}"
        return f"{value:>8}  {self.what}{verdict[self.holds]}"


def ratio(what: str, ours: float, theirs: float, at_most: float | None = None, at_least: float | None = None) -> Ratio:
    """A ratio and whether it clears its bar; none where the baseline is lost in noise."""
    if theirs <= 0:
        return Ratio(what, None)
    value = ours / theirs
    if at_most is not None:
        return Ratio(what, value, f"at most {at_most:g}", value <= at_most)
    if at_least is not None:
        return Ratio(what, value, f"at least {at_least:g}", value >= at_least)
    return Ratio(what, value)


@dataclass(slots=True)
class Report:
    """One bench's outcome.

    Attributes:
        rows: figures by column, each the median of its rounds; the unit is in the column's name.
        incomplete: what could not be measured, and why.
    """

    bench: str
    about: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)

    def row(self, **wanted: Any) -> dict[str, Any] | None:
        """The row with these fields, if it was measured."""
        return next((row for row in self.rows if wanted.items() <= row.items()), None)

    def pair(self, ours: str, theirs: str, **wanted: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The rows of two targets, if both were measured."""
        first, second = self.row(target=ours, **wanted), self.row(target=theirs, **wanted)
        return None if first is None or second is None else (first, second)

    def note_idle(self, idle: dict[str, float]) -> None:
        said = ", ".join(f"{name} {share:.2%}" for name, share in idle.items())
        self.notes.append(f"idle, of one core: {said}")

    def note_busy(self) -> None:
        """Say when the machine itself was the limit."""
        busy = [row for row in self.rows if row["busy_%"] > BUSY]
        if busy:
            names = ", ".join(dict.fromkeys(row["target"] for row in busy))
            self.notes.append(f"the machine was more than {BUSY:g} % busy ({names}): rates and delays show its limit")

    def note_others(self) -> None:
        """Say when something else used the machine."""
        most = max(row["others_%"] for row in self.rows)
        if most > OTHERS:
            self.notes.append(f"something else used up to {most:.0f} % of the machine: trust CPU figures, not delays")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"== {self.bench}: {self.about}", *table(self.rows), "", *map(str, self.ratios)]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, *(f"INCOMPLETE: {what}" for what in dict.fromkeys(self.incomplete))])


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows under their columns."""
    columns = list(rows[0])
    cells = [columns, *([shown(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[number]) for line in cells) for number in range(len(columns))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
