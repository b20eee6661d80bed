"""The progress of a store operation: Ollama's records, and one stream made of those of several backends.

Source: Ollama api/types.go, ProgressResponse; server/images.go and server/download.go (v0.33.0-rc2).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from proxy_app.dialects.errors import compact
from proxy_app.errors import BadAnswer

SUCCESS = b'{"status":"success"}'
# Ollama's own client reads lines of up to 8 MB; a record of progress is two hundred bytes.
LONGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One line of progress: of a layer where it has a digest; `error` ends the stream."""

    status: str = ""
    digest: str = ""
    total: int = 0
    completed: int = 0
    error: str | None = None

    @property
    def is_success(self) -> bool:
        return self.status == "success" and not self.digest


def read_record(line: bytes) -> Record:
    """Read one line.

    Raises:
        BadAnswer: it is no record of progress.
    """
    try:
        said = json.loads(line)
        error = said.get("error")
        numbers = int(said.get("total") or 0), int(said.get("completed") or 0)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise BadAnswer("a line that is no progress") from None
    status, digest = (str(said.get(key) or "") for key in ("status", "digest"))
    return Record(status, digest, *numbers, None if error is None else str(error))


def error_line(message: str) -> bytes:
    return compact({"error": message}) + b"\n"


def verdict(verb: str, failed: Sequence[tuple[str, str]], done: Sequence[str]) -> str:
    """What became of an operation that did not work everywhere.

    Args:
        failed: backends with what each of them said.
        done: backends that did it, and keep it done.
    """
    said = [f"{verb} on {name} failed: {text}" for name, text in failed]
    return "; ".join([*said, *([f"done on {', '.join(done)}"] if done else [])])


class Lines:
    """Cuts a body's pieces into lines, each with its end."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Raises: BadAnswer: a line without end."""
        *whole, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > LONGEST:
            raise BadAnswer("a line of progress without end")
        return [line + b"\n" for line in whole]

    def end(self) -> list[bytes]:
        """A last line whose end did not come, if there is one."""
        return [self._rest] if self._rest.strip() else []


class Merge:
    """One stream of progress made of several.

    Whatever it tells is true of all backends that are still at work: a status comes once all of them have reached it,
    a layer once all of them have begun it, with what the slowest has of it. What changes nothing says nothing.
    """

    def __init__(self, parts: Iterable[str]) -> None:
        self._working = set(parts)
        self._statuses: dict[str, set[str]] = {}
        self._layers: dict[tuple[str, str], dict[str, int]] = {}
        self._totals: dict[tuple[str, str], int] = {}
        self._sent: dict[object, bytes] = {}

    def note(self, part: str, record: Record) -> list[bytes]:
        """What one backend said; returns the lines that follow from it."""
        if not record.digest:
            self._statuses.setdefault(record.status, set()).add(part)
            return self._reached([record.status])
        layer = record.status, record.digest
        self._layers.setdefault(layer, {})[part] = record.completed
        self._totals[layer] = max(self._totals.get(layer, 0), record.total)
        return self._moved([layer])

    def leave(self, part: str) -> list[bytes]:
        """A backend is done, or has failed: the others do not wait for it any more."""
        self._working.discard(part)
        return [*self._moved(self._layers), *self._reached(self._statuses)]

    def _reached(self, statuses: Collection[str]) -> list[bytes]:
        reached = [status for status in statuses if self._working <= self._statuses[status]]
        return [line for status in reached for line in self._say(status, {"status": status})]

    def _moved(self, layers: Collection[tuple[str, str]]) -> list[bytes]:
        known = [layer for layer in layers if self._working and self._working <= self._layers[layer].keys()]
        return [line for layer in known for line in self._say(layer, self._layer(layer))]

    def _layer(self, layer: tuple[str, str]) -> dict[str, object]:
        reached = min(self._layers[layer][part] for part in self._working)
        said = {"status": layer[0], "digest": layer[1], "total": self._totals[layer], "completed": reached}
        # Go leaves out what is zero.
        return {key: value for key, value in said.items() if value}

    def _say(self, key: object, said: dict[str, object]) -> list[bytes]:
        line = compact(said) + b"\n"
        if self._sent.get(key) == line:
            return []
        self._sent[key] = line
        return [line]
