"""The control tokens of a tokenizer: which there are, which the chat template writes, and how an answer ends.

Derived once for each tokenizer, by rendering a conversation. `encoding` keeps text from callers free of
control tokens; `reading` has the rules by which a reward model reads ids and whole texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from fairlead.data.chat import Chat
from fairlead.data.reading import ReadingRules
from fairlead.data.template import render
from fairlead.errors import InvalidInput, ModelLoadError
from fairlead.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASKED, _ANSWERED = "ask", "the answer of a trial"
"""Contents of the conversation that is rendered; no template writes the second, as it would `answer`."""


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """What a tokenizer and its chat template say about control tokens."""

    names: tuple[str, ...]
    """Every control token: the special tokens except the unknown one, and others that the template writes."""
    written: tuple[str, ...]
    """Those that the chat template writes around the turns of a conversation."""
    markers: tuple[int, ...]
    """Ids of `written`, without BOS and EOS."""
    tail: tuple[int, ...]
    """Ids that the template writes after the last answer of a conversation."""
    turn_stop: int | None
    """The first control token of `tail`, at which the policy stops; None if there is none."""
    starts_with_bos: bool
    """Whether the template writes BOS first."""
    affixes: tuple[tuple[int, ...], tuple[int, ...]]
    """Ids that the tokenizer adds before and after a plain text."""


_KNOWN: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, ControlTokens]] = WeakKeyDictionary()


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """Return the control tokens of a tokenizer."""
    state = (str(tokenizer.chat_template), str(tokenizer.special_tokens_map), len(tokenizer))
    known = _KNOWN.get(tokenizer)
    if known is None or known[0] != state:
        known = (state, _derive(tokenizer))
        _KNOWN[tokenizer] = known
    return known[1]


def policy_stop_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the id that ends an assistant's turn in the chat template, at which a policy must stop."""
    stop = control_tokens(tokenizer).turn_stop
    return frozenset() if stop is None else frozenset([stop])


def trained_end(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Return how answers end in everything that Fairlead trains, as it is saved with a reward model.

    An answer ends with the one token at which the policy stops, because no policy samples what templates
    write after it: `conversation` is the template's end of a turn, `text` is EOS.
    """
    found = control_tokens(tokenizer)
    text = [tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []
    return {"conversation": text if found.turn_stop is None else [found.turn_stop], "text": text}


def reading_rules(
    tokenizer: PreTrainedTokenizerBase, *, trained_here: bool, saved: object = None
) -> ReadingRules:
    """Return the rules by which a reward model reads ids and whole texts.

    Args:
        tokenizer: the model's tokenizer.
        trained_here: whether Fairlead trained the model. If not, a conversation ends with all that the
            template writes, as models of the hub are trained.
        saved: the value of `trained_end` in the model's configuration; None for models without.

    Raises:
        ModelLoadError: if `saved` is not valid.
    """
    found = control_tokens(tokenizer)
    end = trained_end(tokenizer) if saved is None else _checked(saved)
    conversation = end["conversation"]
    if saved is None and not trained_here and tokenizer.chat_template:
        after = found.tail.index(found.turn_stop) if found.turn_stop is not None else 0
        conversation = list(found.tail[after:])
    eos, pad = tokenizer.eos_token, tokenizer.pad_token
    eos_id = tokenizer.eos_token_id if isinstance(tokenizer.eos_token_id, int) else None
    spare = [pad] if pad and (pad == eos or pad not in found.written) else []
    kept = {*found.written, tokenizer.bos_token, eos, tokenizer.cls_token, tokenizer.sep_token}
    return ReadingRules(
        conversation_end=tuple(conversation),
        text_end=tuple(end["text"]),
        turn_stop=found.turn_stop,
        eos=eos_id,
        trailing=tuple(sorted({*found.tail, *([] if eos_id is None else [eos_id])})),
        markers=found.markers,
        has_template=bool(tokenizer.chat_template),
        foreign=tuple(name for name in found.names if name not in kept),
        padding=tuple(dict.fromkeys([*spare, *([eos] if spare and eos else [])])),
        pads_with_eos=pad == eos,
        bos=str(tokenizer.bos_token) if found.starts_with_bos else "",
        bos_id=tokenizer.bos_token_id if isinstance(tokenizer.bos_token_id, int) else None,
        affixes=found.affixes,
    )


def _checked(saved: object) -> dict[str, list[int]]:
    if isinstance(saved, Mapping):
        found = {name: saved.get(name) for name in ("conversation", "text")}
        if all(isinstance(ids, list) and all(type(one) is int for one in ids) for ids in found.values()):
            return {name: list(ids or []) for name, ids in found.items()}
    raise ModelLoadError(
        f"fairlead_answer_end in the model's config.json: got {saved!r:.80}, allowed: "
        '{"conversation": [ids], "text": [ids]}'
    )


def _derive(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    frame, last_turn, tail_text = _rendered(tokenizer)
    ids = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {str(name) for name in tokenizer.all_special_tokens}
    # A one-character token cannot be cut apart.
    found = {name for name in {*ids, *special} if name in frame and len(name) > 1}
    # Not the others of the last turn, such as Qwen's `<think>`: an answer may contain them.
    written = sorted(found | {name for name in special if name in last_turn and len(name) > 1})
    names = {name for name in special if name != tokenizer.unk_token and len(name) > 1} | set(written)
    tail = _encode(tokenizer, tail_text)
    vocabulary = ids if names <= ids.keys() else tokenizer.get_vocab()
    number_of = {name: vocabulary[name] for name in names if name in vocabulary}
    controls = set(number_of.values())
    ends = {tokenizer.bos_token, tokenizer.eos_token}
    return ControlTokens(
        names=tuple(sorted(names, key=lambda name: (-len(name), name))),
        written=tuple(written),
        markers=tuple(sorted(number_of[name] for name in {*written} - ends if name in number_of)),
        tail=tail,
        turn_stop=next((token for token in tail if token in controls), None),
        starts_with_bos=bool(tokenizer.bos_token) and frame.startswith(str(tokenizer.bos_token)),
        affixes=_affixes(tokenizer),
    )


def _rendered(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """Return what the template writes around the turns of a conversation, around the last answer, and after
    it.
    """
    if not tokenizer.chat_template:
        return "", "", ""
    asked, answered = Message("user", _ASKED), Message("assistant", _ANSWERED)
    # Some templates require a system message, and some render one exchange only.
    for before in ((), (Message("system", _ASKED),)):
        try:
            whole = render(tokenizer, Chat((*before, asked, answered)), generate=False)
        except InvalidInput:
            continue
        try:
            frame = render(tokenizer, Chat((*before, asked, answered, asked)), generate=False)
        except InvalidInput:
            frame = whole
        _, found, tail = whole.rpartition(_ANSWERED)
        return frame, whole, tail if found else ""
    return "", "", ""


def _affixes(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    bare = _encode(tokenizer, _ASKED)
    whole = tuple(int(token) for token in tokenizer(_ASKED, verbose=False)["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return (), ()


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tuple(int(token) for token in ids)
