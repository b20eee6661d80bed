"""`caravan usage`: who used how much of what."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Any

import click

from proxy_app.cli.keys import Span
from proxy_app.services.usage_report import PARTS, sums
from proxy_app.settings import load
from proxy_app.store.registry import Registry
from proxy_app.store.usage import Tally

Row = dict[str, Any]


@click.command()
@click.option("--since", "span_s", type=Span(), default="30d", show_default=True, help="How far back.")
@click.option("--by", multiple=True, type=click.Choice(PARTS), default=("key", "model"), help="What is counted apart.")
@click.option("--format", "form", type=click.Choice(("table", "csv", "json")), default="table", show_default=True)
def usage(span_s: float, by: tuple[str, ...], form: str) -> None:
    """Requests, tokens, GPU seconds and errors, by key and model."""
    rows = _rows(span_s, by)
    columns = [*by, *_columns(Tally())]
    if form == "json":
        click.echo(json.dumps(rows, indent=2))
    elif form == "csv":
        click.echo(_csv(rows, columns), nl=False)
    else:
        for line in _table(rows, columns):
            click.echo(line)


def _rows(span_s: float, by: tuple[str, ...]) -> list[Row]:
    registry = Registry(load().data_dir, busy_s=5.0)
    try:
        registry.migrate()
        found = sums(registry, span_s, by)
    finally:
        registry.close()
    return [{**dict(zip(by, parts, strict=True)), **_columns(tally)} for parts, tally in found.items()]


def _columns(tally: Tally) -> Row:
    return {
        "requests": tally.requests,
        "errors": tally.errors,
        "tokens_in": tally.tokens_in,
        "tokens_out": tally.tokens_out,
        "gpu_s": tally.gpu_ms / 1000,
        "load_s": tally.load_ms / 1000,
        "estimated": tally.estimated,
    }


def _csv(rows: Iterable[Row], columns: list[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _table(rows: list[Row], columns: list[str]) -> Iterable[str]:
    if not rows:
        return ["Nothing was used in this time."]
    cells = [columns, *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]
