"""Fixtures of tests with real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service_process import SharedServices, Starter
from tests.shared_renders import share_renders  # noqa: F401


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServices]:
    """Yield services that several files of tests call; a test leaves them as they were."""
    services = SharedServices(tmp_path_factory.mktemp("shared"))
    try:
        yield services
    finally:
        services.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Yield a starter of model services; kill the services when the test ends."""
    starter = Starter(tmp_path)
    try:
        yield starter
    finally:
        starter.stop()
