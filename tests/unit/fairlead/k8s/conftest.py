"""A stand-in for a cluster, and the verbs of `fairlead k8s` with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fairlead.cli import k8s as verbs
from fairlead.cli.main import app
from fairlead.k8s import changes, waiting
from tests import cluster_stand_in
from tests.shared_renders import share_renders  # noqa: F401


class Clock:
    """A clock that only pauses advance: a wait has the same number of requests on a busy machine."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(verbs, "_POLL_SECONDS", 0.1)
    monkeypatch.setattr(waiting, "time", Clock())
    monkeypatch.setattr(changes, "_POLL_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text('name = "parcels"\n[ppo]\nupdates = 7\n')
    with cluster_stand_in.serving(tmp_path) as (state, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield state


@pytest.fixture
def fairlead() -> Callable[..., Any]:
    def call(*arguments: str, code: int = 0, columns: str = "200") -> Any:
        result = CliRunner().invoke(app, ["k8s", *arguments], env={"COLUMNS": columns})
        assert result.exit_code == code, result.output
        return result

    return call
