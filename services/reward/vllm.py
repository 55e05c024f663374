"""A reward model computed by vLLM: `[reward] engine = "vllm"`.

vLLM serves a sequence-classification model as a pooling model. A score is the output of its head at the last
token, without an activation, plus the bias of models that Fairlead trained, which vLLM does not know.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_layers import GenericForSequenceClassification
from vllm import PoolingParams, TokensPrompt
from vllm.config import PoolerConfig
from vllm.outputs import PoolingRequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from fairlead.config.serving import RewardSection
from fairlead.errors import ConfigError, ModelLoadError
from fairlead.nn import loading
from fairlead.nn.ensemble import member_paths
from fairlead.nn.reward_model import REWARD_ANSWER_END, REWARD_BIAS, check_kind, saved_temperature
from services.batching.packing import Packing, SharedPacking
from services.reward.compute.model import ModelFacts
from services.vllm.arguments import engine_args
from services.vllm.engine_thread import EngineThread

_SCORE = PoolingParams(task="classify", use_activation=False)


class VllmModel:
    """Implements `ScoringModel` with vLLM."""

    def __init__(self, path: str, section: RewardSection, tokenizer: PreTrainedTokenizerBase) -> None:
        """Start vLLM with the model.

        Args:
            path: folder or hub id.
            section: limits, and vLLM's options.
            tokenizer: the tokenizer of the model.

        Raises:
            ModelLoadError: if it is no reward model, reads its score in a way that vLLM does not, or has
                fewer rows in its embedding than the tokenizer has ids.
            ConfigError: vLLM is missing, or does not take the model or an option.
            EngineFailed: vLLM does not start.
        """
        if len(member_paths(path)) > 1:
            raise ConfigError(
                "reward.engine",
                got=f"vllm, with the ensemble {path!r}",
                allowed="local, or one of its members",
            )
        config = loading.load_config(path)
        check_kind(path, config)
        _check_architecture(path, config)
        empty = loading.without_weights(AutoModelForSequenceClassification, path)
        loading.check_vocabulary(path, empty, tokenizer)
        longest = loading.max_sequence_tokens(config, section.max_sequence_tokens)
        self._bias = float(getattr(config, REWARD_BIAS, 0.0))
        self.facts = ModelFacts(
            vocabulary_size=config.get_text_config().vocab_size,
            max_sequence_tokens=longest,
            version=_version(path, section, self._bias),
            temperature=saved_temperature(config),
            is_ours=hasattr(config, REWARD_BIAS),
            is_encoder=False,
            answer_end=getattr(config, REWARD_ANSWER_END, None),
            is_padded=False,
            shares_prompts=False,
        )
        """What the service has to know about the model."""
        self.packing: Packing[tuple[int, ...]] = SharedPacking(lambda _: (None, 0))
        """How to choose batches: without padding. vLLM divides them into steps of its own."""
        self._engine = EngineThread(
            engine_args(
                path,
                section,
                service="reward",
                max_sequence_tokens=longest,
                runner="pooling",
                convert="classify",
                pooler_config=PoolerConfig(pooling_type="LAST", use_activation=False),
            ),
            service="reward",
        )

    @property
    def failure(self) -> Future[None]:
        """Fails with EngineFailed if vLLM ends."""
        return self._engine.failure

    def prepare(self, sequences: Sequence[tuple[int, ...]]) -> Callable[[], list[float]]:
        """Return a function that computes the scalar of each sequence.

        It raises ReplicaLost if vLLM ends meanwhile, Unavailable if it has ended before.
        """
        return partial(self._scores, sequences)

    def close(self) -> None:
        """End vLLM."""
        self._engine.close()

    def _scores(self, sequences: Sequence[tuple[int, ...]]) -> list[float]:
        outputs = self._engine.run(_request, sequences)
        return [float(output.outputs.data.float().reshape(())) + self._bias for output in outputs]


def _request(
    llm: AsyncLLM, sequence: tuple[int, ...], request_id: str
) -> AsyncGenerator[PoolingRequestOutput, None]:
    prompt = TokensPrompt(prompt_token_ids=list(sequence))
    outputs: AsyncGenerator[PoolingRequestOutput, None] = llm.encode(prompt, _SCORE, request_id=request_id)
    return outputs


def _check_architecture(path: str, config: PreTrainedConfig) -> None:
    """Check that the score is a linear layer at the last token, which is what vLLM computes."""
    mapping: Any = AutoModelForSequenceClassification
    found = mapping._model_mapping.get(type(config), None)
    if not (isinstance(found, type) and issubclass(found, GenericForSequenceClassification)):
        name = getattr(found, "__name__", config.model_type)
        raise ModelLoadError(
            f"{path!r}: reward.engine = 'vllm' serves models whose score is a linear layer at the last "
            f"token, and {name} is none that transformers builds in this way: set reward.engine = 'local'"
        )


def _version(path: str, section: RewardSection, bias: float) -> str:
    """Return the version that a local engine would give this model, from its files."""
    dtype = loading.torch_dtype(section)
    digest = hashlib.sha256()
    files: dict[str, Path] = {}
    for file in _files(path):
        with safe_open(file, framework="pt") as opened:
            files |= dict.fromkeys(opened.keys(), file)
    for name in sorted(files):
        with safe_open(files[name], framework="pt") as opened:
            tensor = opened.get_tensor(name).to(dtype).contiguous()
        if name == "score.bias":
            bias += float(tensor)
        digest.update(name.encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    exact = torch.tensor(bias, dtype=torch.float32).item()
    return hashlib.sha256(f"{digest.hexdigest()[:12]} {exact}".encode()).hexdigest()[:12]


def _files(path: str) -> list[Path]:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(path, allow_patterns=["*.safetensors"]))
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise ModelLoadError(f"{path!r} has no *.safetensors files")
    return found
