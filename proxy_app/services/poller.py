"""Polling one backend: what is asked, how often, and what came of it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from proxy_app.domain import Backend, Digest, Holding, parse_listed
from proxy_app.errors import InvalidModelName, UpstreamError
from proxy_app.settings import Settings
from proxy_app.upstream.nets import Nets
from proxy_app.upstream.probe import Prober

log = logging.getLogger(__name__)

JITTER = 0.1


@dataclass(frozen=True, slots=True)
class News:
    """What one poll brought. `error` None: it went well; other None fields were not asked for.

    `wished`: the last wish for a poll that this one grants.
    """

    backend_id: int
    url: str
    error: str | None = None
    is_probe: bool = True
    latency_s: float | None = None
    tags: list[dict[str, Any]] | None = None
    loaded: list[dict[str, Any]] | None = None
    version: str | None = None
    cloud_disabled: bool | None = None
    cloud_source: str | None = None
    recommendations: str | None = None
    wished: int = 0


def prober_of(backend: Backend, settings: Settings) -> Prober:
    return Prober(
        backend, settings.connect_timeout_s, settings.poll_timeout_s, settings.via, Nets(settings.backend_nets)
    )


class Poller:
    """Two threads that poll one backend until they are stopped."""

    def __init__(self, backend: Backend, settings: Settings, report: Callable[[News], None]) -> None:
        self.backend = backend
        self._settings, self._report = settings, report
        self._stop = threading.Event()
        self._woken, self._woken_ps = threading.Event(), threading.Event()
        self._wished = 0
        self._failing = True
        self._slow_due = 0.0
        self._asked_at: float | None = None
        self._threads = [
            threading.Thread(target=self._loop, args=(poll, wake), name=f"{name} {backend.name}", daemon=True)
            for name, poll, wake in (("probe", self.probe, self._woken), ("ps", self.ask_loaded, self._woken_ps))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._wake()

    def asks_as(self, backend: Backend) -> bool:
        """Would a poll of this backend be the same? A drain and a new priority change nothing about it."""
        own = self.backend
        asked = (own.name, own.url, own.headers, own.auth_token)
        return asked == (backend.name, backend.url, backend.headers, backend.auth_token)

    def wish(self, number: int) -> None:
        """Ask at once: somebody waits for what a probe brings that begins after this, or for what is loaded."""
        if number > self._wished:
            self._wished = number
            self._wake()

    def hung_s(self, now: float) -> float:
        """How long the present probe has been waiting for its answer."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else now - asked_at

    def probe(self, prober: Prober) -> News:
        """Ask for the listing, and now and then for the version and the cloud switch."""
        self._woken.clear()
        wished = self._wished
        started = self._asked_at = time.monotonic()
        try:
            tags = prober.tags()
            latency = time.monotonic() - started
            news = News(self.backend.id, self.backend.url, tags=tags, latency_s=latency)
            news = self._ask_slow(prober, news)
        except UpstreamError as exc:
            news = News(self.backend.id, self.backend.url, error=str(exc))
        finally:
            self._asked_at = None
        self._failing = news.error is not None
        return replace(news, wished=wished)

    def ask_loaded(self, prober: Prober) -> News:
        self._woken_ps.clear()
        if self._failing:
            return News(self.backend.id, self.backend.url, is_probe=False)
        try:
            return News(self.backend.id, self.backend.url, is_probe=False, loaded=prober.loaded())
        except UpstreamError as exc:
            log.debug("%s: %s", self.backend.name, exc)
            return News(self.backend.id, self.backend.url, is_probe=False)

    def _wake(self) -> None:
        self._woken.set()
        self._woken_ps.set()

    def _ask_slow(self, prober: Prober, news: News) -> News:
        if time.monotonic() < self._slow_due:
            return news
        interval = self._settings.slow_poll_interval_s
        self._slow_due = time.monotonic() + interval if interval else float("inf")
        try:
            news = replace(news, version=prober.version())
            disabled, source = prober.cloud()
            news = replace(news, cloud_disabled=disabled, cloud_source=source)
            return replace(news, recommendations=prober.recommendations())
        except UpstreamError as exc:
            # An old server has not all of these; the listing has already shown that it lives.
            log.debug("%s: %s", self.backend.name, exc)
            return news

    def _loop(self, poll: Callable[[Prober], News], wake: threading.Event) -> None:
        prober = prober_of(self.backend, self._settings)
        try:
            while not self._stop.is_set():
                news = poll(prober)
                if not self._stop.is_set():
                    self._report(news)
                wake.wait(self._pause(news))
        finally:
            prober.close()

    def _pause(self, news: News) -> float:
        settings = self._settings
        calm = news.error is None and not (self._failing and not news.is_probe)
        interval = settings.poll_interval_s if calm else settings.down_poll_interval_s
        return interval * random.uniform(1 - JITTER, 1 + JITTER)


def holdings_of(backend_id: int, tags: list[dict[str, Any]]) -> tuple[Holding, ...]:
    """A backend's listing as holdings; records without a usable name are left out."""
    found: dict[str, Holding] = {}
    for item in tags:
        try:
            name = parse_listed(str(item.get("name") or item.get("model") or ""))
        except InvalidModelName:
            continue
        digest = Digest(str(item.get("digest", "")))
        found.setdefault(name.canonical, Holding(backend_id, name.canonical, name.shortest, digest, item))
    return tuple(found.values())
