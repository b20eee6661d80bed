"""The flag that a signal handler may raise."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from proxy_app.services.stopping import StopFlag


@pytest.fixture
def raised_by_alarm() -> Iterator[StopFlag]:
    """Raised by a handler that interrupts the waiting thread itself."""
    flag = StopFlag()
    before = signal.signal(signal.SIGALRM, lambda *_: flag.set())
    yield flag
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_handler_that_interrupts_the_wait_ends_it(raised_by_alarm: StopFlag) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    assert raised_by_alarm.wait(10)
    assert raised_by_alarm.wait(10), "it stays raised"


def test_nothing_ends_the_wait_but_time() -> None:
    flag = StopFlag()
    assert not flag.wait(0.01)
    assert not flag.is_set()
