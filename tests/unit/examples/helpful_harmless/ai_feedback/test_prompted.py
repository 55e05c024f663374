"""The log-odds of an asked model against a plain forward pass, in both orders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.helpful_harmless.ai_feedback import prompted
from fairlead.config.base import ComputeSection
from fairlead.data.comparisons import Preference
from tests.tiny import tiny_causal_lm

TEMPLATE = (
    "{% for message in messages %}w50 {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}w50 {% endif %}"
)
PAIRS = [Preference("w1 w2", "w3 w4", "w5"), Preference("w6", "w7", "w8 w9 w10")]


def _model(folder: Path) -> str:
    path = tiny_causal_lm(folder)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return str(path)


def test_log_odds_equal_a_plain_forward_pass(tmp_path: Path) -> None:
    path = _model(tmp_path / "model")
    found = prompted.log_odds(path, PAIRS, ComputeSection(device="cpu"), names=("w11", "w12"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    for pair, both in zip(PAIRS, found.tolist(), strict=True):
        for (first, second), sign, odds in zip(
            ((pair.chosen, pair.rejected), (pair.rejected, pair.chosen)), (1, -1), both, strict=True
        ):
            asked = prompted.message(pair.prompt, first, second)
            assert asked.messages[0].content.index(first) < asked.messages[0].content.index(second)
            text = f"w50 {asked.messages[0].content}</s>w50 "
            with torch.no_grad():
                logits = model(torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])).logits[
                    0, -1
                ]
            first_id, second_id = tokenizer.convert_tokens_to_ids(["w11", "w12"])
            assert odds == pytest.approx(sign * float(logits[first_id] - logits[second_id]), abs=1e-4)


def test_long_answers_are_cut_and_say_so() -> None:
    words = [f"word{number}" for number in range(prompted.MAX_ANSWER_WORDS + 1)]
    text = prompted.message("asked", " ".join(words), "short").messages[0].content
    assert f"{words[-2]} …" in text
    assert words[-1] not in text
