"""Draw the outcome: the reward and the KL over RLOO, and the judge's scores before and after."""

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
    scores = dict(zip(("before", "after"), figures["judge_scores"], strict=True))
    limits = min(map(min, scores.values())), max(map(max, scores.values()))
    judgments = Judgments("Judge's score; higher is less harmful", scores, limits)
    run_picture.draw(config, judgments, out, axis="RLOO update")
