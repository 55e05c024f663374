"""Tables of several finished runs, a row each: `python -m examples.parcel_help.rows RUN ...`.

Runs of `--break-it` get a table of their own. The tables are those of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.exit_codes import with_exit_code
from fairlead.cli.sampled import table
from fairlead.errors import ConfigError

Numbers = Mapping[str, Any]

_QUICKSTART = (
    "run",
    "seed",
    "win rate against SFT",
    "gold: SFT → each round",
    "reward model of each round (bag of words)",
    "on the tuned policy's answers: stale → refreshed",
    "KL",
)
_BREAK_IT = ("run", "score (proxy)", "gold: first → peak → last", "half lost", "guard", "gold saved")


def tables(runs: Sequence[Path]) -> str:
    """Return the tables in Markdown.

    Args:
        runs: folders of finished runs of `fairlead quickstart`, with or without `--break-it`.

    Raises:
        ConfigError: a folder is not that of such a run.
    """
    whole: list[tuple[str, ...]] = []
    broken: list[tuple[str, ...]] = []
    found: list[Numbers] = []
    for run in runs:
        if (run / "break_it.json").is_file():
            broken.append((run.name, *_broken(_read(run, "break_it.json"))))
        else:
            found.append(_read(run, "report.json"))
            whole.append((run.name, *_whole(found[-1])))
    if len(found) > 1:
        whole.append(("mean ± s.d.", *_means(found)))
    parts = [table(head, rows) for head, rows in ((_QUICKSTART, whole), (_BREAK_IT, broken)) if rows]
    return "\n".join(parts).rstrip()


def _read(run: Path, name: str) -> Numbers:
    try:
        numbers: Numbers = json.loads((run / name).read_text(encoding="utf-8"))
        numbers["rounds" if name == "report.json" else "gold"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        allowed = "folders of finished quickstarts, such as runs/quickstart"
        raise ConfigError("run", got=f"{run}, without a readable {name}", allowed=allowed) from error
    return numbers


def _whole(numbers: Numbers) -> Iterator[str]:
    ppo = [one["ppo"] for one in numbers["rounds"]]
    models = [one["reward_model"] for one in numbers["rounds"]]
    yield str(numbers["seed"])
    yield " → ".join(f"{one['win_rate_vs_sft']:.2f}" for one in ppo)
    yield " → ".join(f"{value:.2f}" for value in (ppo[0]["gold_before"], *(one["gold_after"] for one in ppo)))
    yield ", ".join(
        f"{one['accuracy_gold']:.3f} ({one['baselines']['bag_of_words']['accuracy_gold']:.3f})"
        for one in models
    )
    yield ", ".join(
        f"{one['stale_accuracy_gold']:.3f} → {one['fresh_accuracy_gold']:.3f}" for one in _refreshed(numbers)
    )
    yield f"{ppo[-1]['kl']:.1f}"


def _refreshed(numbers: Numbers) -> list[Numbers]:
    """Return the reward models that follow another one."""
    models = [one["reward_model"] for one in numbers["rounds"]]
    return [one for one in models if one["stale_accuracy_gold"] is not None]


def _means(found: Sequence[Numbers]) -> Iterator[str]:
    ends = [one["rounds"][-1] for one in found]
    refreshed = [one for numbers in found for one in _refreshed(numbers)]
    yield ""
    yield _spread([one["ppo"]["win_rate_vs_sft"] for one in ends])
    yield _spread([one["ppo"]["gold_after"] for one in ends])
    words = [one["reward_model"]["baselines"]["bag_of_words"]["accuracy_gold"] for one in ends]
    accuracy = [one["reward_model"]["accuracy_gold"] for one in ends]
    yield f"{_spread(accuracy, digits=3)} ({_spread(words, digits=3)})"
    both = [[one[f"{name}_accuracy_gold"] for one in refreshed] for name in ("stale", "fresh")]
    yield " → ".join(_spread(values, digits=3) for values in both) if len(refreshed) > 1 else ""
    yield _spread([one["ppo"]["kl"] for one in ends], digits=1)


def _spread(values: Sequence[float], *, digits: int = 2) -> str:
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def _broken(numbers: Numbers) -> Iterator[str]:
    fired, lost = numbers["fired"], numbers["half_lost"]
    yield f"{numbers['proxy_first']:.2f} → {numbers['proxy_last']:.2f}"
    peak = f"{numbers['gold_peak']:.2f} (update {numbers['gold_peak_update']})"
    yield f"{numbers['gold_first']:.2f} → {peak} → {numbers['gold_last']:.2f}"
    yield "no gain" if not numbers["gold_gained"] else "never" if lost is None else f"update {lost}"
    yield f"update {fired['update']:g}, {fired['signal']}" if fired else "none fired"
    yield f"{numbers['gold_saved']:+.2f}" if numbers["gold_saved"] is not None else ""


@with_exit_code
def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished quickstart")
    print(tables(parser.parse_args(argv).runs))


if __name__ == "__main__":
    raise SystemExit(main())
