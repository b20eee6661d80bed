"""`caravan usage`: who used how much of what."""

from __future__ import annotations

import json
from typing import Any

import click

from proxy_app.cli.keys import Span
from proxy_app.cli.output import table
from proxy_app.services.usage_report import COLUMNS, PARTS, as_csv, columns, sums
from proxy_app.settings import load
from proxy_app.store.registry import Registry

Row = dict[str, Any]


@click.command()
@click.option("--since", "span_s", type=Span(), default="30d", show_default=True, help="How far back.")
@click.option("--by", multiple=True, type=click.Choice(PARTS), default=("key", "model"), help="What is counted apart.")
@click.option("--format", "form", type=click.Choice(("table", "csv", "json")), default="table", show_default=True)
def usage(span_s: float, by: tuple[str, ...], form: str) -> None:
    """Requests, tokens, GPU seconds and errors, by key and model."""
    rows = _rows(span_s, by)
    if form == "json":
        click.echo(json.dumps(rows, indent=2))
    elif form == "csv":
        click.echo(as_csv(rows, by), nl=False)
    elif not rows:
        click.echo("Nothing was used in this time.")
    else:
        for line in table([*by, *COLUMNS], rows):
            click.echo(line)


def _rows(span_s: float, by: tuple[str, ...]) -> list[Row]:
    registry = Registry(load().data_dir, busy_s=5.0)
    try:
        registry.migrate()
        found = sums(registry, span_s, by)
    finally:
        registry.close()
    return [{**dict(zip(by, parts, strict=True)), **columns(tally)} for parts, tally in found.items()]
