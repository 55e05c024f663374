"""Log-probs, heads and loading, against float64 by hand, and every kind of invalid checkpoint."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from fairlead.config.base import ComputeSection
from fairlead.errors import ModelLoadError
from fairlead.nn import loading
from fairlead.nn.failures import load_failure
from fairlead.nn.heads import ScalarHead
from fairlead.nn.logprobs import entropy, hidden_logprobs, hidden_logprobs_and_entropies, token_logprobs
from fairlead.nn.reward_model import load_reward_model
from tests.hub_stand_in import COMMIT, hub
from tests.tiny import VOCABULARY_SIZE, tiny_causal_lm, tiny_reward_model, tiny_tokenizer

CPU = ComputeSection(device="cpu")


def by_hand(logits: torch.Tensor, token: int, temperature: float) -> float:
    scaled = logits.double() / temperature
    return float(scaled[token] - scaled.exp().sum().log())


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_logprobs_are_the_log_softmax_of_scaled_logits(temperature: float):
    torch.manual_seed(0)
    logits = torch.randn(5, 11) * 4
    tokens = torch.randint(0, 11, (5,))
    expected = [by_hand(logits[row], int(tokens[row]), temperature) for row in range(5)]
    assert token_logprobs(logits, tokens, temperature=temperature).tolist() == pytest.approx(
        expected, abs=1e-5
    )


def test_greedy_answers_report_logprobs_at_temperature_one():
    logits = torch.randn(3, 7)
    tokens = logits.argmax(-1)
    assert torch.equal(
        token_logprobs(logits, tokens, temperature=0.0), token_logprobs(logits, tokens, temperature=1.0)
    )


def test_entropy_of_uniform_and_certain_distributions():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 200.0, 0.0, 0.0]])
    assert entropy(logits, temperature=1.0).tolist() == pytest.approx(
        [torch.log(torch.tensor(4.0)).item(), 0.0]
    )


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk_rows", [1, 3, 7, 100])
def test_chunks_change_neither_logprobs_nor_gradients(chunk_rows: int, bias: bool, trained: bool):
    torch.manual_seed(1)
    unembedding = torch.nn.Linear(6, 13, bias=bias).double().requires_grad_(trained)
    hidden = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(0, 13, (7,))
    inputs = [hidden, *(unembedding.parameters() if trained else ())]
    loss_weights = torch.randn(7, dtype=torch.float64)
    whole = token_logprobs(unembedding(hidden), tokens, temperature=0.7)
    expected = torch.autograd.grad((loss_weights * whole).sum(), inputs)
    chunked, entropies = hidden_logprobs_and_entropies(
        hidden, unembedding, tokens, temperature=0.7, chunk_rows=chunk_rows
    )
    torch.testing.assert_close(entropies, entropy(unembedding(hidden), temperature=0.7))
    plain = hidden_logprobs(hidden, unembedding, tokens, temperature=0.7, chunk_rows=chunk_rows)
    for found in (chunked, plain):
        torch.testing.assert_close(found, whole)
        got = torch.autograd.grad((loss_weights * found).sum(), inputs)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trained", [True, False])
def test_gradient_of_chunks_under_autocast_is_that_of_all_logits(trained: bool):
    torch.manual_seed(1)
    unembedding = torch.nn.Linear(16, 33, bias=False).requires_grad_(trained)
    hidden = torch.randn(9, 16, requires_grad=True)
    tokens = torch.randint(0, 33, (9,))
    inputs = [hidden, *(unembedding.parameters() if trained else ())]
    gradients = []
    for rows in (100, 4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = hidden_logprobs(hidden, unembedding, tokens, temperature=0.7, chunk_rows=rows)
        gradients.append(torch.autograd.grad(found.sum(), inputs))
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == other.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.03, atol=0.03)


def test_no_rows_give_no_logprobs():
    empty = torch.zeros(0, 6)
    logprobs, entropies = hidden_logprobs_and_entropies(
        empty, torch.nn.Linear(6, 3), torch.zeros(0, dtype=torch.long), temperature=1.0
    )
    assert logprobs.shape == entropies.shape == (0,)


def test_head_computes_in_float32_and_is_initialised_as_in_the_papers():
    torch.manual_seed(2)
    head = ScalarHead(1_023)
    assert head.weight.std().item() == pytest.approx(1 / 32, rel=0.1)
    assert torch.equal(ScalarHead(8, std=0.0)(torch.randn(2, 3, 8)), torch.zeros(2, 3))
    assert head.to(torch.bfloat16)(torch.randn(2, 1_023, dtype=torch.bfloat16)).dtype == torch.float32


def test_reward_model_reads_last_real_token_for_any_padding(tmp_path: Path):
    reward = load_reward_model(str(tiny_reward_model(tmp_path)), CPU)
    tokens = torch.randint(4, VOCABULARY_SIZE, (2, 9))
    lengths = torch.tensor([5, 9])
    hidden = reward.body(input_ids=tokens[:1, :5])[0][0, -1].double()
    expected = (hidden @ reward.head.weight[0].double() + reward.head.bias.double()).item()
    for filler in (0, 2, 17):
        tokens[0, 5:] = filler
        assert reward.scores(tokens, lengths)[0].item() == pytest.approx(expected, abs=1e-5)


def test_saved_reward_model_loads_in_transformers_and_fairlead(tmp_path: Path):
    reward = load_reward_model(str(tiny_reward_model(tmp_path / "a", bias=0.5)), CPU)
    reward.save(tmp_path / "b", tiny_tokenizer())
    tokens = torch.randint(4, VOCABULARY_SIZE, (1, 6))
    again = load_reward_model(str(tmp_path / "b"), CPU)
    expected = reward.scores(tokens, torch.tensor([6]))
    assert torch.equal(again.scores(tokens, torch.tensor([6])), expected)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "b")
    torch.testing.assert_close(theirs(input_ids=tokens).logits[0] + 0.5, expected)
    assert loading.weights_digest(again.model) == loading.weights_digest(reward.model)


def test_checkpoint_without_a_head_is_rejected(tmp_path: Path):
    tiny_causal_lm(tmp_path)
    with pytest.raises(ModelLoadError, match=r"lacks the weights score.weight.*fairlead reward-model"):
        load_reward_model(str(tmp_path), CPU)
    assert load_reward_model(str(tmp_path), CPU, fresh_head=True).model.config.num_labels == 1


def test_classifier_with_several_labels_is_rejected(tmp_path: Path):
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=3,
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="has 3 labels; a reward model has 1"):
        load_reward_model(str(tmp_path), CPU)


def test_missing_path_and_damaged_files_are_named(tmp_path: Path):
    with pytest.raises(ModelLoadError, match="no model folder './nowhere': give an existing folder"):
        loading.load_causal_lm("./nowhere", CPU)
    with pytest.raises(ModelLoadError, match="no model folder ''"):
        loading.load_tokenizer("")
    folder = tiny_causal_lm(tmp_path)
    shard = folder / "model.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelLoadError, match="cannot load the model"):
        loading.load_causal_lm(str(folder), CPU)
    shard.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ModelLoadError, match=r"lacks the weights model\.layers\.2\."):
        loading.load_causal_lm(str(folder), CPU)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="cannot load the model"):
        loading.load_causal_lm(str(folder), CPU)


def test_pickled_weights_are_refused_and_not_read(tmp_path: Path):
    folder = tiny_causal_lm(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"only as pickle \(pytorch_model\.bin\), .* convert"):
        loading.load_causal_lm(str(folder), CPU)
    with pytest.raises(ModelLoadError, match="only as pickle"):
        load_reward_model(str(folder), CPU, fresh_head=True)


def test_weights_that_the_model_does_not_read_are_refused_or_reported(tmp_path: Path, caplog):
    def configured(folder: Path, **values: object) -> str:
        found = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(found | values))
        return str(folder)

    cut = configured(tiny_causal_lm(tmp_path / "cut"), num_hidden_layers=1)
    with pytest.raises(ModelLoadError, match=r"more layers or experts .* model\.layers\.1\..*config\.json"):
        loading.load_causal_lm(cut, CPU)
    with pytest.raises(ModelLoadError, match="more layers or experts"):
        load_reward_model(configured(tiny_reward_model(tmp_path / "reward"), num_hidden_layers=1), CPU)
    more = tiny_causal_lm(tmp_path / "more")
    weights = load_file(more / "model.safetensors")
    save_file(weights | {"model.extra.weight": torch.zeros(1)}, more / "model.safetensors", {"format": "pt"})
    assert not caplog.messages
    loading.load_causal_lm(str(more), CPU)
    (message,) = caplog.messages
    assert message.endswith("LlamaForCausalLM has none of their names: model.extra.weight")
    # A head for another task is no surprise.
    load_reward_model(str(tiny_causal_lm(tmp_path / "head")), CPU, fresh_head=True)
    assert len(caplog.messages) == 1


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path):
    folder = tiny_reward_model(tmp_path)
    weights = load_file(folder / "model.safetensors")
    for number, (name, value) in enumerate((("model.norm.weight", torch.inf), ("score.weight", torch.nan))):
        damaged = weights | {name: torch.full_like(weights[name], value)}
        save_file(damaged, folder / "model.safetensors", {"format": "pt"})
        section = CPU.model_copy(update={"dtype": ("float32", "bfloat16")[number]})
        with pytest.raises(ModelLoadError, match=f"NaN or infinite, such as in {name}"):
            load_reward_model(str(folder), section)


def test_index_that_names_files_elsewhere_is_refused(tmp_path: Path):
    folder = tmp_path / "model"
    loading.load_causal_lm(str(tiny_causal_lm(tmp_path / "one")), CPU).save_pretrained(
        folder, max_shard_size="40KB"
    )
    loading.load_causal_lm(str(folder), CPU)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = next(iter(content["weight_map"]))
    for name in ("../one/model.safetensors", str(tmp_path / "one" / "model.safetensors"), "..", "a/b"):
        index.write_text(json.dumps(content | {"weight_map": content["weight_map"] | {first: name}}))
        with pytest.raises(ModelLoadError, match=f"index.json names '{name}'"):
            loading.load_causal_lm(str(folder), CPU)
    for text in ("[]", "{}", '{"weight_map": 1}', "{"):
        index.write_text(text)
        with pytest.raises(ModelLoadError, match="not a valid index"):
            loading.load_causal_lm(str(folder), CPU)


def test_impossible_configurations_and_paths_are_refused_by_name(tmp_path: Path):
    folder = tiny_causal_lm(tmp_path)
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(found | {"hidden_size": 10**30}))
    for path in (str(folder), "~nobody-of-this-name/model"):
        with pytest.raises(ModelLoadError, match=path):
            loading.load_causal_lm(path, CPU)


def test_command_of_the_refusal_converts_pickled_weights(tmp_path: Path):
    """Sharded weights with a head of their own, in a folder whose name needs quotes."""
    folder = tiny_reward_model(tmp_path / "it's a model")
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        torch.save({name: weights[name] for name in part}, folder / f"pytorch_model-{number:05}-of-00002.bin")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "optimizer.pt")
    with pytest.raises(ModelLoadError) as refused:
        load_reward_model(str(folder), CPU)
    run_conversion(refused.value)
    load_reward_model(str(folder), CPU)
    converted = load_file(folder / "model.safetensors")
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[name], weights[name]) for name in weights)


def run_conversion(refused: ModelLoadError) -> None:
    """Run the Python program that the message of a refusal contains."""
    words = shlex.split(str(refused)[str(refused).index("python -c ") :])
    exec(words[2], {})


@pytest.mark.slow  # a process of its own, since the hub's client reads its address only once
def test_model_of_the_hub_with_pickled_weights_is_not_taken_from_a_pull_request(tmp_path: Path):
    folder = tiny_causal_lm(tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    program = (
        "from fairlead.config.base import ComputeSection\n"
        "from fairlead.errors import ModelLoadError\n"
        "from fairlead.nn.loading import load_causal_lm\n"
        "try: load_causal_lm('org/old', ComputeSection(device='cpu'))\n"
        "except ModelLoadError as error: print(error)\n"
    )
    asked: list[str] = []
    with hub({}, models={"org/old": files}, asked=asked) as address:
        variables = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, env=os.environ | variables, capture_output=True, text=True, check=True, timeout=120
        )
    assert "`hf download org/old --local-dir old`" in done.stdout
    assert f"/org/old/resolve/{COMMIT}/model.safetensors" in asked
    assert not [path for path in asked if "pr/" in path or "discussions" in path or "commits" in path]


def test_model_of_the_hub_with_pickled_weights_is_named():
    cause = OSError(
        "org/old does not appear to have a file named model.safetensors or model.safetensors.index.json and "
        "thus cannot be loaded with `safetensors`. Please do not set `use_safetensors=True`."
    )
    message = str(load_failure("the model 'org/old'", "org/old", cause))
    assert "`hf download org/old --local-dir old`" in message
    assert "old/pytorch_model*.bin" in message
    assert message.endswith("and give the folder 'old'")


def test_tokenizer_fingerprints_differ_and_survive_saving(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = loading.load_tokenizer(str(tmp_path))
    assert loading.tokenizer_fingerprint(again) == loading.tokenizer_fingerprint(tokenizer)
    again.pad_token = "</s>"
    assert loading.tokenizer_fingerprint(again) == loading.tokenizer_fingerprint(tokenizer), "never read"
    assert loading.tokenizer_fingerprint(tiny_tokenizer(pad_is_eos=True)) != loading.tokenizer_fingerprint(
        tokenizer
    ), "without a token of its own for padding"
    again("w1 w2", padding="max_length", max_length=9, truncation=True)
    assert loading.tokenizer_fingerprint(again) == loading.tokenizer_fingerprint(tokenizer)


def test_limits_and_end_tokens_come_from_model_and_tokenizer(tmp_path: Path):
    model = loading.load_causal_lm(str(tiny_causal_lm(tmp_path)), CPU)
    assert loading.max_sequence_tokens(model, 0) == 128
    assert loading.max_sequence_tokens(model, 64) == 64
    assert loading.max_sequence_tokens(model, 4_096) == 128
    model.generation_config.eos_token_id = [2, 9]
    assert loading.eos_token_ids(model, tiny_tokenizer()) == {2, 9}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_reported():
    with pytest.raises(ModelLoadError, match="device = 'cuda', but torch finds no GPU"):
        loading.torch_device("cuda")
