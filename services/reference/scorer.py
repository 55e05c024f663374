"""The reference model as the servicer sees it: checks of requests, and log-probs by one of the engines.

What computes them is decided here: this process, the ranks among which the model is divided, or vLLM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from fairlead.config.serving import ReferenceSection
from fairlead.errors import InternalError, InvalidInput
from fairlead.planning.installed_vllm import require_vllm
from fairlead.types import ModelInfo, ReferenceInfo, TokenPair
from services.reference.model import LocalModel, Lookup
from services.reference.ranks import RankedModel
from services.runtime import limits


class ReferenceModel(Protocol):
    """Computes log-probs under the frozen model."""

    @property
    def info(self) -> ModelInfo:
        """Description of the model."""
        ...

    @property
    def failure(self) -> Future[None] | None:
        """Fails with the error after which nothing can be computed; None if that is not possible."""
        ...

    @property
    def temperature(self) -> float | None:
        """The only temperature of lookups; None if any can be computed."""
        ...

    def logprobs(self, lookups: Sequence[Lookup]) -> Sequence[tuple[float, ...]]:
        """Return log π_ref of every response id of each lookup."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class ReferenceScorer:
    """One frozen language model."""

    def __init__(self, path: str, section: ReferenceSection, *, temperature: float = 1.0) -> None:
        """Load the model and its tokenizer.

        Args:
            path: folder or hub id.
            section: limits, and how to compute.
            temperature: with vLLM, the only temperature of lookups.

        Raises:
            ModelLoadError: the model cannot be loaded.
            ConfigError: it cannot be computed as the section says.
        """
        self._section = section
        self.model: ReferenceModel
        """The model."""
        if section.engine == "vllm":
            self.model = _vllm_model(path, section, temperature)
        elif section.tensor_parallel > 1:
            self.model = RankedModel(path, section)
        else:
            self.model = LocalModel(path, section)
        self.info = ReferenceInfo(model=self.model.info)
        """The model as callers see it."""

    @property
    def failure(self) -> Future[None] | None:
        """Fails with the error after which the service must end; None if there is no such error."""
        return self.model.failure

    def check_count(self, count: int) -> None:
        """Check the number of sequences of a request.

        Raises:
            InvalidInput: there are none, or more than `reference.batching.max_items`.
        """
        limits.check_count("sequences", count, limit=self._section.batching.max_items)

    def check(self, pairs: Sequence[TokenPair], temperature: float) -> list[Lookup]:
        """Return the lookups of a request, checked against the model's limits.

        Raises:
            InvalidInput: for a temperature that is not a positive number, or not the only one of vLLM, or
                the first invalid sequence.
        """
        limits.check_temperature("temperature", temperature, allow_zero=False)
        only = self.model.temperature
        if only is not None and not math.isclose(temperature, only, rel_tol=1e-6):
            allowed = f"{only:g} (sampling.temperature), because reference.engine is 'vllm'"
            raise InvalidInput("temperature", got=temperature, allowed=allowed)
        self.check_count(len(pairs))
        size = self.info.model.vocabulary_size
        for index, pair in enumerate(pairs):
            for field, ids in (
                ("sequences.prompt_token_ids", pair.prompt_token_ids),
                ("sequences.response_token_ids", pair.response_token_ids),
            ):
                limits.check_token_ids(field, ids, vocabulary_size=size, index=index)
            num_tokens = len(pair.prompt_token_ids) + len(pair.response_token_ids)
            maximum = self.info.model.max_sequence_tokens
            limits.check_sequence_tokens("sequences", num_tokens, limit=maximum, index=index)
        return [Lookup(pair, temperature) for pair in pairs]

    def logprobs(self, lookups: Sequence[Lookup]) -> list[tuple[float, ...] | Exception]:
        """Return log π_ref of every response id of each lookup, or an error where one is not finite."""
        rows = self.model.logprobs(lookups)
        return [row if all(map(math.isfinite, row)) else _not_finite() for row in rows]

    def close(self) -> None:
        """Free the model."""
        self.model.close()


def _vllm_model(path: str, section: ReferenceSection, temperature: float) -> ReferenceModel:
    require_vllm("reference.engine", instead="local")
    from services.reference.vllm import VllmModel

    return VllmModel(path, section, temperature=temperature)


def _not_finite() -> InternalError:
    return InternalError(
        "the reference model returned a log-prob that is not finite: "
        "its weights are damaged or its dtype overflows"
    )
