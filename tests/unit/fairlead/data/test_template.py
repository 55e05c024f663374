"""The chat template and its arguments that `[model]` sets: one rendering in every stage and service."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from transformers import AutoTokenizer

from fairlead.config import load
from fairlead.data.chat import Chat
from fairlead.data.encoding import encode_answer, encode_prompt
from fairlead.data.template import apply_settings, bind, render
from fairlead.errors import ConfigError
from fairlead.metrics import PolicyMetrics
from fairlead.types import Message
from services.policy.__main__ import _load as serve_policy
from tests.template_families import QWEN3, causal_lm, tokenizer_of
from tests.unit.trainer.ppo.test_train import Run
from trainer.reward_model.train import train as train_reward_model
from trainer.sft.train import train as train_sft

ASKED = Chat((Message("user", "where is it ?"),))
ODD = "  {% for m in messages %}\n  {{ m.content }} {{ style }}\n{% endfor %}\n{{ level + 1 }}{{ quoted }}"


def qwen3():
    tokenizer = tokenizer_of("qwen3_no_thinking")
    tokenizer.chat_template = QWEN3
    return tokenizer


def test_arguments_render_as_if_passed_to_the_template_and_are_saved_with_it(tmp_path: Path):
    """The oracle is transformers, with the arguments passed in the call."""
    turns = [{"role": "user", "content": "where is it ?"}]
    for template, arguments in (
        (QWEN3, {"enable_thinking": False}),
        (QWEN3, {"enable_thinking": True}),
        (ODD, {"style": 'a "b" %} {{ ü\n', "level": 2, "quoted": 0.5}),
        ("\n" + ODD, {"style": "", "level": -1, "quoted": True}),
    ):
        tokenizer = qwen3()
        tokenizer.chat_template = template
        expected = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **arguments
        )
        config = load(overrides={"model.template_arguments": arguments})
        for _ in range(2):  # a model that has them already
            apply_settings(tokenizer, config)
            assert render(tokenizer, ASKED, generate=True) == expected
        tokenizer.save_pretrained(tmp_path / "saved")
        loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert loaded.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == expected
        assert bind(loaded.chat_template, {}) == template


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"chat_template": "none"}, r"model.chat_template: got '.*none', allowed: a file \(No such file"),
        ({"chat_template": "broken"}, "model.chat_template: got .`messages` that the chat template rejects"),
        ({"chat_template": "fixed"}, "model.chat_template: got 'hello', allowed: a template that writes the"),
        (
            {"template_arguments": {"enable_thinkin": False}},
            "model.template_arguments.enable_thinkin: got 'a name that is not in the chat template'",
        ),
    ],
)
def test_unusable_settings_are_rejected_by_name(tmp_path: Path, settings: dict, error: str):
    (tmp_path / "broken").write_text("{% for m in messages %}")
    (tmp_path / "fixed").write_text("hello")
    config = load(overrides={"base": str(tmp_path), **{f"model.{key}": v for key, v in settings.items()}})
    with pytest.raises(ConfigError, match=error):
        apply_settings(qwen3(), config)


def test_arguments_need_a_template_and_names_that_are_free():
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = None
    config = load(overrides={"model.template_arguments": {"enable_thinking": False}})
    with pytest.raises(ConfigError, match="got 'a tokenizer without a chat template'"):
        apply_settings(tokenizer, config)
    for name, value in (("messages", 1), ("a b", 1), ("x", float("nan")), ("x", [1]), ("x", None)):
        with pytest.raises(ConfigError, match=rf"^model.template_arguments: got .*allowed: .*\b{name}\b"):
            load(overrides={"model.template_arguments": {name: value}})


def test_stages_train_save_and_score_with_the_template_of_the_run(tmp_path: Path):
    rows = "".join(
        f'{{"prompt": [{{"role": "user", "content": "where {n} ?"}}], "KEYS}}\n' for n in range(40)
    )
    (tmp_path / "d").write_text(rows.replace("KEYS", 'completion": "sorry ."'))
    (tmp_path / "p").write_text(rows.replace("KEYS", 'chosen": "sorry .", "rejected": "no ."'))
    (tmp_path / "t.jinja").write_text(QWEN3)
    config = load(
        overrides={
            **{"base": str(tmp_path), "runs": tmp_path / "runs", "data.demonstrations": "d"},
            **{"data.preferences": "p", "model.chat_template": "t.jinja", "sft.epochs": 1},
            **{"model.template_arguments.enable_thinking": False, "model.scratch.hidden_size": 16},
            **{"observe.tensorboard": False, "sft.device": "cpu", "reward_model.device": "cpu"},
        }
    )
    train_sft(config)
    train_reward_model(config)
    for folder in (config.folder.sft_model, config.folder.reward_model):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        prompt, answer = encode_answer(tokenizer, ASKED, "sorry .")
        assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert prompt == encode_prompt(tokenizer, ASKED)
        assert tokenizer.decode(answer).startswith("sorry .")


def test_policy_that_the_run_starts_from_gets_the_template_in_service_and_trainer(tmp_path: Path):
    base = causal_lm("qwen3_no_thinking", tmp_path / "base")
    qwen3().save_pretrained(base)
    rows = (f'{{"prompt": [{{"role": "user", "content": "{n} ?"}}]}}\n' for n in range(20))
    (tmp_path / "p").write_text("".join(rows))
    config = load(
        overrides={
            **{"base": str(tmp_path), "runs": tmp_path / "runs", "data.prompts": "p"},
            **{"policy.path": str(base), "policy.device": "cpu", "ppo.device": "cpu", "ppo.updates": 1},
            **{"ppo.batch_size": 4, "ppo.mini_batch_size": 4, "sampling.max_new_tokens": 4},
            **{"observe.tensorboard": False, "model.template_arguments.enable_thinking": False},
        }
    )
    engine, encode = serve_policy(config, PolicyMetrics(CollectorRegistry()))
    engine.close()
    with Run(config, base) as run:
        run.trainer().run()
    trained = AutoTokenizer.from_pretrained(config.folder.policy_model)
    assert trained.decode(encode(ASKED)).endswith("</think>\n\n")
    assert encode_prompt(trained, ASKED) == encode(ASKED) != encode_prompt(qwen3(), ASKED)
