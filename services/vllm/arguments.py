"""From the section of the reward or reference service to vLLM's own arguments."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from fairlead.config.serving import VLLM_OPTIONS_OF_SCORERS, ReferenceSection, RewardSection
from fairlead.planning.installed_vllm import require_vllm
from services.vllm import install

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

WORKER = "services.vllm.worker.ServiceWorker"
"""The class that vLLM adds to its workers."""


def engine_args(
    path: str,
    section: RewardSection | ReferenceSection,
    *,
    service: str,
    max_sequence_tokens: int,
    **own: object,
) -> AsyncEngineArgs:
    """Return vLLM's arguments for a model that is only read, and set the environment of vLLM.

    Args:
        path: folder or hub id of the model.
        section: the section of the service.
        service: name of the service.
        max_sequence_tokens: length of the longest sequence.
        own: further arguments that the service sets.

    Raises:
        ConfigError: if vLLM is missing, the model is of a kind that it does not load here, or it does not
            have an option of the section.
    """
    require_vllm(f"{service}.engine", instead="local")
    install.check_source(path, service=service)
    install.set_environment(threads=section.threads)
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    install.check_options(section.vllm, known, refused=VLLM_OPTIONS_OF_SCORERS, field=f"{service}.vllm")
    arguments: dict[str, object] = {
        "model": path,
        "dtype": section.dtype,
        "max_model_len": max_sequence_tokens,
        "tensor_parallel_size": section.tensor_parallel,
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        # Never pickle, which vLLM would read from a folder without safetensors.
        "load_format": "safetensors",
        "generation_config": "vllm",
        "worker_extension_cls": WORKER,
        "disable_log_stats": True,
        "enable_log_requests": False,
    }
    return AsyncEngineArgs(**arguments, **own, **section.vllm)
