"""`python -m trainer.reward_model --config run.toml`."""

from __future__ import annotations

import sys
from functools import partial

from fairlead.config import RunConfig
from fairlead.metrics import StageMetrics
from trainer import stage
from trainer.distributed.group import Group
from trainer.reward_model.train import train


def body(config: RunConfig, metrics: StageMetrics, group: Group) -> None:
    """Run the stage."""
    train(config, metrics, group=group)


if __name__ == "__main__":
    sys.exit(stage.run("reward_model", body, new_metrics=partial(StageMetrics, "reward_model")))
