"""Settings of the audit's tests."""

from __future__ import annotations

import pytest

from fairlead.audit import report


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second reading follows at once."""
    monkeypatch.setattr(report, "_PAUSE_SECONDS", 0.0)
