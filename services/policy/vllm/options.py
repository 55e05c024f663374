"""From the configuration of the policy service to vLLM's own arguments.

Imports vllm only after its version was checked and its environment was set.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from fairlead.config import RunConfig
from fairlead.config.serving import VLLM_OPTIONS_SET_BY_FAIRLEAD
from fairlead.errors import ConfigError
from fairlead.planning.installed_vllm import require_vllm
from services.vllm import install

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

WORKER = "services.policy.vllm.worker.WeightLoader"
"""The class that vLLM adds to its workers."""

_PROBE_REQUESTS = 32
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def engine_args(config: RunConfig, path: str, *, max_sequence_tokens: int) -> AsyncEngineArgs:
    """Return vLLM's arguments for a run's policy.

    Args:
        config: the run.
        path: folder or hub id of the model.
        max_sequence_tokens: length of the longest sequence.

    Raises:
        ConfigError: if vLLM is missing, the model is of a kind that it does not load here, or it does not
            have an option of `[policy.vllm]`.
    """
    require_vllm("policy.engine", instead="transformers")
    install.check_source(path, service="policy")
    install.set_environment(threads=config.policy.threads)
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    options = config.policy.vllm
    install.check_options(options, known, refused=VLLM_OPTIONS_SET_BY_FAIRLEAD, field="policy.vllm")
    return AsyncEngineArgs(**_own(config, path, max_sequence_tokens), **place(config), **options)


def place(config: RunConfig) -> dict[str, Any]:
    """Return the place of this process among the nodes that share one engine, as LeaderWorkerSet names it.

    Raises:
        ConfigError: if a setting cannot be used on several nodes.
    """
    options = config.policy.vllm
    if options.get("nnodes", 1) == 1:
        return {}
    if config.ppo.lora.rank:
        raise ConfigError(
            "ppo.lora.rank",
            got=config.ppo.lora.rank,
            allowed="0 with policy.vllm.nnodes above 1: an adapter is loaded from files of one machine",
        )
    if config.weights.transport != "filesystem":
        raise ConfigError(
            "weights.transport",
            got=config.weights.transport,
            allowed="filesystem with policy.vllm.nnodes above 1: every node reads weights from the volume",
        )
    variables = {"node_rank": "LWS_WORKER_INDEX", "master_addr": "LWS_LEADER_ADDRESS"}
    found = {name: os.environ[key] for name, key in variables.items() if key in os.environ}
    return {
        name: int(value) if name == "node_rank" else value
        for name, value in found.items()
        if name not in options
    }


def _own(config: RunConfig, path: str, max_sequence_tokens: int) -> dict[str, Any]:
    section, lora = config.policy, config.ppo.lora
    own: dict[str, Any] = {
        "model": path,
        "dtype": section.dtype,
        "max_model_len": max_sequence_tokens,
        # More for the probe, which must not wait for samples that wait for it.
        "max_num_seqs": section.max_slots + _PROBE_REQUESTS,
        "scheduling_policy": "priority",
        "seed": config.seed % (1 << 32),
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        # Never pickle, which vLLM would read from a folder without safetensors.
        "load_format": "safetensors",
        # No defaults from the model's generation_config.json: requests are complete.
        "generation_config": "vllm",
        # Of the distribution that is sampled from, after temperature, top-k and top-p.
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": WORKER,
        "disable_log_stats": True,
        "enable_log_requests": False,
    }
    if lora.rank:
        ranks = [rank for rank in _LORA_RANKS if rank >= lora.rank]
        if not ranks:
            raise ConfigError(
                "ppo.lora.rank", got=lora.rank, allowed=f"at most {_LORA_RANKS[-1]} with policy.engine 'vllm'"
            )
        # Two, so that samples of the last version finish while the next is in use.
        own |= {"enable_lora": True, "max_lora_rank": ranks[0], "max_loras": 2, "max_cpu_loras": 3}
    return own
