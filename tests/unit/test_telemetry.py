"""Log lines: one JSON object each, whatever is in them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from proxy_app import telemetry


class Log:
    """What was written to standard error since the last look."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    @property
    def text(self) -> str:
        return self._capsys.readouterr().err

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.strip("\n").split("\n")]


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Iterator[Log]:
    """Standard error; the root logger is as before afterwards."""
    root, urllib3 = logging.getLogger(), logging.getLogger("urllib3")
    handlers, levels = root.handlers[:], (root.level, urllib3.level)
    yield Log(capsys)
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    urllib3.setLevel(levels[1])


def test_a_record_is_one_line_with_time_level_logger_and_message(log: Log) -> None:
    telemetry.configure("info")
    logging.getLogger("a.b").warning("%s is %s", "gpu1", "down")
    (line,) = log.lines
    assert (line["level"], line["logger"], line["message"]) == ("warning", "a.b", "gpu1 is down")
    assert len(line["ts"]) == len("2026-01-02T03:04:05.678")


def test_fields_are_added(log: Log) -> None:
    telemetry.configure("info")
    logging.getLogger("a").info("relayed", extra={"fields": {"status": 200, "model": "tiny"}})
    (line,) = log.lines
    assert (line["status"], line["model"]) == (200, "tiny")


@pytest.mark.parametrize(
    "text", ['a\n{"level": "info", "message": "forged"}', "a\r\nb", "a\u2028b", "\x1b[2J", "a\x00b"]
)
def test_no_text_can_forge_a_line(log: Log, text: str) -> None:
    telemetry.configure("info")
    logging.getLogger("a").info("%s", text, extra={"fields": {"model": text}})
    (line,) = log.lines
    assert (line["message"], line["model"]) == (text, text)


def test_text_that_is_no_text_is_logged_all_the_same() -> None:
    """A lone surrogate comes from a path or a JSON escape; standard error writes it as an escape that JSON knows."""
    record = logging.LogRecord("a", logging.INFO, "a.py", 1, "%s", ("\ud800",), None)
    written = telemetry.JsonLines().format(record).encode("utf-8", "backslashreplace")
    assert json.loads(written)["message"] == "\ud800"


def test_an_exception_is_in_its_records_line(log: Log) -> None:
    telemetry.configure("info")
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("a").exception("failed")
    (line,) = log.lines
    assert "ValueError: no" in line["traceback"]


def test_what_is_below_the_level_is_not_written(log: Log) -> None:
    telemetry.configure("warning")
    logging.getLogger("a").info("no")
    logging.getLogger("a").warning("yes")
    assert [line["message"] for line in log.lines] == ["yes"]


def test_configuring_twice_writes_once(log: Log) -> None:
    telemetry.configure("info")
    telemetry.configure("debug")
    logging.getLogger("a").debug("once")
    assert len(log.lines) == 1


@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\u2029", "\x9b2J", "\u202e"])
def test_no_reader_takes_a_text_for_a_line_or_a_command(log: Log, mark: str) -> None:
    telemetry.configure("info")
    logging.getLogger("a").info("before", extra={"fields": {"model": f"ä{mark}x"}})
    text = log.text
    assert mark[0] not in text
    assert "ä" in text
    assert json.loads(text)["model"] == f"ä{mark}x"
