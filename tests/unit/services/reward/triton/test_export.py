"""The files that `fairlead export-triton` writes: its model.py scores like the reward service."""

from __future__ import annotations

import random
import re

import pytest
import torch
from google.protobuf import text_format
from tokenizers import processors
from transformers import AutoModelForSequenceClassification
from tritonclient.grpc import model_config_pb2

from fairlead.config.base import ComputeSection
from fairlead.config.serving import RewardSection
from fairlead.config.training import LoraSection
from fairlead.errors import ConfigError, ModelLoadError
from fairlead.nn import adapters
from fairlead.nn.reward_model import load_reward_model
from fairlead.types import WholeText
from services.reward.scorer import RewardScorer
from services.reward.triton.export import TritonExport, export, main
from tests import architectures, triton_backend
from tests.tiny import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from tests.unit.services.reward.test_ensemble import ensemble
from tests.unit.services.reward.test_scorer import ENCODERS


def assert_same(found, expected, *, within: float = 1e-5):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert abs(one - other) <= within * max(1.0, abs(other))


def drawn(count: int, *, seed: int = 0, longest: int = 100):
    rng = random.Random(seed)
    return [tuple(rng.randrange(60) for _ in range(rng.randint(1, longest))) for _ in range(count)]


def encoder(folder):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForSequenceClassification.from_config(ENCODERS["roberta"]).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save_pretrained(folder)
    return folder


def adapter(folder):
    base = tiny_reward_model(folder / "base")
    reward = load_reward_model(str(base), ComputeSection(device="cpu"))
    section = LoraSection(rank=2)
    adapters.add(reward.model, section, base=str(base), field="lora", seed=0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        for name, parameter in adapters.tensors(reward.model).items():
            if ".lora_B" in name:
                parameter.normal_(std=0.1)
    adapters.save(reward.model, folder / "adapter", merge=False)
    return folder / "adapter"


MAKE = {
    "llama": tiny_reward_model,
    "pad is eos": lambda folder: tiny_reward_model(folder, pad_is_eos=True),
    "gpt2": lambda folder: architectures.reward_model("gpt2", folder),
    "encoder": encoder,
    "adapter": adapter,
    "ensemble": lambda folder: ensemble(folder, 0, 1, 2),
}


@pytest.mark.parametrize("name", MAKE)
def test_scores_equal_those_of_the_reward_service(tmp_path, name):
    folder = MAKE[name](tmp_path / "model")
    scorer = RewardScorer(str(folder), RewardSection(device="cpu"))
    rows = drawn(40)
    expected = [scorer.score([row])[0] for row in rows]
    model = triton_backend.load(export(TritonExport(model=str(folder), target=tmp_path / "r")))
    merged = [rows[:1], rows[1:9], rows[9:10], rows[10:]]
    responses = model.execute([triton_backend.tokens(part) for part in merged])
    assert_same([score for response in responses for score in response.of("rewards")], expected)
    assert [n for response in responses for n in response.of("num_tokens")] == [len(row) for row in rows]
    assert len({round(score, 3) for score in expected}) > 20
    text = (tmp_path / "r" / "reward" / "1" / "model.py").read_text()
    assert not re.search(r"^\s*(from|import) (fairlead|services)", text, re.MULTILINE)


@pytest.mark.parametrize("packing", ["sorted", "arrival", "each"])
def test_every_packing_rule_gives_equal_scores_in_its_own_passes(tmp_path, packing):
    folder = tiny_reward_model(tmp_path / "model")
    scorer = RewardScorer(str(folder), RewardSection(device="cpu"))
    rows = drawn(30, seed=3)
    request = TritonExport(model=str(folder), target=tmp_path / "r", packing=packing, max_batch_tokens=400)
    model = triton_backend.load(export(request))
    shapes = []
    inner = model.members[0].scores
    model.members[0].scores = lambda tokens, lengths: (
        shapes.append(tuple(tokens.shape)),
        inner(tokens, lengths),
    )[1]
    (response,) = model.execute([triton_backend.tokens(rows)])
    assert_same(response.of("rewards"), [scorer.score([row])[0] for row in rows])
    if packing == "arrival":
        assert shapes == [(30, max(map(len, rows)))]
    elif packing == "each":
        assert sorted(shapes) == sorted((1, len(row)) for row in rows)
    else:
        assert 1 < len(shapes) < 30
        assert all(count * width <= 400 for count, width in shapes)


def test_whole_texts_are_read_like_in_the_reward_service(tmp_path):
    folder = architectures.reward_model("llama", tmp_path / "model")
    model = triton_backend.load(export(TritonExport(model=str(folder), target=tmp_path / "r")))
    scorer = RewardScorer(str(folder), RewardSection(device="cpu"))
    texts = ["where is my lamp ?", "<|begin|><|start|>user\n\nhi<|eot|>", "sorry ,<|eot|>\n", "é"]
    ids = scorer.encode([WholeText(text) for text in texts])
    (response,) = model.execute([triton_backend.sentences(*(text.encode() for text in texts))])
    assert response.of("num_tokens") == [len(row) for row in ids]
    assert_same(response.of("rewards"), [scorer.score([row])[0] for row in ids])


def test_invalid_request_is_refused_and_the_others_are_scored(tmp_path):
    folder = tiny_reward_model(tmp_path / "model")
    model = triton_backend.load(export(TritonExport(model=str(folder), target=tmp_path / "r")))
    good = triton_backend.tokens([(5, 6)])
    both = good | triton_backend.sentences(b"w1")
    bad = {
        "inputs: got both or neither": [both, {}],
        "tokens[1]: got id 60, allowed: ids from 0 to 59": [triton_backend.tokens([(5,), (60,)])],
        "tokens[0]: got id -1": [triton_backend.tokens([(-1,)])],
        "tokens[0]: got 129 tokens, allowed: 1 to 128 tokens": [triton_backend.tokens([(5,) * 129])],
        "sequence_lengths: got [3], allowed: one of 1 to 2": [triton_backend.tokens([(5, 6)], [3])],
        "sequence_lengths: got [0]": [triton_backend.tokens([(5, 6)], [0])],
        "sequence_lengths: got [1, 1]": [triton_backend.tokens([(5, 6)], [1, 1])],
        "sentences[1]: got invalid start byte, allowed: UTF-8": [triton_backend.sentences(b"w1", b"\xff")],
    }
    sent = [(message, request) for message, requests in bad.items() for request in requests]
    responses = model.execute([good, *(request for _, request in sent), good])
    for (message, _), response in zip(sent, responses[1:-1], strict=True):
        assert response.error is not None
        assert response.error.message.startswith(message)
        assert response.error.code == triton_backend.TritonError.INVALID_ARG
    assert_same(responses[0].of("rewards"), responses[-1].of("rewards"))


def test_configuration_is_valid_for_triton(tmp_path):
    folder = tiny_reward_model(tmp_path / "model")
    written = export(
        TritonExport(model=str(folder), target=tmp_path / "r", name="helpful", max_batch_size=16)
    )
    config = text_format.Parse((written / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("helpful", "python", 16)
    assert [(one.name, one.optional, one.allow_ragged_batch) for one in config.input] == [
        ("tokens", True, True),
        ("sequence_lengths", True, False),
        ("sentences", True, False),
    ]
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    scorer = RewardScorer(str(folder), RewardSection(device="cpu"))
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters["model_version"] == scorer.info.model_version
    assert parameters["tokenizer_fingerprint"] == scorer.info.model.tokenizer_fingerprint
    plain = export(TritonExport(model=str(folder), target=tmp_path / "p", ragged=False))
    config = text_format.Parse((plain / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert not any(one.allow_ragged_batch for one in config.input)


def test_invalid_models_and_targets_are_refused_without_files(tmp_path, capsys):
    language_model = tiny_causal_lm(tmp_path / "lm")
    with pytest.raises(ModelLoadError, match="without a reward head"):
        export(TritonExport(model=str(language_model), target=tmp_path / "r"))
    damaged = tiny_reward_model(tmp_path / "damaged") / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert main([str(damaged.parent), str(tmp_path / "r")]) == 2
    assert "cannot load the model" in capsys.readouterr().err
    folder = tiny_reward_model(tmp_path / "model")
    with pytest.raises(ConfigError, match="--name: got 'a/b'"):
        export(TritonExport(model=str(folder), target=tmp_path / "r", name="a/b"))
    assert not (tmp_path / "r").exists()
    (tmp_path / "r" / "reward").mkdir(parents=True)
    for force in (False, True):
        with pytest.raises(ConfigError, match="which exists"):
            export(TritonExport(model=str(folder), target=tmp_path / "r", force=force))


def test_export_can_be_replaced_and_linked(tmp_path):
    first, second = (tiny_reward_model(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    export(TritonExport(model=str(first), target=tmp_path / "r"))
    with pytest.raises(ConfigError, match="--force"):
        export(TritonExport(model=str(second), target=tmp_path / "r"))
    written = export(TritonExport(model=str(second), target=tmp_path / "r", force=True, link=True))
    assert (written / "1" / "model").is_symlink()
    scorer = RewardScorer(str(second), RewardSection(device="cpu"))
    (response,) = triton_backend.load(written).execute([triton_backend.tokens([(5, 6, 7)])])
    assert_same(response.of("rewards"), scorer.score([(5, 6, 7)]))
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["reward"]
