"""`python -m trainer.sft --config run.toml`."""

from __future__ import annotations

import sys
from functools import partial

from fairlead.config import RunConfig
from fairlead.metrics import StageMetrics
from trainer import stage
from trainer.distributed.group import Group
from trainer.sft.train import train


def body(config: RunConfig, metrics: StageMetrics, group: Group) -> None:
    """Run the stage."""
    train(config, metrics, group=group)


if __name__ == "__main__":
    sys.exit(stage.run("sft", body, new_metrics=partial(StageMetrics, "sft")))
