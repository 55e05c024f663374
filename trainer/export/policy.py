"""Export of a run's policy: finds the weights and writes a folder that AutoModelForCausalLM loads.

Reads only the run's folder: no service and no queue. The run may still be in progress.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from fairlead.config import RunConfig, RunFolder
from fairlead.config.base import ComputeSection
from fairlead.config.sampling import SamplingSection
from fairlead.data.control import policy_stop_ids
from fairlead.data.template import apply_settings
from fairlead.errors import ConfigError, InvalidInput
from fairlead.nn import adapters
from fairlead.nn.loading import eos_token_ids, load_causal_lm, load_tokenizer
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import WeightVersion
from trainer import lineage
from trainer.checkpoint import CheckpointStore
from trainer.ppo import actor_critic

_EXACT = ComputeSection(device="cpu")


@dataclass(frozen=True, slots=True)
class ExportedPolicy:
    """Weights of a run, in float32."""

    model: PreTrainedModel
    """The model."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    which: str
    """The requested weights: `last`, `best`, `ema`, `preference`, `sft` or a version."""
    version: WeightVersion | None
    """Version of the weights; None before PPO, and if the run no longer records it."""

    @property
    def described(self) -> str:
        """Description of the weights for people."""
        names = {
            "last": "the last weights",
            "best": "the best weights",
            "ema": "the average of the weights",
            "sft": "the weights before PPO",
            "preference": "the weights of the preference stage",
        }
        name = names.get(self.which, "the requested weights")
        return f"{name}, version {self.version}" if self.version else name


def read(config: RunConfig, folder: RunFolder, which: str, *, adapter: bool = False) -> ExportedPolicy:
    """Read the requested weights.

    Args:
        config: the configuration of the run.
        folder: the present folder of the run.
        which: `last`, `best`, `ema`, `preference`, `sft`, or a version such as `1-20`.
        adapter: keep the adapter of a run with `[ppo.lora]` separate instead of merging it into its base.

    Raises:
        ConfigError: if the run has no such weights; names those that it has.
        CorruptData: if the weights are damaged.
        ModelLoadError: if the model that they belong to cannot be loaded.
    """
    if adapter and (not config.ppo.lora.rank or which in ("sft", "preference")):
        raise ConfigError("adapter", got=which, allowed="PPO weights of a run with [ppo.lora] rank above 0")
    found = _find(config, folder, which)
    if adapters.is_adapted(found.model) and not adapter:
        return replace(found, model=adapters.merged(found.model))
    if adapter and not adapters.is_adapted(found.model):
        raise ConfigError(
            "adapter",
            got=f"{which}, which the run saved as a merged model",
            allowed=f"a version: {_known(folder, config)}",
        )
    return found


def _find(config: RunConfig, folder: RunFolder, which: str) -> ExportedPolicy:
    saved = {
        "sft": (folder.sft_model, "fine-tuned model"),
        "preference": (folder.preference_model, "policy of the preference stage"),
    }
    if which in saved:
        model, what = saved[which]
        if not model.is_dir():
            raise ConfigError("which", got=which, allowed=f"{_known(folder)}: the run has no {what}")
        path = str(model)
        return ExportedPolicy(load_causal_lm(path, _EXACT), load_tokenizer(path), which, None)
    result = _result(folder)
    if which == "best":
        if not result or not folder.best_policy_model.is_dir():
            raise ConfigError(
                "which",
                got=which,
                allowed=f"{_known(folder)}; `best` exists once PPO has ended with evaluations",
            )
        return _from_folder(
            config, folder, folder.best_policy_model, which, _version(folder, result.get("best_update"))
        )
    if which == "ema":
        if not result or not folder.average_policy_model.is_dir():
            allowed = f"{_known(folder)}; `ema` exists once PPO has ended with ppo.ema_decay"
            raise ConfigError("which", got=which, allowed=allowed)
        version = _version(folder, result.get("updates"))
        return _from_folder(config, folder, folder.average_policy_model, which, version)
    if which == "last":
        return _last(config, folder, result)
    try:
        version = WeightVersion.parse(which)
    except InvalidInput:
        raise ConfigError("which", got=which, allowed=_known(folder)) from None
    return _of_version(config, folder, version)


def save(policy: ExportedPolicy, folder: Path, sampling: SamplingSection, *, dtype: torch.dtype) -> None:
    """Write model, tokenizer and generation settings: `generate` then samples as the run's workers did.

    For an adapter that is separate from its base, only the adapter and the tokenizer are written.
    """
    model = policy.model
    tokenizer = policy.tokenizer
    ends = sorted(eos_token_ids(model, tokenizer) | policy_stop_ids(tokenizer))
    pad = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_new_tokens=sampling.max_new_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends,
        pad_token_id=pad if isinstance(pad, int) else next(iter(ends), None),
    )
    nn.Module.to(model, dtype)
    if adapters.is_adapted(model):
        adapters.save(model, folder, merge=False)
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _last(config: RunConfig, folder: RunFolder, result: dict[str, object]) -> ExportedPolicy:
    if result and folder.policy_model.is_dir():
        return _from_folder(
            config, folder, folder.policy_model, "last", _version(folder, result.get("updates"))
        )
    checkpoint = CheckpointStore(folder.checkpoints).load_newest(lineage.read(folder.checkpoints))
    if checkpoint is None:
        raise ConfigError("which", got="last", allowed=f"{_known(folder)}: PPO has written no weights yet")
    return _with_tensors(config, folder, checkpoint.tensors["policy"], "last", checkpoint.version)


def _of_version(config: RunConfig, folder: RunFolder, version: WeightVersion) -> ExportedPolicy:
    checkpoints = CheckpointStore(folder.checkpoints)
    if version in checkpoints.versions():
        checkpoint = checkpoints.load(version)
        return _with_tensors(config, folder, checkpoint.tensors["policy"], str(version), version)
    store = _store(config, folder)
    if version not in store.versions():
        raise ConfigError("which", got=str(version), allowed=_known(folder, config))
    shards = sorted(store.fetch(version).glob("*.safetensors"))
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    return _with_tensors(config, folder, tensors, str(version), version)


def _from_folder(
    config: RunConfig, folder: RunFolder, path: Path, which: str, version: WeightVersion | None
) -> ExportedPolicy:
    """Read what PPO saved at its end: a whole model, or an adapter, which is not merged yet."""
    file = path / adapters.WEIGHTS_FILE
    if file.is_file():
        return _with_tensors(config, folder, load_file(file), which, version)
    return ExportedPolicy(load_causal_lm(str(path), _EXACT), load_tokenizer(str(path)), which, version)


def _with_tensors(
    config: RunConfig,
    folder: RunFolder,
    tensors: Mapping[str, Tensor],
    which: str,
    version: WeightVersion | None,
) -> ExportedPolicy:
    """Return the model that PPO started from, with the weights that PPO trained."""
    path = config.policy.path or str(folder.sft_model)
    model = load_causal_lm(path, _EXACT)
    if config.ppo.lora.rank:
        adapters.add(model, config.ppo.lora, base=path, field="ppo.lora", seed=0)
    tokenizer = load_tokenizer(path)
    if config.policy.path:
        apply_settings(tokenizer, config)
    return ExportedPolicy(actor_critic.with_tensors(model, tensors), tokenizer, which, version)


def _store(config: RunConfig, folder: RunFolder) -> FilesystemWeightStore:
    return FilesystemWeightStore(Path(config.weights.path) if config.weights.path else folder.weights)


def _version(folder: RunFolder, update: object) -> WeightVersion | None:
    """Return the version of an update in the run's final lineage."""
    ancestors = lineage.read(folder.checkpoints)
    if not isinstance(update, int) or not ancestors:
        return None
    # An incarnation made the updates from where it began to where the next one began.
    incarnation = max(
        (ancestor.incarnation for ancestor in ancestors if ancestor.resumed_from < update),
        default=ancestors[-1].incarnation,
    )
    return WeightVersion(incarnation, update)


def _result(folder: RunFolder) -> dict[str, object]:
    try:
        found = json.loads(folder.result("ppo").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _known(folder: RunFolder, config: RunConfig | None = None) -> str:
    """List the weights that the run has."""
    names = [
        name
        for name, path in (
            ("best", folder.best_policy_model),
            ("ema", folder.average_policy_model),
            ("preference", folder.preference_model),
            ("sft", folder.sft_model),
        )
        if path.is_dir()
    ]
    versions = set(CheckpointStore(folder.checkpoints).versions())
    if config is not None:
        versions |= set(_store(config, folder).versions())
    if versions or folder.policy_model.is_dir():
        names.insert(0, "last")
    return ", ".join([*names, *map(str, sorted(versions))]) or "nothing: the run has no weights"
