"""Reading what backends say into what can be shown: whatever it is, no page breaks."""

from __future__ import annotations


def number(value: object) -> int | None:
    """A size or a count; None for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None


def text(value: object) -> str:
    """A text that can be written, whatever a backend put into it."""
    return str(value).encode("utf-8", "replace").decode()
