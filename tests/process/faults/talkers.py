"""Backends that never say the same twice and keep what they sent, and the judge who compares an answer with it."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from conformance.fakes.http import Ended
from conformance.fakes.ollama import FakeOllama
from conformance.fakes.raw import content_length
from conformance.fakes.wire import Exchange

# The first stands in every prompt of the traffic, the second in every answer; neither may stand in a log.
CANARY, SONG = "zebrafinch", "tweet"
MARKER = re.compile(rb"zebrafinch-\d+")
# The longest answer of a talker, in tokens.
LONGEST = 2000

Verdict = Literal["complete", "broken", "refused", "wrong"]


@dataclass(eq=False)
class Sent:
    """What a talker sent as the answer to one request, byte for byte, with the time of each piece.

    Args:
        arrived_s: when the request was there. All times are monotonic.
    """

    backend: str
    arrived_s: float
    pieces: list[tuple[float, bytes]] = field(default_factory=list)

    def parts(self) -> tuple[bytes, bool]:
        """(body without its framing, whether it is whole)."""
        head, _, rest = b"".join(data for _, data in self.pieces).partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            return dechunked(rest), rest.endswith(b"0\r\n\r\n")
        return rest, len(rest) == content_length(head)

    @property
    def thought_s(self) -> float:
        """How long the talker took before it said anything."""
        return self.pieces[0][0] - self.arrived_s if self.pieces else 0.0


class Talker(FakeOllama):
    """A fake whose every answer is different, and which remembers each under the marker in its request."""

    def __init__(self, name: str, models: Any = ("tiny",), **options: Any) -> None:
        super().__init__(name, models, **options)
        self.keep_requests(False)
        self._said = 0
        self._sent: dict[bytes, list[Sent]] = {}
        self._lock = threading.Lock()

    @property
    def sentence(self) -> list[str]:
        self._said += 1
        return [f" {SONG}{self.name}.{self._said}.{n}" for n in range(LONGEST)]

    def sent(self, marker: bytes) -> list[Sent]:
        """The answers to the requests with this marker, in the order of their arrival."""
        with self._lock:
            return list(self._sent.get(marker, ()))

    async def _respond(self, exchange: Exchange) -> None:
        found = MARKER.search(exchange.request.body)
        if found is None:
            await super()._respond(exchange)
            return
        sent = Sent(self.name, exchange.request.at)
        with self._lock:
            self._sent.setdefault(found[0], []).append(sent)
        send = exchange.send

        async def noted(data: bytes) -> None:
            sent.pieces.append((time.monotonic(), data))
            await send(data)

        exchange.send = noted  # type: ignore[method-assign]
        await super()._respond(exchange)


def dechunked(rest: bytes) -> bytes:
    """The payload of a chunked body, also of one that is cut."""
    payload, at = [], 0
    while (end := rest.find(b"\r\n", at)) > at:
        size = int(rest[at:end], 16)
        payload.append(rest[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(payload)


def judge(status: int, body: bytes, ended: Ended, sents: list[Sent]) -> Verdict:
    """Is an answer complete, visibly incomplete, an honest refusal, or something that was never sent so?

    Args:
        sents: everything that any talker sent for its request, in order.
    """
    if status != 200:
        return "refused" if ended == "complete" and is_error(body) else "wrong"
    whole = [sent for sent in sents if sent.parts() == (body, True)]
    if ended == "complete" and whole:
        # Once bytes of an answer went out, nobody else may be asked.
        return "complete" if whole[0] is sents[-1] else "wrong"
    good, has_record = without_error_record(body)
    if ended == "complete" and not has_record:
        return "wrong"
    begun = [sent for sent in sents if is_start(good, sent.parts()[0])]
    return "broken" if begun and (not good or begun[0] is sents[-1]) else "wrong"


def is_start(good: bytes, body: bytes) -> bool:
    """Did an answer begin so? A record that was cut gets line ends before the error that follows it."""
    return body.startswith((good, good.rstrip(b"\n")))


def is_error(body: bytes) -> bool:
    try:
        return "error" in json.loads(body)
    except ValueError:
        return False


def without_error_record(body: bytes) -> tuple[bytes, bool]:
    """A stream without the error record at its end, and whether there was one."""
    lines = body.rstrip(b"\n").split(b"\n")
    if not is_error(lines[-1].removeprefix(b"data: ")):
        return body, False
    kept = lines[:-1]
    if kept and kept[-1].startswith(b"event: error"):
        kept = kept[:-1]
    return b"".join(line + b"\n" for line in kept), True
