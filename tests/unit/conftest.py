"""What several unit tests have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import tiny_reward_model
from tests.unit.fairlead.transports.weights import weights_wire
from tests.unit.services.runtime.keys_world import Keys


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reward model, which nobody writes to."""
    return tiny_reward_model(tmp_path_factory.mktemp("reward"))


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """A file of API keys, without any yet."""
    return Keys(tmp_path)


@pytest.fixture(params=["direct", "grpc"])
def wire(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How weights come to replicas: over a connection beside gRPC, and over gRPC."""
    monkeypatch.setitem(weights_wire.QUICK, "direct", request.param == "direct")
