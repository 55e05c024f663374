"""Learn which answer is less harmful from labels by people, by judges, and by both; print the tables.

`python -m examples.helpful_harmless.ai_feedback DATA FOLDER`: DATA has hh_rlhf, and FOLDER gets what the
untuned model makes of the answers, which is read once, and the figures as `ai_feedback.json`.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from examples.exit_codes import with_exit_code
from examples.helpful_harmless import accuracy, judge, kept
from examples.helpful_harmless.ai_feedback import arms, judges, picture, prompted, questions, summary, tables
from examples.helpful_harmless.ai_feedback import trial as trials
from examples.helpful_harmless.ai_feedback.judges import Evidence
from examples.helpful_harmless.ai_feedback.questions import Asked
from examples.helpful_harmless.baselines import CONFIG, load_pairs, read_pairs, read_sides, untuned_model
from examples.helpful_harmless.judge import Array
from examples.helpful_harmless.reading import Readings, digest_of
from examples.plots import picture_file
from fairlead import log
from fairlead.config import RunConfig, load, parse_overrides
from trainer import durable

logger = logging.getLogger(__name__)


@with_exit_code
def main(argv: Sequence[str] | None = None) -> None:
    """Read the flags, learn and print."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.helpful_harmless.ai_feedback", description=__doc__
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with hh_rlhf")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder for what is computed")
    parser.add_argument("--config", type=Path, default=CONFIG, help="TOML file that names the model")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--repetitions", type=int, default=100, help="random splits, 2 or more")
    parser.add_argument("--learnt", type=int, default=800, help="pairs to learn from")
    parser.add_argument("--judges", type=int, default=400, help="pairs that trained judges learn from")
    parser.add_argument("--penalty", type=float, default=judge.PENALTY, help="of the reward models")
    parser.add_argument(
        "--heldout-only",
        action="store_true",
        help="use the pairs that the run holds out, whose features its evaluation keeps in the run's folder",
    )
    parser.add_argument(
        "--ask",
        action="store_true",
        help="also ask the untuned model which answer is less harmful, which takes twice as long as reading",
    )
    parser.add_argument("--picture", type=picture_file, default=None, help="file for a picture, .svg or .png")
    options = parser.parse_args(argv)
    if (
        options.repetitions < 2
        or min(options.learnt // max(arms.SIZES), options.judges) <= 0
        or not 0 < options.penalty < math.inf
    ):
        parser.error(
            f"give 2 or more --repetitions, {max(arms.SIZES)} or more pairs --learnt, "
            "and --judges and a finite --penalty above 0"
        )
    config = load(options.config, overrides=parse_overrides(options.set))
    log.setup(style="human", level=config.observe.log_level)
    asked = questions.load(options.data)
    pairs = load_pairs(config) if options.heldout_only else None
    if pairs is not None:
        asked = questions.among(asked, pairs.unseen)
    plan = trials.Plan(options.learnt, options.judges, seed=config.seed, penalty=options.penalty)
    # Whether pairs are left to be held out is known before the model reads them, which takes minutes.
    trials.divided(asked, plan, np.random.default_rng(plan.seed))
    if pairs is None:
        readings = read_sides(config, asked.pairs, options.folder / "readings_all.npz")
    else:
        readings = read_pairs(config, pairs)
    evidence = evidence_of(config, asked, readings, options.folder, ask=options.ask)
    figures = learn(evidence, plan, repetitions=options.repetitions)
    durable.write_json(options.folder / "ai_feedback.json", figures)
    sys.stdout.write(f"{tables.markdown(figures)}\n")
    if options.picture is not None:
        picture.draw(figures, options.picture)


def evidence_of(
    config: RunConfig, asked: Asked, readings: Mapping[str, Readings], folder: Path, *, ask: bool
) -> Evidence:
    """Return the features of pairs, and the margins of untrained judges.

    Args:
        config: names the model.
        asked: the pairs.
        readings: of their answers, `better` and `worse`.
        folder: for what the model says as a judge.
        ask: whether it is asked.

    Raises:
        ModelLoadError: if the model cannot be loaded.
    """
    better, worse = readings["better"], readings["worse"]
    margins = {
        "likelihood": np.array(accuracy.margins_of_likelihood(better, worse)["log_likelihood"]),
        **judges.margins_of_texts(asked),
    }
    if ask:
        odds_P2 = _asked(config, asked, folder / "asked_untuned.json")
        margins["prompted"] = odds_P2.mean(axis=1)
        logger.info(
            "the untuned model prefers the first answer in %.1f%%, and the same one in both orders in %.1f%%",
            100 * np.mean(np.stack([odds_P2[:, 0] > 0, odds_P2[:, 1] < 0])),
            100 * np.mean(np.sign(odds_P2[:, 0]) == np.sign(odds_P2[:, 1])),
        )
    return Evidence(asked, better.features_NF, worse.features_NF, margins)


def learn(evidence: Evidence, plan: trials.Plan, *, repetitions: int) -> dict[str, object]:
    """Return the figures of all arms.

    Raises:
        ConfigError: if no pair is left to be held out.
    """
    tally = summary.Tally(evidence.asked.question_P, arms.arms(plan.learnt, evidence.real))
    for repetition in range(repetitions):
        tally.trials.append(trials.run(evidence, tally.arms, plan, repetition=repetition))
        if (repetition + 1) % 10 == 0:
            logger.info("%d of %d repetitions", repetition + 1, repetitions)
    return summary.figures(tally, seed=plan.seed)


def _asked(config: RunConfig, asked: Asked, file: Path) -> Array:
    """Return the result of `prompted.log_odds`, from a file if it has that of the same model and question."""
    texts = [str(prompted.message(pair.prompt, pair.chosen, pair.rejected)) for pair in asked.pairs]
    path = untuned_model(config)
    digest = digest_of(path, config.reward, texts)
    known = kept.read(file, digest)
    if known is not None:
        return np.array(known["log_odds"])
    logger.info("asking the untuned model about %d pairs in both orders", len(asked.pairs))
    found = prompted.log_odds(path, asked.pairs, config.reward)
    kept.write(file, digest, {"log_odds": found.tolist()})
    return found


if __name__ == "__main__":
    raise SystemExit(main())
