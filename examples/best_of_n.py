"""Best-of-n: the policy answers n times, the reward model picks. No training; a bar that training must pass.

`python -m examples.best_of_n POLICY REWARD PROMPT` shows one prompt's answers in order;
`python -m examples.best_of_n POLICY REWARD --prompts FILE` shows how the best score grows with n.
POLICY and REWARD are addresses of running services.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fairlead import FairleadError, PolicyClient, RewardClient, SamplingParams

SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer."""

    text: str
    """As the policy wrote it."""
    score: float
    """The reward model's."""


def candidates(
    policy: PolicyClient, reward: RewardClient, prompt: str, *, num_samples: int, sampling: SamplingParams
) -> list[Candidate]:
    """Answers to a prompt, the best first.

    Raises:
        FairleadError: a service refuses the prompt, or cannot be reached.
    """
    texts = [found.text for found in policy.generate(prompt, sampling, num_samples=num_samples)]
    scores = reward.score([(prompt, text) for text in texts]).scores
    found = [Candidate(text, score) for text, score in zip(texts, scores, strict=True)]
    return sorted(found, key=lambda candidate: -candidate.score)


def expected_best(scores: Sequence[float], n: int) -> float:
    """Mean of the best of n scores, over all ways to draw n of them without replacement.

    The k-th smallest of N is the best of a draw in C(k−1, n−1) of the C(N, n) ways; this is unbiased, where
    the best of the first n alone is noisy.
    """
    ways = math.comb(len(scores), n)
    return sum(math.comb(k, n - 1) / ways * score for k, score in enumerate(sorted(scores)))


def divergence(n: int) -> float:
    """KL of best-of-n from the policy, in nats an answer, at most: log n − (n−1)/n (Stiennon et al. 2020)."""
    return math.log(n) - (n - 1) / n


def growth(groups: Sequence[Sequence[float]]) -> list[tuple[int, float]]:
    """(n, mean over prompts of the expected best score) for n = 1, 2, 4 … up to the samples of a prompt."""
    most = min(len(scores) for scores in groups)
    sizes = [2**power for power in range(most.bit_length())]
    return [(n, fmean(expected_best(scores, n) for scores in groups)) for n in sizes]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one ranking, or the growth with n; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.best_of_n", description=__doc__)
    parser.add_argument("policy", help="address of the policy service")
    parser.add_argument("reward", help="address of the reward service")
    parser.add_argument("prompt", nargs="?", help="one prompt, instead of --prompts")
    parser.add_argument("--prompts", type=Path, help='a file with {"prompt"} a line')
    parser.add_argument("--count", type=int, default=32, help="prompts drawn from the file")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="answers to a prompt")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if (options.prompt is None) == (options.prompts is None):
        parser.error("give one prompt, or --prompts FILE")
    sampling = SamplingParams(max_new_tokens=options.max_new_tokens, seed=options.seed)
    try:
        with PolicyClient(options.policy) as policy, RewardClient(options.reward) as reward:

            def ask(prompt: str) -> list[Candidate]:
                return candidates(policy, reward, prompt, num_samples=options.samples, sampling=sampling)

            if options.prompt is not None:
                for found in ask(options.prompt):
                    print(f"{found.score:+.3f}  {found.text}")
                return 0
            prompts = _drawn(options.prompts, count=options.count, seed=options.seed)
            groups = [[found.score for found in ask(prompt)] for prompt in prompts]
    except (FairleadError, OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    print(f"{'n':>3}  {'score of the best':>17}  {'KL, nats':>8}")
    for n, score in growth(groups):
        print(f"{n:>3}  {score:>+17.3f}  {divergence(n):>8.2f}")
    return 0


def _drawn(path: Path, *, count: int, seed: int) -> list[str]:
    prompts = [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]
    return random.Random(seed).sample(prompts, k=min(count, len(prompts)))


if __name__ == "__main__":
    raise SystemExit(main())
