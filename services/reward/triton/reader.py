"""Items → what a remote model is sent: ids by a tokenizer of this process, or whole texts.

What the server says of the model decides how texts are read. Knows no connection.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fairlead.clients.open_inference import ServedModel
from fairlead.config.serving import RewardSection
from fairlead.errors import ConfigError, InvalidInput
from fairlead.types import ModelInfo, RewardInfo, ScoreItem, TextPair, TokenPair, WholeText
from services.runtime import limits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from services.reward.text_reader import TextReader

_UNLIMITED = 1 << 30
"""Tokens of a sequence, where nobody says."""
_BYTES_A_TOKEN = 4
"""Of a sentence, for the bound of what is in flight: nobody here counts its tokens."""


@dataclass(frozen=True, slots=True)
class _Habits:
    """How the remote model has learnt to read."""

    is_ours: bool
    is_encoder: bool


class TritonReader:
    """Reads the items of requests; blocking, and fit for several threads."""

    def __init__(self, path: str, section: RewardSection, served: ServedModel) -> None:
        """Loads the tokenizer, if ids are sent.

        Args:
            path: of the reward model whose tokenizer reads texts.
            section: limits and ways of reading.
            served: what the server says of the model.

        Raises:
            ConfigError: the server's model takes other inputs, or was made for another tokenizer.
            ModelLoadError: the tokenizer cannot be loaded.
        """
        sends = section.triton.sends
        if sends not in served.inputs:
            got = f"{sends}, for a model whose inputs are {', '.join(served.inputs)}"
            raise ConfigError("reward.triton.sends", got=got, allowed="an input of the model")
        self._section, told = section, served.parameters
        self._habits = _Habits(is_ours=False, is_encoder=False)
        self._texts: TextReader | None = None
        # A tokenizer that was saved with padding or truncation changes itself when it is called.
        self._tokenizing = threading.Lock()
        fingerprint, vocabulary = told.get("tokenizer_fingerprint", ""), int(_number(told, "vocabulary_size"))
        longest = [_UNLIMITED, section.max_sequence_tokens, int(_number(told, "max_sequence_tokens"))]
        if sends == "tokens":
            tokenizer, fingerprint = self._load(path, fingerprint, told.get("reads"))
            vocabulary = vocabulary or max(tokenizer.get_vocab().values(), default=-1) + 1
            longest.append(tokenizer.model_max_length)
        self.info = RewardInfo(
            model=ModelInfo(
                model_id=told.get("model_id") or served.name,
                tokenizer_fingerprint=fingerprint,
                vocabulary_size=vocabulary,
                max_sequence_tokens=min(limit for limit in longest if limit),
                dtype=told.get("dtype", "unknown"),
            ),
            model_version=told.get("model_version") or f"{served.name}-{served.version}",
            calibration_temperature=section.calibration_temperature
            or _number(told, "calibration_temperature"),
        )
        """What is served."""

    def _load(self, path: str, expected: str, reads: str | None) -> tuple[PreTrainedTokenizerBase, str]:
        # Tokenizers are loaded in one way everywhere, and that imports torch; sentences ask for neither.
        from fairlead.nn import loading
        from fairlead.nn.ensemble import member_paths
        from fairlead.nn.reward_model import REWARD_BIAS
        from services.reward.text_reader import TextReader

        path = member_paths(path)[0]
        tokenizer = loading.load_tokenizer(path)
        found = loading.tokenizer_fingerprint(tokenizer)
        if expected and found != expected:
            raise ConfigError(
                "reward.path",
                got=f"{path!r}, whose tokenizer is {found[:12]}",
                allowed=f"the model that the server's was exported from, whose tokenizer is {expected[:12]}",
            )
        if reads is None:
            reads = "ours" if hasattr(loading.load_config(path), REWARD_BIAS) else "hub"
        self._habits = _Habits(is_ours=reads == "ours", is_encoder=reads == "encoder")
        self._texts = TextReader(path, tokenizer, self._section, model=self._habits)
        return tokenizer, found

    def encode(self, items: Sequence[ScoreItem]) -> list[tuple[int, ...]]:
        """Ids of prompt and response together, checked against the model's limits.

        Raises:
            InvalidInput: for the first item that cannot be scored.
        """
        limits.check_count("items", len(items), limit=self._section.batching.max_items)
        return [self._encode(index, item) for index, item in enumerate(items)]

    def sentences(self, items: Sequence[ScoreItem]) -> tuple[list[str], list[int]]:
        """Prompt and response of each item as one text, and about how many tokens that is.

        Raises:
            InvalidInput: for the first item that is no pair of plain texts.
        """
        limits.check_count("items", len(items), limit=self._section.batching.max_items)
        texts = [self._sentence(index, item) for index, item in enumerate(items)]
        return texts, [max(1, len(text) // _BYTES_A_TOKEN) for text in texts]

    def _encode(self, index: int, item: ScoreItem) -> tuple[int, ...]:
        assert self._texts is not None, "made for sentences"
        if isinstance(item, TextPair):
            with self._tokenizing:
                sequence = self._texts.read(index, item)
            field = "items.text"
        elif isinstance(item, WholeText):
            with self._tokenizing:
                sequence = self._texts.read_whole(index, item)
            field = "items.whole_text"
        else:
            sequence, field = self._ids(index, item), "items.tokens"
        limit = self.info.model.max_sequence_tokens
        limits.check_sequence_tokens(field, len(sequence), limit=limit, index=index)
        return sequence

    def _ids(self, index: int, item: TokenPair) -> tuple[int, ...]:
        if self._habits.is_encoder:
            raise InvalidInput(
                "items.tokens", index=index, got="ids", allowed="text: the model is an encoder"
            )
        size = self.info.model.vocabulary_size
        for name, ids in (("prompt", item.prompt_token_ids), ("response", item.response_token_ids)):
            limits.check_token_ids(
                f"items.tokens.{name}_token_ids",
                ids,
                vocabulary_size=size,
                index=index,
                allow_empty=name == "prompt",
            )
        return (*item.prompt_token_ids, *item.response_token_ids)

    def _sentence(self, index: int, item: ScoreItem) -> str:
        maximum = self._section.max_text_bytes
        if isinstance(item, WholeText):
            limits.check_text("items.whole_text", item.text, max_bytes=maximum, index=index)
            limits.check_not_empty("items.whole_text", item.text, index=index)
            return item.text
        if not isinstance(item, TextPair):
            raise InvalidInput("items.tokens", index=index, got="ids", allowed="text: the server tokenizes")
        if item.messages:
            got = f"{len(item.messages)} messages"
            allowed = "prompt and response as plain text, or a service with `reward.triton.sends` tokens"
            raise InvalidInput("items.text.messages", index=index, got=got, allowed=allowed)
        limits.check_text("items.text.prompt", item.prompt, max_bytes=maximum, index=index)
        limits.check_text("items.text.response", item.response, max_bytes=maximum, index=index)
        text = item.prompt + item.response
        limits.check_not_empty("items.text.response", text, index=index)
        return text


def _number(told: Mapping[str, str], key: str) -> float:
    """A number of the server's configuration; 0 if it says none that is any use."""
    try:
        number = float(told.get(key, 0))
    except ValueError:
        return 0.0
    return number if 0 < number < _UNLIMITED else 0.0
