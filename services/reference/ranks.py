"""The reference model divided among several processes: `[reference] tensor_parallel`.

`RankedModel` is the side of the service. `python -m services.reference.ranks` is one rank.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from fairlead.config.serving import ReferenceSection
from fairlead.nn import loading, tensor_parallel
from fairlead.types import ModelInfo, TokenPair
from services.reference.model import LocalModel, Lookup
from services.tensor_parallel import frames
from services.tensor_parallel.group import RankGroup
from services.tensor_parallel.rank import Start, serve


class RankedModel:
    """Implements `ReferenceModel` with a model that ranks hold together."""

    def __init__(self, path: str, section: ReferenceSection) -> None:
        """Start the ranks, and wait until they have loaded the model; see `RankGroup`."""
        self._group = RankGroup("services.reference.ranks", path, section, name="reference")
        self.info = ModelInfo(**self._group.facts)
        """Description of the model."""
        self.temperature: float | None = None
        """Any."""

    @property
    def failure(self) -> Future[None]:
        """Fails with RankLost if a rank is lost."""
        return self._group.failure

    def logprobs(self, lookups: Sequence[Lookup]) -> list[tuple[float, ...]]:
        """Return log π_ref of every response id of each lookup.

        Raises:
            ReplicaLost: if a rank is lost during the batch.
            Unavailable: if one was lost before.
        """
        pairs = [lookup.pair for lookup in lookups]
        answer = self._group.run(
            frames.packed(
                {
                    "prompt_lengths": np.array([len(pair.prompt_token_ids) for pair in pairs], np.int32),
                    "lengths": np.array([lookup.num_tokens for lookup in lookups], np.int32),
                    "temperatures": np.array([lookup.temperature for lookup in lookups], np.float64),
                    "ids": np.fromiter(itertools.chain.from_iterable(map(_ids, pairs)), np.int32),
                }
            )
        )
        values = iter(frames.unpacked(answer)["logprobs"].tolist())
        return [tuple(itertools.islice(values, len(pair.response_token_ids))) for pair in pairs]

    def close(self) -> None:
        """End the ranks."""
        self._group.close()


class RankModel:
    """The part of the model that one rank holds."""

    def __init__(self, start: Start) -> None:
        """Join the other ranks and load."""
        section = ReferenceSection(**start.section)
        device = loading.torch_device(section.device)
        tensor_parallel.join(start.rank, start.size, meeting_point=start.meeting_point, device=device)
        self._model = LocalModel(start.path, section)

    @property
    def facts(self) -> Mapping[str, object]:
        """The fields of `ModelInfo`."""
        return dataclasses.asdict(self._model.info)

    def run(self, arrays: bytes) -> bytes:
        """Compute the log-probs of a batch."""
        batch = frames.unpacked(arrays)
        ids = batch["ids"].tolist()
        ends = np.cumsum(batch["lengths"]).tolist()
        lookups = []
        for end, length, prompt_length, temperature in zip(
            ends,
            batch["lengths"].tolist(),
            batch["prompt_lengths"].tolist(),
            batch["temperatures"].tolist(),
            strict=True,
        ):
            start = end - length
            pair = TokenPair(
                tuple(ids[start : start + prompt_length]), tuple(ids[start + prompt_length : end])
            )
            lookups.append(Lookup(pair, temperature))
        found = itertools.chain.from_iterable(self._model.logprobs(lookups))
        return frames.packed({"logprobs": np.fromiter(found, np.float32)})


def _ids(pair: TokenPair) -> tuple[int, ...]:
    return (*pair.prompt_token_ids, *pair.response_token_ids)


if __name__ == "__main__":
    sys.exit(serve(RankModel))
