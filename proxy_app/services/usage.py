"""What was used: by whom, of which model, on which backend, in which hour."""

from __future__ import annotations

import logging
import threading
from functools import partial
from pathlib import Path

from proxy_app.dialects.usage import Spent, sane
from proxy_app.domain import parse_name
from proxy_app.errors import BadRequest, RegistryAway
from proxy_app.services.relayed import LOGGED_NAME, Trace
from proxy_app.store.redis import unix_now
from proxy_app.store.registry import Registry
from proxy_app.store.threads import NativeThread
from proxy_app.store.usage import Tally, UsageKey, UsageStore

log = logging.getLogger(__name__)

WRITE_S = 5.0
HOUR_S = 3600
# More than a busy hour has; what comes on top while the registry is away is counted as one.
MOST = 10_000


class UsageBook:
    """One worker's account. Owned by: the worker's runtime; its thread writes it, and no request waits for that."""

    def __init__(self, data_dir: Path, keep_days: int) -> None:
        self._data_dir, self._keep_s = data_dir, keep_days * 24 * HOUR_S
        self._tallies: dict[UsageKey, Tally] = {}
        self._native = NativeThread()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)

    def start(self) -> None:
        self._thread.start()

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
        )
        self._add(key, one)

    def close(self) -> None:
        """Write the rest, and end."""
        self._stop.set()
        self._thread.join(2)
        self._native.close()

    def _add(self, key: UsageKey, tally: Tally) -> None:
        if key not in self._tallies and len(self._tallies) >= MOST:
            key = UsageKey(key.hour, "", "", "")
        self._tallies[key] = self._tallies.get(key, Tally()) + tally

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._stop.wait(WRITE_S)
            tallies, self._tallies = self._tallies, {}
            try:
                if tallies:
                    self._native.run(partial(self._write, tallies))
            except RegistryAway as exc:
                log.debug("usage is not written: %s", exc)
                for key, tally in tallies.items():
                    self._add(key, tally)
            except Exception:  # the top of a thread
                log.exception("usage could not be written")

    def _write(self, tallies: dict[UsageKey, Tally]) -> None:
        registry = Registry(self._data_dir)
        try:
            UsageStore(registry).add(tallies, forget_before=int(unix_now()) - self._keep_s)
        finally:
            registry.close()


def _plain(model: str) -> str:
    """One name for all spellings of a model."""
    try:
        name = parse_name(model)
    except BadRequest:
        return model[:LOGGED_NAME].lower()
    plain = name.shortest.lower().removesuffix(":latest")
    return f"{plain}:cloud" if name.is_cloud else plain
