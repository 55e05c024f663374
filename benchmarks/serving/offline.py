"""The offline optimum of a core: all requests known in advance, packed optimally, no server.

`python -m benchmarks.serving.offline MODEL` reads lines `{"kind", "count", "seed", "vocabulary"}` and answers
each with one: seconds of the best packing, seconds of every sequence by itself, for our forward pass and
transformers' own, and its scores.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.serving import workload
from fairlead.config.serving import RewardSection
from fairlead.nn.allocator import keep_freed_memory
from services.reward.item_reader import EncodedItem
from services.reward.scorer import RewardScorer

BUDGETS = (2_048, 8_192)
"""Batch sizes in tokens that are tried; the best is reported."""


def main(path: str) -> None:
    """Answer until standard input ends."""
    keep_freed_memory()
    torch.set_num_threads(1)
    scorer = RewardScorer(path, RewardSection(device="cpu", share_prompts=False))
    model: Any = AutoModelForSequenceClassification.from_pretrained(Path(path)).eval()
    answer({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        kinds: dict[str, Any] = {"mixed": workload.mixed, "shared": workload.shared}
        make = kinds[asked["kind"]]
        requests = make(asked["count"], seed=asked["seed"], vocabulary=asked["vocabulary"])
        sequences = [EncodedItem(*pair) for request in requests for pair in request]
        best = [_packed(scorer, sequences, budget) for budget in BUDGETS]
        few = sequences[: asked.get("separate", 0)]
        answer(
            {
                "seconds": min(seconds for seconds, _ in best),
                "cpu_seconds": min(cpu for _, cpu in best),
                "separate": [_timed(partial(scorer.score, [one])) for one in few],
                "separate_transformers": [_timed(partial(_plain, model, one)) for one in few],
            }
        )


def answer(value: object) -> None:
    """A line."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _packed(scorer: RewardScorer, sequences: Sequence[EncodedItem], budget: int) -> tuple[float, float]:
    batches: list[list[EncodedItem]] = [[]]
    tokens = 0
    for sequence in sequences:
        if tokens and tokens + len(sequence) > budget:
            batches.append([])
            tokens = 0
        batches[-1].append(sequence)
        tokens += len(sequence)
    cpu = time.process_time()
    seconds = _timed(lambda: [scorer.score(batch) for batch in batches])
    return seconds, time.process_time() - cpu


def _plain(model: Any, sequence: EncodedItem) -> float:  # noqa: ANN401 - transformers' own
    with torch.inference_mode():
        return float(model(input_ids=torch.tensor([sequence])).logits[0, 0])


def _timed(run: Any) -> float:  # noqa: ANN401 - any result is timed
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1])
