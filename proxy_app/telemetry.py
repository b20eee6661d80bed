"""Structured logs: one JSON object per line on standard error, so that no text of a client can forge a line."""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any


class JsonLines(logging.Formatter):
    """A record as one line of JSON; `extra={"fields": {...}}` adds fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _UNSAFE.sub(_escaped, json.dumps(line, ensure_ascii=False, default=str))


# What JSON leaves as it is, and readers take for a line's end, a terminal's command or a change of direction.
_UNSAFE = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def configure(level: str) -> None:
    """Log to standard error in lines of JSON. Safe to call again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # A line that cannot be written (the disk is full) would bring a traceback with it, to the same full disk.
    logging.raiseExceptions = False
    root.setLevel(level.upper())
    # Their own lines about retries and pools say nothing that ours do not.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
