"""What several unit tests of who may call have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.keys_world import Keys


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """A file of API keys, without any yet."""
    return Keys(tmp_path)
