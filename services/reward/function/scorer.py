"""A reward function as the scoring sees it: items → texts → scores. Knows no wire, no queue, no tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from fairlead.config.serving import RewardSection
from fairlead.errors import InvalidInput
from fairlead.types import ModelInfo, RewardInfo, ScoreItem, TextPair, TokenPair
from services.batching.packing import PaddedPacking
from services.reward.function.process import FunctionProcess
from services.reward.item_reader import check_pair
from services.runtime import limits

_BYTES_PER_TOKEN = 4
"""To count texts in tokens, as queues and limits do."""


@dataclass(frozen=True, slots=True)
class FunctionItem:
    """One call of the function; its length is an estimate in tokens."""

    prompt: str | tuple[dict[str, str], ...]
    """The prompt as text, or the messages of a conversation."""
    response: str
    """The response."""

    def __len__(self) -> int:
        turns = (self.prompt,) if isinstance(self.prompt, str) else (turn["content"] for turn in self.prompt)
        return sum(len(text.encode()) for text in (*turns, self.response)) // _BYTES_PER_TOKEN + 1


class FunctionScorer:
    """Implements `ItemScorer` with a function of the user."""

    probes: tuple[ScoreItem, ...] = ()
    """None: the function may reject any text that is not a prompt of the run."""

    def __init__(self, named: str, section: RewardSection) -> None:
        """Import the function in a process of its own.

        Args:
            named: `module:name`, or `file.py:name`.
            section: limits.

        Raises:
            ModelLoadError: the function cannot be imported or called.
        """
        self._section = section
        self._process = FunctionProcess(named, timeout_seconds=section.function_timeout_seconds)
        self.packing = PaddedPacking[FunctionItem]()
        """How to choose batches."""
        self.info = RewardInfo(
            model=ModelInfo(
                model_id=named,
                tokenizer_fingerprint="",
                vocabulary_size=0,
                max_sequence_tokens=section.max_sequence_tokens or section.max_text_bytes,
                dtype="float32",
            ),
            model_version=self._process.version,
            calibration_temperature=section.calibration_temperature,
        )
        """The function as callers see it: it has no tokenizer, so they send texts."""

    @property
    def failure(self) -> Future[None]:
        """Fails with EngineFailed if the source of the function has changed when its process is restarted."""
        return self._process.failure

    def encode(self, items: Sequence[ScoreItem]) -> list[FunctionItem]:
        """Return prompt and response of each item.

        Raises:
            InvalidInput: for the first item that is no pair of texts, or exceeds a limit.
        """
        limits.check_count("items", len(items), limit=self._section.batching.max_items)
        return [self._read(index, item) for index, item in enumerate(items)]

    def score(self, items: Sequence[FunctionItem]) -> list[float | Exception]:
        """Return the score of each item, or its error."""
        return self.prepare(items)()

    def prepare(self, items: Sequence[FunctionItem]) -> Callable[[], list[float | Exception]]:
        """Build the message of a batch; return a function that returns what `score` does."""
        messages = [{"prompt": item.prompt, "response": item.response} for item in items]
        return lambda: self._process.run(messages)

    def close(self) -> None:
        """End the process of the function."""
        self._process.close()

    def _read(self, index: int, item: ScoreItem) -> FunctionItem:
        if not isinstance(item, TextPair):
            field, got = ("tokens", "ids") if isinstance(item, TokenPair) else ("whole_text", "one text")
            allowed = "prompt and response as texts: the reward is a function"
            raise InvalidInput(f"items.{field}", index=index, got=got, allowed=allowed)
        check_pair(index, item, max_bytes=self._section.max_text_bytes)
        turns = tuple({"role": turn.role, "content": turn.content} for turn in item.messages)
        found = FunctionItem(turns or item.prompt, item.response)
        limits.check_sequence_tokens(
            "items.text", len(found), limit=self.info.model.max_sequence_tokens, index=index
        )
        return found
