"""How commands print what they found: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def show(as_json: bool, value: object, lines: Callable[[], Iterable[str]]) -> None:
    """Print a value as JSON, or its lines."""
    if as_json:
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    for line in lines():
        click.echo(line)


def table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> Iterable[str]:
    """Rows under their columns' names."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    for line in [list(columns), *cells]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _cell(value: object) -> str:
    return "" if value is None else str(value)
