"""A row of the settings table, and how the text of an environment variable becomes its value.

Each reader raises ValueError with what is expected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any, TypeVar
from urllib.parse import urlsplit

Reader = Callable[[str], Any]
Number = TypeVar("Number", int, float)

MIB = 1 << 20


def setting(env: str, default: Any, read: Reader, help: str, **about: Any) -> Any:
    """One row of the table.

    Args:
        env: the environment variable.
        read: how its text becomes a value.
        about: `unit`, and `secret=True` where the value may stand in a file that NAME_FILE names.
    """
    metadata = {"unit": "", "secret": False} | about | {"env": env, "read": read, "help": help}
    return field(default=default, repr=not metadata["secret"], metadata=metadata)


def text(raw: str) -> str:
    return raw


def flag(raw: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    try:
        return words[raw.strip().lower()]
    except KeyError:
        raise ValueError("expected 1 or 0") from None


def words(raw: str) -> tuple[str, ...]:
    return tuple(word for word in raw.replace(",", " ").split() if word)


def whole(least: int, most: int | None = None) -> Reader:
    def read(raw: str) -> int:
        try:
            number = int(raw)
        except ValueError:
            raise ValueError("expected a whole number") from None
        return _in_range(number, least, most)

    return read


def seconds(least: float = 0.0, most: float | None = None) -> Reader:
    def read(raw: str) -> float:
        try:
            number = float(raw)
        except ValueError:
            raise ValueError("expected a number of seconds") from None
        if not math.isfinite(number):
            raise ValueError("expected a finite number of seconds")
        return _in_range(number, least, most)

    return read


def _in_range(number: Number, least: float, most: float | None) -> Number:
    if number < least or (most is not None and number > most):
        limits = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ValueError(f"expected a value of {limits}")
    return number


def choice(*words: str) -> Reader:
    def read(raw: str) -> str:
        if raw.lower() not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return raw.lower()

    return read


def redis_url(raw: str) -> str:
    if urlsplit(raw).scheme not in ("redis", "rediss", "unix"):
        raise ValueError("expected a URL that starts with redis://, rediss:// or unix://")
    return raw
