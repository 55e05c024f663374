"""The feedback service starts on a store that it has, or has not, seen before."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from fairlead.config import load
from services.feedback.__main__ import ensure_project
from services.feedback.store import open_store


def test_project_of_the_store_stays_and_what_differs_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(open_store(str(tmp_path / "feedback.db"))) as store:
        ensure_project(store, load(overrides={"feedback.project.overlap": 3}).feedback)
        ensure_project(store, load(overrides={"feedback.project.overlap": 3}).feedback)
        assert caplog.messages == []
        ensure_project(store, load(overrides={"feedback.project.overlap": 2}).feedback)
        [message] = caplog.messages
        assert "with other values, which stay: overlap = 3; a lead changes them" in message
        [project] = store.projects.all()
        assert project.settings.overlap == 3
