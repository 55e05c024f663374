"""Fixtures of tests with real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service_process import Starter


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Yield a starter of model services; kill the services when the test ends."""
    starter = Starter(tmp_path)
    try:
        yield starter
    finally:
        starter.stop()
