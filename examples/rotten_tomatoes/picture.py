"""Draw the outcome: the reward and the KL over PPO, and the judge's probabilities before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples import run_picture
from examples.run_picture import Judgments
from fairlead.config import RunConfig


def draw(config: RunConfig, figures: Mapping[str, Any], out: Path) -> None:
    """Draw the picture in the format of the suffix of `out`, such as .svg.

    Args:
        config: a run whose PPO has finished.
        figures: the result of `outcome.measure`.
        out: the file to write.
    """
    scores = {
        f"{name}: {figures[f'positive_{side}']:.0%} positive": figures[f"probabilities_{side}"]
        for side, name in (("before", "SFT"), ("after", "after PPO"))
    }
    run_picture.draw(config, Judgments("Judge: probability of positive", scores, (0.0, 1.0)), out)
