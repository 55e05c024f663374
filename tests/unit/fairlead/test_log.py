"""Log lines: a record is one line in both styles, also with hostile names and paths in it."""

from __future__ import annotations

import json
import logging

import pytest

from fairlead.log import HumanFormatter, JsonFormatter, LogSummary
from tests.waiting import until

HOSTILE = "GET /x\n00:00:00 ERROR   gateway compromised\x1b[31m\r\u202e\u2028\x85\x7f"


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("services.gateway", logging.INFO, "edge.py", 1, "%s", (message,), None)


@pytest.mark.parametrize("formatter", [HumanFormatter(), JsonFormatter()])
def test_hostile_message_is_one_line_without_control_characters(formatter: logging.Formatter):
    line = formatter.format(record(HOSTILE))
    assert len(line.split("\n")) == 1
    assert "\x1b" not in line
    assert "compromised" in line


def test_human_line_escapes_only_control_characters():
    line = HumanFormatter().format(record("answer: naïve “日本” \t\n"))
    assert line.endswith("INFO    answer: naïve “日本” \\t\\n")
    assert json.loads(JsonFormatter().format(record(HOSTILE)))["message"] == HOSTILE


async def test_events_of_one_kind_are_summed_up(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    summary = LogSummary(logging.getLogger("kinds"), shown=2, seconds=0.2)
    for number in range(1_000):
        summary.add("refused", f"call {number}")
    summary.add("other", "once", extra={"peer": "here"})
    await until(lambda: len(caplog.messages) == 4)
    assert caplog.messages == [
        "refused: call 0",
        "refused: call 1",
        "other: once",
        "refused: 998 more in 0.2 s",
    ]
    summary.add("refused", "again")
    assert caplog.messages[-1] == "refused: again"
