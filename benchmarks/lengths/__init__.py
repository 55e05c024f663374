"""Lengths of real answers in tokens: those of eight models to each of 684 instructions.

`alpaca_eval.json` has a list [prompt, response 1, … response 8] for every instruction of AlpacaEval
(github.com/tatsu-lab/alpaca_eval, Apache-2.0), counted by a byte-level BPE of 32,768 tokens trained on the
same texts. It contains no text. `python -m benchmarks.lengths RANKINGS.jsonl.gz` counts again.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

FILE = Path(__file__).with_name("alpaca_eval.json")
VOCABULARY = 32_768

Group = tuple[int, ...]
"""Tokens of a prompt, then of each response."""


def groups(count: int, *, longest: int, seed: int = 0) -> list[Group]:
    """Draw random instructions whose sequences all have at most `longest` tokens."""
    rows: list[list[int]] = json.loads(FILE.read_text())
    fitting = [tuple(row) for row in rows if row[0] + max(row[1:]) <= longest and min(row) > 0]
    return random.Random(seed).sample(fitting, count)


def count(rankings: Path) -> list[list[int]]:
    """Return the token counts of a file of rankings, one list per prompt."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    with gzip.open(rankings, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts = [[row["prompt"], *(response["text"] for response in row["responses"])] for row in rows]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator((text for row in texts for text in row), trainer)
    return [[len(encoding.ids) for encoding in tokenizer.encode_batch(row)] for row in texts]
