"""A reward model divided among several processes: `[reward] tensor_parallel`.

`RankedModel` is the side of the service. `python -m services.reward.ranks` is one rank.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from fairlead.config.serving import RewardSection
from fairlead.nn import loading, tensor_parallel
from fairlead.nn.ensemble import member_paths
from services.batching.packing import Packing, PaddedPacking, SharedPacking
from services.reward.compute.model import LocalModel, ModelFacts
from services.reward.item_reader import EncodedItem, prompt_key, prompt_length
from services.tensor_parallel import frames
from services.tensor_parallel.group import RankGroup
from services.tensor_parallel.rank import Start, serve


class RankedModel:
    """Implements `ScoringModel` with a model that ranks hold together."""

    def __init__(self, path: str, section: RewardSection) -> None:
        """Start the ranks, and wait until they have loaded the model; see `RankGroup`."""
        self._group = RankGroup("services.reward.ranks", path, section, name="reward")
        self.facts = ModelFacts(**self._group.facts)
        """What the service has to know about the model."""
        self.packing: Packing[tuple[int, ...]] = PaddedPacking()
        if not self.facts.is_padded:
            self.packing = SharedPacking(prompt_key if self.facts.shares_prompts else lambda _: (None, 0))
        """How to choose batches that are cheap to compute."""

    @property
    def failure(self) -> Future[None]:
        """Fails with RankLost if a rank is lost."""
        return self._group.failure

    def prepare(self, sequences: Sequence[tuple[int, ...]]) -> Callable[[], list[float]]:
        """Build the message of a batch; return a function that runs it.

        That function raises ReplicaLost if a rank is lost meanwhile, Unavailable if one was lost before.
        """
        arrays = frames.packed(
            {
                "lengths": np.array([len(sequence) for sequence in sequences], np.int32),
                "prompt_lengths": np.array([prompt_length(sequence) for sequence in sequences], np.int32),
                "ids": np.fromiter(itertools.chain.from_iterable(sequences), np.int32),
            }
        )

        def run() -> list[float]:
            scores: list[float] = frames.unpacked(self._group.run(arrays))["scores"].tolist()
            return scores

        return run

    def close(self) -> None:
        """End the ranks."""
        self._group.close()


class RankModel:
    """The part of the model that one rank holds."""

    def __init__(self, start: Start) -> None:
        """Join the other ranks and load."""
        section = RewardSection(**start.section)
        device = loading.torch_device(section.device)
        tensor_parallel.join(start.rank, start.size, meeting_point=start.meeting_point, device=device)
        tokenizer = loading.load_tokenizer(member_paths(start.path)[0])
        self._model = LocalModel(start.path, section, tokenizer)

    @property
    def facts(self) -> Mapping[str, object]:
        """The fields of `ModelFacts`."""
        return dataclasses.asdict(self._model.facts)

    def run(self, arrays: bytes) -> bytes:
        """Compute the scalars of a batch. Every rank plans it in the same way: one batch after the other."""
        batch = frames.unpacked(arrays)
        ids = batch["ids"].tolist()
        sequences = []
        start = 0
        for length, prompt in zip(batch["lengths"].tolist(), batch["prompt_lengths"].tolist(), strict=True):
            sequences.append(EncodedItem(ids[start : start + prompt], ids[start + prompt : start + length]))
            start += length
        return frames.packed({"scores": np.array(self._model.prepare(sequences)(), np.float32)})


if __name__ == "__main__":
    sys.exit(serve(RankModel))
