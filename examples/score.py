"""Ranks answers to a prompt by a running reward service: `python -m examples.score ADDRESS PROMPT ANSWER...`.

The synchronous client from start to end; it needs no torch, and nothing else of a run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fairlead import FairleadError, RewardClient


def rank(address: str, prompt: str, answers: Sequence[str]) -> list[tuple[float, str]]:
    """(score, answer), the best first.

    Raises:
        InvalidInput: the service cannot score an answer; says which and why.
        FairleadError: it cannot be reached, or is overloaded, and trying again has not helped.
    """
    with RewardClient(address) as reward:
        scores = reward.score([(prompt, answer) for answer in answers]).scores
    return sorted(zip(scores, answers, strict=True), reverse=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the ranking; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.score", description=__doc__)
    parser.add_argument("address", help="of the reward service, such as 127.0.0.1:50051")
    parser.add_argument("prompt")
    parser.add_argument("answers", nargs="+", metavar="answer")
    options = parser.parse_args(argv)
    try:
        for score, answer in rank(options.address, options.prompt, options.answers):
            print(f"{score:+.3f}  {answer}")
    except FairleadError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
