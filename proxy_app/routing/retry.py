"""What a backend's answer means for the request: pass it on, or ask somebody else. Pure."""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    """What follows from an answer's status line (and, for 503, its text)."""

    PASS = "pass"
    """Good, or the client's own mistake: it goes to the client and says nothing against the backend."""
    BUSY = "busy"
    """Load, not sickness: ask somebody else, count nothing."""
    FAILED = "failed"
    """Ask somebody else; it counts against this backend unless another one says the same."""
    MISSING = "missing"
    """It lost a model that it listed: ask somebody else."""
    MISCONFIGURED = "misconfigured"
    """It refuses Caravan, not the client: ask somebody else, never show it."""


def weigh(status: int, body: bytes, *, is_listed: bool) -> Verdict:
    """Weigh an answer before anything went to the client.

    Args:
        body: of an error answer, or its beginning.
        is_listed: the Fleet says that this backend hosts the model.
    """
    if status == 304:
        # The client's own condition went on, and this is the answer to it.
        return Verdict.PASS
    if status in (401, 403) or 300 <= status < 400:
        return Verdict.MISCONFIGURED
    if status == 404 and is_listed:
        return Verdict.MISSING
    if status == 429 or (status == 503 and b"server busy" in body):
        return Verdict.BUSY
    if status >= 500 or status < 200:
        return Verdict.FAILED
    return Verdict.PASS
