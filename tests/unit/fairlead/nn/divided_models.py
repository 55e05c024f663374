"""One of two ranks that load models in parts and compute log-probs and scores with them; see its test.

`python -m tests.unit.fairlead.nn.divided_models RANK FOLDER` reads the models below FOLDER, and rank 0 writes
`NAME.json` next to each: its values, or the error of its loading.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from fairlead.config.serving import ReferenceSection, RewardSection
from fairlead.errors import FairleadError
from fairlead.nn import tensor_parallel
from fairlead.nn.loading import load_tokenizer
from fairlead.types import TokenPair
from services.reference.model import LocalModel as Reference
from services.reference.model import Lookup
from services.reward.compute.model import LocalModel as Reward


def lookups(vocabulary_size: int) -> list[Lookup]:
    """Return sequences of several lengths and temperatures."""
    rng = random.Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary_size) for _ in range(length))

    shapes = [(1, 1), (30, 34), (5, 60), (60, 5), (40, 40), (2, 9)]
    return [
        Lookup(TokenPair(ids(p), ids(r)), 0.7 if index % 2 else 1.0) for index, (p, r) in enumerate(shapes)
    ]


def values(path: Path, size: int) -> dict[str, object]:
    """Return what a model computes if it is divided among `size` ranks, and its parameters on this rank."""
    if path.name.startswith("reward"):
        section = RewardSection(device="cpu", tensor_parallel=size)
        reward = Reward(str(path), section, load_tokenizer(str(path)))
        sequences = [
            (*lookup.pair.prompt_token_ids, *lookup.pair.response_token_ids)
            for lookup in lookups(reward.facts.vocabulary_size)
        ]
        return {"values": reward.prepare(sequences)(), "version": reward.facts.version}
    reference = Reference(str(path), ReferenceSection(device="cpu", tensor_parallel=size, pack_weights=False))
    found = reference.logprobs(lookups(reference.info.vocabulary_size))
    held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in reference._model.parameters())
    return {"values": [value for row in found for value in row], "held": held}


def main(rank: int, folder: Path) -> None:
    """Run one rank."""
    tensor_parallel.join(rank, 2, meeting_point=folder / "meet", device=torch.device("cpu"))
    for path in sorted(one for one in folder.iterdir() if one.is_dir()):
        try:
            found = values(path, 2)
        except FairleadError as error:
            found = {"error": str(error)}
        if rank == 0:
            path.with_suffix(".json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
