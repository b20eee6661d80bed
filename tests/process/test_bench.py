"""`python -m bench`: every bench runs, and none of them passes over an answer that is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

import pytest

from bench import checks
from bench.load import Spec
from bench.wire import BadAnswer
from bench.world import NGINX, RunFailed, load
from conformance.fakes.faults import Error500, Fault, LongContentLength, ShortContentLength, Status
from conformance.fakes.ollama import FakeOllama
from tests.admin import PAGES
from tests.conftest import FakeFactory
from tests.fakes.procs import ROOT

TINY = ("--quick", "--window-s", "0.4", "--streams", "4", "--connections", "2", "--workers", "1")
# Seconds; the slowest of them waits for a dead backend to be noticed.
RUN_S = 100
OK, FAILED, INCOMPLETE = 0, 1, 3
TOKENS = [f'{{"message":{{"content":" {number}:7"}},"done":false}}\n' for number in range(3)]
LAST = '{"message":{"content":""},"done":true,"eval_count":3}\n'


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments, *TINY]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_S, check=False)


def listing(fake: FakeOllama) -> Spec:
    """Ask for the listing, which has one model, for a short time."""
    spec = Spec("requests", fake.port, "GET", "/api/tags", connections=2, check="listing")
    spec.expected = {"required": ["tiny:latest"], "allowed": []}
    # Long enough for some dozens of answers on a machine that stands still for a moment.
    spec.warm_s, spec.window_s = 0.1, 1.5
    return spec


def framed(records: Sequence[str]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(record), record.encode()) for record in records) + b"0\r\n\r\n"


# --- the whole of it ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("relay", {"direct", "caravan", "nginx"}),
        ("chat", {"direct", "caravan", "nginx"}),
        ("show", {"direct", "caravan", "flask"}),
        ("tags", {"direct", "caravan", "nginx", "calm", "calm, hole", "calm, dead"}),
    ],
)
def test_each_bench_measures_caravan_and_its_baselines_in_one_run(name: str, targets: set[str]) -> None:
    done = bench(name, "--json")
    is_partial = NGINX is None and "nginx" in targets
    assert done.returncode == (INCOMPLETE if is_partial else OK), done.stderr
    (report,) = json.loads(done.stdout)
    assert {row["target"] for row in report["rows"]} == (targets - {"nginx"} if is_partial else targets)
    assert next(row for row in report["rows"] if row["target"] == "caravan")["cpu_us"] > 0
    assert bool(report["incomplete"]) is is_partial
    assert is_partial or report["ratios"]


def test_the_pages_of_a_big_fleet_are_measured() -> None:
    done = bench("admin", "--json")
    assert done.returncode == OK, done.stderr
    (report,) = json.loads(done.stdout)
    assert {row["target"] for row in report["rows"]} >= PAGES.keys()
    assert len(report["ratios"]) >= len(PAGES)


# `good` is more than starting up asks for. The four streams that come first go to the backend alone, so that here the
# failure comes through a gateway.
@pytest.mark.parametrize(("name", "good"), [("relay", 6), ("show", 50)])
def test_a_backend_that_begins_to_answer_500_fails_the_run(name: str, good: int) -> None:
    done = bench(name, "--fail-after", str(good))
    assert done.returncode == FAILED
    assert f"bench {name} FAILED" in done.stderr
    assert "500" in done.stderr
    assert not done.stdout, "figures of a failed run were printed"


# --- the load generator ------------------------------------------------------------------------


def test_the_load_counts_good_answers(fake: FakeOllama) -> None:
    window = load(listing(fake))["window"]
    assert 0 < window["count"] <= fake.count("/api/tags")
    assert 0 < window["p50_us"] <= window["p99_us"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Error500(), "status 500"),
        (Status(200, b'{"models":[]}'), "another listing"),
        (Status(200, b"<html>"), "JSONDecodeError"),
        (ShortContentLength(), "more bytes"),
        (LongContentLength(), "closed instead of an answer"),
    ],
)
def test_one_bad_answer_among_good_ones_fails_the_load(fakes: FakeFactory, fault: Fault, said: str) -> None:
    fake = fakes()
    fake.fault("/api/tags", fault, when=lambda _: fake.count("/api/tags") > 20)
    with pytest.raises(RunFailed, match=said):
        load(listing(fake))
    assert fake.count("/api/tags") > 20


# --- what a stream has to be -------------------------------------------------------------------


def test_a_whole_stream_tells_when_each_token_left() -> None:
    raw = framed([*TOKENS, LAST])
    sizes = [len(framed([token])) - len(b"0\r\n\r\n") for token in TOKENS]
    assert checks.stream(raw, 3) == [(7, sizes[0]), (7, sum(sizes[:2])), (7, sum(sizes))]


@pytest.mark.parametrize(
    "records",
    [
        [*TOKENS[:2], LAST],
        [TOKENS[1], TOKENS[0], TOKENS[2], LAST],
        [*TOKENS, TOKENS[2], LAST],
        [*TOKENS, LAST, LAST],
        [*TOKENS, '{"error":"the backend broke"}\n'],
        [*TOKENS, LAST.replace("true", "false")],
        TOKENS,
        [],
    ],
    ids=[
        "a token missing",
        "out of order",
        "a token twice",
        "two ends",
        "an error record",
        "not done",
        "no end",
        "nothing",
    ],
)
def test_a_stream_that_is_not_whole_is_refused(records: list[str]) -> None:
    with pytest.raises(BadAnswer):
        checks.stream(framed(records), 3)
