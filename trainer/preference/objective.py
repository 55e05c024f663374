"""Log-probs of answers, the loss of a step in micro-batches, and the figures of held-out examples.

Every rank computes some of the micro-batches; the gradient depends neither on their number nor on that of the
ranks. Shapes: S sequences, N response tokens of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairlead.config.preference import PreferenceSection
from fairlead.judgments.calibration import accuracy
from trainer.distributed import collectives, micro_batches
from trainer.distributed.sharding import Root
from trainer.preference import losses
from trainer.preference.data import Example
from trainer.rankings import share
from trainer.sequences import PaddedSequences, TokenSequence, pad, response_logprobs

Parts = Iterator[tuple[Tensor, Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class Compared:
    """An example with the log-probs of its sequences under the reference."""

    example: Example
    """The example."""
    reference_S: Tensor
    """Log-prob of each sequence, float64 on the CPU."""

    @property
    def sequences(self) -> tuple[TokenSequence, ...]:
        """Its sequences."""
        return self.example.sequences

    @property
    def longest(self) -> int:
        """Length of the longest one."""
        return self.example.longest

    @property
    def num_tokens(self) -> Tensor:
        """Number of response tokens of each sequence."""
        return torch.tensor([sequence.response_length for sequence in self.sequences])


def compared(examples: Sequence[Example], reference_S: Tensor) -> list[Compared]:
    """Return the examples with their parts of the reference's log-probs, which are in the order of
    sequences.
    """
    parts = torch.split(reference_S, [len(example.sequences) for example in examples])
    return [Compared(example, part_S) for example, part_S in zip(examples, parts, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The model that is trained, and how log-probs are computed with it."""

    root: Root
    """The model, divided among the ranks."""
    section: PreferenceSection
    """Loss and limits."""
    dtype: torch.dtype
    """Type that autocast computes in."""

    def logprobs(
        self, sequences: Sequence[TokenSequence], *, on_micro_batch: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Return the log-prob [S] of each answer without gradient, float64 on the CPU, on every rank.

        `on_micro_batch` is called after each micro-batch, equally often on every rank.
        """
        found_S = torch.zeros(len(sequences), dtype=torch.float64)
        with torch.no_grad():
            for indices, batch in self._padded(sequences):
                sums = self._sums(batch, [sequences[index].response_length for index in indices])
                if indices:
                    found_S[torch.tensor(indices)] = sums.double().cpu()
                on_micro_batch()
        return collectives.combined(found_S, self.root.group)

    def parts(self, members: Sequence[Compared]) -> Parts:
        """Yield the loss of each micro-batch of this rank, as its share of the mean over all examples of a
        step, and the figures, as shares too.
        """
        return self._of_rankings(members) if self.section.is_paired else self._of_thumbs(members)

    def _of_rankings(self, members: Sequence[Compared]) -> Parts:
        device, group = self.root.device, self.root.group
        num_pairs = sum(len(one.example.pairs) for one in members)
        for part in share(members, device, max_tokens=self.section.max_micro_batch_tokens, group=group):
            group.progress(f"micro-batch of {len(part)} rankings")
            sequences = [sequence for one in part for sequence in one.sequences]
            # An empty one fills up the micro-batches of a rank; it changes no gradient.
            policy_S = self._sums(
                pad(sequences or [micro_batches.NOTHING], device), [one.response_length for one in sequences]
            )
            total = policy_S.sum() * 0.0
            figures = dict.fromkeys(("accuracy", "margin", "chosen_change", "rejected_change"), 0.0)
            sizes = [len(one.sequences) for one in part]
            for one, policy_K in zip(part, torch.split(policy_S, sizes) if sizes else (), strict=True):
                total = total + self._ranking_loss(one, policy_K) / len(members)
                for name, value in self._figures(one, policy_K.detach()).items():
                    figures[name] += value / num_pairs
            yield total, figures

    def _ranking_loss(self, one: Compared, policy_K: Tensor) -> Tensor:
        pairs, tokens_K = one.example.pairs, one.num_tokens.to(policy_K.device)
        change_K = losses.differences(policy_K, one.reference_S.to(policy_K), tokens_K, section=self.section)
        loss = losses.ranking_loss(change_K, pairs, section=self.section)
        if self.section.sft_coefficient:
            best = losses.best(len(policy_K), pairs)
            loss = loss - self.section.sft_coefficient * (policy_K / tokens_K)[best].mean()
        return loss

    def _figures(self, one: Compared, policy_K: Tensor) -> dict[str, float]:
        """Return sums over the pairs of one ranking."""
        policy_K = policy_K.double().cpu()
        change_K = losses.differences(policy_K, one.reference_S, one.num_tokens, section=self.section)
        margins_P = losses.margins(change_K, one.example.pairs)
        moved_K = policy_K - one.reference_S
        winners, losers = ([pair[side] for pair in one.example.pairs] for side in (0, 1))
        return {
            "accuracy": accuracy(margins_P.tolist()) * len(margins_P),
            "margin": self.section.beta * float(margins_P.sum()),
            "chosen_change": float(moved_K[winners].sum()),
            "rejected_change": float(moved_K[losers].sum()),
        }

    def _of_thumbs(self, members: Sequence[Compared]) -> Parts:
        others = self.logprobs([one.sequences[1] for one in members])
        baseline = losses.kto_baseline(
            float((others - torch.stack([one.reference_S[1] for one in members])).mean())
        )
        answers = [one.sequences[0] for one in members]
        counts = {good: max(1, sum(one.example.good is good for one in members)) for good in (True, False)}
        for indices, batch in self._padded(answers):
            policy_E = self._sums(batch, [answers[index].response_length for index in indices])
            chosen = [members[index] for index in indices]
            figures = dict.fromkeys(("accuracy", "margin", "chosen_change", "rejected_change"), 0.0)
            if not chosen:
                yield policy_E.sum() * 0.0, figures
                continue
            change_E = policy_E - torch.stack([one.reference_S[0] for one in chosen]).to(policy_E)
            good_E = torch.tensor([one.example.good for one in chosen], device=policy_E.device)
            loss = losses.kto_losses(
                change_E, good_E, torch.tensor(baseline, device=policy_E.device), section=self.section
            )
            for one, moved in zip(chosen, change_E.detach().double().tolist(), strict=True):
                signed = (moved - baseline) * (1 if one.example.good else -1)
                figures["accuracy"] += accuracy([signed]) / len(members)
                figures["margin"] += self.section.beta * signed / len(members)
                side = "chosen_change" if one.example.good else "rejected_change"
                figures[side] += moved / counts[one.example.good]
            yield loss.sum() / len(members), {**figures, "baseline": baseline * len(chosen) / len(members)}

    def _padded(self, sequences: Sequence[TokenSequence]) -> Iterator[tuple[list[int], PaddedSequences]]:
        return micro_batches.padded(
            sequences,
            self.root.device,
            max_tokens=self.section.max_micro_batch_tokens,
            group=self.root.group,
        )

    def _sums(self, batch: PaddedSequences, lengths: Sequence[int]) -> Tensor:
        """Return the log-prob of each answer of a batch; without answers, of the token that fills it up,
        which is empty but has a gradient.
        """
        logprobs_N: Tensor = self.root(response_logprobs, batch, temperature=1.0, dtype=self.dtype)
        if not lengths:
            empty: Tensor = logprobs_N
            return empty
        return torch.stack([part.sum() for part in torch.split(logprobs_N, list(lengths))])


@dataclass(frozen=True, slots=True)
class Heldout:
    """The figures of held-out examples."""

    figures: dict[str, float]
    """`loss`, `accuracy`, `margin`, `chosen_change`, `rejected_change`, `chosen_logprob` and `drift`; NaN
    without examples."""
    margins: dict[str, list[float]]
    """β times the margin of each pair, or of each thumb, by prompt; positive if it is ordered as labelled."""
    chosen_error: float
    """Standard error of `chosen_change`; NaN with fewer than two answers."""


def evaluate(
    policy: Policy, members: Sequence[Compared], *, on_micro_batch: Callable[[], None] = lambda: None
) -> Heldout:
    """Return the figures of examples; every rank calls this and gets the same ones."""
    sequences = [sequence for one in members for sequence in one.sequences]
    policy_S = policy.logprobs(sequences, on_micro_batch=on_micro_batch)
    parts = torch.split(policy_S, [len(one.sequences) for one in members]) if members else ()
    section = policy.section
    rows = list(zip(members, parts, strict=True))
    margins: dict[str, list[float]] = {}
    found: dict[str, list[float]] = {name: [] for name in ("loss", "chosen", "rejected", "logprob", "drift")}
    if section.is_paired:
        for one, policy_K in rows:
            change_K = losses.differences(policy_K, one.reference_S, one.num_tokens, section=section)
            found["loss"].append(float(losses.ranking_loss(change_K, one.example.pairs, section=section)))
            gaps_P = section.beta * losses.margins(change_K, one.example.pairs)
            margins.setdefault(one.example.prompt, []).extend(gaps_P.tolist())
            for winner, loser in one.example.pairs:
                found["chosen"].append(float(policy_K[winner] - one.reference_S[winner]))
                found["rejected"].append(float(policy_K[loser] - one.reference_S[loser]))
                found["logprob"].append(float(policy_K[winner]))
            found["drift"] += (one.reference_S - policy_K).tolist()
    else:
        baseline = losses.kto_baseline(
            _mean([float(policy_K[1] - one.reference_S[1]) for one, policy_K in rows])
        )
        for one, policy_K in rows:
            moved_E = (policy_K - one.reference_S)[:1]
            good = one.example.good
            loss_E = losses.kto_losses(moved_E, torch.tensor([good]), torch.tensor(baseline), section=section)
            found["loss"].append(float(loss_E))
            gap = section.beta * (float(moved_E) - baseline) * (1 if good else -1)
            margins.setdefault(one.example.prompt, []).append(gap)
            found["chosen" if good else "rejected"].append(float(moved_E))
            found["logprob"] += [float(policy_K[0])] if good else []
            found["drift"].append(-float(moved_E))
    flat = [margin for group in margins.values() for margin in group]
    figures = {
        "loss": _mean(found["loss"]),
        "accuracy": accuracy(flat),
        "margin": _mean(flat),
        "chosen_change": _mean(found["chosen"]),
        "rejected_change": _mean(found["rejected"]),
        "chosen_logprob": _mean(found["logprob"]),
        "drift": _mean(found["drift"]),
    }
    return Heldout(figures, margins, _standard_error(found["chosen"]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _standard_error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return float("nan")
    mean = _mean(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
