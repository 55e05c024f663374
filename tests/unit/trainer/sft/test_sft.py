"""SFT: responses only, the same gradient for any split, tokenizers from scratch, the whole stage."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fairlead.config.base import ComputeSection
from fairlead.config.data import ScratchModel
from fairlead.data.encoding import encode_prompt, encode_response
from fairlead.data.records import Demonstration
from fairlead.errors import ConfigError
from fairlead.nn.loading import load_causal_lm, load_tokenizer
from tests.tiny import tiny_causal_lm, tiny_tokenizer
from tests.unit.trainer.stage_world import sft_run
from trainer.demonstrations import encode, encode_whole
from trainer.distributed.sharding import Root
from trainer.seeds import batches, permutation
from trainer.sequences import TokenSequence
from trainer.sft import loss, scratch
from trainer.sft.train import train

SEQUENCES = [
    TokenSequence((1, 5, 6, 7, 2), 2),
    TokenSequence((1, 9, 2), 1),
    TokenSequence((1, 8, 8, 8, 8, 11, 12, 2), 5),
    TokenSequence((1, 30, 2), 2),
    TokenSequence((1, 20, 21, 22, 23, 24), 3),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tiny_causal_lm(tmp_path_factory.mktemp("lm"))
    return load_causal_lm(str(path), ComputeSection(device="cpu")).double()


@torch.no_grad()
def naive_loss(model) -> float:
    """Every response token of every sequence, one at a time."""
    terms = []
    for sequence in SEQUENCES:
        for place in range(sequence.prompt_length, len(sequence.token_ids)):
            logits = model(torch.tensor([sequence.token_ids[:place]])).logits[0, -1]
            terms.append(-float(logits.log_softmax(-1)[sequence.token_ids[place]]))
    return sum(terms) / len(terms)


def gradient(model, parts) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    total = 0.0
    for part in parts:
        part.backward()
        total += float(part.detach())
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])


def test_only_responses_are_learned_with_equal_token_weights(model):
    assert loss.mean_loss(Root(model), SEQUENCES, max_tokens=1000) == pytest.approx(
        naive_loss(model), abs=1e-9
    )


@pytest.mark.parametrize("max_tokens", [1, 8, 16])
def test_gradient_does_not_depend_on_micro_batches(model, max_tokens):
    whole_loss, whole = gradient(model, loss.micro_batch_losses(Root(model), SEQUENCES, max_tokens=1000))
    split_loss, split = gradient(
        model, loss.micro_batch_losses(Root(model), SEQUENCES, max_tokens=max_tokens)
    )
    assert split_loss == pytest.approx(whole_loss, abs=1e-9)
    assert torch.allclose(split, whole, rtol=1e-6, atol=1e-9)


def test_sequences_end_with_eos_and_long_ones_are_cut_and_counted(caplog):
    tokenizer = tiny_tokenizer()
    demonstrations = [
        Demonstration("w1 w2", "w3"),
        Demonstration("", "w4 w5"),
        Demonstration("w1 w2", "w3 w4 w5 w6"),
        Demonstration("w1 w2 w3 w4 w5 w6", "w7"),
    ]
    encoded = encode(demonstrations, tokenizer, max_tokens=5)
    ids = {f"w{number}": 4 + number for number in range(10)}
    assert encoded.sequences == [
        TokenSequence((1, ids["w1"], ids["w2"], ids["w3"], 2), 3),
        TokenSequence((1, ids["w4"], ids["w5"], 2), 1),
        TokenSequence((1, ids["w1"], ids["w2"], ids["w3"], ids["w4"]), 3),
    ]
    assert (encoded.cut, encoded.left_out) == (1, 1)
    assert encode_whole(demonstrations, tokenizer, max_tokens=5) == encoded.sequences[:2]
    encoded.warn("data.demonstrations", max_tokens=5, remedy="raise the limit")
    assert "within 5 tokens 1 of 4 answers lose their end" in caplog.text
    assert "1 are left out because their prompts fill the limit; raise the limit" in caplog.text


def test_every_demonstration_is_used_once_per_epoch():
    steps = list(batches(permutation(10, 0, "sft", 0), size=4))
    assert [len(step) for step in steps] == [4, 4, 2]
    assert sorted(index for step in steps for index in step) == list(range(10))
    assert steps != list(batches(permutation(10, 0, "sft", 1), size=4))


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_tokenizers_from_scratch(kind, tmp_path):
    texts = ["my lamp was broken .", "sorry about the lamp !"]
    tokenizer = scratch.make_tokenizer(texts, ScratchModel(tokenizer=kind, vocabulary_size=300))
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert encode_prompt(tokenizer, "") == [tokenizer.bos_token_id]
    assert encode_prompt(tokenizer, texts[0])[0] == tokenizer.bos_token_id
    response = encode_response(tokenizer, texts[1], eos=True)
    assert response[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(response, skip_special_tokens=True) == texts[1]
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert encode_prompt(again, texts[0]) == encode_prompt(tokenizer, texts[0])
    unknown = encode_response(tokenizer, "ω", eos=False)
    assert (unknown == [tokenizer.unk_token_id]) == (kind == "words")


def test_invalid_scratch_settings_are_rejected():
    with pytest.raises(ConfigError, match="vocabulary_size"):
        scratch.make_tokenizer(["a"], ScratchModel(tokenizer="bpe", vocabulary_size=100))
    tokenizer = scratch.make_tokenizer(["a"], ScratchModel(tokenizer="words"))
    with pytest.raises(ConfigError, match="num_heads"):
        scratch.make_model(tokenizer, ScratchModel(hidden_size=64, num_heads=5), seed=0)
    first, second = (scratch.make_model(tokenizer, ScratchModel(), seed=seed) for seed in (0, 0))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.lm_head.weight is first.model.embed_tokens.weight


def test_stage_learns_and_writes_a_model(tmp_path):
    config = sft_run(tmp_path, epochs=6)
    result = train(config)
    written = json.loads(config.folder.result("sft").read_text())
    assert {"heldout_loss", "train_loss", "seconds", "demonstrations", "truncated"} <= written.keys()
    assert result["demonstrations"] + result["heldout_demonstrations"] == 120
    assert written["train_loss"] < 0.8 < math.log(20)
    lines = [json.loads(line) for line in config.folder.metrics("sft").read_text().splitlines()]
    assert lines[0]["loss"] > 2
    assert sum("heldout_loss" in line for line in lines) == 6
    progress = json.loads(config.folder.progress.read_text())
    assert (progress["stage"], progress["phase"]) == ("sft", "done")
    assert progress["step"] == progress["total"]

    model = load_causal_lm(str(config.folder.sft_model), ComputeSection(device="cpu"))
    tokenizer = load_tokenizer(str(config.folder.sft_model))
    prompt = encode_prompt(tokenizer, "say w3")
    with torch.no_grad():
        after = model(torch.tensor([prompt])).logits[0, -1]
    assert tokenizer.decode([int(after.argmax())]) == "here"
