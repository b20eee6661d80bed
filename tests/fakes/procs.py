"""Real processes for tests: Caravan's commands and gunicorn, their output and descendants."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import psutil

from conformance.fakes.http import CutOff, RawResponse, fetch
from conformance.fakes.raw import held_port

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# Deadlines in seconds, generous: they bound a failure, a healthy process needs a fraction.
READY_S = 40.0
EXIT_S = 30.0
POLL_S = 0.02
# Output shown with a failure, in characters.
TAIL = 6000


# Below those that the kernel gives away, so that nobody else gets one between the look and its use; and where tests run
# beside each other, each worker has its own.
FIRST_PORT, PORTS = 12_000, 4_000
_turn = itertools.count(random.randrange(PORTS))


def free_port() -> int:
    """A port that was free a moment ago. gunicorn cannot tell the port it got for 0."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for _ in range(PORTS):
        port = FIRST_PORT + worker % 4 * PORTS + next(_turn) % PORTS
        with suppress(OSError), closing(held_port(port)):
            return port
    raise RuntimeError("no port is free")


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: nothing of ours but PATH and HOME, and what a test gives."""
    base = {"PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    base["HOME"] = os.environ.get("HOME", "/")
    # A child that is measured for coverage must be told where to write; else these are unset.
    for name in ("COVERAGE_PROCESS_START", "COVERAGE_FILE"):
        if name in os.environ:
            base[name] = os.environ[name]
    return base | dict(extra)


class Process:
    """One started command. Owned by the test; leave its `with` block and nothing is left.

    Args:
        command: program and arguments; a program without a slash is looked up beside the
            running Python first.
        env: added to a clean environment.
        folder: where the output goes, `<name>.log`.
        port: where `url` points, if the command serves HTTP.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        folder: Path,
        port: int | None = None,
        cwd: Path = ROOT,
    ) -> None:
        program = BIN / command[0]
        self.command = [str(program) if program.exists() else command[0], *command[1:]]
        self.env = clean_environment(env)
        self.cwd = cwd
        self.port = port
        self.log_path = folder / f"{Path(command[0]).name}-{time.monotonic_ns()}.log"
        self._child: subprocess.Popen[bytes] | None = None
        self._family: dict[int, psutil.Process] = {}

    # --- life ----------------------------------------------------------------------------------

    def start(self) -> Self:
        with self.log_path.open("wb") as log:
            self._child = subprocess.Popen(
                self.command,
                cwd=self.cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            # Notes are printed with the traceback, beside whatever assertion failed.
            error.add_note(f"--- {self.describe()}\n{self.tail()}")
        self.destroy()

    def destroy(self) -> None:
        """End the process and all its descendants, whatever state they are in."""
        family = self.descendants()
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(EXIT_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait(EXIT_S)
        for process in family:
            if is_alive(process):
                process.kill()
        psutil.wait_procs(family, timeout=EXIT_S)

    @property
    def child(self) -> subprocess.Popen[bytes]:
        assert self._child is not None, "not started"
        return self._child

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def alive(self) -> bool:
        return self.child.poll() is None

    def signal(self, number: int) -> None:
        self.descendants()
        self.child.send_signal(number)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def kill9(self) -> None:
        """SIGKILL the process alone; what its children do then is the test's subject."""
        self.signal(signal.SIGKILL)

    def wait(self, deadline_s: float = EXIT_S) -> int:
        """Wait for the exit and return its code."""
        try:
            return self.child.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.failure(f"still alive after {deadline_s} s")) from None

    def stop(self, deadline_s: float = EXIT_S) -> float:
        """SIGTERM and wait; returns the seconds until the process itself had exited."""
        started = time.monotonic()
        self.terminate()
        self.wait(deadline_s)
        return time.monotonic() - started

    # --- readiness -----------------------------------------------------------------------------

    @property
    def url(self) -> str:
        assert self.port is not None, "this command serves nothing"
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str = "/") -> RawResponse:
        return fetch(self.url + path)

    def wait_ready(self, path: str = "/readyz", deadline_s: float = READY_S) -> Self:
        """Wait until GET `path` is 200."""
        self.wait_until(lambda: self._answers(path), f"GET {path} is 200", deadline_s)
        return self

    def wait_every_worker(self, path: str = "/readyz", deadline_s: float = READY_S) -> Self:
        """Wait until GET `path` is 200 from each of the workers that WEB_CONCURRENCY names."""
        self.wait_each(lambda: self._answers(path), f"GET {path} is 200", deadline_s)
        return self

    def wait_each(self, ready: Callable[[], bool], what: str, deadline_s: float = READY_S) -> None:
        """Wait until each web worker has made a condition true.

        Asking often does not tell: the kernel may give every connection to the same worker.
        """
        count = int(self.env.get("WEB_CONCURRENCY", "1"))
        self.wait_until(lambda: len(self.workers) == count, f"{count} workers run", deadline_s)
        self.each(lambda: self.wait_until(ready, f"one worker: {what}", deadline_s))

    def _answers(self, path: str) -> bool:
        try:
            return self.get(path).status == 200
        except (OSError, CutOff):
            return False

    def wait_until(self, ready: Callable[[], bool], what: str, deadline_s: float = READY_S) -> None:
        """Wait for a condition; fails with the output when the process exits or time is over."""
        end = time.monotonic() + deadline_s
        while not ready():
            if not self.alive:
                raise AssertionError(self.failure(f"exited while waiting: {what}"))
            if time.monotonic() > end:
                raise AssertionError(self.failure(f"not within {deadline_s} s: {what}"))
            time.sleep(POLL_S)

    # --- output --------------------------------------------------------------------------------

    @property
    def output(self) -> str:
        """Everything written to stdout and stderr so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def tail(self) -> str:
        return self.output[-TAIL:]

    def wait_output(self, text: str, deadline_s: float = READY_S) -> None:
        """Wait until the output contains a text; an exited process may have written it last."""
        end = time.monotonic() + deadline_s
        while text not in self.output:
            if time.monotonic() > end or (not self.alive and text not in self.output):
                raise AssertionError(self.failure(f"no {text!r} in the output"))
            time.sleep(POLL_S)

    def describe(self) -> str:
        state = "not started"
        if self._child is not None:
            code = self._child.poll()
            state = f"pid {self._child.pid}, " + ("alive" if code is None else f"exited {code}")
        return f"{' '.join(self.command)} ({state})"

    def failure(self, what: str) -> str:
        return f"{self.describe()}: {what}\n--- output\n{self.tail()}"

    # --- descendants ---------------------------------------------------------------------------

    def descendants(self) -> list[psutil.Process]:
        """All processes below this one that were ever seen and still live.

        Remembered, since the children of a killed process are reparented and found no more. Call
        it (or signal(), which does) before the process ends.
        """
        if self._child is not None:
            try:
                for process in psutil.Process(self._child.pid).children(recursive=True):
                    self._family.setdefault(process.pid, process)
            except psutil.NoSuchProcess:
                pass
        return [process for process in self._family.values() if is_alive(process)]

    def named(self, word: str) -> list[psutil.Process]:
        """The living descendants whose command line contains a word."""
        found = []
        for process in self.descendants():
            try:
                if word in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    @property
    def workers(self) -> list[psutil.Process]:
        """The web workers: children of gunicorn's master, which is this process or a child of it."""
        found = {process: parent_of(process) for process in self.named("gunicorn")}
        own = any("gunicorn" in part for part in self.command)
        masters = {self.pid} if own else {process.pid for process, parent in found.items() if parent == self.pid}
        return [process for process, parent in found.items() if parent in masters]

    @contextmanager
    def only(self, worker: psutil.Process) -> Iterator[None]:
        """Have all new connections served by one worker: the others stand still meanwhile.

        What is asked is asked on connections that were not there before, and writes nothing to the registry: who
        stands still may hold its lock.
        """
        others = [each for each in self.workers if each != worker]
        try:
            for each in others:
                each.suspend()
            # The signal is on its way; until it is there a worker may still accept.
            self.wait_until(lambda: all(each.status() == psutil.STATUS_STOPPED for each in others), "they stand still")
            yield
        finally:
            for each in others:
                each.resume()

    def each(self, ask: Callable[[], T]) -> list[T]:
        """What the web workers, asked one by one, answer."""
        found = []
        for worker in self.workers:
            with self.only(worker):
                found.append(ask())
        return found

    def assert_all_gone(self, deadline_s: float) -> None:
        """Assert that the process and all its descendants have exited within a time."""
        end = time.monotonic() + deadline_s
        while left := self.survivors():
            if time.monotonic() > end:
                raise AssertionError(self.failure(f"still there after {deadline_s} s: {left}"))
            time.sleep(POLL_S)

    def survivors(self) -> list[str]:
        left = [describe_process(process) for process in self.descendants()]
        return ([self.describe()] if self.alive else []) + left


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process runs; one that only waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def parent_of(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


def describe_process(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return f"{process.pid} (gone)"


def socket_files(folder: Path) -> list[Path]:
    """The unix sockets below a folder that still have a name."""
    return [path for path in folder.rglob("*") if path.is_socket()]


def gunicorn(env: Mapping[str, str], folder: Path, *arguments: str) -> Process:
    """`gunicorn wsgi:app` on a free port, with DATA_DIR below `folder`."""
    return _serving(["gunicorn", "wsgi:app", *arguments], env, folder)


def caravan_up(env: Mapping[str, str], folder: Path) -> Process:
    """`caravan up` on a free port, with DATA_DIR below `folder`."""
    return _serving(["caravan", "up"], env, folder)


def caravan(env: Mapping[str, str], folder: Path, *arguments: str) -> Process:
    """Any other `caravan` command, for example `caravan(env, tmp_path, "migrate")`."""
    return Process(["caravan", *arguments], _with_data(env, folder), folder)


def _serving(command: Sequence[str], env: Mapping[str, str], folder: Path) -> Process:
    port = int(env.get("PORT") or free_port())
    return Process(command, {"PORT": str(port)} | _with_data(env, folder), folder, port)


def _with_data(env: Mapping[str, str], folder: Path) -> dict[str, str]:
    return {"DATA_DIR": str(folder / "data")} | dict(env)


def run(command: Sequence[str], env: Mapping[str, str], folder: Path) -> tuple[int, str]:
    """Run a command to its end; returns exit code and output."""
    with Process(command, env, folder) as process:
        return process.wait(READY_S), process.output


@contextmanager
def idle_connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open keep-alive connections that have each had one answer and say nothing more."""
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port), 5)
            opened.append(sock)
            sock.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert sock.recv(65536), "no answer on a new connection"
        yield opened
    finally:
        for sock in opened:
            sock.close()
