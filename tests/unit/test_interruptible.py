"""Waiting that others may end: only where it is exposed, once, and never anything else."""

from __future__ import annotations

import threading

import gevent
import pytest
from gevent.event import Event

from proxy_app.errors import Cancelling, Interrupted, Stopping
from proxy_app.upstream.aside import Interruptible

# gevent keeps its hub's own sockets.
pytestmark = pytest.mark.leaky


def waited(waiting: Interruptible, begun: Event, until: Event) -> str:
    """What came of waiting."""
    try:
        with waiting.exposed():
            begun.set()
            until.wait(15)
    except Interrupted as exc:
        return exc.outcome
    return "over"


def test_what_waits_is_ended_at_once() -> None:
    waiting, begun = Interruptible(), Event()
    greenlet = gevent.spawn(waited, waiting, begun, Event())
    begun.wait(15)
    assert waiting.is_exposed
    waiting.interrupt(Cancelling())
    assert greenlet.get(timeout=20) == "cancelled"
    assert waiting.is_interrupted
    assert not waiting.is_exposed


def test_what_was_ended_before_does_not_begin() -> None:
    waiting = Interruptible()
    waiting.interrupt(Cancelling())
    with pytest.raises(Cancelling), waiting.exposed():
        pytest.fail("it has begun")


def test_the_first_cause_counts() -> None:
    waiting = Interruptible()
    waiting.interrupt(Cancelling())
    waiting.interrupt(Stopping())
    with pytest.raises(Cancelling), waiting.exposed():
        pytest.fail("it has begun")


def test_a_greenlet_that_has_gone_on_gets_nothing() -> None:
    """It is ended in the moment in which it ends by itself; what it does then is another request."""
    waiting, begun, over, next_one = Interruptible(), Event(), Event(), Event()

    def serve() -> list[str]:
        first = waited(waiting, begun, over)
        return [first, "disturbed" if next_one.wait(0.05) else "calm"]

    greenlet = gevent.spawn(serve)
    begun.wait(15)
    # It is woken up before the throw is looked at.
    over.set()
    gevent.spawn(waiting.interrupt, Cancelling())
    assert greenlet.get(timeout=20)[1] == "calm"


def test_it_may_be_ended_by_another_thread() -> None:
    waiting, begun = Interruptible(), Event()
    greenlet = gevent.spawn(waited, waiting, begun, Event())
    begun.wait(15)
    thread = threading.Thread(target=waiting.interrupt, args=(Cancelling(),))
    thread.start()
    assert greenlet.get(timeout=20) == "cancelled"
    thread.join()
