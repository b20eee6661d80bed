"""A key as the beginning of the path, for clients that can send no header: `/k/<key>/api/chat`. Off by default."""

from __future__ import annotations

import re
from typing import Any

_WITH_KEY = re.compile(r"/k/([A-Za-z0-9_.~-]{1,200})(?=/|$)")


def masked(path: str) -> str:
    """A path as it may be logged, whether keys in paths are taken or not."""
    return re.sub(r"/k/[^/]+", "/k/...", path)


def take_key_from_path(environ: dict[str, Any]) -> None:
    """Take the key out of the target, so that nothing behind this sees, forwards or logs it."""
    match = _WITH_KEY.match(environ.get("RAW_URI", ""))
    if match is None or not environ["PATH_INFO"].startswith(match.group()):
        return
    environ["caravan.key"], environ["caravan.prefix"] = match.group(1), match.group()
    for name in ("RAW_URI", "PATH_INFO"):
        environ[name] = environ[name][match.end() :] or "/"
