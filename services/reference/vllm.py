"""The reference model computed by vLLM: `[reference] engine = "vllm"`.

A lookup is a request for the log-probs of a prompt: the sequence without its last token. The last token is
the only one that vLLM generates, and its log-prob is asked for by its id. vLLM computes log-probs of prompts
at temperature 1, so its logits are divided by the temperature of the run from the start.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future

from vllm import SamplingParams, TokensPrompt
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from fairlead.config.serving import ReferenceSection
from fairlead.nn import loading
from fairlead.types import ModelInfo
from services.reference.model import Lookup
from services.vllm.arguments import engine_args
from services.vllm.engine_thread import EngineThread


class VllmModel:
    """Implements `ReferenceModel` with vLLM."""

    def __init__(self, path: str, section: ReferenceSection, *, temperature: float) -> None:
        """Load the tokenizer and start vLLM with the model.

        Args:
            path: folder or hub id.
            section: limits, and vLLM's options.
            temperature: the only temperature of lookups.

        Raises:
            ModelLoadError: the model cannot be loaded.
            ConfigError: vLLM is missing, or does not take the model or an option.
            EngineFailed: vLLM does not start.
        """
        self.temperature: float | None = temperature
        """The only temperature of lookups."""
        tokenizer = loading.load_tokenizer(path)
        model = loading.causal_lm_without_weights(path)
        loading.check_vocabulary(path, model, tokenizer)
        longest = loading.max_sequence_tokens(model, section.max_sequence_tokens)
        self.info = ModelInfo(
            model_id=path,
            tokenizer_fingerprint=loading.tokenizer_fingerprint(tokenizer),
            vocabulary_size=loading.vocabulary_size(model),
            max_sequence_tokens=longest,
            dtype=section.dtype,
        )
        """Description of the model."""
        self._engine = EngineThread(
            engine_args(
                path, section, service="reference", max_sequence_tokens=longest, logprobs_mode="raw_logprobs"
            ),
            service="reference",
        )
        if temperature != 1:
            try:
                self._engine.call_workers("divide_logits", temperature)
            except BaseException:
                self._engine.close()
                raise

    @property
    def failure(self) -> Future[None]:
        """Fails with EngineFailed if vLLM ends."""
        return self._engine.failure

    def logprobs(self, lookups: Sequence[Lookup]) -> list[tuple[float, ...]]:
        """Return log π_ref of every response id of each lookup.

        Raises:
            ReplicaLost: if vLLM ends meanwhile.
            Unavailable: if it has ended before.
        """
        outputs = self._engine.run(_request, lookups)
        return [_logprobs(lookup, output) for lookup, output in zip(lookups, outputs, strict=True)]

    def close(self) -> None:
        """End vLLM."""
        self._engine.close()


def _request(llm: AsyncLLM, lookup: Lookup, request_id: str) -> AsyncGenerator[RequestOutput, None]:
    ids = (*lookup.pair.prompt_token_ids, *lookup.pair.response_token_ids)
    params = SamplingParams(
        max_tokens=1,
        prompt_logprobs=0,
        logprob_token_ids=[ids[-1]],
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    prompt = TokensPrompt(prompt_token_ids=list(ids[:-1]))
    outputs: AsyncGenerator[RequestOutput, None] = llm.generate(prompt, params, request_id=request_id)
    return outputs


def _logprobs(lookup: Lookup, output: RequestOutput) -> tuple[float, ...]:
    start = len(lookup.pair.prompt_token_ids)
    response = lookup.pair.response_token_ids
    inside, last = output.prompt_logprobs, output.outputs[0].logprobs
    assert inside is not None
    assert last is not None
    found = []
    for offset, token in enumerate(response[:-1]):
        entry = inside[start + offset]
        assert entry is not None
        found.append(float(entry[token].logprob))
    return (*found, float(last[0][response[-1]].logprob))
