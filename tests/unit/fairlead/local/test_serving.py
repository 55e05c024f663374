"""The configuration that a service of another model than the run's gets."""

from __future__ import annotations

from pathlib import Path

from fairlead.config import load
from fairlead.local import serving


def test_reference_inside_the_trainer_does_not_hinder_another_policy(tmp_path: Path):
    start = {
        "policy.path": "start",
        "reference.path": "start",
        "reference.engine": "trainer",
        "ppo.lora.rank": 4,
    }
    config = load(overrides={"runs": str(tmp_path), "name": "r", **start})
    serving._process(config, "policy", tmp_path / "tuned", "127.0.0.1:1", None)
    written = load(config.folder.root / "policy_service.toml")
    assert (written.policy.path, written.reference.path) == (str(tmp_path / "tuned"), "")
