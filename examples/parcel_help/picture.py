"""Draw the pictures of docs: `python -m examples.parcel_help.picture RUN OUT`.

Of a finished quickstart three panels over all rounds: the reward that PPO optimizes and the gold reward, how
far the policy moved, and how often its answers win. Of runs of `--break-it` (several, before OUT) a panel
each: both rewards, and the updates at which guards fired. Prints a caption.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from examples import plots
from examples.exit_codes import with_exit_code
from examples.parcel_help.figures import gold_by_update
from examples.plots import COLORS, INK, MUTED
from fairlead.config import RunFolder
from fairlead.errors import ConfigError
from fairlead.report import run_record
from fairlead.report.charts import Mark
from fairlead.report.run_record import RunRecord

_SIZE_INCHES = (10.0, 2.9)
_NEAR_UPDATES = 2
"""Names of guards that fire closer together would overlap on one side of their lines."""


def draw(run: Path, out: Path) -> str:
    """Draw the rounds of a quickstart in the format of the suffix of `out`; return a caption.

    Raises:
        ConfigError: the folder is not that of a finished quickstart.
    """
    try:
        rounds: list[dict[str, Any]] = json.loads((run / "report.json").read_text(encoding="utf-8"))["rounds"]
    except (OSError, ValueError, KeyError) as error:
        allowed = "the folder of a finished quickstart, such as runs/quickstart"
        raise ConfigError("run", got=f"{run}, without the report of one", allowed=allowed) from error
    folders = [run, *(run / f"round-{number}" for number in range(1, len(rounds)))]
    records = [run_record.read(RunFolder(folder)) for folder in folders]
    with mpl.rc_context({**plots.STYLE, "savefig.facecolor": "white"}):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        rewards, divergence, wins = figure.subplots(1, 3, width_ratios=(5, 3, 2))
        _rewards(rewards, records, rounds)
        _divergence(divergence, records)
        _wins(wins, [found["ppo"] for found in rounds])
        # No date: the same run gives the same picture.
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=150)
    return caption(rounds)


def draw_broken(runs: Sequence[Path], out: Path) -> str:
    """Draw runs of `--break-it`, a panel each; return a caption.

    Raises:
        ConfigError: a folder is not that of a finished run of `--break-it`.
    """
    found = [_broken(run) for run in runs]
    with mpl.rc_context({**plots.STYLE, "savefig.facecolor": "white"}):
        figure = Figure(figsize=(4.6 * len(runs), 3.6), layout="constrained")
        panels = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
        for axes, run, numbers in zip(panels, runs, found, strict=True):
            updates = range(1, len(numbers["proxy"]) + 1)
            axes.plot(updates, numbers["proxy"], color=COLORS[1], linewidth=1.6, label="reward model's score")
            axes.plot(numbers["updates"], numbers["gold"], color=COLORS[0], linewidth=1.6, label="gold")
            by_update: dict[int, list[Any]] = {}
            for alert in numbers["signals"]:
                by_update.setdefault(int(alert["update"]), []).append(alert)
            drawn = -_NEAR_UPDATES
            for update, alerts in sorted(by_update.items()):
                stops = any(alert["level"] == "stop" for alert in alerts)
                names = ", ".join(alert["signal"] for alert in alerts)
                near, drawn = update - drawn < _NEAR_UPDATES, update
                plots.draw_mark(axes, Mark(update, names, alarm=stops), bottom=True, right=near)
            axes.set_title(run.name)
            axes.set_xlabel("update")
        # Space for the names of the guards.
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(low - 0.4 * (high - low), high)
        panels[0].set_ylabel("mean of an update's answers")
        panels[0].legend(fontsize=8, loc="upper left", frameon=True, framealpha=1.0, edgecolor="none")
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=150)
    return "; ".join(
        f"{run.name}: gold {each['gold_first']:.2f} → {each['gold_last']:.2f}"
        for run, each in zip(runs, found, strict=True)
    )


def _broken(run: Path) -> dict[str, Any]:
    try:
        numbers: dict[str, Any] = json.loads((run / "break_it.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        allowed = "folders of `fairlead quickstart --break-it`, if there are several"
        raise ConfigError("run", got=f"{run}, without break_it.json", allowed=allowed) from error
    return numbers


def caption(rounds: Sequence[dict[str, Any]]) -> str:
    """Return the headline figures of the rounds in a report.json."""
    course = [rounds[0]["ppo"]["gold_before"], *(found["ppo"]["gold_after"] for found in rounds)]
    rates = [found["ppo"]["win_rate_vs_sft"] for found in rounds]
    return (
        f"gold reward on held-out prompts {' → '.join(f'{value:.2f}' for value in course)}, "
        f"win rate against SFT {' → '.join(f'{rate:.2f}' for rate in rates)}, "
        f"KL to SFT {rounds[-1]['ppo']['kl']:.1f} nats an answer"
    )


def _rewards(axes: Any, records: Sequence[RunRecord], rounds: Sequence[dict[str, Any]]) -> None:  # noqa: ANN401 - matplotlib's own type
    done = 0
    ends = [(0, rounds[0]["ppo"]["gold_before"])]
    for number, (record, found) in enumerate(zip(records, rounds, strict=True)):
        for color, name, (x, y) in (
            (COLORS[1], "proxy: reward model's score", record.curve("reward")),
            (COLORS[0], "gold: true worth", gold_by_update(record)),
        ):
            label = name if not number else None
            axes.plot([done + update for update in x], y, color=color, linewidth=1.6, label=label)
        done += len(record.updates)
        ends.append((done, found["ppo"]["gold_after"]))
    axes.plot(*zip(*ends, strict=True), "o", color=INK, markersize=5, label="gold, held-out prompts")
    axes.set_title("Reward of the answers")
    axes.legend(fontsize=8, loc="lower right")
    _by_update(axes, records)


def _divergence(axes: Any, records: Sequence[RunRecord]) -> None:  # noqa: ANN401
    done = 0
    for record in records:
        x, y = record.curve("kl")
        axes.plot([done + update for update in x], y, color=COLORS[3], linewidth=1.6)
        done += len(record.updates)
    axes.set_ylim(bottom=0)
    axes.set_title("KL to SFT, nats an answer")
    _by_update(axes, records)


def _by_update(axes: Any, records: Sequence[RunRecord]) -> None:  # noqa: ANN401
    axes.set_xlabel("PPO update")
    edge = 0
    for number, record in enumerate(records[:-1], start=2):
        edge += len(record.updates)
        axes.axvline(edge + 0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        place = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
        axes.annotate(
            f"round {number}", (edge, 1), xytext=(5, -2), va="top", fontsize=8.5, color=MUTED, **place
        )


def _wins(axes: Any, found: Sequence[dict[str, Any]]) -> None:  # noqa: ANN401
    rates = [one["win_rate_vs_sft"] for one in found]
    intervals = [one["win_rate_interval"] for one in found]
    below = [rate - low for rate, (low, _) in zip(rates, intervals, strict=True)]
    above = [high - rate for rate, (_, high) in zip(rates, intervals, strict=True)]
    names = [f"round {number}" for number in range(1, len(found) + 1)]
    axes.bar(
        names,
        rates,
        width=0.6,
        color=COLORS[0],
        yerr=[below, above],
        error_kw={"ecolor": INK, "elinewidth": 1},
    )
    for place, rate in enumerate(rates):
        axes.text(place, 0.04, f"{rate:.0%}", ha="center", color="white", fontweight="bold")
    axes.axhline(0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylim(0, 1)
    axes.grid(visible=False, axis="x")
    axes.set_title("Win rate against SFT")


@with_exit_code
def main(argv: Sequence[str] | None = None) -> None:
    """Draw the picture and print the caption."""
    parser = argparse.ArgumentParser(prog="python -m examples.parcel_help.picture", description=__doc__)
    parser.add_argument("run", type=Path, nargs="+", help="the folder of a finished quickstart, or several")
    parser.add_argument("out", type=plots.picture_file, help="file for the picture, .svg or .png")
    options = parser.parse_args(argv)
    runs = options.run
    broken = len(runs) > 1 or (runs[0] / "break_it.json").exists()
    print(draw_broken(runs, options.out) if broken else draw(runs[0], options.out))


if __name__ == "__main__":
    raise SystemExit(main())
