"""Convert items to the input of a Triton server: ids from a tokenizer in this process, or whole texts.

The parameters of the server's model decide how texts are read. Does not connect to the server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fairlead.clients.open_inference import ServedModel
from fairlead.config.serving import RewardSection
from fairlead.errors import ConfigError, InvalidInput
from fairlead.types import ModelInfo, RewardInfo, ScoreItem, TextPair, WholeText
from services.runtime import limits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from services.reward.item_reader import ItemReader

_UNLIMITED = 1 << 30
"""Tokens of a sequence where neither the server nor the configuration states a limit."""
_BYTES_PER_TOKEN = 4
"""Estimate for sentences, which are not tokenized in this process; bounds what is in flight."""


class TritonReader:
    """Reads the items of requests. Blocking; safe for several threads."""

    def __init__(self, path: str, section: RewardSection, served: ServedModel) -> None:
        """Load the tokenizer, if ids are sent.

        Args:
            path: the reward model whose tokenizer reads texts.
            section: limits, and how texts are read.
            served: the server's description of its model.

        Raises:
            ConfigError: the server's model takes other inputs, or was exported with another tokenizer.
            ModelLoadError: the tokenizer cannot be loaded.
        """
        sends = section.triton.sends
        if sends not in served.inputs:
            got = f"{sends}, for a model whose inputs are {', '.join(served.inputs)}"
            raise ConfigError("reward.triton.sends", got=got, allowed="an input of the model")
        self._section = section
        self._ids: ItemReader | None = None
        parameters = served.parameters
        fingerprint = parameters.get("tokenizer_fingerprint", "")
        vocabulary = int(_number(parameters, "vocabulary_size"))
        longest = [_UNLIMITED, section.max_sequence_tokens, int(_number(parameters, "max_sequence_tokens"))]
        tokenizer: PreTrainedTokenizerBase | None = None
        if sends == "tokens":
            path, tokenizer, fingerprint = _load_tokenizer(path, fingerprint)
            vocabulary = vocabulary or max(tokenizer.get_vocab().values(), default=-1) + 1
            longest.append(tokenizer.model_max_length)
        model = ModelInfo(
            model_id=parameters.get("model_id") or served.name,
            tokenizer_fingerprint=fingerprint,
            vocabulary_size=vocabulary,
            max_sequence_tokens=min(limit for limit in longest if limit),
            dtype=parameters.get("dtype", "unknown"),
        )
        if tokenizer is not None:
            self._ids = _item_reader(path, tokenizer, section, model, parameters.get("reads"))
        self.info = RewardInfo(
            model=model,
            model_version=parameters.get("model_version") or f"{served.name}-{served.version}",
            calibration_temperature=section.calibration_temperature
            or _number(parameters, "calibration_temperature"),
        )
        """The model as callers see it."""

    def encode(self, items: Sequence[ScoreItem]) -> list[tuple[int, ...]]:
        """Return the ids of prompt and response of each item, joined and checked against the model's limits.

        Raises:
            InvalidInput: for the first item that cannot be scored.
        """
        assert self._ids is not None, "made for sentences"
        return self._ids.read(items)

    def sentences(self, items: Sequence[ScoreItem]) -> tuple[list[str], list[int]]:
        """Return prompt and response of each item as one text, and an estimate of its number of tokens.

        Raises:
            InvalidInput: for the first item that is not plain text.
        """
        limits.check_count("items", len(items), limit=self._section.batching.max_items)
        texts = [self._sentence(index, item) for index, item in enumerate(items)]
        return texts, [max(1, len(text) // _BYTES_PER_TOKEN) for text in texts]

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


def _load_tokenizer(path: str, expected: str) -> tuple[str, PreTrainedTokenizerBase, str]:
    """Return the path of the first member, its tokenizer and the tokenizer's fingerprint."""
    # Loading a tokenizer imports torch; a process that sends sentences needs neither.
    from fairlead.nn import loading
    from fairlead.nn.ensemble import member_paths

    path = member_paths(path)[0]
    tokenizer = loading.load_tokenizer(path)
    found = loading.tokenizer_fingerprint(tokenizer)
    if expected and found != expected:
        raise ConfigError(
            "reward.path",
            got=f"{path!r}, with tokenizer {found[:12]}",
            allowed=f"the model that was exported to Triton, with tokenizer {expected[:12]}",
        )
    return path, tokenizer, found


def _item_reader(
    path: str, tokenizer: PreTrainedTokenizerBase, section: RewardSection, model: ModelInfo, reads: str | None
) -> ItemReader:
    from fairlead.nn import loading
    from fairlead.nn.reward_model import REWARD_ANSWER_END, REWARD_BIAS
    from services.reward.item_reader import ItemReader, ReadingStyle

    config = loading.load_config(path)
    if reads is None:
        reads = "ours" if hasattr(config, REWARD_BIAS) else "hub"
    answer_end = getattr(config, REWARD_ANSWER_END, None)
    style = ReadingStyle(reads == "ours", reads == "encoder", answer_end=answer_end)
    return ItemReader(path, tokenizer, section, style=style, model=model)


def _number(parameters: Mapping[str, str], key: str) -> float:
    """Return a number of the server's configuration; 0 if it is missing or not usable."""
    try:
        number = float(parameters.get(key, 0))
    except ValueError:
        return 0.0
    return number if 0 < number < _UNLIMITED else 0.0
