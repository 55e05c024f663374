"""Encoding of text: special tokens only on prompts, EOS on responses, no empty prompts."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fairlead.data.control import policy_stop_ids, trained_end
from fairlead.data.encoding import encode_prompt, encode_response
from fairlead.errors import ModelLoadError
from tests.tiny import tiny_tokenizer


def _plain(**special: str) -> PreTrainedTokenizerFast:
    """A tokenizer that adds no special tokens by itself."""
    definition = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "?": 3}, unk_token="?"))
    definition.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=definition, **special)


def test_prompt_has_special_tokens_and_response_has_none() -> None:
    tokenizer = tiny_tokenizer()
    word = tokenizer.convert_tokens_to_ids
    assert encode_prompt(tokenizer, "w1 w2") == [word("<s>"), word("w1"), word("w2")]
    assert encode_response(tokenizer, "w3", eos=False) == [word("w3")]
    assert encode_response(tokenizer, "w3", eos=True) == [word("w3"), word("</s>")]
    assert encode_response(tokenizer, "", eos=True) == [word("</s>")]
    assert encode_response(tokenizer, "", eos=False) == []


def test_empty_prompt_is_one_token() -> None:
    assert encode_prompt(tiny_tokenizer(), "") == [1]
    assert encode_prompt(_plain(bos_token="<s>", eos_token="</s>"), " ") == [0]
    assert encode_prompt(_plain(eos_token="</s>"), "") == [1]
    with pytest.raises(ModelLoadError, match="neither a BOS nor an EOS token"):
        encode_prompt(_plain(), "")


def test_response_needs_a_tokenizer_with_eos() -> None:
    assert encode_response(_plain(), "a", eos=False) == [2]
    with pytest.raises(ModelLoadError, match="no EOS token"):
        encode_response(_plain(), "a", eos=True)


def test_long_texts_do_not_warn() -> None:
    tokenizer = _plain(bos_token="<s>", model_max_length=4)
    assert len(encode_response(tokenizer, "a " * 100, eos=False)) == 100


@pytest.mark.parametrize(
    "refusal",
    [
        "",
        "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}",
        "{% if messages | length > 2 %}{{ raise_exception('one exchange') }}{% endif %}",
    ],
)
def test_end_of_a_turn_is_found_in_unusual_templates(refusal: str) -> None:
    tokenizer = _plain(eos_token="</s>")
    tokenizer.add_tokens([AddedToken("<end_of_answer>", special=True)], special_tokens=True)
    tokenizer.chat_template = refusal + (
        "{% for m in messages %}{{ m.content }} {% if m.role == 'assistant' %}<end_of_answer> {% endif %}"
        "{% endfor %}"
    )
    end = tokenizer.convert_tokens_to_ids("<end_of_answer>")
    assert policy_stop_ids(tokenizer) == {end}
    assert trained_end(tokenizer) == {"conversation": [end], "text": [tokenizer.eos_token_id]}
