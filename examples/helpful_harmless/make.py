"""Write the files of the run: `python -m examples.helpful_harmless.make DATA FOLDER`.

The pairs of hh_rlhf are divided into three parts without a common first question: one trains the reward model
and gives PPO its prompts, one trains the judge, and one is for evaluation only. Long conversations lose their
beginning, because a CPU reads them. Instructions of alpaca_eval with good answers are demonstrations of help.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from examples.exit_codes import with_exit_code
from examples.helpful_harmless import data, instructions
from examples.helpful_harmless.data import Pair

MAX_PROMPT_WORDS = 60
"""Most words of the messages that are kept before an answer."""
SHARES = {"train": 0.6, "judge": 0.2, "heldout": 0.2}
"""Parts and their shares of the first questions."""


def normalized(question: str) -> str:
    """Return a question in lower case with single spaces, as conversations are grouped by it."""
    return " ".join(question.lower().split())


def part_of(question: str) -> str:
    """Return the part of a conversation by its first question; see `normalized`."""
    digest = blake2b(normalized(question).encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    for part, share in SHARES.items():
        if place < share:
            return part
        place -= share
    return part


def shortened(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return the last messages with at most MAX_PROMPT_WORDS words in all, beginning with the user's.

    If the last message is longer than that by itself, its last words are kept.
    """
    kept: list[dict[str, str]] = []
    words = 0
    for message in reversed(messages):
        words += len(message["content"].split())
        if words > MAX_PROMPT_WORDS:
            break
        kept.insert(0, dict(message))
    if not kept:
        content = messages[-1]["content"].split()[-MAX_PROMPT_WORDS:]
        return [{"role": messages[-1]["role"], "content": " ".join(content)}]
    while kept[0]["role"] != "user":
        kept.pop(0)
    return kept


def parts(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """Return the shortened pairs of each part. A shortened prompt of an earlier part is left out of a later
    one, as different conversations can end with the same words.
    """
    found: dict[str, list[Pair]] = {part: [] for part in SHARES}
    for pair in pairs:
        part = part_of(pair["prompt"][0]["content"])
        found[part].append({**pair, "prompt": shortened(pair["prompt"])})
    known: set[str] = set()
    for part, members in found.items():
        found[part] = [pair for pair in members if json.dumps(pair["prompt"]) not in known]
        known |= {json.dumps(pair["prompt"]) for pair in members}
    return found


def make(file: Path, folder: Path) -> dict[str, int]:
    """Write `train.jsonl`, `judge.jsonl` and `heldout.jsonl`; return the number of pairs in each.

    Raises:
        FairleadError: the file cannot be read.
    """
    found = parts(data.pairs(file))
    folder.mkdir(parents=True, exist_ok=True)
    for part, pairs in found.items():
        text = "".join(json.dumps(pair) + "\n" for pair in pairs)
        (folder / f"{part}.jsonl").write_text(text, encoding="utf-8")
    return {part: len(pairs) for part, pairs in found.items()}


def make_demonstrations(file: Path, folder: Path) -> int:
    """Write `demonstrations.jsonl`, conversations of an instruction and its answer; return their number.

    Raises:
        FairleadError: the file cannot be read.
    """
    found = instructions.demonstrations(file)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        [{"role": "user", "content": one.prompt}, {"role": "assistant", "content": one.answer}]
        for one in found
    ]
    text = "".join(json.dumps({"messages": row}) + "\n" for row in rows)
    (folder / "demonstrations.jsonl").write_text(text, encoding="utf-8")
    return len(rows)


@with_exit_code
def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments and write the files."""
    parser = argparse.ArgumentParser(prog="python -m examples.helpful_harmless.make", description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with hh_rlhf and alpaca_eval")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder for the files")
    options = parser.parse_args(argv)
    pairs, rankings = (data.data_file(options.data, name) for name in (data.PAIRS, data.RANKINGS))
    counts = make(pairs, options.folder)
    counts["demonstrations"] = make_demonstrations(rankings, options.folder)
    sys.stdout.write(
        ", ".join(f"{name}.jsonl: {count}" for name, count in counts.items()) + f" in {options.folder}\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
