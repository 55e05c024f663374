"""What several tests with processes have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service_process import Starter


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Starts model services; none of them is left when the test ends."""
    starter = Starter(tmp_path)
    try:
        yield starter
    finally:
        starter.stop()
