"""What was used: by whom, of which model, on which backend, in which hour."""

from __future__ import annotations

from pathlib import Path

from proxy_app.dialects.usage import Spent, sane
from proxy_app.domain import parse_name
from proxy_app.errors import BadRequest
from proxy_app.services.bookkeeper import Bookkeeper
from proxy_app.services.relayed import LOGGED_NAME, Trace
from proxy_app.store.redis import unix_now
from proxy_app.store.registry import Registry
from proxy_app.store.usage import Tally, UsageKey, UsageStore

WRITE_S = 5.0
HOUR_S = 3600
# More than a busy hour has; what comes on top while the registry is away is counted as one.
MOST = 10_000


class UsageBook(Bookkeeper[dict[UsageKey, Tally]]):
    """One worker's account."""

    def __init__(self, data_dir: Path, keep_days: int) -> None:
        super().__init__("usage", WRITE_S, data_dir)
        self._keep_s = keep_days * 24 * HOUR_S
        self._tallies: dict[UsageKey, Tally] = {}

    def note(self, trace: Trace, spent: Spent) -> None:
        """One request is over."""
        hour = int(unix_now()) // HOUR_S * HOUR_S
        backend = trace.attempts[-1] if trace.attempts else ""
        # Any other name may be one that a client has made up.
        is_real = trace.is_listed or (trace.outcome == "complete" and trace.status == 200)
        model = _plain(trace.model) if is_real else ""
        key = UsageKey(hour, trace.key_id, model, backend)
        one = Tally(
            requests=1,
            errors=int(trace.outcome != "complete" or trace.status >= 400),
            tokens_in=sane(spent.tokens_in),
            tokens_out=sane(spent.tokens_out),
            gpu_ms=sane(spent.gpu_ms),
            load_ms=sane(spent.load_ms),
            estimated=int(not spent.is_exact),
            faults=int(trace.is_fault),
        )
        self._add(key, one)

    def _add(self, key: UsageKey, tally: Tally) -> None:
        if key not in self._tallies and len(self._tallies) >= MOST:
            key = UsageKey(key.hour, "", "", "")
        self._tallies[key] = self._tallies.get(key, Tally()) + tally

    def _take(self) -> dict[UsageKey, Tally]:
        tallies, self._tallies = self._tallies, {}
        return tallies

    def _write(self, registry: Registry, taken: dict[UsageKey, Tally]) -> None:
        UsageStore(registry).add(taken, forget_before=int(unix_now()) - self._keep_s)

    def _give_back(self, taken: dict[UsageKey, Tally]) -> None:
        for key, tally in taken.items():
            self._add(key, tally)


def _plain(model: str) -> str:
    """One name for all spellings of a model."""
    try:
        name = parse_name(model)
    except BadRequest:
        return model[:LOGGED_NAME].lower()
    plain = name.shortest.lower().removesuffix(":latest")
    return f"{plain}:cloud" if name.is_cloud else plain
