"""The order of prompts: those that leave no space for an answer are left out and counted."""

from __future__ import annotations

import random

import pytest

from fairlead.config.sampling import SamplingSection
from fairlead.data.chat import Chat
from fairlead.data.encoding import encode_prompt
from fairlead.errors import ConfigError
from fairlead.types import Message, WeightVersion
from tests.tiny import tiny_tokenizer
from trainer.ppo.dispatch import PromptOrder

CONTEXT = 24


def order(prompts: list[str], context_tokens: int | None = CONTEXT) -> PromptOrder:
    return PromptOrder(
        prompts, tiny_tokenizer(), sampling=SamplingSection(), seed=0, context_tokens=context_tokens
    )


def test_only_prompts_with_space_for_an_answer_are_kept(caplog: pytest.LogCaptureFixture):
    draw = random.Random(0)
    prompts = [" ".join(f"w{draw.randrange(20)}" for _ in range(draw.randrange(1, 40))) for _ in range(200)]
    lengths = [len(encode_prompt(tiny_tokenizer(), prompt)) for prompt in prompts]
    fitting = {prompt for prompt, length in zip(prompts, lengths, strict=True) if length < CONTEXT}
    assert 0 < len(fitting) < len(set(prompts))
    found = order(prompts)
    number = sum(length < CONTEXT for length in lengths)
    tasks = found.tasks(range(number), min_version=WeightVersion(1, 0))
    assert sorted(task.prompt_text for task in tasks) == sorted(
        prompt for prompt in prompts if prompt in fitting
    )
    assert f"left out {200 - number} of 200 prompts" in caplog.text
    assert max(len(task.prompt_token_ids) for task in tasks) == CONTEXT - 1


def test_order_is_unchanged_where_every_prompt_fits(caplog: pytest.LogCaptureFixture):
    prompts = [f"w{index}" for index in range(12)]
    version = WeightVersion(1, 0)
    assert order(prompts).tasks(range(24), min_version=version) == order(prompts, None).tasks(
        range(24), min_version=version
    )
    assert caplog.text == ""


def test_run_without_a_prompt_that_fits_is_refused():
    with pytest.raises(
        ConfigError, match=r"^data.prompts: got '2 prompts, all of 24 tokens or more'"
    ) as caught:
        order(["w1 " * 24, "w2 " * 30])
    assert "space for an answer" in str(caught.value)


def test_conversation_is_measured_as_rendered():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    prompts = [Chat((Message("user", "w1 " * words),)) for words in (3, 40)]
    found = PromptOrder(prompts, tokenizer, sampling=SamplingSection(), seed=0, context_tokens=CONTEXT).task(
        0, min_version=WeightVersion(1, 0)
    )
    assert found.messages == prompts[0].messages
