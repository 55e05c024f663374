"""Text to token ids, the one way of it: stages and services must agree on every id.

Prompts get the tokenizer's special tokens, responses none but the end. Nothing here knows files or models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairlead.errors import ModelLoadError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a prompt, special tokens added; never empty, as a model has to start from something.

    Raises:
        ModelLoadError: the text has no tokens and the tokenizer neither BOS nor EOS to stand for it.
    """
    ids = _ids(tokenizer, text, special=True)
    if ids:
        return ids
    for name in ("bos_token_id", "eos_token_id"):
        start = getattr(tokenizer, name, None)
        if isinstance(start, int):
            return [start]
    raise ModelLoadError("the tokenizer has neither a BOS nor an EOS token: an empty prompt has no token id")


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str, *, eos: bool) -> list[int]:
    """Ids of a response without special tokens, and the EOS id behind them if asked for.

    Raises:
        ModelLoadError: EOS is asked for and the tokenizer has none.
    """
    ids = _ids(tokenizer, text, special=False)
    if eos:
        end = tokenizer.eos_token_id
        if not isinstance(end, int):
            raise ModelLoadError("the tokenizer has no EOS token: answers trained with it would never end")
        ids.append(end)
    return ids


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    # verbose=False: the sequence limit is enforced by the caller, with a better message than a warning.
    return [int(token) for token in tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]]
