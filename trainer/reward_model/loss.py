"""−log σ(r_winner − r_loser), the mean over the pairs of a prompt (Ouyang et al. 2022, section 3.5).

Shapes: B sequences, K responses of a prompt, P pairs of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fairlead.nn.ensemble import RewardEnsemble
from fairlead.nn.reward_model import RewardModel
from trainer.distributed.group import Group
from trainer.rankings import EncodedRanking, share
from trainer.sequences import autocast, overhead_tokens, pack


@dataclass(frozen=True, slots=True)
class RankingLoss:
    """The loss of training: of each pair −(1 − ε)·log σ(d) − ε·log σ(−d), d = r_winner − r_loser − m.

    m is by how much the winner is better, times a coefficient (Llama 2, Touvron et al. 2023, equation 2); ε
    is the probability that a label is wrong (label smoothing, Mitchell 2023).
    """

    margin: float = 0.0
    """Coefficient of the margins of the data."""
    label_smoothing: float = 0.0
    """ε."""

    def __call__(self, scores_K: Tensor, ranking: EncodedRanking) -> Tensor:
        """Return the mean over the pairs of one prompt."""
        if not (self.margin or self.label_smoothing):
            return ranking_loss(scores_K, ranking.pairs)
        difference_P = margins(scores_K, ranking.pairs)
        if self.margin and ranking.margins:
            difference_P = difference_P - self.margin * difference_P.new_tensor(ranking.margins)
        kept, wrong = 1 - self.label_smoothing, self.label_smoothing
        return -(kept * logsigmoid(difference_P) + wrong * logsigmoid(-difference_P)).mean()


def ranking_loss(scores_K: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Return the mean loss of the pairs of one prompt; ln 2 if their scores are equal."""
    return -logsigmoid(margins(scores_K, pairs)).mean()


def margins(scores_K: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Return the score of the winner minus that of the loser, [P]."""
    index_P2 = torch.tensor(pairs, dtype=torch.long, device=scores_K.device)
    return scores_K[index_P2[:, 0]] - scores_K[index_P2[:, 1]]


def forward(
    model: RewardModel | RewardEnsemble,
    rankings: Sequence[EncodedRanking],
    *,
    dtype: torch.dtype = torch.float32,
    by_length: bool = False,
) -> list[Tensor]:
    """Return the scores [K] of each ranking, every response once.

    Args:
        model: scores them.
        rankings: at least one.
        dtype: type that autocast computes in.
        by_length: compute sequences of similar length together, in several forward passes if that costs less
            than their padding; otherwise there is one pass, as ranks that compute in step need it.
    """
    sequences = [sequence for ranking in rankings for sequence in ranking.sequences]
    score_all = _score_by_length if by_length else score
    scores_B = score_all(model, sequences, dtype=dtype)
    return list(torch.split(scores_B, [len(ranking.sequences) for ranking in rankings]))


def _score_by_length(
    model: RewardModel | RewardEnsemble, sequences: Sequence[Sequence[int]], *, dtype: torch.dtype
) -> Tensor:
    """Return what `score` does."""
    lengths = [len(sequence) for sequence in sequences]
    overhead = overhead_tokens(model.device)
    parts = list(pack(lengths, max_tokens=max(lengths) * len(lengths), overhead=overhead))
    scores_B = torch.cat([score(model, [sequences[index] for index in part], dtype=dtype) for part in parts])
    places_B = torch.tensor([index for part in parts for index in part], device=scores_B.device)
    return scores_B[places_B.argsort()]


def score(
    model: RewardModel | RewardEnsemble,
    sequences: Sequence[Sequence[int]],
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the score [B] of each sequence, in one forward pass."""
    device = model.device
    width = max(len(sequence) for sequence in sequences)
    tokens_BT = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        tokens_BT[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    lengths_B = torch.tensor([len(sequence) for sequence in sequences], device=device)
    with autocast(device, dtype):
        return model.scores(tokens_BT.to(device), lengths_B)


def micro_batch_losses(
    model: RewardModel,
    rankings: Sequence[EncodedRanking],
    *,
    max_tokens: int,
    dtype: torch.dtype = torch.float32,
    group: Group | None = None,
    loss: RankingLoss | None = None,
) -> Iterator[Tensor]:
    """Yield the loss of each micro-batch, as its share of the mean over all rankings given.

    Each rank takes some of the rankings.
    """
    group = group or Group.single()
    loss = loss or RankingLoss()
    for members in share(rankings, model.device, max_tokens=max_tokens, group=group):
        group.progress(f"micro-batch of {len(members)} rankings")
        if not members:  # as many micro-batches as other ranks; no gradient
            yield score(model, [(0,)], dtype=dtype)[:0].sum()
            continue
        scores = forward(model, members, dtype=dtype, by_length=group.size == 1)
        losses = [loss(scores_K, ranking) for scores_K, ranking in zip(scores, members, strict=True)]
        yield torch.stack(losses).sum() / len(rankings)
