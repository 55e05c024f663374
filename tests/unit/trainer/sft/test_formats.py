"""SFT on conversations and plain text, and packing with the same loss and gradient as padding."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from fairlead.config import load
from fairlead.config.base import ComputeSection
from fairlead.data.demonstrations import Conversation, Demonstration, Message, PlainText
from fairlead.errors import ConfigError, DataError
from fairlead.nn.loading import load_causal_lm
from tests.tiny import tiny_causal_lm, tiny_tokenizer
from trainer.demonstrations import EncodedExamples, encode
from trainer.distributed.sharding import Root
from trainer.sequences import TokenSequence
from trainer.sft import loss, packing
from trainer.sft.train import train

TEMPLATE = (
    "<s> {% for m in messages %}{% if m.role == 'user' %}w1 {{ m.content }} {% elif m.role == 'system' %}"
    "w3 {{ m.content }} {% else %}w2 {{ m.content }} </s> w4 {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}w2 {% endif %}"
)
WORD = tiny_tokenizer().convert_tokens_to_ids


def chat_tokenizer(template: str = TEMPLATE):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def conversation(*turns: tuple[str, str]) -> Conversation:
    return Conversation(tuple(Message(*turn) for turn in turns), file="chat.jsonl", line=7)


def ids(text: str) -> tuple[int, ...]:
    return tuple(WORD(text.split()))


def test_only_assistant_turns_are_learned():
    spoken = conversation(
        ("system", "w9"), ("user", "w10"), ("assistant", "w11 w12"), ("user", "w13"), ("assistant", "w14")
    )
    first, second = encode([spoken], chat_tokenizer(), max_tokens=64).sequences
    prompt = ids("<s> w3 w9 w1 w10 w2")
    assert first == TokenSequence((*prompt, *ids("w11 w12 </s>")), len(prompt))
    prompt = (*prompt, *ids("w11 w12 </s> w4 w1 w13 w2"))
    assert second == TokenSequence((*prompt, *ids("w14 </s>")), len(prompt))
    assert second.token_ids.count(WORD("<s>")) == 1


def test_missing_end_of_a_template_is_added():
    plain = "{% for m in messages %}{{ m.content }} {% endfor %}"
    spoken = conversation(("user", "w5"), ("assistant", "w6"))
    found = encode([spoken], chat_tokenizer(plain), max_tokens=64).sequences
    assert found == [TokenSequence(ids("w5 w6 </s>"), 1)]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "`messages`, and the tokenizer has no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages | length }} {{ messages[-1].content }}", "changes the text before it"),
    ],
)
def test_invalid_conversations_name_their_line(template, message):
    with pytest.raises(DataError, match=message) as caught:
        encode([conversation(("user", "w5"), ("assistant", "w6"))], chat_tokenizer(template), max_tokens=64)
    assert str(caught.value).startswith("chat.jsonl:7: ")


@pytest.mark.parametrize("limit", [3, 4, 12, 13, 50])
def test_every_token_of_plain_text_is_learned_once(limit):
    words = [f"w{number}" for number in range(5, 16)]
    encoded = encode([PlainText(" ".join(words))], tiny_tokenizer(), max_tokens=limit)
    sequences = encoded.sequences
    whole = (1, *WORD(words), 2)
    learnt = [token for sequence in sequences for token in sequence.token_ids[sequence.prompt_length :]]
    assert learnt == list(whole[1:])
    assert all(len(sequence.token_ids) <= limit for sequence in sequences)
    assert all(sequence.prompt_length == 1 for sequence in sequences)
    starts = [sequence.token_ids[0] for sequence in sequences]
    ends = [sequence.token_ids[-1] for sequence in sequences]
    assert starts == [1, *ends[:-1]]
    assert (encoded.cut, encoded.left_out) == (0, 0)


SEQUENCES = [
    TokenSequence((1, 5, 6, 7, 2), 2),
    TokenSequence((1, 9, 2), 1),
    TokenSequence((1, 8, 8, 8, 8, 11, 12, 2), 5),
    TokenSequence((1, 30, 2), 2),
    TokenSequence((1, 20, 21, 22, 23, 24), 3),
    TokenSequence((1, 40, 41, 42, 43, 44, 45, 46, 47, 48), 1),
]


def llama(folder):
    return load_causal_lm(str(tiny_causal_lm(folder)), ComputeSection(device="cpu")).double()


def gpt2(folder):
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    sizes = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**sizes, **ends, initializer_range=0.2)).double().eval()


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize(("width", "max_tokens"), [(12, 24), (32, 1000), (4, 4)])
def test_packed_loss_and_gradient_equal_padded_ones(tmp_path, make, width, max_tokens):
    model = make(tmp_path)
    packing.check(model, longest=32)

    def total(**how) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        parts = list(loss.micro_batch_losses(Root(model), SEQUENCES, **how))
        for part in parts:
            part.backward()
        return sum(float(part.detach()) for part in parts), torch.cat(
            [p.grad.flatten() for p in model.parameters()]
        )

    expected, gradient = total(max_tokens=1000)
    found, packed = total(max_tokens=max_tokens, row_tokens=width)
    assert found == pytest.approx(expected, abs=1e-9)
    assert gradient.abs().max() > 1e-3
    assert torch.allclose(packed, gradient, rtol=1e-6, atol=1e-9)


def test_rows_hold_every_sequence_once_within_their_width():
    found = packing.rows(SEQUENCES, width=13)
    assert sorted(sequence.token_ids for row in found for sequence in row) == sorted(
        sequence.token_ids for sequence in SEQUENCES
    )
    lengths = [sum(len(sequence.token_ids) for sequence in row) for row in found]
    assert lengths == [13, 13, 9]  # 35 tokens: the fewest possible rows


def test_architecture_that_mixes_packed_sequences_is_rejected():
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
    model = BloomForCausalLM(BloomConfig(**sizes)).eval()
    with pytest.raises(ConfigError, match=r"^sft.batching: got .*BloomForCausalLM.*'length'"):
        packing.check(model, longest=32)


def test_stage_packs_mixed_formats_and_reports_their_losses(tmp_path):
    base = tiny_causal_lm(tmp_path / "base")
    chat_tokenizer().save_pretrained(base)
    rows: list[object] = []
    for n in range(60):
        rows.append({"prompt": f"w{n % 20}", "completion": f"w{20 + n % 20}"})
        rows.append({"text": " ".join(f"w{(n * k) % 59}" for k in range(1, 9))})
        turns = (("user", f"w{n % 20}"), ("assistant", "w50 w51"))
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(batching: str):
        config = load(
            overrides={
                "runs": str(tmp_path / batching),
                "base": str(tmp_path),
                "model.path": str(base),
                "data.demonstrations": "d.jsonl",
                "data.heldout_fraction": 0.2,
                "sft.batching": batching,
                "sft.learning_rate": 3e-3,
                "sft.device": "cpu",
                "sft.max_sequence_tokens": 24,
                "observe.tensorboard": False,
            }
        )
        return train(config)

    padded, packed = run("length"), run("packing")
    assert packed["heldout_loss"] == pytest.approx(padded["heldout_loss"], abs=1e-3)
    by_format = packed["heldout_loss_by_format"]
    assert by_format.keys() == {"completion", "messages", "text"}
    # The assistant always gives the same answer.
    assert by_format["messages"] < min(by_format["text"], by_format["completion"])
    assert min(by_format.values()) < packed["heldout_loss"] < max(by_format.values())


def test_demonstrations_are_encoded_as_prompt_and_response():
    found = encode([Demonstration("w5", "w6 w7")], chat_tokenizer(), max_tokens=64)
    assert found == EncodedExamples([TokenSequence(ids("<s> w5 w6 w7 </s>"), 2)], cut=0, left_out=0)
