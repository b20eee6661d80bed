"""How verdicts are shown: a table for people, JSON for programs, Markdown for the docs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from conformance.row import Row
from conformance.rows import GROUPS
from conformance.suite import Verdict

PASS, FAIL = "pass", "FAIL"


def word(verdict: Verdict) -> str:
    return PASS if verdict.kept else FAIL


def line(verdict: Verdict) -> str:
    """One row of the table; a second line where the promise was not kept."""
    text = f"{word(verdict)}  {verdict.row.id:<45} {verdict.row.promise}"
    return text if verdict.kept else f"{text}\n      instead: {verdict.instead}"


def summary(verdicts: Sequence[Verdict]) -> str:
    kept = sum(verdict.kept for verdict in verdicts)
    return f"{kept} of {len(verdicts)} promises kept"


def listing(rows: Iterable[Row]) -> str:
    return "\n".join(f"{row.id:<45} {row.promise}" for row in rows)


def as_json(verdicts: Iterable[Verdict]) -> str:
    found = [
        {
            "row": verdict.row.id,
            "promise": verdict.row.promise,
            "pass": verdict.kept,
            "instead": verdict.instead or None,
            "seconds": round(verdict.took_s, 3),
        }
        for verdict in verdicts
    ]
    return json.dumps(found, indent=2, ensure_ascii=False)


def columns(found: Mapping[str, Sequence[Verdict]]) -> str:
    """Gateways side by side, in Markdown; the same verdicts give the same bytes."""
    names = list(found)
    by_row = {name: {verdict.row.id: verdict for verdict in verdicts} for name, verdicts in found.items()}
    lines: list[str] = []
    for group in GROUPS:
        lines += [f"### {group.title}", "", f"| row | promise | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
        for row in group.rows:
            words = " | ".join(shown(by_row[name][row.id]) for name in names)
            lines.append(f"| `{row.id}` | {escaped(row.promise)} | {words} |")
        lines.append("")
    kept = " | ".join(f"**{sum(v.kept for v in verdicts)} of {len(verdicts)}**" for verdicts in found.values())
    head = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|", f"| promises kept | {kept} |", ""]
    return "\n".join([*head, *lines]).rstrip() + "\n"


def shown(verdict: Verdict) -> str:
    return PASS if verdict.kept else f"**{FAIL}**"


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
