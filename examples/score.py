"""Rank answers with a running reward service: `python -m examples.score ADDRESS PROMPT ANSWER...`.

Shows the synchronous client. It needs neither torch nor a training run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from examples.exit_codes import with_exit_code
from fairlead import RewardClient


def rank(address: str, prompt: str, answers: Sequence[str]) -> list[tuple[float, str]]:
    """Return (score, answer) pairs, best first.

    Raises:
        InvalidInput: the service cannot score an answer; the message says which and why.
        FairleadError: the service is unreachable or overloaded, and retrying did not help.
    """
    with RewardClient(address) as reward:
        scores = reward.score([(prompt, answer) for answer in answers]).scores
    return sorted(zip(scores, answers, strict=True), reverse=True)


@with_exit_code
def main(argv: Sequence[str] | None = None) -> None:
    """Print the ranking."""
    parser = argparse.ArgumentParser(prog="python -m examples.score", description=__doc__)
    parser.add_argument("address", help="address of the reward service, such as 127.0.0.1:50051")
    parser.add_argument("prompt")
    parser.add_argument("answers", nargs="+", metavar="answer")
    options = parser.parse_args(argv)
    for score, answer in rank(options.address, options.prompt, options.answers):
        print(f"{score:+.3f}  {answer}")


if __name__ == "__main__":
    raise SystemExit(main())
