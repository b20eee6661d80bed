"""`caravan usage`: who used how much of what."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import click

from proxy_app.cli.keys import Span
from proxy_app.services.key_admin import all_keys
from proxy_app.services.usage import HOUR_S
from proxy_app.settings import load
from proxy_app.store.redis import unix_now
from proxy_app.store.registry import Registry
from proxy_app.store.usage import Tally, UsageKey, UsageStore

PARTS = ("key", "model", "backend", "hour")
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
    settings = load()
    labels = {key.id: key.label for key in all_keys(settings)}
    registry = Registry(settings.data_dir, busy_s=5.0)
    try:
        found = UsageStore(registry).since(int(unix_now() - span_s) // HOUR_S * HOUR_S)
    finally:
        registry.close()
    sums: dict[tuple[str, ...], Tally] = defaultdict(Tally)
    for key, tally in found:
        sums[tuple(_part(key, part, labels) for part in by)] += tally
    return [{**dict(zip(by, parts, strict=True)), **_columns(tally)} for parts, tally in sums.items()]


def _part(key: UsageKey, part: str, labels: dict[str, str]) -> str:
    if part == "hour":
        return datetime.fromtimestamp(key.hour, UTC).strftime("%Y-%m-%dT%H:00Z")
    if part == "key":
        return labels.get(key.key_id, key.key_id) or "(no key)"
    return str(getattr(key, part)) or "(none)"


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
