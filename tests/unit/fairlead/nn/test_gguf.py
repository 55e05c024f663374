"""GGUF files as models: equal logits, plain safetensors after saving, sizes for the plan, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fairlead.config.base import ComputeSection
from fairlead.errors import ModelLoadError
from fairlead.nn import adapters
from fairlead.nn.loading import load_causal_lm, load_config, load_tokenizer
from fairlead.nn.reward_model import load_reward_model
from fairlead.planning.model_size import model_size
from tests.tiny import tiny_causal_lm

gguf = pytest.importorskip("gguf", reason="needs the extra gguf")
SECTION = ComputeSection(device="cpu")
IDS = torch.tensor([[1, 9, 30, 12, 51]])
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_gguf(source: Path, file: Path) -> None:
    """Write a tiny Llama as llama.cpp's converter does, with a byte-level tokenizer of letters."""
    model = AutoModelForCausalLM.from_pretrained(source)
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *LETTERS, "Ġ", "ab"]
    tokens += [f"<filler{number}>" for number in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 4 + [1] * (len(tokens) - 4))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:  # llama.cpp rotates neighbours, transformers halves
                halves = values.reshape(heads, 2, values.shape[0] // heads // 2, -1)
                values = halves.swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values, dtype=np.float32)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def file(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(source, target)
    return target


@pytest.mark.parametrize("as_folder", [False, True])
def test_gguf_gives_the_logits_of_its_source_and_is_saved_as_safetensors(
    source: Path, file: Path, tmp_path: Path, as_folder: bool
):
    path = str(file.parent if as_folder else file)
    expected = AutoModelForCausalLM.from_pretrained(source)(IDS).logits
    model = load_causal_lm(path, SECTION)
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=0)

    tokenizer = load_tokenizer(path)
    assert tokenizer.eos_token_id == 2
    assert load_config(path).num_hidden_layers == 2
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in (tmp_path / "saved" / "config.json").read_text()
    again = load_causal_lm(str(tmp_path / "saved"), SECTION)
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, atol=0, rtol=0)
    assert load_tokenizer(str(tmp_path / "saved")).encode("abc d") == tokenizer.encode("abc d")


def test_plan_reads_the_size_of_a_gguf_file(source: Path, file: Path):
    size, expected = model_size(str(file)), model_size(str(source))
    for field in ("parameters", "unembedding", "hidden", "intermediate", "layers", "key_value_width"):
        assert getattr(size, field) == getattr(expected, field), field
    assert sorted(size.matrices) == sorted(expected.matrices)
    assert (size.vocabulary, size.max_positions) == (expected.vocabulary, expected.max_positions)


def test_reward_model_starts_from_gguf_but_is_not_served_from_it(file: Path):
    assert load_reward_model(str(file), SECTION, fresh_head=True).head.weight.shape == (1, 32)
    with pytest.raises(ModelLoadError, match="GGUF file is a language model without a reward head"):
        load_reward_model(str(file), SECTION)
    assert adapters.fingerprint(str(file)) == adapters.fingerprint(str(file.parent))


def test_unusable_gguf_files_are_refused_in_one_line(tmp_path: Path):
    with pytest.raises(ModelLoadError, match="no GGUF file"):
        load_causal_lm(str(tmp_path / "missing.gguf"), SECTION)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    for load in (lambda path: load_causal_lm(path, SECTION), load_tokenizer, model_size):
        with pytest.raises(ModelLoadError):
            load(str(tmp_path / "a.gguf"))
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match="2 GGUF files"):
        load_tokenizer(str(tmp_path))
