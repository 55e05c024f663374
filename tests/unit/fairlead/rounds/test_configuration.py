"""The configuration of later rounds."""

from __future__ import annotations

from pathlib import Path

from fairlead.config import load
from fairlead.rounds import configuration


def test_later_rounds_start_from_the_previous_policy_in_a_new_folder(tmp_path: Path) -> None:
    config = load(None, overrides={"runs": str(tmp_path), "name": "q"})
    first, second, third = (configuration.round_config(config, number) for number in range(3))
    root = tmp_path / "q"
    assert [one.folder.root for one in (first, second, third)] == [root, root / "round-1", root / "round-2"]
    assert first.policy.path == ""
    assert second.policy.path == str(root / "policy")
    assert third.policy.path == str(root / "round-1" / "policy")
    assert {one.reference.path for one in (second, third)} == {str(root / "sft")}
    assert {one.reward_model.path for one in (second, third)} == {str(root / "sft")}
    assert third.data.preferences == tuple(
        str(root / "data" / f"round-{number}" / "rankings.jsonl") for number in range(3)
    )
