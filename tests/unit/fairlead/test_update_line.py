"""The line of an update: what one side logs, the other finds, in both styles of the log."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from fairlead import log
from fairlead.update_line import last_update, log_update

logger = logging.getLogger(__name__)


@pytest.fixture(params=["json", "human"])
def written(request, monkeypatch):
    """Send the log of this process to a text, in one of its styles, and return the text."""
    text = io.StringIO()
    monkeypatch.setattr(sys, "stderr", text)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    log.setup(style=request.param, fields={"run": "parcels"})
    yield text
    root.handlers[:] = before
    root.setLevel(level)


def test_last_update_is_found_between_other_lines(written):
    for update in (9, 10):
        log_update(logger, update, 12000, {"reward": -0.25, "kl": 1.5})
        logger.info("checkpoint of update %d written in %d s", update, 3)
    assert last_update(written.getvalue()) == (10, 12000)


def test_figures_may_be_unknown(written):
    log_update(logger, 1, 2, {})
    assert "update 1 of 2: reward nan, KL nan" in written.getvalue()
    assert last_update(written.getvalue()) == (1, 2)


@pytest.mark.parametrize("text", ["", "update 3\n", "updated 3 of 4: reward 1\n", "update 3 of 4 epochs\n"])
def test_other_lines_are_no_update(text):
    assert last_update(text) is None
