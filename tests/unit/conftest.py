"""Fixtures of several unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fairlead  # noqa: F401 - before grpc, which reads what it sets
from tests import open_grpc
from tests.tiny import tiny_reward_model
from tests.unit.fairlead.transports.weights import weights_wire
from tests.unit.services.runtime.keys_world import Keys

open_grpc.watch()


@pytest.fixture(autouse=True)
def _close_grpc() -> Iterator[None]:
    """Fail a test that leaves a gRPC channel or server open."""
    before = open_grpc.still_open()
    yield
    left = open_grpc.still_open() - before
    assert not left, f"close these before the event loop of the test ends: {left}"


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny reward model; tests must not change it."""
    return tiny_reward_model(tmp_path_factory.mktemp("reward"))


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Return a file of API keys that contains no keys."""
    return Keys(tmp_path)


@pytest.fixture(params=["direct", "grpc"])
def wire(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test twice: replicas fetch weights over direct connections, and over gRPC."""
    monkeypatch.setitem(weights_wire.SETTINGS, "direct", request.param == "direct")
