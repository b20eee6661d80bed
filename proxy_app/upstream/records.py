"""The last record of a stream of lines or events: what tells whether the stream is whole."""

from __future__ import annotations

# Of a longer record its beginning and its end are kept: what says that it is the last one stands there.
LONGEST = 64 << 10


class LastRecord:
    """Takes a stream's pieces as they pass; the usual piece, which is one record, costs one comparison.

    `tokens`: how many marks have passed.

    Args:
        end: what ends a record.
        mark: what stands once in each record that brings a token.
    """

    __slots__ = ("_before", "_end", "_frame_end", "_last", "_mark", "_part", "tokens")

    def __init__(self, end: bytes, mark: bytes = b"\n") -> None:
        self._end, self._frame_end = end, end + b"\r\n"
        self._before = b""
        self._last = b""
        self._part = b""
        self._mark = mark
        self.tokens = 0

    def note(self, piece: bytes) -> None:
        self.tokens += piece.count(self._mark)
        if not self._part and piece.endswith(self._end):
            self._before, self._last = self._last, piece
        else:
            self._add(piece)

    def note_chunk(self, frame: bytes) -> None:
        """The same of a piece that is framed as one chunk."""
        self.tokens += frame.count(self._mark)
        if not self._part and frame.endswith(self._frame_end):
            self._before, self._last = self._last, frame
        else:
            self._add(frame[frame.find(b"\n") + 1 : -2])

    @property
    def seen(self) -> bytes:
        """The last record, whether its end has come or not."""
        return self._part or self._last

    @property
    def last_two(self) -> bytes:
        """The last record and the one before it: some dialects say what an answer cost before they say its end."""
        return self._before + self.seen

    @property
    def is_open(self) -> bool:
        """Has a record begun whose end has not come?"""
        return bool(self._part)

    @property
    def tail(self) -> bytes:
        """The last bytes that passed, as many as a record's end has."""
        return self._part[-len(self._end) :] if self._part else self._end

    def _add(self, piece: bytes) -> None:
        part = self._part + piece
        # Records before the last one are of no interest, and would push its beginning out.
        before = part.rfind(self._end, 0, max(0, len(part) - len(self._end)))
        if before >= 0:
            self._last = part[: before + len(self._end)][-LONGEST:]
            part = part[before + len(self._end) :]
        self._part = part if len(part) <= LONGEST else part[: LONGEST // 2] + part[-LONGEST // 2 :]
        if part.endswith(self._end):
            self._before, self._last, self._part = self._last, self._part, b""
