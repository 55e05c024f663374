"""The configuration of one round of a run: its folder, its rankings, and the models that it starts from."""

from __future__ import annotations

from fairlead.config import RunConfig
from fairlead.rounds.files import RoundFiles


def files_of(config: RunConfig) -> RoundFiles:
    """Return the files of the rounds; `config` is that of the whole run."""
    return RoundFiles(config.folder.root / "data")


def round_config(config: RunConfig, number: int) -> RunConfig:
    """Return the configuration of a round: the first in the run's folder, later ones in `round-<number>/`.

    The SFT model is the reference of every PPO; the reward model of a round starts from it or from the one
    before (`iterate.reward_model_start`). The policy continues from the round before. Paths are absolute,
    since several processes read them.

    Args:
        config: the configuration of the whole run.
        number: number of the round, from 0.
    """
    files = files_of(config)
    known = tuple(str(files.of_round(r, "rankings").absolute()) for r in range(number + 1))
    fresh = str(files.of_round(number, "fresh_rankings").absolute())
    data = config.data.model_copy(
        update={"preferences": known if number else known[0], "fresh_rankings": fresh}
    )
    if not number:
        return config.model_copy(update={"data": data})
    before = round_config(config, number - 1).folder
    sft, start = config.folder.sft_model, before.policy_model
    section, later = config.reward_model, config.iterate
    continues = later.reward_model_start == "previous" and section.ensemble_size == 1
    reward_model = section.model_copy(
        update={
            "path": str((before.reward_model if continues else sft).absolute()),
            "epochs": later.reward_model_epochs or section.epochs,
        }
    )
    return config.model_copy(
        update={
            "data": data,
            "runs": config.folder.root,
            "name": f"round-{number}",
            "policy": config.policy.model_copy(update={"path": str(start.absolute())}),
            "reference": config.reference.model_copy(update={"path": str(sft.absolute())}),
            "reward_model": reward_model,
        }
    )
