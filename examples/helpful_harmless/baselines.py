"""Compare baselines on held-out pairs, which needs no reward model.

`python -m examples.helpful_harmless.baselines [RUN.TOML]` prints the table without a reward model. What the
untuned model makes of the pairs is kept in the run's folder, and the evaluation reads it from there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from examples.exit_codes import with_exit_code
from examples.helpful_harmless import accuracy, judge
from examples.helpful_harmless.reading import Answer, Readings, kept_readings
from fairlead import log
from fairlead.config import RunConfig, load, parse_overrides
from fairlead.data.comparisons import Preference
from fairlead.data.records import load_preferences
from fairlead.errors import ConfigError

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "helpful_harmless.toml"


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of people, by who learns from them."""

    known: tuple[Preference, ...]
    """Pairs that the reward model is trained on."""
    unseen: tuple[Preference, ...]
    """Pairs that it does not see; the judge is trained on them."""


def load_pairs(config: RunConfig) -> Pairs:
    """Return the pairs of a run.

    Raises:
        FairleadError: if they are missing or invalid.
    """
    try:
        found = load_preferences(config)
    except ConfigError as error:
        how = "`python -m examples.helpful_harmless.make DATA FOLDER` writes those of this example"
        raise ConfigError(error.field, got=error.got, allowed=f"{error.allowed}; {how}") from error
    known, unseen = (
        tuple(pair for pair in side if isinstance(pair, Preference)) for side in (found.train, found.heldout)
    )
    return Pairs(known, unseen)


def side_of(pairs: Sequence[Preference], name: Literal["chosen", "rejected"]) -> list[Answer]:
    """Return the prompts of pairs with one side of each."""
    return [(pair.prompt, pair.chosen if name == "chosen" else pair.rejected) for pair in pairs]


def untuned_model(config: RunConfig) -> str:
    """Return the folder, file or hub id of the model that is tuned."""
    return config.policy.path or config.model.path


def read_sides(config: RunConfig, pairs: Sequence[Preference], file: Path) -> dict[str, Readings]:
    """Return what the untuned model makes of both answers of pairs, `better` and `worse`, which a file keeps.

    Raises:
        ModelLoadError: if the model cannot be loaded.
    """
    groups = {"better": side_of(pairs, "chosen"), "worse": side_of(pairs, "rejected")}
    return kept_readings(file, untuned_model(config), groups, config.reward)


def read_pairs(config: RunConfig, pairs: Pairs) -> dict[str, Readings]:
    """Return what the untuned model makes of the unseen pairs: `better` and `worse`."""
    return read_sides(config, pairs.unseen, config.folder.root / "readings_untuned.npz")


def margins(pairs: Pairs, readings: Mapping[str, Readings], *, seed: int) -> dict[str, list[float]]:
    """Return the margins of every baseline on the unseen pairs.

    The judge learns from the unseen pairs, so its margins are by folds: each by a head that has not seen it.
    """
    better, worse = readings["better"], readings["worse"]
    texts = ([(pair.chosen, pair.rejected) for pair in side] for side in (pairs.known, pairs.unseen))
    crossed = judge.crossed_margins(better.features_NF, worse.features_NF, seed=seed)
    return {
        "judge": crossed.tolist(),
        **accuracy.margins_of_texts(*texts),
        **accuracy.margins_of_likelihood(better, worse),
    }


@with_exit_code
def main() -> None:
    """Read the flags and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.helpful_harmless.baselines", description=main.__doc__
    )
    parser.add_argument("config", nargs="?", type=Path, default=CONFIG, help="the run's TOML file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    options = parser.parse_args()
    config = load(options.config, overrides=parse_overrides(options.set))
    log.setup(style="human", level=config.observe.log_level)
    pairs = load_pairs(config)
    found = margins(pairs, read_pairs(config, pairs), seed=config.seed)
    sys.stdout.write(f"{accuracy.table(accuracy.compare(found, seed=config.seed))}\n\n")
    sys.stdout.write(f"{len(pairs.known)} pairs to learn from, {len(pairs.unseen)} held out.\n")


if __name__ == "__main__":
    raise SystemExit(main())
