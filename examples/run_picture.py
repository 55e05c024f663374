"""Draw a run of PPO with a judge: reward and KL over its updates, and the judge's scores of both policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from examples import plots
from examples.plots import COLORS
from fairlead.config import RunConfig
from fairlead.report import run_record

_SIZE_INCHES = (10.0, 2.9)


@dataclass(frozen=True, slots=True)
class Judgments:
    """The histogram of a judge's scores."""

    title: str
    """What the judge scores."""
    scores: Mapping[str, Sequence[float]]
    """Scores before and after, in this order, by their names in the legend."""
    limits: tuple[float, float]
    """Ends of the axis."""


def draw(config: RunConfig, judgments: Judgments, out: Path, *, axis: str = "PPO update") -> None:
    """Draw the picture in the format of the suffix of `out`, such as .svg.

    Args:
        config: a run whose PPO has finished.
        judgments: of the policies before and after.
        out: the file to write.
        axis: name of the axis of updates.
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
            axes.set_xlabel(axis)
        for (name, values), color in zip(judgments.scores.items(), (COLORS[4], COLORS[0]), strict=True):
            judged.hist(
                values,
                bins=20,
                range=judgments.limits,
                histtype="stepfilled",
                alpha=0.55,
                color=color,
                label=name,
            )
        judged.set_title(judgments.title)
        judged.set_yticks([])
        judged.legend(fontsize=8, loc="upper left")
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=150)
