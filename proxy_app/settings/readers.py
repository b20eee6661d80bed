"""A row of the settings table, and how the text of an environment variable becomes its value.

Each reader raises ValueError with what is expected.
"""

from __future__ import annotations

import ipaddress
import math
import re
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


SCOPES = ("infer", "read", "metrics", "manage", "admin")


def scopes(raw: str) -> tuple[str, ...]:
    found = words(raw)
    strange = [word for word in found if word not in SCOPES]
    if strange:
        raise ValueError(f"expected some of {', '.join(SCOPES)}, not {', '.join(strange)}")
    return found


# What stands in other people's examples is known to everybody who scans the internet.
_PUBLISHED = ("sk-1234", "sk-ant-", "changeme", "change-me", "password", "secret", "example", "0123456789", "abcdef")
_LEAST_BITS = 128
# Of 32 random hex digits one in a million has fewer different ones than this.
_LEAST_LETTERS = 8


def strong_secret(raw: str) -> str:
    kinds = ((r"[a-z]", 26), (r"[A-Z]", 26), (r"[0-9]", 10), (r"[^A-Za-z0-9]", 30))
    letters = sum(count for pattern, count in kinds if re.search(pattern, raw))
    if re.fullmatch(r"[0-9a-f]+|[0-9A-F]+", raw):
        letters = 16
    bits = len(raw) * math.log2(max(letters, 2))
    # A text that repeats itself is as weak as what it repeats.
    repeats = len(set(raw)) < _LEAST_LETTERS or raw in (raw + raw)[1:-1]
    if bits < _LEAST_BITS or repeats or any(word in raw.lower() for word in _PUBLISHED):
        raise ValueError(f"expected at least {_LEAST_BITS} random bits, such as `openssl rand -hex 32` prints")
    return raw


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def networks(raw: str) -> tuple[Network, ...]:
    found = []
    for word in words(raw):
        try:
            found.append(ipaddress.ip_network(word, strict=False))
        except ValueError:
            raise ValueError(f"{word!r}: expected networks such as 10.1.0.0/16") from None
    return tuple(found)


def redis_url(raw: str) -> str:
    if urlsplit(raw).scheme not in ("redis", "rediss", "unix"):
        raise ValueError("expected a URL that starts with redis://, rediss:// or unix://")
    return raw
