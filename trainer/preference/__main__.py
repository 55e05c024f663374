"""`python -m trainer.preference --config run.toml`."""

from __future__ import annotations

import sys

from fairlead.config import RunConfig
from fairlead.metrics import TrainerMetrics
from trainer import stage
from trainer.distributed.group import Group
from trainer.preference.train import train


def body(config: RunConfig, metrics: TrainerMetrics, group: Group) -> None:
    """Run the stage."""
    train(config, metrics, group=group)


if __name__ == "__main__":
    sys.exit(stage.run("preference", body))
