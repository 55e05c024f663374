"""Best-of-n: the policy answers n times, and the reward model picks the best. A baseline without training.

`python -m examples.best_of_n POLICY REWARD PROMPT` ranks the answers to one prompt;
`python -m examples.best_of_n POLICY REWARD --prompts FILE` shows how the best score grows with n.
POLICY and REWARD are addresses of running services.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from examples.exit_codes import with_exit_code
from fairlead import PolicyClient, RewardClient, SamplingParams
from fairlead.clients.best_of_n import divergence, expected_best
from fairlead.errors import ConfigError

SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer."""

    text: str
    """Text of the answer."""
    score: float
    """Score of the reward model."""


def candidates(
    policy: PolicyClient, reward: RewardClient, prompt: str, *, num_samples: int, sampling: SamplingParams
) -> list[Candidate]:
    """Generate answers to a prompt and return them, best first.

    Raises:
        FairleadError: a service refuses the prompt or is unreachable.
    """
    texts = [found.text for found in policy.generate(prompt, sampling, num_samples=num_samples)]
    scores = reward.score([(prompt, text) for text in texts]).scores
    found = [Candidate(text, score) for text, score in zip(texts, scores, strict=True)]
    return sorted(found, key=lambda candidate: -candidate.score)


def growth(groups: Sequence[Sequence[float]]) -> list[tuple[int, float]]:
    """Return (n, mean over prompts of the expected best score) for n = 1, 2, 4 … up to all samples."""
    most = min(len(scores) for scores in groups)
    sizes = [2**power for power in range(most.bit_length())]
    return [(n, fmean(expected_best(scores, n) for scores in groups)) for n in sizes]


@with_exit_code
def main(argv: Sequence[str] | None = None) -> None:
    """Print one ranking, or the growth with n."""
    parser = argparse.ArgumentParser(prog="python -m examples.best_of_n", description=__doc__)
    parser.add_argument("policy", help="address of the policy service")
    parser.add_argument("reward", help="address of the reward service")
    parser.add_argument("prompt", nargs="?", help="one prompt, instead of --prompts")
    parser.add_argument("--prompts", type=Path, help='a JSON Lines file with a key "prompt"')
    parser.add_argument("--count", type=int, default=32, help="number of prompts drawn from the file")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="number of answers per prompt")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.count < 1:
        parser.error(f"--count {options.count}: give 1 or more")
    if (options.prompt is None) == (options.prompts is None):
        parser.error("give one prompt, or --prompts FILE")
    sampling = SamplingParams(max_new_tokens=options.max_new_tokens, seed=options.seed)
    with PolicyClient(options.policy) as policy, RewardClient(options.reward) as reward:

        def ranked(prompt: str) -> list[Candidate]:
            return candidates(policy, reward, prompt, num_samples=options.samples, sampling=sampling)

        if options.prompt is not None:
            for found in ranked(options.prompt):
                print(f"{found.score:+.3f}  {found.text}")
            return
        prompts = _draw_prompts(options.prompts, count=options.count, seed=options.seed)
        groups = [[found.score for found in ranked(prompt)] for prompt in prompts]
    print(f"{'n':>3}  {'score of the best':>17}  {'KL, nats':>8}")
    for n, score in growth(groups):
        print(f"{n:>3}  {score:>+17.3f}  {divergence(n):>8.2f}")


def _draw_prompts(path: Path, *, count: int, seed: int) -> list[str]:
    try:
        prompts = [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        got = f"{path}, which cannot be read: {reason}"
        raise ConfigError("--prompts", got=got, allowed='a JSON Lines file with a key "prompt"') from error
    return random.Random(seed).sample(prompts, k=min(count, len(prompts)))


if __name__ == "__main__":
    raise SystemExit(main())
