"""Comparing versions of Ollama."""

from __future__ import annotations

import re

_NUMBERS = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(-?)")


def is_older(version: str | None, than: str) -> bool:
    """Is a version below another one? What is no version (a build of one's own says 0.0.0) is not judged.

    A pre-release comes before its release (semver §11).
    """
    own, other = _key(version or ""), _key(than)
    return own is not None and other is not None and own[:3] != (0, 0, 0) and own < other


def _key(text: str) -> tuple[int, int, int, int] | None:
    match = _NUMBERS.match(text)
    if match is None:
        return None
    major, minor, patch, dash = match.groups()
    return int(major), int(minor), int(patch), 0 if dash else 1
