"""Draw the outcome: the reward and the KL over PPO, and the judge's probabilities before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from examples import plots
from examples.plots import COLORS
from fairlead.config import RunConfig
from fairlead.report import run_record

_SIZE_INCHES = (10.0, 2.9)


def draw(config: RunConfig, figures: Mapping[str, Any], out: Path) -> None:
    """Draw the picture in the format of the suffix of `out`, such as .svg.

    Args:
        config: a run whose PPO has finished.
        figures: the result of `outcome.measure`.
        out: the file to write.
    """
    record = run_record.read(config.folder)
    with mpl.rc_context({**plots.STYLE, "savefig.facecolor": "white"}):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        reward, divergence, judged = figure.subplots(1, 3)
        for axes, curve, title, color in (
            (reward, "reward", "Reward model's score", COLORS[1]),
            (divergence, "kl", "KL to the reference, nats", COLORS[3]),
        ):
            axes.plot(*record.curve(curve), color=color, linewidth=1.6)
            axes.set_title(title)
            axes.set_xlabel("PPO update")
        for side, name, color in (("before", "SFT", COLORS[4]), ("after", "after PPO", COLORS[0])):
            share = f"{name}: {figures[f'positive_{side}']:.0%} positive"
            values = figures[f"probabilities_{side}"]
            judged.hist(
                values, bins=20, range=(0, 1), histtype="stepfilled", alpha=0.55, color=color, label=share
            )
        judged.set_title("Judge: probability of positive")
        judged.set_yticks([])
        judged.legend(fontsize=8, loc="upper left")
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=150)
