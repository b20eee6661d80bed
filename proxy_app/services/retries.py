"""The retry budget of one worker: see `routing.budget`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from proxy_app.routing.budget import may_retry


class RetryBudget:
    """Owned by: the worker's runtime. State: how many requests, and how many of their retries, are under way."""

    def __init__(self, share: int) -> None:
        self._share = share
        self.active = 0
        self.retrying = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """While inside, one more request is under way."""
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    def allows(self) -> bool:
        return may_retry(self.retrying, self.active, self._share)

    @contextmanager
    def retry(self, counts: bool) -> Iterator[None]:
        """While inside, one more retry is under way, if it is one that counts."""
        self.retrying += counts
        try:
            yield
        finally:
            self.retrying -= counts
