"""The configuration of later rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("settings", "start", "epochs"),
    [
        ({}, "sft", 3),
        ({"iterate.reward_model_start": "previous"}, "round-1/reward_model", 3),
        (
            {"iterate.reward_model_start": "previous", "iterate.reward_model_epochs": 2},
            "round-1/reward_model",
            2,
        ),
        ({"iterate.reward_model_start": "previous", "reward_model.ensemble_size": 2}, "sft", 3),
    ],
)
def test_later_reward_models_start_where_the_settings_say(
    tmp_path: Path, settings: dict[str, object], start: str, epochs: int
) -> None:
    common = {"runs": str(tmp_path), "name": "q", "reward_model.epochs": 3}
    config = load(None, overrides=common | settings)
    first, _, third = (configuration.round_config(config, number).reward_model for number in range(3))
    assert (first.path, first.epochs) == ("", 3)
    assert (third.path, third.epochs) == (str(tmp_path / "q" / start), epochs)
