"""Request bodies while they wait to be sent: short ones in memory, longer ones in a file that has no name.

All bodies of a worker share one budget of memory, so that many uploads at once end in a refusal and not in the
kernel's out-of-memory killer.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from proxy_app.domain import Buffer
from proxy_app.errors import Unavailable

# Longer bodies wait in a file. A chat with its history is far below this, one with pictures above.
SPOOL_BYTES = 1 << 20


class BodyMemory:
    """How many bytes the bodies of one worker may hold in memory together.

    Owned by: the worker's runtime. State: the sum of what live bodies hold.
    """

    def __init__(self, limit: int, folder: Path) -> None:
        self.limit, self.folder = limit, folder
        self.held = 0

    def take(self, size: int) -> None:
        """Raises: Unavailable: the bodies of other requests hold all of it."""
        if self.held + size > self.limit:
            raise Unavailable("Caravan holds as many request bodies as it has memory for", retry_after_s=1)
        self.held += size

    def give(self, size: int) -> None:
        self.held -= size


class Body:
    """One request's body. As a context: what it holds is given back at its end, whatever happened."""

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._held = 0
        self._pieces: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._map: mmap.mmap | None = None
        self.length = 0

    def read_from(self, pieces: Iterable[bytes], announced: int | None = None) -> None:
        """Take a body's pieces as they come.

        Args:
            announced: its length, where it is known before.

        Raises:
            Unavailable: there is no memory, or no room on the disk, for it.
        """
        if (announced or 0) > SPOOL_BYTES:
            self._spool()
        for piece in pieces:
            self.length += len(piece)
            if self._file is None and self.length > SPOOL_BYTES:
                self._spool()
            if self._file is None:
                self._hold(piece)
            else:
                self._write(piece)

    def buffer(self) -> Buffer:
        """All of it; a file is mapped, so that the kernel reads as much of it as is looked at."""
        if self._file is None:
            self._pieces = [b"".join(self._pieces)]
            return self._pieces[0]
        with _room():
            self._file.flush()
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def close(self) -> None:
        self._memory.give(self._held)
        self._held, self._pieces = 0, []
        if self._map is not None:
            # Whoever still looks at it keeps it until then.
            with suppress(BufferError):
                self._map.close()
        if self._file is not None:
            # What could not be written is not wanted any more.
            with suppress(OSError):
                self._file.close()

    def __enter__(self) -> Body:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _hold(self, piece: bytes) -> None:
        self._memory.take(len(piece))
        self._held += len(piece)
        self._pieces.append(piece)

    def _spool(self) -> None:
        with _room():
            self._file = tempfile.TemporaryFile(dir=self._memory.folder)  # noqa: SIM115
        for piece in self._pieces:
            self._write(piece)
        self._memory.give(self._held)
        self._held, self._pieces = 0, []

    def _write(self, piece: bytes) -> None:
        assert self._file is not None, "only a spooled body is written"
        with _room():
            self._file.write(piece)


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise Unavailable("Caravan has no room on its disk for the request body", retry_after_s=10) from exc
