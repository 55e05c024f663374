"""What a process of a stage would refuse a minute after its start, refused before: models that cannot be
divided as configured, and engines that are not installed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from fairlead.config import RunConfig
from fairlead.errors import ConfigError, FairleadError
from fairlead.nn.attention_heads import check_heads
from fairlead.planning.installed_vllm import require_vllm
from fairlead.planning.model_size import ModelSize
from fairlead.planning.plan import model_sizes
from fairlead.planning.vllm_memory import parallel_sizes

_OWN_ENGINES = {"policy": "transformers", "reward": "local", "reference": "local"}
_TRAINED = {"sft": "base", "reward_model": "reward_base", "preference": "preference", "ppo": "policy"}
"""The model that each stage trains, as `model_sizes` names it."""


def check_stage(config: RunConfig, stage: str, *, services: Collection[str]) -> None:
    """Check the settings of a stage on this machine.

    Args:
        config: the run.
        stage: `sft`, `reward_model`, `preference` or `ppo`.
        services: the model services that this machine starts for it.

    Raises:
        ConfigError: for the first setting that a process would refuse.
    """
    for name in services:
        if getattr(config, name).engine == "vllm":
            require_vllm(f"{name}.engine", instead=_OWN_ENGINES[name])
    if "reward" in services:
        config.reward.check_engine()
    try:
        sizes = model_sizes(config, [])
    except FairleadError:
        return  # the process that loads the model reports the error
    for field, parts, size, by_vllm in _divisions(config, stage, services, sizes):
        # vLLM repeats key-value heads that it cannot divide.
        key_value = None if by_vllm else size.key_value_heads
        check_heads(parts, attention=size.heads, key_value=key_value, model=size.name, field=field)


def check_earlier_models(config: RunConfig, stage: str, *, services: Collection[str]) -> None:
    """Check that earlier stages have left the models that a stage starts from, where no path names others.

    Args:
        config: the run.
        stage: as in `check_stage`.
        services: as in `check_stage`.

    Raises:
        ConfigError: one is missing; names the command that makes it.
    """
    starts_from = {"reward_model": ["reward_model"], "preference": ["preference"], "ppo": ["policy"]}
    keys = starts_from.get(stage, [])
    if "reference" in services:
        keys.append("reference")
    needed = [(key, config.folder.sft_model, "fairlead sft") for key in keys]
    if "reward" in services and config.reward.engine == _OWN_ENGINES["reward"]:
        needed.append(("reward", config.folder.reward_model, "fairlead reward-model"))
    for key, folder, command in needed:
        if not getattr(config, key).path and not folder.is_dir():
            raise ConfigError(
                f"{key}.path",
                got="no path",
                allowed=f"a model folder or hub id, because there is no {folder}; `{command}` makes it",
            )


def _divisions(
    config: RunConfig, stage: str, services: Collection[str], sizes: Mapping[str, ModelSize]
) -> Iterator[tuple[str, int, ModelSize, bool]]:
    """Yield the setting of each division, the number of parts, the model, and whether vLLM divides it."""
    yield "ranks.tensor_parallel", config.ranks.tensor_parallel, sizes[_TRAINED[stage]], False
    if "policy" in services and config.policy.engine == "vllm":
        yield "policy.vllm.tensor_parallel_size", parallel_sizes(config.policy)[0], sizes["policy"], True
    for name, section in (("reward", config.reward), ("reference", config.reference)):
        if name in services:
            yield f"{name}.tensor_parallel", section.tensor_parallel, sizes[name], section.engine == "vllm"
