"""What `fairlead plan` knows of vLLM, and the files in configs/, against the installed vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.config import load
from fairlead.planning import vllm_memory
from fairlead.planning.model_size import model_size
from tests import model_shapes

CONFIGS = Path(__file__).parents[2] / "configs"
SHAPES = {"llama8b.toml": "Llama-3.1-8B", "llama70b.toml": "Llama-3.1-70B"}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_defaults_of_the_plan_are_those_of_vllm():
    from vllm.config import CacheConfig, SchedulerConfig

    assert CacheConfig().gpu_memory_utilization == vllm_memory.UTILISATION
    assert SchedulerConfig.DEFAULT_MAX_NUM_BATCHED_TOKENS == vllm_memory.BATCH_TOKENS
    assert SchedulerConfig.DEFAULT_MAX_NUM_SEQS == vllm_memory.SEQUENCES


@pytest.mark.parametrize("name", SHAPES)
def test_vllm_takes_the_options_of_a_shipped_file(name: str, tmp_path: Path):
    from services.policy.vllm import options

    model = model_shapes.write(tmp_path / "model", SHAPES[name])
    config = load(CONFIGS / name, overrides={"policy.path": str(model)})
    arguments = options.engine_args(config, str(model), max_sequence_tokens=config.policy.max_sequence_tokens)
    settings = arguments.create_engine_config()
    parallel, cache = settings.parallel_config, settings.cache_config
    found = vllm_memory.of_policy(config.policy, model_size(str(model)), config.ppo.lora)
    assert (parallel.tensor_parallel_size, parallel.pipeline_parallel_size) == (found.tensor, found.pipeline)
    assert cache.gpu_memory_utilization == config.policy.vllm["gpu_memory_utilization"]
    assert settings.scheduler_config.max_num_seqs == found.sampler_rows
    assert settings.scheduler_config.max_num_batched_tokens == vllm_memory.BATCH_TOKENS
    heads = settings.model_config.get_num_kv_heads(parallel)
    layers = settings.model_config.get_num_layers(parallel)
    token_bytes = layers * 2 * heads * settings.model_config.get_head_size() * 2
    planned = vllm_memory.vllm_memory(found, device="cuda", device_bytes=80 << 30)
    assert planned.token_bytes == token_bytes
