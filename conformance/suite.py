"""Runs rows against a gateway, each in a state that the one before it did not leave behind."""

from __future__ import annotations

import fnmatch
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from conformance.fakes.http import CutOff, NotHttp
from conformance.fakes.ollama import FakeOllama
from conformance.judge import is_good
from conformance.row import Broken, Row
from conformance.rows import ROWS
from conformance.site import MODEL, ONLY, Site

# Pause in seconds between two looks at a gateway that is not ready.
LOOK_S = 0.05
# What is in flight so long in seconds after its row nobody waits for any more.
IDLE_S = 2.0
# Enough questions to see both backends of a gateway that takes turns or throws dice (1 in 2,000 misses one).
TURNS = 12
NOT_SETTLED = "the gateway did not use both backends again, in all its patience"


class NotReady(Exception):
    """The gateway did not answer a chat of one of the suite's backends in time."""


@dataclass(frozen=True)
class Verdict:
    """What a row found.

    Args:
        instead: what happened, where the promise was not kept.
    """

    row: Row
    kept: bool
    instead: str = ""
    took_s: float = 0.0


@dataclass
class Suite:
    """One run against one gateway.

    Args:
        backends: the two that the gateway was pointed at, started.
        headers: sent with every request, for a gateway that wants a key.
        patience_s: longest wait for a gateway to use both backends again after a row, and for the
            few promises that are kept in the background.
    """

    url: str
    backends: tuple[FakeOllama, FakeOllama]
    headers: Mapping[str, str] = field(default_factory=dict)
    patience_s: float = 15.0
    _both_in_use: Callable[[Site], bool] | None = None
    _is_settled: bool = True

    def site(self) -> Site:
        return Site(self.url, self.backends, self.headers, self.patience_s)

    def wait_ready(self, deadline_s: float) -> None:
        """Wait until the gateway answers for the suite's model, and find out how it uses its backends.

        Raises:
            NotReady: after the deadline.
        """
        end = time.monotonic() + deadline_s
        while not self._find_way() and time.monotonic() < end:
            time.sleep(LOOK_S)
        if self._both_in_use is None and not answers(self.site()):
            raise NotReady(self._last_word())

    def _find_way(self) -> bool:
        """Find a question that tells whether both backends are in use.

        A gateway that has a favourite and knows no models has none; what it says of one has to do then.
        """
        if not answers(self.site()):
            return False
        # In this order: a gateway that has learned of the second backend between the two looks knows its models then.
        turns, knows = takes_turns(self.site()), knows_models(self.site())
        self._both_in_use = knows_models if knows else takes_turns if turns else None
        return self._both_in_use is not None

    def _last_word(self) -> str:
        try:
            answer = self.site().ask()
        except (CutOff, OSError) as error:
            return f"{self.url} gives no answer ({error})"
        return f"{self.url} answers a chat with {answer.status}: {answer.body[:200].decode('utf-8', 'replace')}"

    def run(self, rows: Iterable[Row], tell: Callable[[Verdict], None] = lambda verdict: None) -> list[Verdict]:
        """Run rows, and return their verdicts in the rows' order."""
        rows = list(rows)
        waiting = {row.id: Background(row, self.site()) for row in rows if row.waits}
        verdicts = {}
        for row in rows:
            if not row.waits:
                verdicts[row.id] = self._one(row)
                tell(verdicts[row.id])
        for name, background in waiting.items():
            verdicts[name] = background.verdict()
            tell(verdicts[name])
        return [verdicts[row.id] for row in rows]

    def _one(self, row: Row) -> Verdict:
        site = self.site()
        verdict = judge(row, site)
        if not verdict.kept and not self._is_settled:
            verdict = replace(verdict, instead=f"{verdict.instead} (before this row {NOT_SETTLED})")
        site.revive()
        self._settle()
        return verdict

    def _settle(self) -> None:
        """Wait until what a row did is over: the backends idle, and both in use again."""
        for fake in self.backends:
            become_idle(fake)
        end = time.monotonic() + self.patience_s
        ready = self._both_in_use or answers
        while not (settled := ready(self.site())) and time.monotonic() < end:
            time.sleep(LOOK_S)
        self._is_settled = settled
        for fake in self.backends:
            fake.forget_requests()


def become_idle(fake: FakeOllama) -> None:
    """Wait for what a backend still does, and cut off what a gateway would never end."""
    try:
        fake.wait_idle(IDLE_S)
    except AssertionError:
        fake.kill()
        fake.restart()


def judge(row: Row, site: Site) -> Verdict:
    """Run one row."""
    began = time.monotonic()
    instead = ""
    try:
        row.play(site)
    except Broken as error:
        instead = str(error)
    except CutOff:
        instead = "the gateway closed the connection in the middle of its answer"
    except NotHttp as error:
        instead = f"the answer is no HTTP ({error})"
    except TimeoutError:
        instead = "the gateway gave no answer in time"
    except OSError as error:
        instead = f"the gateway could not be reached: {error}"
    except Exception as error:  # an answer that no row expects is a broken promise, not the end of the run
        instead = f"the answer could not be read: {error!r}"
    return Verdict(row, not instead, one_line(instead), time.monotonic() - began)


def one_line(text: str) -> str:
    return " ".join(text.split())[:300]


class Background:
    """A row that runs in a thread of its own beside the others."""

    def __init__(self, row: Row, site: Site) -> None:
        self._found: list[Verdict] = []
        self._thread = threading.Thread(target=self._run, args=(row, site), name=f"row {row.name}", daemon=True)
        self._thread.start()

    def _run(self, row: Row, site: Site) -> None:
        self._found.append(judge(row, site))

    def verdict(self) -> Verdict:
        self._thread.join()
        return self._found[0]


def answers(site: Site, model: str = MODEL) -> bool:
    try:
        return is_good(site, site.ask(body=site.body(model=model)))
    except (CutOff, NotHttp, OSError):
        return False


def knows_models(site: Site) -> bool:
    """Tell whether a model that one backend holds is answered for each of both.

    Twice each in a row: a gateway that takes turns would be right every other time.
    """
    return all(answers(site, name) for name in (ONLY["a"], ONLY["a"], ONLY["b"], ONLY["b"]))


def takes_turns(site: Site) -> bool:
    """Tell whether both backends are asked in turn, sooner or later."""
    for _ in range(TURNS):
        if not answers(site):
            return False
        mine = site.asked()
        if all(any(request in fake.requests for request in mine) for fake in site.backends):
            return True
    return False


def chosen(patterns: Sequence[str]) -> list[Row]:
    """The rows whose id or name matches one of the patterns; all without any."""
    if not patterns:
        return list(ROWS)
    return [row for row in ROWS if any(fnmatch.fnmatch(word, p) for p in patterns for word in (row.id, row.name))]
