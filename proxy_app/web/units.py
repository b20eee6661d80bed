"""Numbers and times as people read them. Pure: the pages and their charts use the same words."""

from __future__ import annotations

import math
from datetime import UTC, datetime

NOTHING = "–"
# Ollama has no word for a model that stays loaded for ever: it writes a time some 290 years from now.
FOR_EVER_S = 50 * 365 * 86400.0


def count(number: float | None) -> str:
    """12,345"""
    return NOTHING if number is None else f"{number:,.0f}"


def size(number: float | None) -> str:
    """Bytes in the decimal units that Ollama's own listing uses, so that both show the same number."""
    if number is None:
        return NOTHING
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{_three(number)} {unit}"
        number /= 1000
    return f"{_three(number)} TB"


def seconds(number: float | None) -> str:
    """340 ms, 1.24 s, 3 min 5 s, 2 h 5 min, 3 d 4 h"""
    if number is None or not math.isfinite(number):
        return NOTHING
    if number < 1:
        return f"{number * 1000:.0f} ms" if number else "0 s"
    if number < 60:
        return f"{_three(number)} s"
    return _pair(number)


def rate(number: float | None) -> str:
    return NOTHING if number is None else f"{_three(number)} tokens/s"


def iso(at: float) -> str:
    """The form that <time datetime> takes."""
    return _utc(at).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc(at: float) -> str:
    """What is shown where no script puts it into the reader's own zone."""
    return _utc(at).strftime("%Y-%m-%d %H:%M UTC")


def moment(text: str | None) -> float | None:
    """UTC seconds of a time as a backend wrote it; None where it wrote none, or Go's zero."""
    try:
        at = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return at.replace(tzinfo=at.tzinfo or UTC).timestamp() if at.year > 1 else None


def lasts(at: float | None, now: float) -> bool:
    """Is it so late that it means never?"""
    return at is not None and at - now > FOR_EVER_S


def _utc(at: float) -> datetime:
    try:
        return datetime.fromtimestamp(at, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(0, UTC)


def _pair(number: float) -> str:
    """The two largest units; a third one would tell nobody anything."""
    whole = round(number)
    for unit, step, small, below in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= step:
            rest = whole % step // below
            return f"{whole // step} {unit} {rest} {small}" if rest else f"{whole // step} {unit}"
    return f"{whole} s"


def _three(number: float) -> str:
    """Three digits that count: 4.71, 42.1, 815."""
    digits = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2
    text = f"{number:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
