"""The running requests of all workers: each knows its own, and shows them to the others while somebody looks."""

from __future__ import annotations

import logging
import random
import re
import threading
import time

import msgspec

from proxy_app.errors import CacheAway, Unavailable
from proxy_app.services.admin.shapes import Running
from proxy_app.services.running import Run, Runs
from proxy_app.store.running import RunningBoard

log = logging.getLogger(__name__)

# How often a worker that has requests asks whether somebody looks, or ends one; it costs Redis about 0.1 ms.
SHARE_S = 0.5
# Who looks for the first time waits until every worker has heard of it.
FIRST_LOOK_S = SHARE_S + 0.1
# How long it takes until the worker that has a request has ended it, on a busy machine; and how often that is asked.
TAKEN_S, ASK_S = 2.0, 0.05
# More than anybody can read, of one worker.
MOST_SHOWN = 500
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Running]).decode


class InFlight:
    """One worker's part of it, and its view of all. Owned by: the worker's runtime.

    A worker without requests asks and shows nothing.
    """

    def __init__(self, runs: Runs, board: RunningBoard) -> None:
        self._runs, self._board = runs, board
        self._worker = "%016x" % random.getrandbits(64)
        self._is_seen = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="in-flight", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(2)

    def running(self) -> tuple[list[Running], bool]:
        """All that run, newest first; and whether these are only this worker's, since Redis is away."""
        try:
            if not self._board.look():
                time.sleep(FIRST_LOOK_S)
            others = [run for shown in self._board.shown(without=self._worker) for run in _read(shown)]
        except CacheAway:
            return self._own(), True
        return sorted(self._own() + others, key=lambda run: run.started_at, reverse=True), False

    def cancel(self, run_id: str) -> bool:
        """End a request, whichever worker has it. False: nobody has it (any more).

        Raises:
            Unavailable: the other workers cannot be asked.
        """
        if self._runs.cancel(run_id):
            return True
        try:
            return bool(_RUN_ID.fullmatch(run_id)) and self._cancelled_elsewhere(run_id)
        except CacheAway:
            raise Unavailable("Redis is away, and with it the way to the worker that has this request") from None

    def share(self) -> None:
        """Do what others ask of this worker: show, and end.

        Raises:
            CacheAway: nobody can ask.
        """
        if not self._runs and not self._is_seen:
            return
        self._is_seen, cancelled = self._board.asked()
        taken = [run_id for run_id in cancelled if self._runs.cancel(run_id)]
        if taken:
            self._board.take(taken)
        if self._is_seen:
            self._board.show(self._worker, _encode(self._own()))

    def _cancelled_elsewhere(self, run_id: str) -> bool:
        self._board.cancel(run_id)
        end_s = time.monotonic() + TAKEN_S
        while time.monotonic() < end_s:
            time.sleep(ASK_S)
            if self._board.is_taken(run_id):
                return True
        # Whoever hears that nothing was ended must not see it end later.
        self._board.take([run_id])
        return False

    def _own(self) -> list[Running]:
        return [_shape(run) for run, _ in zip(self._runs, range(MOST_SHOWN), strict=False)]

    def _run(self) -> None:
        while not self._stop.wait(SHARE_S):
            try:
                self.share()
            except CacheAway:
                log.debug("running requests are not shown: Redis is away")
            except Exception:  # the top of a thread
                log.exception("running requests could not be shown")
        self._leave()

    def _leave(self) -> None:
        try:
            if self._is_seen:
                self._board.hide(self._worker)
        except CacheAway:
            log.debug("what this worker showed fades by itself: Redis is away")


def _shape(run: Run) -> Running:
    trace = run.trace
    return Running(
        id=run.id,
        request_id=trace.request_id,
        route=trace.route,
        model=trace.named,
        key=trace.key_id,
        backend=run.backend,
        started_at=run.at,
        first_byte_s=trace.first_byte_s,
        tokens=run.tokens,
    )


def _read(shown: bytes) -> list[Running]:
    try:
        return _decode(shown)
    except msgspec.DecodeError:
        # A worker of another version.
        return []
