"""Evaluation of a trained reward model: accuracy and its baselines, calibration, scores of demonstrations.

Also shifts the bias so that demonstrations score 0 on average (Stiennon et al. 2020, section 3.4): a loss on
differences does not determine the zero, and PPO's first values and the report need a meaningful one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from fairlead.config import RunConfig
from fairlead.data.demonstrations import Example, PlainText
from fairlead.data.records import Split, load_demonstrations
from fairlead.judgments.calibration import accuracy, expected_calibration_error
from fairlead.judgments.shares import wilson_interval
from fairlead.nn.ensemble import RewardEnsemble
from fairlead.nn.reward_model import RewardModel
from trainer import calibration, seeds
from trainer import demonstrations as encoding
from trainer.rankings import EncodedRanking
from trainer.rankings import pack as pack_rankings
from trainer.reward_model import baselines, loss
from trainer.sequences import overhead_tokens, pack
from trainer.tracking import Doing

_T = TypeVar("_T")
Model = RewardModel | RewardEnsemble
MAX_DEMONSTRATIONS = 2_048
"""Most demonstrations to score; their mean is then known to about 2% of their standard deviation."""
MAX_RANKINGS = 2_048
"""Most rankings whose scores the quantiles are computed from."""


def _silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


def _reported(groups: Iterable[list[_T]], what: str, total: int, *, doing: Doing) -> Iterator[list[_T]]:
    """Yield the groups, and report before each how many of their members are done."""
    done = 0
    for group in groups:
        doing(what, done, total)
        yield group
        done += len(group)


@torch.no_grad()
def margins_by_prompt(
    model: Model,
    rankings: Sequence[EncodedRanking],
    *,
    max_tokens: int,
    dtype: torch.dtype = torch.float32,
    doing: Doing = _silent,
) -> tuple[dict[str, list[float]], list[float]]:
    """Return the margins of the pairs of each prompt, and the loss of each ranking."""
    margins: dict[str, list[float]] = {}
    losses: list[float] = []
    what = ("comparing held-out responses", len(rankings))
    groups = pack_rankings(rankings, max_tokens=max_tokens, overhead=overhead_tokens(model.device))
    for members in _reported(groups, *what, doing=doing):
        for scores_K, ranking in zip(loss.forward(model, members, dtype=dtype), members, strict=True):
            margins.setdefault(ranking.prompt, []).extend(loss.margins(scores_K, ranking.pairs).tolist())
            losses.append(float(loss.ranking_loss(scores_K, ranking.pairs)))
    return margins, losses


def evaluate(
    model: Model,
    rankings: Sequence[EncodedRanking],
    *,
    max_tokens: int,
    dtype: torch.dtype = torch.float32,
    doing: Doing = _silent,
) -> dict[str, float]:
    """Return `accuracy`, `ece` and `loss` on comparisons; NaN without comparisons."""
    margins, losses = margins_by_prompt(model, rankings, max_tokens=max_tokens, dtype=dtype, doing=doing)
    return summary([margin for found in margins.values() for margin in found], losses)


@torch.no_grad()
def score_spread(
    model: Model,
    rankings: Sequence[EncodedRanking],
    *,
    max_tokens: int,
    dtype: torch.dtype = torch.float32,
    doing: Doing = _silent,
) -> tuple[list[float], float]:
    """Return the 0.5% and 99.5% quantiles of the scores of responses, which PPO's guard uses as a range, and
    their standard deviation, by which PPO punishes a missing end.
    """
    drawn = rankings[:MAX_RANKINGS]
    groups = pack_rankings(drawn, max_tokens=max_tokens, overhead=overhead_tokens(model.device))
    parts = [
        scores_K
        for members in _reported(groups, "scoring rankings", len(drawn), doing=doing)
        for scores_K in loss.forward(model, members, dtype=dtype)
    ]
    scores_N = torch.cat(parts).float().cpu()
    quantiles = torch.quantile(scores_N, torch.tensor([0.005, 0.995])).tolist()
    return quantiles, float(scores_N.double().std(unbiased=False))


def summary(margins: Sequence[float], losses: Sequence[float]) -> dict[str, float]:
    """Return `accuracy`, `ece` and `loss` of margins and losses; NaN without any."""
    return {
        "accuracy": accuracy(margins),
        "ece": expected_calibration_error(margins),
        "loss": sum(losses) / len(losses) if losses else float("nan"),
    }


def intervals(margins: Mapping[str, Sequence[float]], *, seed: int) -> dict[str, list[float]]:
    """Return 95% intervals of the accuracy: Wilson's for independent pairs, and with prompts resampled."""
    found = [margin for members in margins.values() for margin in members]
    wilson = wilson_interval(accuracy(found), len(found)) if found else (0.0, 1.0)
    return {
        "accuracy_interval": list(wilson),
        "accuracy_interval_by_prompt": list(calibration.interval_by_prompt(margins, seed=seed)),
    }


def baseline_accuracies(
    train: Sequence[EncodedRanking], heldout: Sequence[EncodedRanking]
) -> dict[str, dict[str, float]]:
    """Return the accuracy of the baselines on the held-out pairs; NaN without pairs."""
    known, asked = ([pair for ranking in side for pair in ranking.text_pairs] for side in (train, heldout))
    return {
        "longer_wins": {"accuracy": accuracy(baselines.longer_wins(asked))},
        "bag_of_words": {"accuracy": accuracy(baselines.bag_of_words(known, asked))},
    }


def demonstration_sequences(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> Split[tuple[int, ...]] | None:
    """Return demonstrations as token ids, at most MAX_DEMONSTRATIONS per split; None without any.

    Those that do not fit with the ends of their answers are left out, since no answer is scored without.
    """
    if not (config.data.demonstrations or config.data.sentences):
        return None
    found = load_demonstrations(config)
    train, heldout = (
        tuple(
            tuple(sequence.token_ids)
            for sequence in encoding.encode_whole(_drawn(side, config.seed), tokenizer, max_tokens=max_tokens)
        )
        for side in (found.train, found.heldout)
    )
    return Split(train=train, heldout=heldout) if train else None


@torch.no_grad()
def mean_score(
    model: Model,
    sequences: Sequence[tuple[int, ...]],
    *,
    max_tokens: int,
    dtype: torch.dtype = torch.float32,
    doing: Doing = _silent,
) -> float:
    """Return the mean score of the sequences; NaN without sequences."""
    total = 0.0
    lengths = [len(sequence) for sequence in sequences]
    groups = pack(lengths, max_tokens=max_tokens, overhead=overhead_tokens(model.device))
    for group in _reported(groups, "scoring demonstrations", len(sequences), doing=doing):
        total += float(loss.score(model, [sequences[index] for index in group], dtype=dtype).double().sum())
    return total / len(sequences) if sequences else float("nan")


@torch.no_grad()
def shift(model: RewardModel, amount: float) -> None:
    """Add a constant to every score."""
    model.head.bias.add_(amount)


def _drawn(side: Sequence[Example], seed: int) -> list[Example]:
    answers = [example for example in side if not isinstance(example, PlainText)]
    order = seeds.permutation(len(answers), seed, "demonstrations")[:MAX_DEMONSTRATIONS]
    return [answers[index] for index in order]
