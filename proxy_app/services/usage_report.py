"""What was used, summed up by whatever somebody wants to know."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from proxy_app.services.usage import HOUR_S
from proxy_app.store.keys import KeyStore
from proxy_app.store.redis import unix_now
from proxy_app.store.registry import Registry
from proxy_app.store.usage import Tally, UsageKey, UsageStore

PARTS = ("key", "model", "backend", "hour")


def sums(registry: Registry, span_s: float, by: Sequence[str]) -> dict[tuple[str, ...], Tally]:
    """What was used in a span of time until now, by the parts named.

    Args:
        by: some of PARTS; keys are named by their labels, hours in ISO form.

    Raises:
        RegistryAway.
    """
    labels = {key.id: key.label for key in KeyStore(registry).all()}
    found: dict[tuple[str, ...], Tally] = defaultdict(Tally)
    for key, tally in UsageStore(registry).since(int(unix_now() - span_s) // HOUR_S * HOUR_S):
        found[tuple(_part(key, part, labels) for part in by)] += tally
    return dict(found)


def columns(tally: Tally) -> dict[str, Any]:
    """A sum as it is told, in seconds rather than milliseconds."""
    return {
        "requests": tally.requests,
        "errors": tally.errors,
        "tokens_in": tally.tokens_in,
        "tokens_out": tally.tokens_out,
        "gpu_s": tally.gpu_ms / 1000,
        "load_s": tally.load_ms / 1000,
        "estimated": tally.estimated,
    }


COLUMNS = tuple(columns(Tally()))


def as_csv(rows: Iterable[Mapping[str, Any]], by: Sequence[str]) -> str:
    """Rows of the parts `by` and of COLUMNS, under their names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*by, *COLUMNS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _part(key: UsageKey, part: str, labels: Mapping[str, str]) -> str:
    if part == "hour":
        return datetime.fromtimestamp(key.hour, UTC).strftime("%Y-%m-%dT%H:00Z")
    if part == "key":
        return labels.get(key.key_id, key.key_id) or "(no key)"
    return str(getattr(key, part)) or "(none)"
